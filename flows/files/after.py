"""Results handed on once a run is done: to a file, or to a table of somebody's database."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from db.store import Run, Store
from flows.files.sources import hidden, with_driver
from flows.files.writing import WritingError, format_of, names_of, results_of, write_results
from flows.settings import load_keys
from tiers.screenfile.limits import AfterSection

COLUMNS = ("run", "key", "verdict", "tier", "score", "why")
PAGE = 1_000


def write_after(store: Store, run: Run, after: AfterSection) -> str:
    """Write the results of a run where its screen wants them; what was done, in words.

    Raises:
        WritingError: they cannot be written; nothing of a table is changed then.
    """
    if after.results is not None:
        return _to_file(store, run, after, after.results)
    return _to_table(store, run, after)


def check_after(after: AfterSection) -> None:
    """Refuse at once what could not be written once the run is done.

    Raises:
        WritingError: the folder cannot be written to, or the variable is not set.
    """
    if after.results is None:
        _address_of(after)
        return
    path = Path(after.results)
    folder = next(each for each in (path.parent, *path.parents) if each.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise WritingError(
            f"after.results: {path} cannot be written; name a file in a folder of yours"
        )


def _address_of(after: AfterSection) -> str:
    """Of the table's database.

    Raises:
        WritingError: the variable is not set.
    """
    variable = str(after.url_variable)
    load_keys([variable])
    if url := os.environ.get(variable, ""):
        return url
    raise WritingError(
        f"after.table: the variable {variable} is not set; write the database's address into it, "
        "in the environment or in .env: postgresql://user@host/name"
    )


def _to_file(store: Store, run: Run, after: AfterSection, pattern: str) -> str:
    path = Path(pattern.replace("{run}", _as_name(run.key)).replace("{screen}", run.screen))
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)  # a link that lies there would be written through
        rows = results_of(store, run, verdict=after.verdict, limit=None, columns=None)
        write_results(rows, part, format_of(path), names=names_of(store, run))
        part.replace(path)
    except OSError as error:
        raise _refused(run, f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return f"results written to {path}"


def _as_name(key: str) -> str:
    """A run's key as a part of a file's name, which leads into no other folder."""
    return re.sub(r"[^\w.@+-]+", "-", key).lstrip(".-") or "run"


def _to_table(store: Store, run: Run, after: AfterSection) -> str:
    from sqlalchemy import Column, Double, MetaData, Table, Text, create_engine, delete, insert
    from sqlalchemy.exc import SQLAlchemyError

    try:
        url = _address_of(after)
    except WritingError as error:
        raise _refused(run, str(error)) from error
    schema, _, name = str(after.table).rpartition(".")
    columns = [Column(each, Double() if each == "score" else Text()) for each in COLUMNS]
    table = Table(name, MetaData(), *columns, schema=schema or None)
    rows, count = _rows(store, run, after), 0
    try:
        engine = create_engine(with_driver(url))
        try:
            with engine.begin() as connection:
                table.create(connection, checkfirst=True)
                connection.execute(delete(table).where(table.c.run == run.key))
                while some := list(islice(rows, PAGE)):
                    connection.execute(insert(table), some)
                    count += len(some)
        finally:
            engine.dispose()
    except (SQLAlchemyError, ValueError, ImportError) as error:
        why = " ".join(str(getattr(error, "orig", None) or error).split())
        raise _refused(run, f"table {after.table}: {hidden(why, url)}") from error
    return f"{count:,} results written to table {after.table}"


def _rows(store: Store, run: Run, after: AfterSection) -> Iterator[dict[str, Any]]:
    for row in store.results.all(run.id, after.verdict):
        yield {"run": run.key, **{name: row[name] for name in COLUMNS[1:]}}


def _refused(run: Run, why: str) -> WritingError:
    return WritingError(
        f"run {run.key} is done, and its results could not be handed on: {why}. "
        f"Run again with --key {run.key}: they are handed on again, and nothing is paid for twice"
    )
