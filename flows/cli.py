"""The command line. Prefect and engines are imported inside commands, so that help is quick."""

import csv
import os
import time
from dataclasses import asdict, replace
from importlib.metadata import version as installed
from importlib.resources import files
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.changes import changes
from flows.commands.console import (
    BUSY,
    DONE,
    UNFINISHED,
    UNKEPT,
    USAGE,
    AllowShrink,
    AsJson,
    Database,
    File,
    err,
    fail,
    number,
    open_store,
    out,
    print_json,
    print_rows,
    same_database,
    settings,
    visible,
)
from flows.commands.guarantee import add_guarantee_commands
from flows.files.writing import Format, format_of, results_of, write_results

if TYPE_CHECKING:
    from db.store import Batch, Explanation, JudgementDetail, RunStatus
    from tiers.screenfile.file import Screen

app = typer.Typer(
    name="tamis",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Screen hundreds of thousands of records against one rubric with a cascade of models.",
)
database_app = typer.Typer(no_args_is_help=True, help="Create or inspect the database.")
app.add_typer(database_app, name="db")
batch_app = typer.Typer(no_args_is_help=True, help="Batches of requests that are out.")
app.add_typer(batch_app, name="batch")

Verdict = Annotated[
    str | None,
    typer.Option(help="Only these: accepted, rejected, review, failed or pending."),
]


@app.callback(invoke_without_command=True)
def tamis(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", is_eager=True)
    ] = False,
) -> None:
    """Screen hundreds of thousands of records against one rubric with a cascade of models."""
    if version:
        out.print(f"tamis {installed('tamis')}")
        raise typer.Exit


def main() -> None:
    """Run the command; every expected fault is one message and an exit code, never a traceback."""
    try:
        app()
    except Exception as error:
        code = _code_of(error)
        if code is None:
            raise
        fail(str(error), code)


def _code_of(error: Exception) -> int | None:
    """The exit code of a fault that is expected; None for one of our own."""
    from db.errors import DatabaseError, RunHeld, StoreError, WrongUrl
    from flows.server import ServerError
    from tiers.screenfile.file import ScreenError
    from tiers.types import TierError

    if isinstance(error, DatabaseError | RunHeld) and not isinstance(error, WrongUrl):
        return BUSY
    return USAGE if isinstance(error, ScreenError | ServerError | StoreError | TierError) else None


@app.command(epilog="Example: `tamis run screen.yaml --key monday`")
def run(
    file: File,
    database: Database = None,
    key: Annotated[str | None, typer.Option(help="Name of the run; the same key goes on.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Read only so many rows.")] = None,
    allow_shrink: AllowShrink = False,
    as_json: AsJson = False,
) -> None:
    """Screen all candidates. Run again after a stop of any kind: it goes on where it was.

    Exit code 0: done. 3: candidates failed or pending. 4: audits say that the promise is broken.
    """
    from flows.report.summary import show
    from tiers.screenfile.file import load_screen

    finished = screen_once(
        load_screen(file), database, key=key, limit=limit, allow_shrink=allow_shrink
    )
    if as_json:
        print_json(finished)
    else:
        show(finished, out)
        _next_steps(finished["run"], same_database(database))
    raise typer.Exit(_exit_code(finished))


@app.command(epilog="Example: `tamis demo --count 2000`")
def demo(
    database: Database = None,
    count: Annotated[int, typer.Option(min=1, help="How many applicants.")] = 2_000,
    seed: Annotated[int, typer.Option(help="Another seed, other applicants.")] = 7,
) -> None:
    """Screen generated applicants through three tiny models that ship with Tamis."""
    from flows.commands.demo import run_demo

    raise typer.Exit(run_demo(database, count=count, seed=seed, console=out))


@app.command(epilog="Example: `tamis init my-screen`")
def init(
    folder: Annotated[Path, typer.Argument(help="Where to write; made if missing.")] = Path(),
) -> None:
    """Write a commented screen file and sample data to start from."""
    from demo.records import applicants

    target, data, models = folder / "screen.yaml", folder / "applicants.csv", folder / "models"
    for path in (target, data, models):
        if path.exists():
            fail(f"{path} exists already; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    package = Path(str(files("demo")))
    screen = (package / "screen.yaml").read_text("utf-8")
    target.write_text(screen.replace("data/applicants.jsonl", data.name), "utf-8")
    copytree(package / "models", models)  # so that the folder is whole wherever it is taken
    with data.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["applicant_id", "name", "title", "resume"])
        for one in applicants(200, 1):
            writer.writerow([one.applicant_id, one.name, one.title, one.resume])
    out.print(
        f"wrote {target}, {data} and {models}\nnext: tamis check {target}; then tamis run {target}"
    )


