import os
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect, make_url, text

from db.engine import check_ready, current, open_engine, read_only_engine, upgrade
from db.errors import DatabaseError, EmptyDatabase, StoreError
from db.query import ask
from db.store import Store
from tests.project import tier_by

VERSIONS = Path(__file__).parent.parent / "migrations" / "versions"
NEWEST = max(path.name for path in VERSIONS.glob("[0-9]*.py"))[:4]


def execute(url: str, *statements: str) -> None:
    engine = open_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


def test_an_empty_database_gets_its_schema(database_url):
    assert current(database_url) is None
    check_ready(database_url)
    assert current(database_url) == NEWEST
    check_ready(database_url)
    upgrade(database_url)


def test_a_database_of_somebody_else_is_refused_and_left_alone(database_url):
    execute(database_url, "CREATE TABLE theirs (id INTEGER)")
    with pytest.raises(DatabaseError, match="holds tables, but none of Tamis; give an empty"):
        check_ready(database_url)
    assert ask(database_url, "SELECT COUNT(*) AS n FROM theirs") == [{"n": 0}]


def test_an_older_database_is_refused_with_the_command_to_upgrade(database_url, monkeypatch):
    check_ready(database_url)
    monkeypatch.setattr("db.engine.HEAD", "9999")
    with pytest.raises(
        DatabaseError, match=r"at revision \d{4}, but this Tamis needs 9999"
    ) as told:
        check_ready(database_url)
    assert "run: tamis db upgrade --database " in str(told.value)


