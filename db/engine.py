"""Opening the database, and bringing its schema to the revision that this code expects."""

import os
import sqlite3
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError

import migrations
from db.errors import DatabaseError, EmptyDatabase, WrongUrl, explained, shown

if TYPE_CHECKING:
    from alembic.config import Config

# Alembic takes longer to import than a question to be answered: only those who need it do.

_PRAGMAS = (
    "PRAGMA busy_timeout = 30000",
    "PRAGMA foreign_keys = ON",
    "PRAGMA temp_store = MEMORY",
    "PRAGMA cache_size = -65536",  # 64 MiB: the random digests of a million texts stay in it
)
_WRITER_PRAGMAS = (
    # A usual text fills a page of 4,096 bytes, wastes its rest, and costs a system call each time.
    "PRAGMA page_size = 32768",
    # With WAL, a power cut may undo the last seconds, but never damages the file.
    "PRAGMA synchronous = NORMAL",
)
_LEAN_PRAGMAS = ("PRAGMA temp_store = FILE", "PRAGMA cache_size = -16384")
_WAL_TRIES = 300
# Two processes that both find Postgres empty take turns.
_UPGRADE_LOCK = int.from_bytes(b"tamis")


_VERSIONS = Path(migrations.__file__).parent / "versions"
HEAD = max(path.name.partition("_")[0] for path in _VERSIONS.glob("[0-9]*.py"))
"""The newest revision: migrations are files named by number."""


def open_engine(url: str) -> Engine:
    """An engine that reads and writes; creates the folder of an SQLite file, not the schema.

    A connection with the execution option `writes=True` takes SQLite's write lock when its
    transaction begins, so that it waits for another writer and never fails half-way.
    """
    parsed = _parsed(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(parsed, pool_pre_ping=True)
    if not parsed.database or parsed.database == ":memory:":
        raise WrongUrl("an in-memory database remembers nothing; write sqlite:///tamis.db")
    if not parsed.query:
        _make_folder(Path(parsed.database).parent)
    engine = create_engine(parsed)
    if not parsed.query:
        _keep_private(engine, Path(parsed.database))
    _prepare_sqlite(engine, *_PRAGMAS, *_WRITER_PRAGMAS)
    event.listen(engine, "connect", _use_wal)
    return engine


def read_only_engine(url: str, *, lean: bool = False) -> Engine:
    """An engine on which every write fails, for queries that somebody else typed.

    Args:
        url: of the database.
        lean: whether SQLite keeps what it sorts in files instead of in memory.
    """
    parsed = _parsed(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(
            parsed,
            pool_pre_ping=True,
            connect_args={"options": "-c default_transaction_read_only=on"},
        )
    if not parsed.query:
        path = Path(parsed.database or "").absolute().as_uri()
        parsed = parsed.set(database=path, query={"mode": "ro", "uri": "true"})
    engine = create_engine(parsed)
    _prepare_sqlite(engine, *_PRAGMAS, *(_LEAN_PRAGMAS if lean else ()), "PRAGMA query_only = ON")
    return engine


def upgrade(url: str) -> None:
    """Bring the schema to head in one transaction: all of it, or nothing."""
    from alembic import command

    engine = open_engine(url)
    try:
        with engine.connect().execution_options(writes=True) as connection, connection.begin():
            if engine.dialect.name == "postgresql":
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_UPGRADE_LOCK})"))
            command.upgrade(_config(connection), "head")
    except DBAPIError as error:
        raise explained(error, engine.url) from error
    finally:
        engine.dispose()


def current(url: str) -> str | None:
    """The revision that the database is at; None where it has none, or is not there."""
    if not _exists(url):
        return None
    engine = open_engine(url)
    try:
        with engine.connect() as connection:
            return _revision(connection)
    except DBAPIError as error:
        raise explained(error, engine.url) from error
    finally:
        engine.dispose()


