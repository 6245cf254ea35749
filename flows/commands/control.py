"""Runs as people steer them: tamis pause, resume, retry, set, runs."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.console import (
    BUSY,
    DONE,
    UNFINISHED,
    AllowCode,
    AsJson,
    Database,
    err,
    fail,
    found_run,
    open_store,
    out,
    print_json,
    print_rows,
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
    allow_code: AllowCode = False,
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


@app.command(epilog="Example: `tamis retry monday --failed`")
def retry(
    run_key: Key,
    failed: Annotated[bool, typer.Option("--failed", help="Those that failed.")] = False,
    allow_code: AllowCode = False,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Ask again about candidates that failed; those that are pending are asked as well.

    Exit codes are those of tamis run.
    """
    store, run = found_run(database, run_key)
    if not failed:
        fail(f"say who is to be asked about again; write: tamis retry {run.key} --failed")
    account = store.runs.status(run.id).account
    if account.failed == account.bad_rows:
        rows = f"; {account.bad_rows:,} rows of the input could not be read" * bool(
            account.bad_rows
        )
        mend = f": mend them, and write tamis run FILE --key {run.key}" * bool(account.bad_rows)
        fail(f"no candidate of run '{run.key}' failed{rows}{mend}")
    _go_on(store, run, database, as_json)


@app.command("set", epilog="Example: `tamis set monday --concurrency 32 --budget 20`")
def set_(
    run_key: Key,
    concurrency: Annotated[
        int | None, typer.Option(min=1, max=2048, help="Requests under way at each address.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(min=0, help="US dollars for the whole run, or for --tier.")
    ] = None,
    base_url: Annotated[
        list[str] | None,
        typer.Option(help="The addresses of a tier; repeat it. A run that works moves at once."),
    ] = None,
    tier: Annotated[str | None, typer.Option(help="Only this tier.")] = None,
    database: Database = None,
) -> None:
    """Change settings that move no score; the next tamis resume goes by them."""
    from db.store import RunState
    from flows.guarantee.labelling import definition_of
    from flows.run.retune import retuned
    from flows.run.session import as_config

    store, run = found_run(database, run_key)
    urls = base_url or ()
    if concurrency is budget is None and not urls:
        fail("nothing is set; write --concurrency 32, --budget 20 for dollars, or --base-url URL")
    changed = retuned(
        definition_of(run), tier=tier, concurrency=concurrency, budget_usd=budget, urls=urls
    )
    store.runs.set_config(run.id, as_config(changed))
    working = _state(store, run) is RunState.RUNNING
    if working and urls:
        out.print(f"run {run.key} asks at {', '.join(urls)} within seconds")
        if concurrency is budget is None:
            raise typer.Exit(DONE)
    first = f"tamis pause {run.key}, then " * working
    out.print(
        f"kept for run {run.key}; it takes effect with: {first}tamis resume {run.key} "
        "(tamis run FILE goes by what the file says)"
    )


@app.command(epilog="Example: `tamis runs --repair`")
def runs(
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Mark runs whose process is gone, and free their locks."),
    ] = False,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """List the runs; with --repair, first put right what killed processes have left."""
    from flows.commands.results import status_row

    store = open_store(database)
    if repair:
        _repair(store)
    rows = [status_row(status) for status in store.runs.newest(50)]
    print_rows(rows, as_json, empty="no runs yet; start one with tamis run FILE")


def _repair(store: "Store") -> None:
    from flows.repair import crash_in_prefect, repair

    gone = repair(store)
    for run in gone:
        err.print(f"run {run.key}: its process is gone; go on with: tamis resume {run.key}")
    if not gone:
        err.print("nothing to repair: every run that says so is worked on")
        return
    marked = crash_in_prefect(gone)
    if marked is None:
        err.print("no Prefect server answers, so that nothing was marked there")
    elif marked:
        err.print(f"marked as crashed in Prefect: {marked:,} flow runs")


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
    from flows.report.forecast import forecast, in_words
    from flows.report.summary import show

    if _state(store, run) is RunState.RUNNING:
        fail(f"run '{run.key}' is being worked on; wait for it, or: tamis pause {run.key}", BUSY)
    definition = definition_of(run)
    if definition.digest != run.config_hash:
        fail(
            f"run '{run.key}' was begun by an earlier version, which did not keep its settings in "
            f"their order; go on with the command that began it: tamis run FILE --key {run.key}"
        )
    err.print(in_words(forecast(store, run, store.results.funnel(run.id))))
    read = read or not store.runs.status(run.id).rows_read
    finished = screen_once(definition, database, key=run.key, read=read)
    if as_json:
        print_json(finished)
    else:
        show(finished, out)
    raise typer.Exit(exit_code(finished))
