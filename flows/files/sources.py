"""Where candidates come from: files here and in buckets, a query, standard input."""

import atexit
import glob
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from flows.files.tables import READERS, Origin, Read, Record, read, refused, unpacked
from flows.settings import load_keys
from tiers.screenfile.faults import ScreenError
from tiers.screenfile.file import STDIN, SqlSource

EVEN = (".csv", ".tsv", ".parquet", ".xlsx")
"""Tables in which each row has all columns."""
PAGE = 1_000
NO_ADDRESS = (
    "the address in the variable cannot be read; write postgresql://user:password@host/name, and "
    "%40 for an @ in a password, %3A for a colon"
)
DRIVERS = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
"""The package that fsspec needs for an address that begins so."""


class Source(NamedTuple):
    """One of the things that `candidates.from` names."""

    name: str
    """As people know it: kept with each bad row."""
    address: str
    """For messages."""
    even: bool
    """Whether all rows have the same columns."""
    records: Callable[[], Iterator[Read]]
    """Its rows, good and bad, read anew by each call."""
    bytes: int | None = None
    """Its size, where that is known."""


def sources(source: str | SqlSource) -> list[Source]:
    """What a path, a pattern, an address, a query or `-` names, in order.

    Raises:
        ScreenError: there is nothing, or it is of no kind that we read.
    """
    if isinstance(source, SqlSource):
        return [Source("query", source.sql, True, lambda: _rows_of_query(source))]
    if source == STDIN:
        path = _kept_input()
        return [_source(Origin("stdin", str(path), ".jsonl", _opener(path)), path.stat().st_size)]
    if re.match(r"[a-z][a-z0-9+.-]*://", source):
        return [_source(origin) for origin in _remote(source)]
    paths = [Path(name) for name in sorted(glob.glob(source, recursive=True))]  # noqa: PTH207
    if Path(source).exists():  # its name may hold [brackets]
        paths = [Path(source)]
    if not paths:
        raise ScreenError(source, ["candidates.from: no such file; write its path"])
    found = [Origin(path.name, str(path), _kind(path.name), _opener(path)) for path in paths]
    _require_known(found)
    return [_source(one, path.stat().st_size) for one, path in zip(found, paths, strict=True)]


def _source(origin: Origin, size: int | None = None) -> Source:
    return Source(origin.name, origin.address, origin.kind in EVEN, lambda: read(origin), size)


def _opener(path: Path) -> Callable[[], AbstractContextManager[Any]]:
    return lambda: unpacked(path.open("rb"), path.name)


def _kind(name: str) -> str:
    return Path(name.removesuffix(".gz")).suffix.lower()


def _require_known(origins: list[Origin]) -> None:
    for one in origins:
        if one.kind not in READERS:
            said = "not a .csv, .tsv, .jsonl, .ndjson, .parquet or .xlsx file; convert it"
            raise refused(one, said)


def _remote(source: str) -> list[Origin]:
    """Files of a bucket or a web server; a pattern names several.

    Raises:
        ScreenError: the driver is not installed, nothing is there, or the server refuses.
    """
    scheme = source.partition("://")[0]
    try:
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(source)
    except (ImportError, ValueError) as error:
        needs = DRIVERS.get(scheme, "fsspec")
        said = (
            f"candidates.from: '{scheme}://' needs {needs}; run: pip install 'tamis[remote]', or "
            "copy the file to this machine"
        )
        raise ScreenError(source, [said]) from error
    try:
        # A question mark in a web address begins a query, and is no pattern.
        pattern = "*" in path or ("[" in path and scheme not in ("http", "https"))
        paths = sorted(filesystem.glob(path)) if pattern else [path]
        found = [_origin(filesystem, each) for each in paths]
        _require_known(found)
        if not found:
            raise FileNotFoundError
        filesystem.info(paths[0])
    except FileNotFoundError:
        said = "candidates.from: nothing is there; write its address"
        raise ScreenError(source, [said]) from None
    except Exception as error:
        raise ScreenError(source, [f"candidates.from: cannot be read: {error}"]) from error
    return found


