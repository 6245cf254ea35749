"""Whether a quote stands in a text: exactly, once both are written in one way.

There is no fuzzy match: what a model has changed is not what the candidate wrote.
"""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

KINDS = ("quote", "quotes")
"""Kinds of fields whose values have to stand in the candidate's text."""
MOST_PLACES = 100
"""Of one quote."""

_SAME = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u2039\u203a\u0060\u00b4", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb", '"')
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d", "-")
    | dict.fromkeys("\u00ad\u200b\u2060\ufeff", "")
)
_OTHERWISE = re.compile(r"\s+|.?(?:(?!\s)[^\x00-\x7f])+", re.DOTALL)
"""Blanks, and what is not ASCII, with the letter before, which an accent may belong to."""
_CONTINUES = re.compile(r"[\u1160-\u11ff]")
"""Vowels and ends of Korean syllables, which belong to the letter before."""


class Passages:
    """A text in which quotes are looked for, in time that grows with its length."""

    def __init__(self, text: str) -> None:
        parts: list[str] = []
        self._at, self._from, self._kept = [0], [0], [True]
        length = end = 0

        def begin(place: int, *, kept: bool) -> None:
            self._at.append(length)
            self._from.append(place)
            self._kept.append(kept)

        for start, stop, written in _rewritten(text):
            parts.append(text[end:start])
            length += start - end
            begin(start, kept=False)
            parts.append(written)
            length += len(written)
            begin(stop, kept=True)
            end = stop
        parts.append(text[end:])
        self._text = "".join(parts)
        self._length = len(text)

    def find(self, quote: str) -> list[tuple[int, int]]:
        """Where the quote stands: start and end in characters of the text, in order.

        A quote without a letter or a digit stands nowhere.
        """
        wanted = normalised(quote).strip()
        if not any(letter.isalnum() for letter in wanted):
            return []  # a comma shows nothing
        places: list[tuple[int, int]] = []
        at = self._text.find(wanted)
        while at >= 0 and len(places) < MOST_PLACES:
            places.append((self._start(at), self._stop(at + len(wanted) - 1)))
            at = self._text.find(wanted, at + 1)
        return places

    def _start(self, at: int) -> int:
        piece = bisect_right(self._at, at) - 1
        return self._from[piece] + (at - self._at[piece] if self._kept[piece] else 0)

    def _stop(self, last: int) -> int:
        piece = bisect_right(self._at, last) - 1
        if self._kept[piece]:
            return self._from[piece] + last - self._at[piece] + 1
        return self._from[piece + 1] if piece + 1 < len(self._from) else self._length


def normalised(text: str) -> str:
    """As NFKC writes it, each run of blanks one blank, one kind of quotation marks and hyphens.

    Soft hyphens, and blanks that have no width, are left out.
    """
    passages = Passages(text)
    return passages._text


def quotes_of(reading: str | None, fields: Mapping[str, str]) -> list[tuple[str, str]]:
    """The quotes of a JSON reply: each with the field that holds it."""
    if reading is None:
        return []
    said: dict[str, Any] = orjson.loads(reading)
    found = []
    for name, kind in fields.items():
        if kind.strip() in KINDS:
            value = said.get(name)
            values = value if isinstance(value, list) else [value]
            found += [(name, each) for each in values if isinstance(each, str)]
    return list(dict.fromkeys(found))


def _rewritten(text: str) -> Iterator[tuple[int, int, str]]:
    """Stretches of the text that are written otherwise: start, end, and how."""
    for found in _OTHERWISE.finditer(text):
        run = found[0]
        if run == " ":
            continue
        if run.isspace():
            yield found.start(), found.end(), " "
        elif not (unicodedata.is_normalized("NFKC", run) and run.translate(_SAME) == run):
            yield from _letters(run, found.start())


def _letters(run: str, start: int) -> Iterator[tuple[int, int, str]]:
    """A run letter by letter, each with the accents that follow it."""
    at = 0
    while at < len(run):
        end = at + 1
        while end < len(run) and (
            unicodedata.combining(run[end]) or _CONTINUES.match(run, end) is not None
        ):
            end += 1
        letter = run[at:end]
        written = unicodedata.normalize("NFKC", letter).translate(_SAME)
        if letter.isspace() or written.isspace():
            written = " "
        if written != letter:
            yield start + at, start + end, written
        at = end
