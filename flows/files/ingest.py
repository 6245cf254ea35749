"""Files to candidates: streamed, and never stopped by a bad row. Each keeps its reason and line."""

import codecs
import csv
import glob
import gzip
import sys
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import date, time
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import orjson

from db.store import BadRow, Ingested, InputRefused, Row, Store
from tiers.screenfile.faults import ScreenError
from tiers.screenfile.file import Candidates
from tiers.screenfile.template import named_fields, renderer

CHUNK = 1_000
CHUNK_BYTES = 8 << 20
LOOK_AHEAD = 100
"""So many rows at the beginning without the key column, and the column's name is wrong."""
EXACT = 2.0**53
"""Whole numbers from here on are not exact in JSON: two keys could become one."""
LONGEST_RECORD = 2_000
"""Lines that one CSV record may span; more, and a quote was opened and never closed."""


class Record(NamedTuple):
    """One row as read, before anything is asked of it."""

    line: int
    fields: dict[str, Any]


Read = Record | BadRow


def ingest(
    store: Store,
    run_id: int,
    candidates: Candidates,
    *,
    limit: int | None = None,
    allow_shrink: bool = False,
) -> Ingested:
    """Read all files into the run, in one pass and constant memory; a second time adds nothing.

    Args:
        store: the database.
        run_id: the run.
        candidates: where they are, and how they are read.
        limit: read only so many rows, bad ones included; then nobody leaves the run.
        allow_shrink: whether more than half of the run's candidates may leave it.

    Raises:
        ScreenError: no file matches, one cannot be read, the files lack a column that the screen
            names, or they hold no candidate. The run has the candidates of before.
        InputRefused: more than half of the run would leave it; likewise.
    """
    require_candidates(candidates, limit)
    store.candidates.begin(run_id)
    try:
        total = Ingested(0, 0, 0, 0, 0)
        rows_read = 0
        for path, chunk in _chunks_of_files(candidates, limit):
            rows = [row for row in chunk if isinstance(row, Row)]
            bad = [row for row in chunk if isinstance(row, BadRow)]
            store.candidates.add_bad(run_id, bad)
            done = store.candidates.add(run_id, rows, source=path.name)
            rows_read += len(chunk)
            done = done._replace(bad=done.bad + len(bad))
            total = Ingested(*map(sum, zip(total, done, strict=True)))
        gone = store.candidates.finish(
            run_id, rows_read, total.duplicate, whole=limit is None, allow_shrink=allow_shrink
        )
    except (ScreenError, InputRefused):
        store.candidates.cancel(run_id)
        raise
    return total._replace(gone=gone)


def require_candidates(candidates: Candidates, limit: int | None = None) -> None:
    """Refuse an input without a candidate: an export that failed looks like that.

    Raises:
        ScreenError: no row of it can become a candidate, or the files cannot be read.
    """
    bad: list[BadRow] = []
    rows = 0
    for _, chunk in _chunks_of_files(candidates, limit):
        if any(isinstance(row, Row) for row in chunk):
            return
        rows += len(chunk)
        bad = bad or [row for row in chunk if isinstance(row, BadRow)]
    why = "it has no rows"
    if bad:
        why = f"none of its {rows:,} rows can be read, the first ({bad[0].source}, line "
        why += f"{bad[0].line}): {bad[0].reason}"
    raise ScreenError(
        candidates.source, [f"candidates.from: holds no candidate: {why}; nothing was changed"]
    )


def in_words(read: Ingested) -> str:
    """What a reading came to."""
    counts = {
        "new": read.new,
        "known": read.known,
        "changed": read.changed,
        "repeated": read.duplicate,
        "bad": read.bad,
    }
    told = ", ".join(f"{count:,} {word}" for word, count in counts.items() if count)
    left = f"; {read.gone:,} candidates left the run" if read.gone else ""
    return f"read: {told}{left}"


def check_columns(candidates: Candidates) -> None:
    """Look at the beginning of each file, before anything is done.

    Raises:
        ScreenError: no file matches, or one cannot be read or lacks a column that the screen names.
    """
    for path in source_files(candidates.source):
        read_records(path, candidates)


