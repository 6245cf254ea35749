"""Runs as people steer them: tamis pause, resume."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.console import (
    BUSY,
    DONE,
    UNFINISHED,
    AsJson,
    Database,
    fail,
    found_run,
    out,
    print_json,
)

if TYPE_CHECKING:
    from db.store import Run, RunState, Store

app = typer.Typer()

Key = Annotated[str, typer.Argument(metavar="RUN", help="A run's key.")]

LOOK_SECONDS = 0.5


@app.command(epilog="Example: `tamis pause monday`")
def pause(
    run_key: Key,
    wait: Annotated[int, typer.Option(min=0, help="Seconds to wait until it has ended.")] = 60,
    database: Database = None,
) -> None:
    """Have a run end within seconds, wherever it is worked on; what was judged is kept.

    Exit code 0: it has ended. 3: it was asked, and has not ended yet.
    """
    from db.store import RunState

    store, run = found_run(database, run_key)
    if _state(store, run) is RunState.INTERRUPTED:
        fail(f"the process of run '{run.key}' is gone; go on with: tamis resume {run.key}")
    attempt = store.runs.pause(run.id)
    until = time.monotonic() + wait
    while (status := store.runs.status(run.id)).attempt == attempt and status.lock_owner:
        if time.monotonic() >= until:
            out.print(
                f"run {run.key} was asked to pause and has not ended after {wait} s; look again "
                f"with: tamis status {run.key}"
            )
            raise typer.Exit(UNFINISHED)
        time.sleep(LOOK_SECONDS)
    out.print(f"run {run.key}: {status.run.state}" + f", {status.reason}" * bool(status.reason))
    raise typer.Exit(DONE)


@app.command(epilog="Example: `tamis resume monday`")
def resume(
    run_key: Key,
    read: Annotated[
        bool, typer.Option("--read", help="Read the input again, for what is new in it.")
    ] = False,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Go on with a run by the settings that it has stored, with the candidates that it has.

    Exit codes are those of tamis run.
    """
    from db.store import RunState

    store, run = found_run(database, run_key)
    state = _state(store, run)
    if state in (RunState.DONE, RunState.ALARM):
        fail(
            f"run '{run.key}' is {state}, so that nothing is left to do; a grown input is read by "
            f"the command that began it: tamis run FILE --key {run.key}"
        )
    _go_on(store, run, database, as_json, read=read)


def _state(store: "Store", run: "Run") -> "RunState":
    from flows.owner import state_of

    return state_of(store.runs.status(run.id))


def _go_on(
    store: "Store", run: "Run", database: str | None, as_json: bool, *, read: bool = False
) -> None:
    """Run by the stored definition; the input is read where it never was to its end."""
    from db.store import RunState
    from flows.commands.local import exit_code, screen_once
    from flows.guarantee.labelling import definition_of
    from flows.report.summary import show

    if _state(store, run) is RunState.RUNNING:
        fail(f"run '{run.key}' is being worked on; wait for it, or: tamis pause {run.key}", BUSY)
    definition = definition_of(run)
    if definition.digest != run.config_hash:
        fail(
            f"run '{run.key}' was begun by an earlier version, which did not keep its settings in "
            f"their order; go on with the command that began it: tamis run FILE --key {run.key}"
        )
    read = read or not store.runs.status(run.id).rows_read
    finished = screen_once(definition, database, key=run.key, read=read)
    if as_json:
        print_json(finished)
    else:
        show(finished, out)
    raise typer.Exit(exit_code(finished))
