"""Questions that somebody typed: one statement, on a connection that can only read."""

from typing import Any

from sqlalchemy.exc import DBAPIError

from db.engine import read_only_engine
from db.errors import StoreError, explained


def ask(url: str, query: str) -> list[dict[str, Any]]:
    """The rows of one SELECT.

    Raises:
        StoreError: the database refuses the query, for it is no SQL or would write.
    """
    engine = read_only_engine(url)
    try:
        with engine.connect() as connection:
            result = connection.exec_driver_sql(query)
            if not result.returns_rows:
                raise StoreError("the statement returns no rows; write a SELECT")
            return [dict(row) for row in result.mappings()]
    except DBAPIError as error:
        told = explained(error, engine.url)
        if told is error:
            raise StoreError(f"the database refuses the query: {error.orig}") from error
        raise told from error
    finally:
        engine.dispose()
