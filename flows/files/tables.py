"""Tables of records: CSV, JSON lines, Parquet and spreadsheets, streamed from wherever they are.

A broken record costs itself, with its line and the reason; a broken file is refused.
"""

import codecs
import csv
import gzip
import sys
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import IO, Any, NamedTuple

import orjson

from db.store import BadRow
from tiers.screenfile.faults import ScreenError

LONGEST_RECORD = 2_000
"""Lines that one CSV record may span; more, and a quote was opened and never closed."""


class Record(NamedTuple):
    """One row as read, before anything is asked of it."""

    line: int
    fields: dict[str, Any]


Read = Record | BadRow


class Origin(NamedTuple):
    """One file, wherever it is."""

    name: str
    """As people know it: kept with each bad row."""
    address: str
    """A path or a URL, for messages and for DuckDB."""
    kind: str
    """Its suffix in small letters, `.gz` left out: `.csv`."""
    open: Callable[[], AbstractContextManager[Any]]
    """As bytes, unpacked."""
    filesystem: Any = None
    """What DuckDB needs beside the address, for one that is not local."""


def read(origin: Origin) -> Iterator[Read]:
    """The rows of a file, good and bad.

    Raises:
        ScreenError: the file cannot be read.
    """
    try:
        yield from READERS[origin.kind](origin)
    except (OSError, EOFError, zlib.error) as error:
        raise refused(origin, f"cannot be read: {error}") from error


def refused(origin: Origin, said: str) -> ScreenError:
    """The fault of a whole file."""
    return ScreenError(origin.address, [f"candidates.from: {said}"])


def bad(name: str, line: int, reason: str, raw: bytes | str) -> BadRow:
    """A row that cannot become a candidate."""
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw
    return BadRow(name, line, reason, text.replace("\0", "\ufffd"))


@contextmanager
def unpacked(raw: IO[bytes], name: str) -> Iterator[Any]:
    """A stream of bytes, unpacked if the file's name ends in `.gz`; closed at the end."""
    with raw:
        if name.endswith(".gz"):
            with gzip.open(raw, "rb") as inside:
                yield inside
        else:
            yield raw


def _read_jsonl(origin: Origin) -> Iterator[Read]:
    with origin.open() as file:
        for line, raw in enumerate(file, 1):
            if line == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            if not raw.strip():
                continue
            try:
                fields = orjson.loads(raw)
            except orjson.JSONDecodeError as error:
                yield bad(origin.name, line, f"no JSON: {error}", raw)
                continue
            if isinstance(fields, dict):
                yield Record(line, fields)
            else:
                yield bad(origin.name, line, "no JSON object; write one object a line", raw)


def _read_csv(origin: Origin) -> Iterator[Read]:
    """Every value stays text, as it stands in the file: 007 is no 7.

    The standard reader and not DuckDB's, which cannot say on which line a good row stands.
    """
    csv.field_size_limit(sys.maxsize)
    with origin.open() as file:
        lines = _Lines(file, origin)
        delimiter = max(",;\t|", key=lines.first.count) if origin.kind != ".tsv" else "\t"
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            names = next(reader, [])
        except csv.Error as error:
            raise refused(origin, f"the line of column names is no CSV: {error}") from error
        if _has_surrogates("".join(names)):
            raise refused(origin, "the line of column names is not UTF-8; save the file as UTF-8")
        _require_once(origin, names)
        while True:
            lines.begin_record()
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield bad(origin.name, lines.start, f"no CSV: {error}", lines.give_back())
                continue
            if values:
                yield _csv_record(origin, lines.start, names, values)


def _csv_record(origin: Origin, line: int, names: list[str], values: list[str]) -> Read:
    joined = ",".join(values)
    if len(values) != len(names):
        said = f"{len(values)} values under {len(names)} column names"
        return bad(origin.name, line, said, joined.encode("utf-8", "replace"))
    if not joined.isascii() and _has_surrogates(joined):
        return bad(origin.name, line, "invalid UTF-8", joined.encode("utf-8", "surrogateescape"))
    return Record(line, dict(zip(names, values, strict=True)))


class _Lines:
    """The lines of a CSV file, with a way back: a broken record costs its first line only."""

    def __init__(self, file: Iterable[bytes], origin: Origin) -> None:
        # A byte that is no UTF-8 becomes a lone surrogate, which marks its row alone.
        self._lines = (line.decode("utf-8", "surrogateescape") for line in file)
        self.first = next(self._lines, "").removeprefix("\ufeff")
        if "\0" in self.first:
            raise refused(origin, "is not UTF-8 text; save it as UTF-8")
        self._again: deque[str] = deque([self.first])
        self._record: list[str] = []
        self._number = 0

    @property
    def start(self) -> int:
        """The line on which the current record begins."""
        return self._number - len(self._record) + 1

    def begin_record(self) -> None:
        self._record.clear()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if len(self._record) >= LONGEST_RECORD:
            raise csv.Error("a quote is opened and not closed")
        line = self._again.popleft() if self._again else next(self._lines)
        self._record.append(line)
        self._number += 1
        return line

    def give_back(self) -> str:
        """Keep the record's first line, and have the others read again."""
        first, *others = self._record
        self._again.extendleft(reversed(others))
        self._number -= len(others)
        self._record = [first]
        return first.rstrip("\r\n")


def _has_surrogates(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _read_parquet(origin: Origin) -> Iterator[Read]:
    import duckdb

    connection = duckdb.connect()
    try:
        connection.execute("SET threads = 1")  # in order, and in little memory
        if origin.filesystem is not None:
            connection.register_filesystem(origin.filesystem)
        result = connection.execute("SELECT * FROM read_parquet(?)", [origin.address])
        names = [column[0] for column in result.description or ()]
        line = 0
        while rows := result.fetchmany(1_000):
            for values in rows:
                line += 1
                yield Record(line, dict(zip(names, values, strict=True)))
    except duckdb.Error as error:
        raise refused(origin, f"no Parquet: {error}") from error
    finally:
        connection.close()


def _read_xlsx(origin: Origin) -> Iterator[Read]:
    """The first sheet; its first row names the columns.

    Raises:
        ScreenError: openpyxl is not installed, or this is no workbook.
    """
    try:
        import openpyxl
    except ImportError as error:
        said = "a spreadsheet needs openpyxl; run: pip install 'tamis[xlsx]', or save it as CSV"
        raise refused(origin, said) from error
    with origin.open() as file:
        try:
            book = openpyxl.load_workbook(file, read_only=True, data_only=True)
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise refused(origin, f"no workbook that can be read: {error}") from error
        try:
            rows = book.worksheets[0].iter_rows(values_only=True)
            names = [None if name is None else str(name) for name in next(rows, ())]
            _require_once(origin, [name for name in names if name is not None])
            for line, values in enumerate(rows, 2):
                named = zip(names, values, strict=False)
                fields = {name: value for name, value in named if name is not None}
                if any(value is not None for value in fields.values()):
                    yield Record(line, fields)
        finally:
            book.close()


def _require_once(origin: Origin, names: list[str]) -> None:
    if doubled := {name for name in names if names.count(name) > 1}:
        raise refused(origin, f"two columns are called '{min(doubled)}'; rename one")


READERS: Mapping[str, Callable[[Origin], Iterator[Read]]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
    ".xlsx": _read_xlsx,
}