def _origin(filesystem: Any, path: str) -> Origin:
    name = Path(path.partition("?")[0]).name
    address = filesystem.unstrip_protocol(path)

    def opened() -> AbstractContextManager[Any]:
        return unpacked(filesystem.open(path, "rb"), name)

    return Origin(name, address, _kind(name), opened, filesystem)


@cache
def _kept_input() -> Path:
    """Standard input as a file of its own, because candidates are looked at before they are read.

    Raises:
        ScreenError: nothing is piped in.
    """
    if sys.stdin.isatty():
        said = "candidates.from: '-' reads JSON lines from standard input; write: cat FILE | tamis"
        raise ScreenError(STDIN, [said])
    with tempfile.NamedTemporaryFile("wb", suffix=".jsonl", delete=False) as kept:
        while some := sys.stdin.buffer.read(1 << 20):
            kept.write(some)
    path = Path(kept.name)
    atexit.register(path.unlink, missing_ok=True)
    return path


def address_of(source: SqlSource) -> str:
    """Of the query's database.

    Raises:
        ScreenError: the variable is not set.
    """
    load_keys([source.url_variable])
    if url := os.environ.get(source.url_variable, ""):
        return url
    said = (
        f"candidates.from: the variable {source.url_variable} is not set; write the database's "
        "address into it, in the environment or in .env: postgresql://user@host/name"
    )
    raise ScreenError(f"the query {source.sql}", [said])


def _rows_of_query(source: SqlSource) -> Iterator[Read]:
    """The rows of a query, fetched as they are used; what the database says holds no password.

    Raises:
        ScreenError: the variable is not set, or the database refuses.
    """
    from sqlalchemy import create_engine, text
    from sqlalchemy.exc import SQLAlchemyError

    url = address_of(source)
    line = 0
    try:
        address = with_driver(url)
        _require_there(source, address)
        engine = create_engine(address)
        try:
            with engine.connect() as connection:
                streaming = connection.execution_options(stream_results=True, yield_per=PAGE)
                with streaming.execute(text(source.sql)) as rows:
                    _require_once(source, list(rows.keys()))
                    for line, row in enumerate(rows, 1):
                        yield Record(line, dict(row._mapping))
        finally:
            engine.dispose()
    except (SQLAlchemyError, ValueError, ImportError) as error:
        why = hidden(" ".join(str(getattr(error, "orig", None) or error).split()), url)
        said = f"candidates.from: {why} (the database of {source.url_variable})"
        raise ScreenError(source.sql, [said]) from error


def _require_there(source: SqlSource, address: Any) -> None:
    """SQLite would make an empty database of a name that is misspelt."""
    file = address.database if address.get_backend_name() == "sqlite" else None
    if file and file != ":memory:" and not file.startswith("file:") and not Path(file).exists():
        said = f"no such database: {file} (the address in {source.url_variable}); write its path"
        raise ScreenError(source.sql, [f"candidates.from: {said}"])


def _require_once(source: SqlSource, names: list[str]) -> None:
    if doubled := {name for name in names if names.count(name) > 1}:
        said = f"two columns are called '{min(doubled)}'; name one of them anew: AS other_name"
        raise ScreenError(source.sql, [f"candidates.from: {said}"])


def with_driver(url: str) -> Any:
    """The address with the driver that is installed: SQLAlchemy would take another for Postgres."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ValueError(NO_ADDRESS) from None
    if "@" in (parsed.host or ""):
        raise ValueError(NO_ADDRESS)
    if parsed.drivername in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    return parsed


def hidden(words: str, url: str) -> str:
    """The words without the address and without its password."""
    from sqlalchemy import make_url

    with suppress(Exception):
        if password := make_url(url).password:
            words = words.replace(str(password), "***")
    return words.replace(url, "the address")
