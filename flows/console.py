"""What all commands share: where they print, how they fail, and their common options."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

if TYPE_CHECKING:
    from db.store import Store
    from flows.settings import Settings

DONE, USAGE, UNFINISHED, UNKEPT = 0, 2, 3, 4

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

# A table cut to the 80 columns of a pipe helps nobody.
# Nothing is markup: a candidate's text may hold [brackets].
out = Console(
    highlight=False, markup=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160
)
err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


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


def fail(message: str) -> NoReturn:
    """End the command with a message."""
    err.print(message, style="red")
    raise SystemExit(USAGE)


def print_rows(rows: list[dict[str, Any]], as_json: bool, *, empty: str) -> None:
    """Rows of equal columns as a table, or as JSON."""
    if as_json:
        print(json.dumps(rows, default=str, ensure_ascii=False))
        return
    if not rows:
        out.print(empty)
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name, value in rows[0].items():
        table.add_column(name, justify="right" if isinstance(value, int | float) else "left")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    out.print(table)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 1 else f"{value:,.2f}"
    return "" if value is None else str(value)
