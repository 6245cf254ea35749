"""Batches of requests that are out: tamis batch."""

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.console import (
    AllowCode,
    AsJson,
    Database,
    err,
    fail,
    open_store,
    out,
    print_rows,
    settings,
)
from flows.commands.local import exit_code

if TYPE_CHECKING:
    from db.store import Batch

app = typer.Typer(name="batch", no_args_is_help=True, help="Batches of requests that are out.")


@app.command("list", epilog="Example: `tamis batch list --json`")
def list_batches(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="Only of this run.")] = None,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """List all batches, as they stood when they were last looked at."""
    store = open_store(database)
    run_id = None if run is None else store.runs.find(run).id
    rows = [_batch_row(batch) for batch in store.batches.all(run_id)]
    print_rows(rows, as_json, empty="no batches")


@app.command(epilog="Example: `tamis batch poll --wait`")
def poll(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="Only this run.")] = None,
    database: Database = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until nothing is out any more.")] = False,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Collect the answers of batches that ended, and go on with their runs.

    Exit code 3: something is still out, or candidates of these runs failed or are pending.
    """
    from flows.server import ensure_server
    from tiers.types import TierError

    url = settings().database(database)
    os.environ["TAMIS_DATABASE_URL"] = url
    store = open_store(url)
    if run is not None:
        store.runs.find(run)
    waiting = [key for key in store.batches.waiting_runs() if run in (None, key)]
    if not waiting:
        print_rows([], as_json, empty="no run waits for a batch")
        return
    ready = ensure_server(settings())
    from flows.collect import collect
    from flows.report.summary import summary

    try:
        ready()
        collect(run, wait)
    except TierError as error:
        err.print(str(error), markup=False, highlight=False)
    stand = [summary(store, store.runs.find(key)) for key in waiting]
    rows = [
        _batch_row(batch) for batch in store.batches.all(open_only=True) if batch.run in waiting
    ]
    if not as_json:
        for one in stand:
            out.print(f"run {one.run}: {one.state}", highlight=False)
    print_rows(rows, as_json, empty="nothing is out any more")
    raise typer.Exit(max(map(exit_code, stand)))


@app.command("cancel", epilog="Example: `tamis batch cancel 3`")
def cancel_batch(
    number: Annotated[int, typer.Argument(metavar="ID", help="As `tamis batch list` says.")],
    database: Database = None,
    forget: Annotated[
        bool, typer.Option("--forget", help="Do not ask the server; send its candidates again.")
    ] = False,
) -> None:
    """Have a batch stopped. What it has answered is kept, and collected by `tamis batch poll`."""
    from flows.collect import cancel

    store = open_store(database)
    found = [batch for batch in store.batches.all(open_only=True) if batch.id == number]
    if not found:
        fail(f"no open batch {number}; see 'tamis batch list'")
    batch = cancel(store, found[0], forget=forget)
    out.print(f"batch {number}: {(not forget and batch.remote_state) or batch.reason}")


def _batch_row(batch: "Batch") -> dict[str, Any]:
    return {
        "batch": batch.id,
        "run": batch.run,
        "tier": batch.tier,
        "state": str(batch.state),
        "server says": batch.remote_state or "",
        "lines": batch.lines,
        "answered": batch.answered,
        "sent": None if batch.submitted_at is None else f"{batch.submitted_at:%Y-%m-%d %H:%M}",
        "reason": batch.reason or "",
    }
