"""Runs that others start: tamis serve, deploy, ui."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.console import (
    AllowCode,
    AsJson,
    Database,
    LogFormat,
    MetricsPort,
    fail,
    metrics,
    out,
    print_rows,
    settings,
)

if TYPE_CHECKING:
    from flows.settings import Settings
    from tiers.screenfile.file import Screen

app = typer.Typer()

Files = Annotated[
    list[Path], typer.Argument(metavar="FILE...", help="Screen files.", show_default=False)
]
Cron = Annotated[
    str | None,
    typer.Option(help="Run each screen by itself: minute hour day month weekday."),
]
Zone = Annotated[str, typer.Option("--timezone", help="Of the cron, such as Europe/Berlin.")]


@app.command(epilog="Example: `tamis serve screen.yaml --cron '0 6 * * *'`")
def serve(
    files: Files,
    cron: Cron = None,
    timezone: Zone = "UTC",
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Of our own server and its UI.")
    ] = 4200,
    allow_code: AllowCode = False,
    metrics_port: MetricsPort = None,
    log_format: LogFormat = None,
    database: Database = None,
) -> None:
    """Have screens started from the Prefect UI and by a schedule, until Ctrl-C or SIGTERM.

    The server is the one that PREFECT_API_URL or your Prefect profile names, else one of our own.
    """
    from contextlib import ExitStack

    from flows.run.session import ending_on_signals
    from flows.server import answering_server, server_of_our_own

    screens = _read(files)
    chosen = _for_the_runs(database)
    with ExitStack() as stack:
        stack.enter_context(ending_on_signals())  # until Prefect's runner hears them
        stack.enter_context(metrics(database, metrics_port))
        url = answering_server() or stack.enter_context(server_of_our_own(chosen, port))
        import asyncio

        from flows.deployments import register, run_what_is_asked

        deployed = register(screens, cron=cron, timezone=timezone)
        out.print(f"Prefect UI: {url.removesuffix('/api')}/deployments")
        for one in deployed:
            out.print(f"  {one.name}")
        when = f"; each screen runs at '{cron}' ({timezone})" if cron else ""
        many = "1 screen" if len(screens) == 1 else f"{len(screens)} screens"
        out.print(f"serving {many}{when}; Ctrl-C ends it, schedules stay on")
        asyncio.run(run_what_is_asked(deployed))
    out.print("ended; what was judged is kept")


@app.command(epilog="Example: `tamis deploy screen.yaml --pool gpu --cron '0 6 * * *'`")
def deploy(
    files: Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...")] = None,
    pool: Annotated[str | None, typer.Option(help="The work pool whose workers run it.")] = None,
    cron: Cron = None,
    timezone: Zone = "UTC",
    list_: Annotated[bool, typer.Option("--list", help="Show what is deployed.")] = False,
    delete: Annotated[
        str | None, typer.Option(metavar="SCREEN", help="Take a screen's deployments away.")
    ] = None,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Register screens with your Prefect server, for the workers of a work pool."""
    from flows.server import answering_server

    if answering_server() is None:
        fail(
            "no Prefect server answers; set PREFECT_API_URL to yours, or serve the screens on this "
            "machine: tamis serve FILE"
        )
    from flows import deployments

    if delete is not None:
        gone = deployments.delete(delete)
        out.print(f"deleted: {', '.join(f'{flow}/{delete}' for flow in gone)}")
    elif list_:
        rows = [
            {
                "deployment": f"{one.flow}/{one.name}",
                "pool": one.pool or "",
                "schedule": one.schedule or "",
                "paused": "yes" if one.paused else "no",
            }
            for one in deployments.registered()
        ]
        print_rows(rows, as_json, empty="nothing is deployed")
    else:
        if not files:
            fail("name the screen files; write: tamis deploy FILE --pool NAME")
        if pool is None:
            fail("name the work pool; write --pool NAME, or serve here: tamis serve FILE")
        for one in deployments.register(_read(files), cron=cron, timezone=timezone, pool=pool):
            out.print(f"deployed {one.name} to pool {pool}")


@app.command(epilog="Example: `tamis ui`, then open the address that it prints")
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where to listen.")] = 4200,
) -> None:
    """Open the Prefect UI on this project's runs, until Ctrl-C."""
    from flows.server import serve_ui

    serve_ui(settings(), port)


def _read(files: list[Path]) -> "list[tuple[Screen, Path]]":
    from tiers.screenfile.file import STDIN, load_screen

    screens = [(load_screen(file), file.resolve()) for file in files]
    for screen, file in screens:
        if screen.candidates.source == STDIN:
            fail(f"{file}: candidates.from: '-' is this terminal's input, which ends; name a file")
    return screens


def _for_the_runs(database: str | None) -> "Settings":
    """Say where things are in the environment, which the runs inherit."""
    import os

    chosen = settings()
    os.environ["TAMIS_DATABASE_URL"] = chosen.database(database)
    os.environ["TAMIS_DATA_FOLDER"] = str(chosen.data_folder.resolve())
    os.environ["PYTHONSAFEPATH"] = "1"  # no module of the working folder, which may be a stranger's
    return chosen
