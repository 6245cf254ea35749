"""What all commands share: where they print, how they fail, and their common options."""

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from flows.terminal import Terminal, json_text, number, visible

if TYPE_CHECKING:
    from db.store import Run, Store
    from flows.settings import Settings

DONE, USAGE, UNFINISHED, UNKEPT, BUSY, INTERRUPTED = 0, 2, 3, 4, 5, 130

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


def _trust(wanted: bool) -> bool:
    """Trust all folders in this process and in those that it starts, which open the tiers."""
    if wanted:
        from tiers.screenfile.trust import EVERYWHERE, TRUSTED_FOLDERS

        os.environ[TRUSTED_FOLDERS] = EVERYWHERE
    return wanted


AllowCode = Annotated[
    bool,
    typer.Option(
        "--allow-code",
        callback=_trust,
        help="Trust the screen file: let it run code, and read and write outside its folder.",
    ),
]


def _log_as(wanted: str | None) -> str | None:
    if wanted is not None:
        os.environ["TAMIS_LOG_FORMAT"] = wanted
    return wanted


class LogFormats(StrEnum):
    """How a run tells what it does."""

    TEXT = "text"
    JSON = "json"


LogFormat = Annotated[
    LogFormats | None,
    typer.Option("--log-format", callback=_log_as, help="Of what a run tells on stderr."),
]
MetricsPort = Annotated[
    int | None,
    typer.Option(min=1, max=65535, help="Answer Prometheus on this port of 127.0.0.1 meanwhile."),
]
File = Annotated[Path, typer.Argument(metavar="FILE", help="The screen file.")]


class Errors(Terminal):
    """Where commands say what is not their result: as text, or as lines of JSON where asked."""

    def print(self, *objects: Any, event: str = "message", **settings: Any) -> None:
        if os.environ.get("TAMIS_LOG_FORMAT") != LogFormats.JSON:
            super().print(*objects, **settings)
            return
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        said = " ".join(str(each) for each in objects).strip()
        print(json_text({"at": at, "event": event, "message": said}), file=sys.stderr, flush=True)


# A table cut to the 80 columns of a pipe helps nobody.
out = Terminal(width=None if sys.stdout.isatty() else 160)
err = Errors(stderr=True)


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


def metrics(database: str | None, port: int | None) -> AbstractContextManager[None]:
    """Answer Prometheus meanwhile, where a port is given; else nothing of it is imported."""
    if port is None:
        return nullcontext()
    from flows.watch.metrics import served_metrics

    return served_metrics(settings().database(database), port)


def fail(message: str, code: int = USAGE) -> NoReturn:
    """End the command with a message."""
    err.print(message, event="error", style="red")
    raise SystemExit(code)


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


RunKey = Annotated[str | None, typer.Argument(metavar="[RUN]", help="Default: newest.")]


def found_run(database: str | None, run_key: str | None) -> tuple["Store", "Run"]:
    """The store, and the run of a key or of a screen file."""
    from tiers.screenfile.file import load_screen

    store = open_store(database)
    if run_key is None or not run_key.endswith((".yaml", ".yml")):
        return store, store.runs.find(run_key)
    name = load_screen(Path(run_key)).screen
    found = next((one.run for one in store.runs.newest(1000) if one.run.screen == name), None)
    if found is None:
        fail(f"screen '{name}' has no run yet; run tamis calibrate {run_key}")
    return store, found


def unwritable(path: Path, error: OSError) -> NoReturn:
    """End the command because a file cannot be written."""
    fail(
        f"{path} cannot be written: {error.strerror or error}; name a file in a folder that exists "
        "and that you may write to"
    )
