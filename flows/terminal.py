"""Text for people's terminals, which obey nothing that a candidate or a server wrote."""

import json
import re
from typing import Any

import orjson
from rich.console import Console

_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\U000e0000-\U000e007f]"
)
"""What a terminal obeys: control characters, marks that turn the direction of writing, line ends
that are none of ours, and the alphabet of tags, which nobody sees."""
_LEAST_SHOWN = 0.001
"""From here on four decimals say enough of a number."""


def visible(text: str) -> str:
    """The text with its control characters shown, which a terminal would obey.

    Candidates, servers and files write what they like: titles, colours, a cleared screen, words
    that stand in another order than they are read in.
    """
    plain = text.replace("\r\n", "\n")
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), plain)


def number(value: float) -> str:
    """A number as people read it: a small one is not rounded to nothing, nor one below 1 to 1."""
    if 0 < abs(value) < _LEAST_SHOWN:
        return f"{value:.3g}"
    rounded = f"{value:.4f}" if abs(value) < 1 else f"{value:,.2f}"
    return repr(value) if abs(value) < 1 <= abs(float(rounded)) else rounded


class Terminal(Console):
    """A console that obeys nobody: no markup, no emoji, no control characters."""

    def __init__(self, **settings: Any) -> None:
        # Nothing is markup: a candidate's text may hold [brackets], or :100:.
        super().__init__(highlight=False, markup=False, emoji=False, soft_wrap=True, **settings)

    def print(self, *objects: Any, **settings: Any) -> None:
        shown = (visible(each) if isinstance(each, str) else each for each in objects)
        super().print(*shown, **settings)


def json_text(value: Any) -> str:
    """JSON, in which the control characters that JSON allows are escaped as well."""
    text = orjson.dumps(value, default=str).decode()
    return _CONTROL.sub(lambda found: json.dumps(found[0])[1:-1], text)
