"""Questions that somebody typed: one statement, on a connection that can only read."""

import re
import sqlite3
from typing import Any

from sqlalchemy import PoolProxiedConnection
from sqlalchemy.exc import DBAPIError

from db.engine import read_only_engine
from db.errors import StoreError, explained

QUESTIONS = ("SELECT", "WITH", "VALUES", "TABLE", "EXPLAIN")
_BEFORE = re.compile(r"(?:\s+|\(|--[^\n]*(?:\n|$)|/\*.*?\*/)*", re.DOTALL)
"""What may stand before the first word."""
_RIGHTS = re.compile(r"set_config|U&", re.IGNORECASE)
"""A function that gives rights back, and the way to write its name in disguise."""
_READING = frozenset(
    {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE, sqlite3.SQLITE_FUNCTION}
)
_FORBIDDEN_FUNCTIONS = frozenset({"load_extension", "fts3_tokenizer"})
_PRAGMAS = frozenset(
    {"table_info", "table_xinfo", "table_list", "index_list", "index_info", "index_xinfo"}
)
"""They tell of tables, and change nothing."""


def ask(url: str, query: str) -> list[dict[str, Any]]:
    """The rows of one SELECT.

    The database itself refuses what writes, whatever the query's words; on Postgres it is asked
    with the rights of one who reads only, where the user may take these.

    Raises:
        StoreError: the query is no question, or the database refuses it: it is no SQL, would write,
            or is several.
    """
    _check(query)
    engine = read_only_engine(url)
    driver_error: type[Exception] = engine.dialect.loaded_dbapi.Error
    try:
        connection = engine.raw_connection()
    except (DBAPIError, driver_error) as error:
        raise explained(error, engine.url) from error
    postgres = engine.dialect.name == "postgresql"
    try:
        if postgres:
            _take_reading_rights(connection, driver_error)
        else:
            driver: Any = connection.driver_connection
            driver.set_authorizer(_authorize)
        return _rows(connection, query, prepare=postgres)
    except driver_error as error:
        if any(word in str(error) for word in ("only", "not authorized", "prohibited")):
            raise StoreError(f"only questions are answered here: {error}") from error
        raise StoreError(f"the database refuses the query: {error}") from error
    finally:
        connection.rollback()
        connection.close()
        engine.dispose()


def _check(query: str) -> None:
    """Refuse what does not begin as a question does.

    Raises:
        StoreError: with what to write.
    """
    begin = _BEFORE.match(query)
    word = re.match(r"\w*", query[begin.end() if begin else 0 :])
    if word is None or word[0].upper() not in QUESTIONS:
        raise StoreError(
            f"only questions are answered here, and '{word[0] if word else ''}' begins none; write "
            f"one statement that begins with {', '.join(QUESTIONS[:-1])} or {QUESTIONS[-1]}"
        )
    if (found := _RIGHTS.search(query)) is not None:
        raise StoreError(f"only questions are answered here, and '{found[0]}' is in none; leave it")


def _take_reading_rights(connection: PoolProxiedConnection, driver_error: type[Exception]) -> None:
    """A superuser could else run programs and read files by functions, even while reading only."""
    cursor: Any = connection.cursor()
    cursor.execute("SAVEPOINT before")
    try:
        cursor.execute("SET LOCAL ROLE pg_read_all_data")
    except driver_error:  # not a member of it, and then no superuser; or an older Postgres
        cursor.execute("ROLLBACK TO SAVEPOINT before")


def _authorize(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    """What SQLite may do for a question: nothing but read."""
    if action == sqlite3.SQLITE_FUNCTION and second in _FORBIDDEN_FUNCTIONS:
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_PRAGMA and first in _PRAGMAS:
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_UPDATE and first == "sqlite_master":
        return sqlite3.SQLITE_OK  # in memory, for pragma_table_info and its like
    return sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY


def _rows(connection: PoolProxiedConnection, query: str, *, prepare: bool) -> list[dict[str, Any]]:
    """Past SQLAlchemy, which would read % and : in the query as places for parameters."""
    cursor: Any = connection.cursor()
    # Prepared, for only then does Postgres refuse several statements in one.
    cursor.execute(query, **({"prepare": True} if prepare else {}))
    if cursor.description is None:
        raise StoreError("the statement returns no rows; write a SELECT")
    names = _distinct([column[0] for column in cursor.description])
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _distinct(names: list[str]) -> list[str]:
    """Names of columns, of which a second one of the same name gets a number."""
    return [
        name if name not in names[:place] else f"{name}_{names[: place + 1].count(name)}"
        for place, name in enumerate(names)
    ]
