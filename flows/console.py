"""What all commands share: where they print, how they fail, and their common options."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

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


def open_store(database: str | None) -> Store:
    """The store that a command works on; its database is at head."""
    from db.engine import check_ready, open_engine

    url = Settings().database(database)
    check_ready(url)
    return Store(open_engine(url))


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
