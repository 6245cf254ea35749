"""Rows that were stored before revision 0008 made smaller, while others may use the database."""

from typing import NamedTuple

from sqlalchemy import Engine, text

from db.bulk import transaction
from db.engine import open_engine
from db.errors import explained
from db.records import LONG, beside

_PAGE = 1_000
# Rows of a page keep their number: who is killed in between goes on where there is work left.
_WHOLE = text("""
    SELECT candidate_fields.candidate_id, candidate_fields.fields, text.body
    FROM candidate_fields
    CROSS JOIN candidate
    CROSS JOIN text
    WHERE candidate_fields.candidate_id > :after
      AND candidate_fields.from_text IS NULL
      AND candidate.id = candidate_fields.candidate_id
      AND text.id = candidate.text_id
    ORDER BY candidate_fields.candidate_id
    LIMIT :page
""")
_SHORTEN = text("""
    UPDATE candidate_fields SET fields = :fields, from_text = :from_text
    WHERE candidate_id = :candidate_id
""")


class Compacted(NamedTuple):
    """What compacting came to."""

    records: int
    """That are shorter now."""
    characters: int
    """By so many in all."""


def compact(url: str) -> Compacted:
    """Store old records beside their texts, as new ones are, and give SQLite's file its new size.

    Each thousand is a transaction. SQLite needs free disk of twice its file's size for a moment.

    Raises:
        StoreError: the database is unreachable, full, locked or read-only.
    """
    engine = open_engine(url)
    try:
        total, after = Compacted(0, 0), 0
        while True:
            last, done = _page(engine, after)
            total = Compacted(*map(sum, zip(total, done, strict=True)))
            if last is None:
                break
            after = last
        _shrink(engine)
    finally:
        engine.dispose()
    return total


def _page(engine: Engine, after: int) -> tuple[int | None, Compacted]:
    """Shorten the next records; the last one's candidate, None where none was left."""
    with transaction(engine, writes=True) as connection:
        rows = connection.execute(_WHOLE, {"after": after, "page": _PAGE}).all()
        changes, characters = [], 0
        for candidate_id, fields, body in rows:
            if len(fields) >= LONG:
                short = beside(fields.encode(), body)
                if short.from_text is not None:
                    changes.append({"candidate_id": candidate_id, **short._asdict()})
                    characters += len(fields) - len(short.fields) - len(short.from_text)
        if changes:
            connection.execute(_SHORTEN, changes)
        return (rows[-1].candidate_id if rows else None), Compacted(len(changes), characters)


def _shrink(engine: Engine) -> None:
    """Rewrite SQLite's file without its free pages; Postgres uses its own again."""
    if engine.dialect.name != "sqlite":
        return
    driver_error: type[Exception] = engine.dialect.loaded_dbapi.Error
    connection = engine.raw_connection()
    try:
        connection.cursor().execute("VACUUM")
    except driver_error as error:
        raise explained(error, engine.url) from error
    finally:
        connection.close()