def first_text(candidates: Candidates) -> tuple[str, str]:
    """Key and text of the first candidate that can be read.

    Raises:
        ScreenError: there is none.
    """
    for path in source_files(candidates.source):
        for row in to_rows(read_records(path, candidates), candidates, path):
            if isinstance(row, Row) and row.problem is None:
                return row.key, row.text
    raise ScreenError(candidates.source, ["candidates.from: holds no candidate that can be read"])


def source_files(source: str) -> list[Path]:
    """The files that a path or a pattern names, in order.

    Raises:
        ScreenError: there is none, or one is of no kind that we read.
    """
    paths = [Path(name) for name in sorted(glob.glob(source, recursive=True))]  # noqa: PTH207
    if Path(source).exists():  # its name may hold [brackets]
        paths = [Path(source)]
    if not paths:
        raise ScreenError(source, ["candidates.from: no such file; write its path"])
    for path in paths:
        if _kind(path) not in _READERS:
            said = "candidates.from: not a .csv, .tsv, .jsonl, .ndjson or .parquet file; convert it"
            raise ScreenError(str(path), [said])
    return paths


def read_records(path: Path, candidates: Candidates) -> Iterator[Read]:
    """The rows of one file, checked for the columns that the screen names.

    Raises:
        ScreenError: the file cannot be read, or no row of its beginning has a column.
    """
    records = _readable(path)
    head = list(islice(records, LOOK_AHEAD))
    known = dict.fromkeys(chain.from_iterable(r.fields for r in head if isinstance(r, Record)))
    if known:
        # A record of JSON may lack what others have; it is then reviewed by itself.
        named = set() if _kind(path) in (".jsonl", ".ndjson") else named_fields(candidates.text)
        problems = [
            f"candidates.{setting}: names '{name}', which {path.name} lacks; it has {_list(known)}"
            for setting, names in {"key": {candidates.key}, "text": named}.items()
            for name in sorted(names - known.keys())
        ]
        if problems:
            raise ScreenError(str(path), problems)
    return chain(head, records)


def _readable(path: Path) -> Iterator[Read]:
    try:
        yield from _READERS[_kind(path)](path)
    except (OSError, EOFError, zlib.error) as error:
        raise ScreenError(str(path), [f"candidates.from: cannot be read: {error}"]) from error


def to_rows(records: Iterable[Read], candidates: Candidates, path: Path) -> Iterator[Row | BadRow]:
    """Render what judges read; say what is wrong with what cannot be judged."""
    render = renderer(candidates.text, candidates.key)
    for record in records:
        if isinstance(record, BadRow):
            yield record
            continue
        line, fields = record
        raw = _stored(fields)
        key = fields.get(candidates.key)
        if isinstance(key, float) and abs(key) >= EXACT:
            yield _bad(path, line, "the key is too large a number; write it as text", raw)
            continue
        if key is None or key == "":
            yield _bad(path, line, f"no value in the key column '{candidates.key}'", raw)
            continue
        try:
            text, problem = render(fields).strip(), None
        except Exception as error:  # noqa: BLE001 - a template may divide, join, or call anything
            text, problem = "", f"the template fails: {error}"
        if not text and problem is None:
            problem = "empty text"
        # Postgres keeps no NUL, so neither do we: it is shown as the replacement character.
        if b"\\u0000" in raw:
            raw = raw.replace(b"\\u0000", b"\\ufffd")
            text, key = text.replace("\0", "\ufffd"), str(key).replace("\0", "\ufffd")
        yield Row(line, str(key), text, raw, problem)


def _chunks_of_files(
    candidates: Candidates, limit: int | None
) -> Iterator[tuple[Path, list[Row | BadRow]]]:
    """All rows, or the first so many, in chunks with the file that holds them."""
    read = 0
    for path in source_files(candidates.source):
        records = islice(read_records(path, candidates), None if limit is None else limit - read)
        for chunk in _chunks(to_rows(records, candidates, path)):
            yield path, chunk
            read += len(chunk)


