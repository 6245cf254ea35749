"""`tamis sql` answers questions and does nothing else, whoever asks."""

from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text

from db.engine import check_ready
from db.query import ask
from db.store import StoreError

NO_QUESTIONS = [
    "COPY (SELECT 1) TO PROGRAM 'id > {file}'",
    "COPY (SELECT 1) TO '{file}'",
    "/* SELECT */ -- SELECT\n COPY (SELECT 1) TO '{file}'",
    "ATTACH '{file}' AS other",
    "VACUUM INTO '{file}'",
    "PRAGMA journal_mode = DELETE",
    "CREATE TABLE x (a int)",
    "DELETE FROM run",
    "DROP VIEW result",
    "SET ROLE none",
    "DO 'BEGIN END'",
    "",
    "-- nothing",
]


@pytest.fixture
def ready_url(database_url: str) -> str:
    check_ready(database_url)
    return database_url


@pytest.mark.parametrize("query", NO_QUESTIONS)
def test_only_questions_are_answered_and_nothing_is_left_behind(ready_url, tmp_path, query):
    file = tmp_path / "left"
    with pytest.raises(StoreError, match="only questions are answered here"):
        ask(ready_url, query.format(file=file))
    assert not file.exists()


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1 AS a",
        " -- how many\n/* runs? */ select count(*) AS a from run",
        "(SELECT 1 AS a)",
        "WITH one AS (SELECT 1 AS a) SELECT a FROM one",
        "WITH RECURSIVE n(a) AS (SELECT 1 UNION ALL SELECT a + 1 FROM n WHERE a < 3) SELECT a FROM n",
        "VALUES (1)",
        "EXPLAIN SELECT * FROM result",
        "SELECT count(*) AS a FROM result",
    ],
)
def test_every_kind_of_question_is_answered(ready_url, query):
    if query.startswith("(") and ready_url.startswith("sqlite"):
        pytest.skip("SQLite knows no SELECT in brackets")
    assert ask(ready_url, query)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT pg_reload_conf()",
        "SELECT pg_read_file('PG_VERSION')",
        "SELECT pg_ls_dir('.')",
        "SELECT lo_export(1, '{file}')",
        "SELECT lo_import('PG_VERSION')",
        "WITH gone AS (DELETE FROM run RETURNING 1) SELECT * FROM gone",
        "EXPLAIN ANALYZE DELETE FROM run",
        "SELECT 1; DELETE FROM run",
        "SELECT nextval('run_id_seq')",
        "SELECT 1 AS a INTO left_behind",
        "SELECT set_config('role', 'none', false), query_to_xml('SELECT pg_reload_conf()', true, true, '')",
        "SELECT query_to_xml(U&'SELECT set\\005fconfig(1)', true, true, '')",
        "SELECT query_to_xml('SELECT pg_reload_conf()', true, true, '')",
    ],
)
@pytest.mark.postgres
def test_a_superuser_of_postgres_can_only_read_here(postgres_url, tmp_path, query):
    check_ready(postgres_url)
    with pytest.raises(StoreError):
        ask(postgres_url, query.format(file=tmp_path / "left"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.postgres
def test_a_user_who_may_not_take_other_rights_asks_with_its_own(postgres_url):
    check_ready(postgres_url)
    url = make_url(postgres_url).set(drivername="postgresql+psycopg")
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.execute(text("CREATE ROLE analyst LOGIN PASSWORD 'x'"))
            connection.execute(text("GRANT SELECT ON result TO analyst"))
        mine = url.set(drivername="postgresql", username="analyst", password="x")
        shown = mine.render_as_string(hide_password=False)
        assert ask(shown, "SELECT count(*) AS n FROM result") == [{"n": 0}]
        with pytest.raises(StoreError, match="permission denied"):
            ask(shown, "SELECT * FROM label")
    finally:
        with engine.connect() as connection:
            connection.execute(text("DROP OWNED BY analyst"))
            connection.execute(text("DROP ROLE analyst"))
        engine.dispose()


@pytest.mark.parametrize(
    "query",
    [
        "SELECT load_extension('x')",
        "SELECT * FROM pragma_journal_mode('DELETE')",
        "WITH a AS (SELECT 1) DELETE FROM run",
        "WITH a AS (SELECT 1) INSERT INTO run (key) SELECT 'x' FROM a",
        "EXPLAIN DELETE FROM run",
        "SELECT 1; DELETE FROM run",
        "EXPLAIN ATTACH 'left' AS other",
    ],
)
def test_sqlite_itself_does_nothing_but_read(sqlite_url, tmp_path, monkeypatch, query):
    monkeypatch.chdir(tmp_path)
    check_ready(sqlite_url)
    with pytest.raises(StoreError):
        ask(sqlite_url, query)
    assert not Path("left").exists()


def test_the_columns_of_a_view_can_be_asked_for(sqlite_url):
    check_ready(sqlite_url)
    names = ask(sqlite_url, "SELECT name FROM pragma_table_info('result') ORDER BY cid")
    assert names[0] == {"name": "run"}
