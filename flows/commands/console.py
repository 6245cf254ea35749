"""What all commands share: where they print, how they fail, and their common options."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import orjson
import typer
from rich.console import Console

if TYPE_CHECKING:
    from db.store import Store
    from flows.settings import Settings

DONE, USAGE, UNFINISHED, UNKEPT, BUSY = 0, 2, 3, 4, 5

Database = Annotated[
    str | None,
    typer.Option(
        "--database",
        metavar="URL",
        help="sqlite:///file.db or postgresql://...; default: TAMIS_DATABASE_URL, "
        "else tamis-data/tamis.db.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AllowShrink = Annotated[
    bool,
    typer.Option("--allow-shrink", help="Let more than half of the run's candidates leave it."),
]
File = Annotated[Path, typer.Argument(metavar="FILE", help="The screen file.")]

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LEAST_SHOWN = 0.001
"""From here on four decimals say enough of a number."""


def visible(text: str) -> str:
    """The text with its control characters shown, which a terminal would obey.

    Candidates, servers and files write what they like: titles, colours, a cleared screen.
    """
    plain = text.replace("\r\n", "\n")
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", plain)


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


# A table cut to the 80 columns of a pipe helps nobody.
out = Terminal(width=None if sys.stdout.isatty() else 160)
err = Terminal(stderr=True)


def settings() -> "Settings":
    """Where things are, for this command."""
    from flows.settings import Settings

    return Settings()


def open_store(database: str | None) -> "Store":
    """The store of a database that is there, and at head; none is made.

    Raises:
        EmptyDatabase: there is none.
    """
    from db.engine import check_ready, open_engine
    from db.store import Store

    url = settings().database(database)
    check_ready(url, create=False)
    return Store(open_engine(url))


def same_database(database: str | None) -> str:
    """What a hint has to add so that its command asks the database of this one."""
    if database is None:
        return ""
    from sqlalchemy import make_url

    from db.errors import shown

    return f" --database {shown(make_url(database))}"


def fail(message: str, code: int = USAGE) -> NoReturn:
    """End the command with a message."""
    err.print(message, style="red")
    raise SystemExit(code)


def json_text(value: Any) -> str:
    """JSON, in which the control characters that JSON allows are escaped as well."""
    text = orjson.dumps(value, default=str).decode()
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def print_json(value: Any) -> None:
    """One line of JSON on stdout."""
    print(json_text(value), flush=True)


def print_rows(rows: list[dict[str, Any]], as_json: bool, *, empty: str) -> None:
    """Rows of equal columns as a table, or as JSON."""
    if as_json:
        print_json(rows)
        return
    if not rows:
        out.print(empty)
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name, value in rows[0].items():
        side: Literal["left", "right"] = "right" if isinstance(value, int | float) else "left"
        table.add_column(visible(name), justify=side)
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    out.print(table)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return number(value)
    return "" if value is None else visible(str(value))