def check_ready(url: str, *, create: bool = True) -> None:
    """Create the schema in an empty database; refuse any other that this code cannot write to.

    Args:
        url: of the database.
        create: whether an empty one may be filled; those who only read must not leave tables.

    Raises:
        DatabaseError: unreachable, read-only, not at head, or at a revision unknown to this code.
        EmptyDatabase: there is nothing to read, and it may not be made.
    """
    if not create and not _exists(url):
        raise EmptyDatabase(_nothing(url))
    engine = open_engine(url)
    try:
        with engine.connect().execution_options(writes=create) as connection, connection.begin():
            if create:
                _check_writable(connection)
            revision = _revision(connection)
            empty = not inspect(connection).get_table_names()
    except DBAPIError as error:
        raise explained(error, engine.url) from error
    finally:
        engine.dispose()
    if empty and not create:
        raise EmptyDatabase(_nothing(url))
    if empty:
        upgrade(url)
    else:
        _check_revision(revision, engine.url)


def _exists(url: str) -> bool:
    """Whether there is a file to open; a server is asked when it is connected to."""
    parsed = _parsed(url)
    if parsed.get_backend_name() != "sqlite" or parsed.query:
        return True
    return Path(parsed.database or "").exists()


def _nothing(url: str) -> str:
    return (
        f"no runs yet: looked in {shown(_parsed(url))}, which holds nothing of Tamis; start one "
        "with tamis run FILE, or name another database with --database URL or TAMIS_DATABASE_URL"
    )


def _revision(connection: Connection) -> str | None:
    """The revision that Alembic has written down; None where it never did."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return None if revision is None else str(revision)


def _check_writable(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        version = connection.scalar(text("PRAGMA user_version"))
        connection.exec_driver_sql(f"PRAGMA user_version = {version}")  # nothing but a write
        return
    if connection.scalar(text("SHOW transaction_read_only")) == "on":
        raise DatabaseError(
            f"database {shown(connection.engine.url)} is read-only; "
            "use a user and a server that may write"
        )


def _check_revision(revision: str | None, url: URL) -> None:
    if revision == HEAD:
        return
    if revision is None:
        raise DatabaseError(
            f"database {shown(url)} holds tables, but none of Tamis; give an empty database"
        )
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(_config())
    if revision not in {script.revision for script in scripts.walk_revisions()}:
        raise DatabaseError(
            f"database {shown(url)} is at revision {revision}, but this Tamis ends at {HEAD}; "
            "install the newer Tamis that wrote it"
        )
    raise DatabaseError(
        f"database {shown(url)} is at revision {revision}, but this Tamis needs {HEAD}; "
        f"run: tamis db upgrade --database {shown(url)}"
    )


_UNREADABLE = (
    "the database URL cannot be read; write sqlite:///tamis.db or "
    "postgresql://user:password@host/name, and %40 for an @ in a password, %3A for a colon"
)


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise WrongUrl(_UNREADABLE) from None
    if "@" in (parsed.host or ""):
        raise WrongUrl(_UNREADABLE)
    match parsed.get_backend_name():
        case "sqlite":
            return parsed
        case "postgres" | "postgresql":
            return parsed.set(drivername="postgresql+psycopg")
        case other:
            raise WrongUrl(
                f"database '{other}' is not supported; write a URL of sqlite or postgresql"
            )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseError(
            f"the database's folder {folder} cannot be made: {error.strerror}; give another path"
        ) from error


def _keep_private(engine: Engine, path: Path) -> None:
    """Make a new file for its owner alone; SQLite gives the files beside it the same rights."""

    @event.listens_for(engine, "do_connect")
    def make(*_: object) -> None:
        with suppress(OSError):  # it is there, or SQLite tells why it cannot be
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _use_wal(connection: Any, _record: object) -> None:
    """Let readers and the one writer not wait for each other; the file remembers it.

    The first switch needs the file for itself, and does not wait for it as other statements do.
    """
    for _ in range(_WAL_TRIES):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            time.sleep(0.1)
        else:
            return
    connection.execute("PRAGMA journal_mode = WAL")


def _prepare_sqlite(engine: Engine, *pragmas: str) -> None:
    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        # The driver would begin transactions by its own rules; we begin them below.
        connection.isolation_level = None
        for pragma in pragmas:
            connection.execute(pragma)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _config(connection: Connection | None = None) -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.attributes["connection"] = connection
    return config
