"""Records to candidates: streamed, never stopped by a bad row. Each keeps its reason and line."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import date, time
from hashlib import blake2b
from itertools import chain, islice
from typing import Any

import orjson

from db.store import BadRow, Ingested, InputRefused, Row, Store
from flows.files.sources import Source, address_of, sources
from flows.files.tables import Read, Record, bad
from tiers.screenfile.faults import ScreenError
from tiers.screenfile.file import Candidates, SqlSource
from tiers.screenfile.template import named_fields, renderer

CHUNK = 1_000
CHUNK_BYTES = 8 << 20
LOOK_AHEAD = 100
"""So many rows at the beginning without the key column, and the column's name is wrong."""
EXACT = 2.0**53
"""Whole numbers from here on are not exact in JSON: two keys could become one."""


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
    store.candidates.begin(run_id)
    try:
        total = Ingested(0, 0, 0, 0, 0)
        rows_read, first_bad = 0, None
        for name, chunk in _chunks_of_sources(candidates, limit):
            rows = [row for row in chunk if isinstance(row, Row)]
            bad = [row for row in chunk if isinstance(row, BadRow)]
            first_bad = first_bad or next(iter(bad), None)
            store.candidates.add_bad(run_id, bad)
            done = store.candidates.add(run_id, rows, source=name)
            rows_read += len(chunk)
            done = done._replace(bad=done.bad + len(bad))
            total = Ingested(*map(sum, zip(total, done, strict=True)))
        if rows_read == total.bad:
            raise _no_candidate(candidates, rows_read, first_bad)
        gone = store.candidates.finish(
            run_id, rows_read, total.duplicate, whole=limit is None, allow_shrink=allow_shrink
        )
    except (ScreenError, InputRefused):
        store.candidates.cancel(run_id)
        raise
    return total._replace(gone=gone)


def check_input(candidates: Candidates) -> None:
    """Look at the beginning of each file, before anything is done; a query is asked only once.

    Raises:
        ScreenError: nothing is there, something cannot be read or lacks a column that the screen
            names, or no row of it can become a candidate: an export that failed looks like that.
    """
    if isinstance(candidates.source, SqlSource):
        address_of(candidates.source)
        return
    for source in sources(candidates.source):
        checked(source, candidates)
    rows, bad = 0, None
    for _, chunk in _chunks_of_sources(candidates, None):
        if any(isinstance(row, Row) for row in chunk):
            return
        rows += len(chunk)
        bad = bad or next((row for row in chunk if isinstance(row, BadRow)), None)
    raise _no_candidate(candidates, rows, bad)


def _no_candidate(candidates: Candidates, rows: int, bad: BadRow | None) -> ScreenError:
    why = "it has no rows"
    if bad is not None:
        why = f"none of its {rows:,} rows can be read, the first ({bad.source}, line {bad.line}): "
        why += bad.reason
    return ScreenError(
        candidates.address, [f"candidates.from: holds no candidate: {why}; nothing was changed"]
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


def first_text(candidates: Candidates) -> tuple[str, str]:
    """Key and text of the first candidate that can be read.

    Raises:
        ScreenError: there is none.
    """
    return first_texts(candidates, 1)[0]


def first_texts(candidates: Candidates, count: int) -> list[tuple[str, str]]:
    """Keys and texts of the first so many candidates that can be read, or of all.

    Raises:
        ScreenError: there is none.
    """
    readable = (
        (row.key, row.text)
        for source in sources(candidates.source)
        for row in to_rows(checked(source, candidates), candidates, source.name)
        if isinstance(row, Row) and row.problem is None
    )
    if found := list(islice(readable, count)):
        return found
    raise ScreenError(candidates.address, ["candidates.from: holds no candidate that can be read"])


def checked(source: Source, candidates: Candidates) -> Iterator[Read]:
    """The rows of one source, checked for the columns that the screen names.

    Raises:
        ScreenError: it cannot be read, or no row of its beginning has a column.
    """
    records = source.records()
    head = list(islice(records, LOOK_AHEAD))
    known = dict.fromkeys(chain.from_iterable(r.fields for r in head if isinstance(r, Record)))
    if known:
        # A record of JSON may lack what others have; it is then reviewed by itself.
        named = named_fields(candidates.text) if source.even else set()
        problems = [
            f"candidates.{setting}: names '{name}', which {source.name} lacks; it has "
            f"{_list(known)}"
            for setting, names in {"key": {candidates.key}, "text": named}.items()
            for name in sorted(names - known.keys())
        ]
        if problems:
            raise ScreenError(source.address, problems)
    return chain(head, records)


def to_rows(records: Iterable[Read], candidates: Candidates, name: str) -> Iterator[Row | BadRow]:
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
            yield bad(name, line, "the key is too large a number; write it as text", raw)
            continue
        if key is None or key == "":
            yield bad(name, line, f"no value in the key column '{candidates.key}'", raw)
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


def _chunks_of_sources(
    candidates: Candidates, limit: int | None
) -> Iterator[tuple[str, list[Row | BadRow]]]:
    """All rows, or the first so many, in chunks with the name of the source that holds them."""
    read = 0
    for source in sources(candidates.source):
        records = islice(checked(source, candidates), None if limit is None else limit - read)
        rows = _of_shard(to_rows(records, candidates, source.name), candidates.shard)
        for chunk in _chunks(rows):
            yield source.name, chunk
            read += len(chunk)


def _of_shard(rows: Iterator[Row | BadRow], shard: str | None) -> Iterator[Row | BadRow]:
    """The rows of one part, the same on every machine; rows without a key belong to the first."""
    if shard is None:
        return rows
    part, parts = map(int, shard.split("/"))

    def place(row: Row | BadRow) -> int:
        if isinstance(row, BadRow):
            return 1
        return int.from_bytes(blake2b(row.key.encode(), digest_size=8).digest()) % parts + 1

    return (row for row in rows if place(row) == part)


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


def _list(names: Iterable[str]) -> str:
    return ", ".join(list(names)[:30])
