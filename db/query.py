"""Questions that somebody typed: one statement, on a connection that can only read."""

from typing import Any

from sqlalchemy import PoolProxiedConnection
from sqlalchemy.exc import DBAPIError

from db.engine import read_only_engine
from db.errors import StoreError, explained


def ask(url: str, query: str) -> list[dict[str, Any]]:
    """The rows of one SELECT.

    Raises:
        StoreError: the database refuses the query, for it is no SQL, would write, or is several.
    """
    engine = read_only_engine(url)
    driver_error: type[Exception] = engine.dialect.loaded_dbapi.Error
    try:
        connection = engine.raw_connection()
    except (DBAPIError, driver_error) as error:
        raise explained(error, engine.url) from error
    try:
        return _rows(connection, query, prepare=engine.dialect.name == "postgresql")
    except driver_error as error:
        if "only" in str(error) or "readonly" in str(error):
            raise StoreError(f"only questions are answered here: {error}") from error
        raise StoreError(f"the database refuses the query: {error}") from error
    finally:
        connection.rollback()
        connection.close()
        engine.dispose()


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