def test_a_newer_database_is_refused(database_url):
    check_ready(database_url)
    execute(database_url, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(DatabaseError, match=r"at revision 9999, .* install the newer Tamis"):
        check_ready(database_url)


def test_sqlite_is_set_up_for_one_writer_and_many_readers(sqlite_url):
    engine = open_engine(sqlite_url)
    wanted = {
        "journal_mode": "wal",
        "synchronous": 1,
        "foreign_keys": 1,
        "busy_timeout": 30000,
        "temp_store": 2,
    }
    with engine.connect() as connection:
        found = {name: connection.scalar(text(f"PRAGMA {name}")) for name in wanted}
    engine.dispose()
    assert found == wanted


def test_readers_are_not_held_up_by_a_writer(sqlite_url):
    check_ready(sqlite_url)
    engine = open_engine(sqlite_url)
    with engine.connect().execution_options(writes=True) as writer, writer.begin():
        writer.execute(text("INSERT INTO judge (digest, description) VALUES ('a', '{}')"))
        assert ask(sqlite_url, "SELECT COUNT(*) AS n FROM judge") == [{"n": 0}]
    engine.dispose()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(url):
    with pytest.raises(DatabaseError, match="remembers nothing; write sqlite:///"):
        open_engine(url)


@pytest.mark.parametrize("url", ["tamis.db", "mysql://host/name"])
def test_an_unknown_url_is_refused_with_an_example(url):
    with pytest.raises(DatabaseError, match=r"write (sqlite:///|a URL of sqlite or postgresql)"):
        open_engine(url)


def test_both_spellings_of_postgres_are_understood():
    for scheme in ("postgres", "postgresql"):
        engine = open_engine(f"{scheme}://host/name")
        assert engine.dialect.driver == "psycopg"
        engine.dispose()


def test_a_read_only_engine_cannot_write(database_url):
    check_ready(database_url)
    engine = read_only_engine(database_url)
    with (
        pytest.raises(Exception, match=r"readonly database|read-only transaction"),
        engine.begin() as connection,
    ):
        connection.execute(text("INSERT INTO judge (digest, description) VALUES ('a', '{}')"))
    engine.dispose()
    with pytest.raises(StoreError, match="only questions are answered"):
        ask(database_url, "DELETE FROM judge")


def test_a_read_only_engine_makes_no_file(sqlite_url, tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(StoreError, match="cannot be opened; check the path"):
        ask(sqlite_url, "SELECT 1")
    assert not list((tmp_path / "data").iterdir())


def test_a_read_only_file_is_refused(sqlite_url):
    check_ready(sqlite_url)
    path = sqlite_url.removeprefix("sqlite:///")
    frozen = f"sqlite:///file:{path}?mode=ro&uri=true"
    with pytest.raises(DatabaseError, match="it is read-only; make the file and its folder"):
        check_ready(frozen)
    engine = open_engine(frozen)
    with pytest.raises(DatabaseError, match="it is read-only"):
        Store(engine).runs.open("papers", {}, "hash", [tier_by("fast")])
    engine.dispose()


@pytest.mark.postgres
def test_a_read_only_server_is_refused(postgres_url):
    check_ready(postgres_url)
    name = postgres_url.rpartition("/")[2].partition("?")[0]
    execute(postgres_url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with pytest.raises(DatabaseError, match="is read-only; use a user and a server that may"):
        check_ready(postgres_url)


def test_an_unreachable_server_is_told_without_the_password():
    url = "postgresql://reader:secret@127.0.0.1:1/tamis"
    for refused in (check_ready, current, upgrade):
        with pytest.raises(DatabaseError, match="the server cannot be reached") as told:
            refused(url)
        assert "secret" not in str(told.value)
        assert "reader:***@127.0.0.1:1/tamis" in str(told.value)


@pytest.mark.postgres
def test_a_missing_database_is_told(postgres_url):
    url = postgres_url.replace("/test_", "/missing_")
    with pytest.raises(DatabaseError, match=r'database "missing_.*" does not exist'):
        check_ready(url)


def test_a_file_of_another_kind_is_told(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("This is no database. " * 100)
    with pytest.raises(DatabaseError, match="not an SQLite database; give another path"):
        check_ready(f"sqlite:///{path}")


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DatabaseError, match=r"folder .*file.* cannot be made"):
        open_engine(f"sqlite:///{tmp_path}/file/tamis.db")


def test_a_damaged_file_is_told(sqlite_url):
    check_ready(sqlite_url)
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    damaged = bytearray(path.read_bytes())
    damaged[100:4000] = b"\xff" * 3900
    path.write_bytes(damaged)
    with pytest.raises(DatabaseError, match="damaged; restore it from a copy"):
        check_ready(sqlite_url)


@pytest.mark.parametrize("name", ["connection", "malformed", "permission"])
def test_a_mistake_in_a_query_is_not_taken_for_trouble_of_the_database(database_url, name):
    check_ready(database_url)
    with pytest.raises(StoreError, match="the database refuses the query: .*" + name) as told:
        ask(database_url, f"SELECT {name} FROM result")
    assert not isinstance(told.value, DatabaseError)


def test_an_unknown_host_is_told():
    with pytest.raises(DatabaseError, match="the server cannot be reached"):
        check_ready("postgresql://nowhere.invalid/tamis")


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM run",
        "CREATE TABLE more (a int)",
        "SELECT 1; CREATE TABLE more (a int)",
        "SET TRANSACTION READ WRITE; CREATE TABLE more (a int); COMMIT",
    ],
)
def test_a_typed_query_can_change_nothing(database_url, query):
    check_ready(database_url)
    with pytest.raises(StoreError):
        ask(database_url, query)
    engine = open_engine(database_url)
    assert "more" not in inspect(engine).get_table_names()
    engine.dispose()


def test_a_typed_query_is_taken_as_it_stands(database_url):
    check_ready(database_url)
    (row,) = ask(database_url, "SELECT 7 % 4 AS a, 'x%y:z' AS b, 1 AS c, 2 AS c")
    assert row == {"a": 3, "b": "x%y:z", "c": 1, "c_2": 2}


def test_who_only_reads_makes_no_database(database_url: str) -> None:
    with pytest.raises(EmptyDatabase, match=r"no runs yet: looked in .*; start one with tamis run"):
        check_ready(database_url, create=False)
    assert current(database_url) is None
    if database_url.startswith("sqlite"):
        assert not Path(database_url.removeprefix("sqlite:///")).exists()
    check_ready(database_url)
    check_ready(database_url, create=False)


def test_nobody_else_on_the_machine_can_read_a_new_database(sqlite_url):
    path = Path(make_url(sqlite_url).database or "")
    before = os.umask(0o022)
    try:
        check_ready(sqlite_url)
        engine = open_engine(sqlite_url)
        with engine.connect() as connection:
            connection.execute(text("SELECT COUNT(*) FROM run"))
            made = sorted(path.parent.iterdir())
            rights = {file.name: oct(file.stat().st_mode & 0o777) for file in made}
        engine.dispose()
    finally:
        os.umask(before)
    assert rights == dict.fromkeys(["tamis.db", "tamis.db-shm", "tamis.db-wal"], "0o600")
    assert oct(path.parent.stat().st_mode & 0o777) == "0o700"


def test_a_database_that_its_owner_shares_stays_shared(sqlite_url):
    check_ready(sqlite_url)
    path = Path(make_url(sqlite_url).database or "")
    path.chmod(0o640)
    check_ready(sqlite_url)
    assert oct(path.stat().st_mode & 0o777) == "0o640"


def test_a_missing_grant_is_named(postgres_url: str) -> None:
    check_ready(postgres_url)
    owner = make_url(postgres_url).set(drivername="postgresql+psycopg")
    engine = create_engine(owner, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE ROLE reader_{os.getpid()} LOGIN"))
        connection.execute(text(f"GRANT SELECT ON result TO reader_{os.getpid()}"))
        for right in ("alembic_version", "run"):
            connection.execute(text(f"GRANT SELECT ON {right} TO reader_{os.getpid()}"))
    reader = owner.set(drivername="postgresql", username=f"reader_{os.getpid()}")
    url = reader.render_as_string(False)
    check_ready(url, create=False)
    reading = open_engine(url)
    with pytest.raises(
        DatabaseError, match=r"may not use verdict; .*GRANT SELECT ON verdict TO reader"
    ):
        Store(reading).runs.account(1)
    reading.dispose()
    with engine.connect() as connection:
        connection.execute(text(f"DROP OWNED BY reader_{os.getpid()}"))
        connection.execute(text(f"DROP ROLE reader_{os.getpid()}"))
    engine.dispose()
