"""A record beside its text: a long value that stands in the text is stored there alone.

The view `candidate_record` puts the two together again, byte for byte as the record was.
"""

from collections.abc import Iterable, Iterator
from typing import AnyStr, NamedTuple

import orjson

LONG = 64
"""Characters from which a value is worth it: where it stands takes some 30 bytes."""
_LOOK = 32
"""So much of a needle is looked for; the rest is compared."""

Place = tuple[int | str, ...]


class Beside(NamedTuple):
    """What is stored of a record beside its text."""

    fields: str
    """JSON, in which "" stands for each value that is taken from the text."""
    from_text: str | None
    """JSON: a list for each piece of `fields`, with its place from 1, its length, and the place and
    length of the value that follows it in the text, then the blanks before and after the value,
    which the text lacks; the last piece has no value. None: `fields` are the record."""


def beside(record: bytes, text: str) -> Beside:
    """What to store of a record, which is an object of JSON in UTF-8 without blanks."""
    # Most texts are one column: that is seen without reading the record again.
    column = [(text, (1, len(text)))] if len(text) >= LONG else []
    return (
        _without(record, column)
        or _without(record, _values(record, text))
        or Beside(record.decode(), None)
    )


def _without(record: bytes, values: Iterable[tuple[str, Place]]) -> Beside | None:
    """The record without these values, which come in its order; None where it has none of them."""
    parts: list[str] = []
    pieces: list[Place] = []
    at, length = 0, 0
    for value, place in values:
        quoted = b":" + orjson.dumps(value)
        start = _find(record, quoted, at) + 1
        if start:
            part = record[at:start].decode()
            parts.append(part)
            pieces.append((length + 1, len(part), *place))
            at, length = start + len(quoted) - 1, length + len(part) + 2
    if not parts:
        return None
    last = record[at:].decode()
    pieces.append((length + 1, len(last)))
    short = '""'.join([*parts, last])
    try:
        orjson.loads(short)
    except orjson.JSONDecodeError:  # what stood between two strings may look like a string
        return None
    return Beside(short, orjson.dumps(pieces).decode())


def _values(record: bytes, text: str) -> Iterator[tuple[str, Place]]:
    """Long values of the record that stand in the text, and where."""
    for value in orjson.loads(record).values():
        if isinstance(value, str) and len(value) >= LONG and (core := value.strip()):
            start = _find(text, core)
            if start >= 0:
                blanks = value.split(core, 1) if len(core) < len(value) else ()
                yield value, (start + 1, len(core), *blanks)


def _find(where: AnyStr, what: AnyStr, at: int = 0) -> int:
    """As `find`, which prepares all of a long needle before it looks."""
    start = where.find(what[:_LOOK], at)
    return start if start < 0 or where.startswith(what, start) else where.find(what, start)