def _stored(fields: Mapping[str, Any]) -> bytes:
    """The record as JSON."""
    try:
        return orjson.dumps(fields, default=str, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:  # a time of day with its zone
        option = orjson.OPT_NON_STR_KEYS | orjson.OPT_PASSTHROUGH_DATETIME
        return orjson.dumps(fields, default=_iso, option=option)


def _iso(value: object) -> str:
    return value.isoformat() if isinstance(value, date | time) else str(value)


def _chunks(rows: Iterator[Row | BadRow]) -> Iterator[list[Row | BadRow]]:
    """Chunks bounded in rows and in bytes, for texts may be of any length."""
    chunk: list[Row | BadRow] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += len(row.fields) + len(row.text) if isinstance(row, Row) else len(row.raw)
        if len(chunk) >= CHUNK or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _kind(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def _list(names: Iterable[str]) -> str:
    return ", ".join(list(names)[:30])


def _bad(path: Path, line: int, reason: str, raw: bytes | str) -> BadRow:
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw
    return BadRow(path.name, line, reason, text.replace("\0", "\ufffd"))


def _open(path: Path) -> AbstractContextManager[Iterable[bytes]]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _read_jsonl(path: Path) -> Iterator[Read]:
    with _open(path) as file:
        for line, raw in enumerate(file, 1):
            if line == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            if not raw.strip():
                continue
            try:
                fields = orjson.loads(raw)
            except orjson.JSONDecodeError as error:
                yield _bad(path, line, f"no JSON: {error}", raw)
                continue
            if isinstance(fields, dict):
                yield Record(line, fields)
            else:
                yield _bad(path, line, "no JSON object; write one object a line", raw)


def _read_csv(path: Path) -> Iterator[Read]:
    """Every value stays text, as it stands in the file: 007 is no 7.

    The standard reader and not DuckDB's, which cannot say on which line a good row stands.
    """
    csv.field_size_limit(sys.maxsize)
    with _open(path) as file:
        lines = _Lines(file, path)
        delimiter = max(",;\t|", key=lines.first.count) if path.suffix != ".tsv" else "\t"
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            names = next(reader, [])
        except csv.Error as error:
            said = f"candidates.from: the line of column names is no CSV: {error}"
            raise ScreenError(str(path), [said]) from error
        if _has_surrogates("".join(names)):
            said = "candidates.from: the line of column names is not UTF-8; save the file as UTF-8"
            raise ScreenError(str(path), [said])
        if doubled := {name for name in names if names.count(name) > 1}:
            said = f"candidates.from: two columns are called '{doubled.pop()}'; rename one"
            raise ScreenError(str(path), [said])
        while True:
            lines.begin_record()
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield _bad(path, lines.start, f"no CSV: {error}", lines.give_back())
                continue
            if values:
                yield _csv_record(path, lines.start, names, values)


def _csv_record(path: Path, line: int, names: list[str], values: list[str]) -> Read:
    joined = ",".join(values)
    if len(values) != len(names):
        said = f"{len(values)} values under {len(names)} column names"
        return _bad(path, line, said, joined.encode("utf-8", "replace"))
    if not joined.isascii() and _has_surrogates(joined):
        return _bad(path, line, "invalid UTF-8", joined.encode("utf-8", "surrogateescape"))
    return Record(line, dict(zip(names, values, strict=True)))


class _Lines:
    """The lines of a CSV file, with a way back: a broken record costs its first line only."""

    def __init__(self, file: Iterable[bytes], path: Path) -> None:
        # A byte that is no UTF-8 becomes a lone surrogate, which marks its row alone.
        self._lines = (line.decode("utf-8", "surrogateescape") for line in file)
        self.first = next(self._lines, "").removeprefix("\ufeff")
        if "\0" in self.first:
            said = "candidates.from: is not UTF-8 text; save it as UTF-8"
            raise ScreenError(str(path), [said])
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


def _read_parquet(path: Path) -> Iterator[Read]:
    connection = duckdb.connect()
    try:
        connection.execute("SET threads = 1")  # in order, and in little memory
        result = connection.execute("SELECT * FROM read_parquet(?)", [str(path)])
        names = [column[0] for column in result.description or ()]
        line = 0
        while rows := result.fetchmany(1_000):
            for values in rows:
                line += 1
                yield Record(line, dict(zip(names, values, strict=True)))
    except duckdb.Error as error:
        raise ScreenError(str(path), [f"candidates.from: no Parquet: {error}"]) from error
    finally:
        connection.close()


_READERS: Mapping[str, Any] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}
