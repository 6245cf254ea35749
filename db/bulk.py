"""What the nouns of this package share: transactions, the clock, and many rows in one go.

SQL over several tables is named text with its reason above it; rows by key are constructs of
SQLAlchemy.
"""

import gc
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, TextClause, func, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

from db.errors import explained

# SQLite compares columns by affinity: a digest in a column of another one would miss its index.
_SQLITE_TYPES = {
    "int8": "INTEGER",
    "float8": "REAL",
    "text": "TEXT",
    "bytea": "BLOB",
    "bool": "BOOLEAN",
}

Rows = Sequence[tuple[Any, ...]]


class Staging(NamedTuple):
    """A temporary table of one connection, emptied before each use."""

    name: str
    columns: dict[str, str]
    """Name, and Postgres' name of the type."""


class Noun:
    """One kind of thing that the database remembers. Every method is one transaction.

    Raises (all methods):
        DatabaseError: the database is unreachable, full, locked or read-only.
        StoreError: what was asked cannot be done; the message says what to do.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def _reading(self) -> AbstractContextManager[Connection]:
        return transaction(self._engine, writes=False)

    def _writing(self) -> AbstractContextManager[Connection]:
        return transaction(self._engine, writes=True)


@contextmanager
def transaction(engine: Engine, *, writes: bool) -> Iterator[Connection]:
    """One transaction: committed at the end, undone by an exception.

    Raises:
        StoreError: the driver's error, explained.
    """
    # A COPY raises the driver's own errors, everything else SQLAlchemy's.
    driver_error: type[Exception] = engine.dialect.loaded_dbapi.Error
    try:
        with engine.connect().execution_options(writes=writes) as connection, connection.begin():
            yield connection
    except (DBAPIError, driver_error) as error:
        raise explained(error, engine.url) from error


_JOIN = re.compile(
    r"(?P<kind>CROSS|LEFT) JOIN (?P<table>\w+)(?: AS (?P<alias>\w+))?\s+ON (?P<on>.*?)\n"
    r"(?=\s*(?:CROSS|LEFT|WHERE|ORDER|ON CONFLICT|\)|$))",
    re.DOTALL,
)


@contextmanager
def uncollected() -> Iterator[None]:
    """Without Python's collector, which would look at thousands of new tuples in vain."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def now() -> datetime:
    """The clock of this machine."""
    return datetime.now(UTC)


def database_now(connection: Connection) -> datetime:
    """The clock that all who use the database share, for locks: SQLite's is this machine's."""
    if connection.dialect.name == "sqlite":
        return now()
    read: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
    return read


def upsert(connection: Connection, table: Any) -> Any:
    """An INSERT that knows ON CONFLICT, in the dialect of this database."""
    return (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(table)


def fresh_statistics(connection: Connection, *tables: str) -> None:
    """Have Postgres look at tables again: it takes those that just grew for empty, and loops."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"ANALYZE {', '.join(tables)}")


def in_order(sql: str) -> dict[str, TextClause]:
    """A statement by dialect that goes from left to right through its joins, by index.

    Each join is to be written `CROSS JOIN table ON ...` or `LEFT JOIN table ON ...`, in lines of
    its own. SQLite does a cross join as it is written. Postgres plans by statistics, which know
    nothing of rows that have just come, and keeps a plan that it made when a table was empty: so
    that it would go through all rows for each thousand. It does a lateral join as it is written.
    """

    def as_lateral(found: re.Match[str]) -> str:
        kind = "INNER" if found["kind"] == "CROSS" else found["kind"]
        name = found["alias"] or found["table"]
        rows = f"SELECT * FROM {found['table']} AS {name} WHERE {found['on']} OFFSET 0"  # noqa: S608
        return f"{kind} JOIN LATERAL ({rows}) AS {name} ON true\n"

    lateral = _JOIN.sub(as_lateral, sql)
    return {"sqlite": text(sql), "postgresql": text(lateral)}


def checkpoint_after(connection: Connection, pages: int) -> None:
    """Have SQLite copy its log into the file once it has so many pages."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(f"PRAGMA wal_autocheckpoint = {pages:d}")


def stage(connection: Connection, table: Staging, rows: Rows) -> None:
    """Fill the temporary table with these rows alone."""
    sqlite = connection.dialect.name == "sqlite"
    columns = ", ".join(
        f"{name} {_SQLITE_TYPES[kind] if sqlite else kind}" for name, kind in table.columns.items()
    )
    connection.exec_driver_sql(f"CREATE TEMPORARY TABLE IF NOT EXISTS {table.name} ({columns})")
    if sqlite:
        connection.exec_driver_sql(f"DELETE FROM {table.name}")  # noqa: S608
        _insert(connection, f"INSERT INTO {table.name}", rows)
        return
    connection.exec_driver_sql(f"TRUNCATE {table.name}")
    cursor: Any = connection.connection.cursor()
    with cursor.copy(f"COPY {table.name} FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(list(table.columns.values()))
        for row in rows:
            copy.write_row(row)


def add_missing(connection: Connection, table: str, columns: dict[str, str], rows: Rows) -> None:
    """Insert rows, and leave those that are there as they are.

    Args:
        connection: in a transaction.
        table: name of the table.
        columns: name and Postgres' type of the columns that `rows` hold.
        rows: the values.
    """
    names = ", ".join(columns)
    if connection.dialect.name == "sqlite":
        # Straight into the table: staging would copy every text once more.
        _insert(connection, f"INSERT INTO {table} ({names})", rows, "ON CONFLICT DO NOTHING")
        return
    if rows:
        # As arrays: in a staging table, the server would compress every text once more.
        places = ", ".join(f"%b::{kind}[]" for kind in columns.values())
        cursor: Any = connection.connection.cursor()
        cursor.execute(
            f"INSERT INTO {table} ({names}) SELECT * FROM unnest({places}) "  # noqa: S608
            "ON CONFLICT DO NOTHING",
            [list(column) for column in zip(*rows, strict=True)],
        )


def storable(text: str | None) -> str | None:
    """The text without what no database keeps: NUL characters and halves of surrogate pairs."""
    if text is None or (text.isascii() and "\0" not in text):
        return text
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _insert(connection: Connection, insert: str, rows: Rows, otherwise: str = "") -> None:
    if rows:
        places = ", ".join("?" * len(rows[0]))
        connection.exec_driver_sql(f"{insert} VALUES ({places}) {otherwise}", list(rows))