@app.command(epilog="Example: `tamis check screen.yaml`")
def check(file: File, as_json: AsJson = False) -> None:
    """Validate a screen file; show the models found and the prompt of the first candidate."""
    from flows.commands.check import inspect_screen, show_inspection
    from tiers.screenfile.file import load_screen

    inspection = inspect_screen(load_screen(file))
    if as_json:
        print_json(inspection)
    else:
        show_inspection(inspection, out)
    raise typer.Exit(USAGE if inspection["problems"] else DONE)


@app.command(epilog="Example: `tamis status` or `tamis status monday --json`")
def status(
    run_key: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run's key.")] = None,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """List the runs, or show the funnel of one."""
    from db.errors import EmptyDatabase

    try:
        store = open_store(database)
    except EmptyDatabase as nothing:
        if run_key is not None:
            raise
        print_rows([], as_json, empty=str(nothing))
        return
    if run_key is None:
        rows = [_status_row(status) for status in store.runs(50)]
        print_rows(rows, as_json, empty="no runs yet; start one with tamis run FILE")
        return
    from flows.report.summary import show, summary

    finished = summary(store, store.find_run(run_key))
    if as_json:
        print_json(finished)
    else:
        show(finished, out)


@app.command(epilog="Example: `tamis results monday --verdict accepted --output accepted.csv`")
def results(
    run_key: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Default: newest.")] = None,
    database: Database = None,
    verdict: Verdict = None,
    output: Annotated[Path | None, typer.Option(help="A file; default: stdout.")] = None,
    columns: Annotated[
        str | None, typer.Option(help="Only these columns of the input: name,title.")
    ] = None,
    no_fields: Annotated[bool, typer.Option("--no-fields", help="No column of the input.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many lines.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="CSV: leave what spreadsheets take for formulas.")
    ] = False,
    as_json: AsJson = False,
    format_: Annotated[
        Format | None, typer.Option("--format", help="Default: as the file.")
    ] = None,
) -> None:
    """Write a line a candidate: key, verdict, tier, score, why, each tier's answer, the input."""
    chosen = format_ or (Format.JSONL if as_json else format_of(output))
    if output is not None and not output.parent.is_dir():
        fail(f"the folder {output.parent} does not exist; make it, or give another --output")
    if no_fields and columns is not None:
        fail("--no-fields and --columns contradict each other; leave one of them out")
    wanted = None if columns is None else [each.strip() for each in columns.split(",")]
    store = open_store(database)
    rows = results_of(
        store,
        store.find_run(run_key),
        verdict=verdict,
        limit=limit,
        columns=[] if no_fields else wanted,
    )
    write_results(rows, output, chosen, raw=raw)


@app.command(epilog="Example: `tamis explain monday A0000017`")
def explain(
    run_key: Annotated[str, typer.Argument(metavar="RUN", help="A run's key.")],
    key: Annotated[str, typer.Argument(metavar="KEY", help="A candidate's key.")],
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Show one candidate at every tier: text, score, reading, outcome and why."""
    store = open_store(database)
    found = store.explain(store.find_run(run_key).id, key)
    if as_json:
        print_json(_plain(found))
    else:
        _show_explanation(found)


@app.command(epilog="""Example: `tamis sql "SELECT verdict, count(*) FROM result GROUP BY 1"`""")
def sql(
    query: Annotated[str, typer.Argument(metavar="SELECT", help="One statement.")],
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Ask the database; the connection can only read. Views: result, funnel, judgement_detail."""
    from db.query import ask

    print_rows(ask(settings().database(database), query), as_json, empty="no rows")


@app.command(epilog="Example: `tamis ui`, then open the address that it prints")
def ui(port: Annotated[int, typer.Option(help="Where to listen.")] = 4200) -> None:
    """Open the Prefect UI on this project's runs, until Ctrl-C."""
    from flows.server import serve_ui

    serve_ui(settings(), port)


@database_app.command(epilog="Example: `tamis db upgrade --database postgresql://host/tamis`")
def upgrade(database: Database = None) -> None:
    """Create the tables, or bring an older database up to date."""
    from db.engine import current
    from db.engine import upgrade as upgrade_database

    url = settings().database(database)
    upgrade_database(url)
    out.print(f"the database is at revision {current(url)}")


@database_app.command(epilog="Example: `tamis db current`")
def current(database: Database = None) -> None:
    """Print the database's revision."""
    from db.engine import current as current_revision

    out.print(current_revision(settings().database(database)) or "empty")


@batch_app.command("list", epilog="Example: `tamis batch list --json`")
def list_batches(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="Only of this run.")] = None,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """List all batches, as they stood when they were last looked at."""
    store = open_store(database)
    run_id = None if run is None else store.find_run(run).id
    rows = [_batch_row(batch) for batch in store.batches.all(run_id)]
    print_rows(rows, as_json, empty="no batches")


@batch_app.command(epilog="Example: `tamis batch poll --wait`")
def poll(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="Only this run.")] = None,
    database: Database = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until nothing is out any more.")] = False,
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
        store.find_run(run)
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
    stand = [summary(store, store.find_run(key)) for key in waiting]
    rows = [
        _batch_row(batch) for batch in store.batches.all(open_only=True) if batch.run in waiting
    ]
    if not as_json:
        for one in stand:
            out.print(f"run {one['run']}: {one['state']}", highlight=False)
    print_rows(rows, as_json, empty="nothing is out any more")
    raise typer.Exit(max(map(_exit_code, stand)))


@batch_app.command("cancel", epilog="Example: `tamis batch cancel 3`")
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


def screen_once(
    definition: "Screen",
    database: str | None,
    *,
    key: str | None = None,
    limit: int | None = None,
    allow_shrink: bool = False,
) -> dict[str, Any]:
    """Run the flow in this process and return its summary, finished or stopped.

    `seconds` in it are those that the run was worked on, over all resumes; `whole_seconds` what
    this call took, start and Prefect included.

    Raises:
        TierError: a tier could not be found before anything was done.
    """
    began = time.monotonic()
    from flows.recorder import recorded
    from flows.report.summary import summary
    from flows.run.screening import prepare, screen_candidates
    from tiers.types import TierError

    url = settings().database(database)
    os.environ["TAMIS_DATABASE_URL"] = url  # not a parameter: Prefect would store the password
    chosen = prepare(definition, key)
    name, tags = f"{definition.screen} {chosen}", [definition.screen]
    with recorded("screen", name, tags=tags, key=chosen, limit=limit) as record:
        try:
            screen_candidates(definition, key=chosen, limit=limit, allow_shrink=allow_shrink)
        except TierError as error:
            err.print(str(error))
        except (KeyboardInterrupt, SystemExit) as stop:
            how = "cancelled in the Prefect UI" if record.cancelled else "stopped"
            err.print(
                f"\n{how}; what was judged is kept. Go on with the same command, run {chosen}"
            )
            raise SystemExit(stop.code if isinstance(stop, SystemExit) else 130) from None
    store = open_store(url)
    finished = summary(store, store.find_run(chosen))
    return {**finished, "whole_seconds": round(time.monotonic() - began, 3)}


def _status_row(status: "RunStatus") -> dict[str, Any]:
    from flows.run.owner import state_of

    return {
        "run": status.run.key,
        "state": str(state_of(status)),
        **asdict(status.account),
        "seconds": round(status.seconds, 1),
        "started": None if status.started is None else f"{status.started:%Y-%m-%d %H:%M}",
    }


def _plain(found: "Explanation") -> dict[str, Any]:
    tiers = [detail._asdict() | {"policy": detail.policy._asdict()} for detail in found.judgements]
    return asdict(replace(found, judgements=[])) | {"judgements": tiers}


def _show_explanation(found: "Explanation") -> None:
    from rich.table import Table

    out.print(
        f"{found.key}: {found.verdict}" + (f", {found.why}" if found.why else ""), style="bold"
    )
    out.print(found.text or "(no text)")
    table = Table()
    for name in ("tier", "score", "reading", "outcome", "why"):
        table.add_column(name, justify="right" if name == "score" else "left")
    for detail in found.judgements:
        score = "" if detail.score is None else number(detail.score)
        why = detail.error or _because(detail)
        outcome = str(detail.outcome or "pending")
        table.add_row(detail.tier, score, visible(detail.reading or ""), outcome, visible(why))
    out.print(table)
    if found.audited is not None:
        out.print(f"rejected by tier '{found.audited}'; an audit had the last tier asked as well")


def _because(detail: "JudgementDetail") -> str:
    """The rule of the policy that a judgement met, in numbers."""
    from tiers.types import Outcome

    policy, score = detail.policy, detail.score
    low, high = policy.reject_below, policy.accept_above
    if detail.outcome is None or score is None:
        return ""
    if low is not None and score < low:
        return f"below reject_below {low:g}"
    if high is not None and score > high:
        return f"above accept_above {high:g}"
    if (top := policy.top_count or policy.top_share) is not None:
        return f"{'not ' * (detail.outcome is Outcome.REJECT)}among the top {top:,}"
    bounds = (("not below reject_below", low), ("not above accept_above", high))
    return ", ".join(f"{side} {bound:g}" for side, bound in bounds if bound is not None)


def _next_steps(key: str, same: str) -> None:
    asks = (f"tamis results {key} --verdict accepted{same}", f"tamis explain {key} KEY{same}")
    out.print(f"see: {'; '.join(asks)}; tamis ui")


def _exit_code(finished: dict[str, Any]) -> int:
    unfinished = finished["failed"] or finished["pending"] or finished["state"] == "stopped"
    if finished["state"] == "alarm":
        return UNKEPT
    return UNFINISHED if unfinished else DONE


# After the commands that a newcomer needs first, in the order of the help.
app.command(epilog="Example: `tamis changes monday tuesday`")(changes)
add_guarantee_commands(app)


if __name__ == "__main__":
    main()
