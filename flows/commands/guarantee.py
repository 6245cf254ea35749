"""The commands of promises: calibrate, certificate, label, what-if, decide, reliability."""

import csv
import getpass
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer

from flows.commands.console import (
    DONE,
    UNFINISHED,
    UNKEPT,
    AllowShrink,
    AsJson,
    Database,
    File,
    err,
    fail,
    open_store,
    out,
    print_json,
    print_rows,
    settings,
    visible,
)
from flows.files.writing import defused

if TYPE_CHECKING:
    from db.store import Run, Store

CODES = {
    "certified": DONE,
    "infeasible_budget": UNKEPT,
    "refused": UNKEPT,
    "waiting": UNFINISHED,
}
SHOWN = 20

label_app = typer.Typer(help="Labels from people: one by one, or in sheets.")

RunKey = Annotated[str | None, typer.Argument(metavar="[RUN]", help="Default: newest.")]
OfRun = Annotated[str | None, typer.Option("--run", help="A run's key; default: newest.")]
Tier = Annotated[str | None, typer.Option(help="The tier's name.")]
Threshold = Annotated[float | None, typer.Option(min=0, max=1)]


def add_guarantee_commands(app: typer.Typer) -> None:
    """Put these commands beside the others."""
    app.command(epilog="Example: `tamis calibrate screen.yaml`")(calibrate)
    app.command(epilog="Example: `tamis certificate monday --check`")(certificate)
    app.command("what-if", epilog="Example: `tamis what-if monday --tier fast --reject-below 0.2`")(
        what_if
    )
    app.command(
        epilog="Example: `tamis decide monday --tier fast --reject-below 0.2 --because typo`"
    )(decide)
    app.command(epilog="Example: `tamis reliability monday --plot scores.svg`")(reliability)
    app.add_typer(label_app, name="label")


def calibrate(
    file: File,
    database: Database = None,
    key: Annotated[str | None, typer.Option(help="Name of the run; the same key goes on.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Read only so many rows.")] = None,
    allow_shrink: AllowShrink = False,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Go on where the plan says that labels are too few.")
    ] = False,
    by: Annotated[str | None, typer.Option(help="Who has it made; default: this user.")] = None,
    approve: Annotated[
        bool, typer.Option("--approve", help="Approve of the thresholds, where that is wanted.")
    ] = False,
    wait: Annotated[
        int, typer.Option(min=0, help="Seconds to wait for approval in the Prefect UI.")
    ] = 3600,
    as_json: AsJson = False,
) -> None:
    """Set thresholds that keep the screen's guarantee. Run again to go on after a stop.

    Exit code 0: certified. 3: labels, answers or approval are awaited. 4: too few labels for the
    promise, or its thresholds were refused.
    """
    from flows.server import ensure_server
    from tiers.screenfile.file import load_screen
    from tiers.types import TierError

    definition = load_screen(file)
    os.environ["TAMIS_DATABASE_URL"] = settings().database(database)
    ready = ensure_server(settings())
    from flows.calibrate import calibrate as flow
    from flows.run.screening import prepare

    chosen = prepare(definition, key, to_calibrate=True)
    try:
        ready()
        made = flow(
            definition,
            key=chosen,
            limit=limit,
            allow_shrink=allow_shrink,
            anyway=anyway,
            author=by or getpass.getuser(),
            approve=approve,
            wait_seconds=wait,
        )
    except TierError as error:
        err.print(str(error))
        raise typer.Exit(UNFINISHED) from None
    except KeyboardInterrupt:
        err.print("\nstopped; what was judged and labelled is kept. Go on with the same command")
        raise typer.Exit(130) from None
    if as_json:
        print_json(made)
    else:
        out.print(f"run {made['run']}: {made['message']}")
        if made["status"] == "certified":
            out.print(f"see: tamis certificate {made['run']}; then: tamis run {file}")
    raise typer.Exit(CODES[made["status"]])


def certificate(
    run_key: RunKey = None,
    database: Database = None,
    check: Annotated[
        bool, typer.Option("--check", help="Compute it anew from stored scores and labels.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print what a run's thresholds promise, and all that an auditor needs."""
    from flows.guarantee.audit import audits_of_promise, series_table
    from flows.guarantee.certificate import differences, markdown
    from flows.guarantee.labelling import definition_of
    from flows.guarantee.state import Calibration
    from flows.guarantee.thresholds import standing

    store, run = _found(database, run_key)
    found = store.policies.certificate(run.id)
    if found is None:
        fail(f"run '{run.key}' is not calibrated; run tamis calibrate FILE")
    made_for = store.find_run(found["run"])
    wrong = (
        differences(Calibration(store, made_for, definition_of(made_for)), found) if check else []
    )
    audits = audits_of_promise(store, run)
    if as_json:
        checked = {"differences": wrong} if check else {}
        print_json({**found, "audits": audits, **checked})
    else:
        out.print(markdown(found))
        if audits:
            out.print("\n".join(["\nAudits of runs by this certificate:\n", *series_table(audits)]))
        for line in standing(store, run):
            out.print(f"\n{line}")
        for line in wrong:
            err.print(line, style="red")
        if check and not wrong:
            out.print("\nchecked: stored scores and labels lead to this certificate")
    raise typer.Exit(UNKEPT if wrong else DONE)


def what_if(
    run_key: RunKey = None,
    tier: Tier = None,
    reject_below: Threshold = None,
    accept_above: Threshold = None,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Show what other thresholds would do, from stored scores. No model is asked."""
    from flows.guarantee.thresholds import change_of, consequences

    store, run = _found(database, run_key)
    if tier is None:
        fail("name the tier; write --tier NAME")
    found = consequences(store, run, *change_of(store, run, tier, reject_below, accept_above))
    if as_json:
        print_json(found)
    else:
        _show_consequences(found)


def decide(
    run_key: Annotated[str, typer.Argument(metavar="RUN", help="A run's key.")],
    because: Annotated[str, typer.Option(help="Why; kept with the new version.")],
    tier: Tier = None,
    reject_below: Threshold = None,
    accept_above: Threshold = None,
    policy: Annotated[
        int | None, typer.Option(help="Go back to this version: a copy of it is set.")
    ] = None,
    by: Annotated[str | None, typer.Option(help="Who decides; default: this user.")] = None,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Set other thresholds as a new version, and decide anew from stored scores.

    Who has to be judged by a later tier now waits for the next `tamis run`.
    """
    from flows.guarantee.thresholds import change_of
    from flows.report.summary import show, summary
    from flows.run.session import held, how_it_stands

    store, run = _found(database, run_key)
    if (tier is None) == (policy is None):
        fail("write either --tier NAME with thresholds, or --policy ID")
    if policy is not None and not (reject_below is accept_above is None):
        fail(
            f"--policy {policy} brings its own thresholds; leave out --reject-below and "
            "--accept-above, or write --tier NAME with them"
        )
    if not because.strip():
        fail("the reason is empty; write --because WHY")
    said = {"author": by or getpass.getuser(), "reason": because}
    with held(store, run):
        if policy is not None:
            position = store.policies.use(run.id, policy, **said)
        else:
            position, change = change_of(store, run, str(tier), reject_below, accept_above)
            store.policies.move(run.id, position, change, **said)
        store.redecide(run.id, position)
        store.finish(run.id, *how_it_stands(store, run))
    finished = summary(store, run)
    if as_json:
        print_json(finished)
    else:
        show(finished, out)
        if finished["pending"]:
            out.print(f"{finished['pending']:,} wait for a model; go on with: tamis run FILE")


def reliability(
    run_key: RunKey = None,
    tier: Tier = None,
    bins: Annotated[int, typer.Option(min=1, max=100, help="Rows of a table.")] = 10,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw it, too.")] = None,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Show how far each tier's scores are probabilities, by the labels that are stored.

    For people to look at: no threshold depends on it.
    """
    from flows.report.reliability import bars, reliability_of, svg

    if plot is not None and plot.suffix != ".svg":
        fail(f"{plot} is no .svg file, and only those are drawn; write --plot {plot.stem}.svg")
    store, run = _found(database, run_key)
    found = reliability_of(store, run, tier=tier, bins=bins)
    if plot is not None:
        try:
            plot.write_text(svg(found), "utf-8")
        except OSError as error:
            _unwritable(plot, error)
    if as_json:
        print_json(found)
        return
    for one in found:
        maps = ", ".join(
            f"{one[name]['calibration_error']:.4f} after {curve}"
            for name, curve in (("platt", "Platt's curve"), ("isotonic", "an isotonic one"))
            if name in one
        )
        out.print(
            f"{one['tier']}: {one['labels']:,} labels, {one['positive']:,} positive; Brier score "
            f"{one['brier']:.4f}, calibration error {one['calibration_error']:.4f}"
            f"{f' ({maps})' if maps else ''}"
        )
        print_rows(bars(one), False, empty="")


@label_app.callback(invoke_without_command=True)
def label(
    context: typer.Context,
    run_key: OfRun = None,
    reviewer: Annotated[str | None, typer.Option(help="Your name; default: this user.")] = None,
    database: Database = None,
) -> None:
    """Without a command: ask for the labels that a calibration wants, one at a time."""
    if context.invoked_subcommand is not None:
        return
    from flows.guarantee.labelling import ask_in_turn

    store, run = _found(database, run_key)
    name = reviewer or getpass.getuser()
    told = ask_in_turn(store, run, name, _type_in, out.print)
    out.print(f"{told:,} labels by {name}; go on with: tamis calibrate FILE")


@label_app.command("export", epilog="Example: `tamis label export monday --output labels.csv`")
def export_labels(
    run_key: RunKey = None,
    output: Annotated[Path | None, typer.Option(help="A file; default: stdout.")] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="So many, though fewer may do in the end.")
    ] = None,
    labelled_by: Annotated[
        str | None, typer.Option(help="What this reviewer has labelled, for a second one.")
    ] = None,
    database: Database = None,
) -> None:
    """Write a sheet to hand out: key, text, rubric and an empty column `label`."""
    from flows.guarantee.labelling import labels_from, sheet

    store, run = _found(database, run_key)
    rows = list(sheet(store, run, count=count, labelled_by=labelled_by))
    if output is None:
        _write_sheet(sys.stdout, rows)
    else:
        try:
            with output.open("w", newline="", encoding="utf-8") as stream:
                _write_sheet(stream, rows)
        except OSError as error:
            _unwritable(output, error)
    err.print(f"{len(rows):,} candidates to label: yes, no or unknown in the last column")
    if labelled_by is None and (tier := labels_from(run)):
        err.print(
            f"the promise has its labels from tier '{tier}': those of people are kept to compare "
            "with, and count once the screen says against: people"
        )


@label_app.command("import", epilog="Example: `tamis label import labels.csv --reviewer ada`")
def import_labels(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A sheet that was filled in.")],
    reviewer: Annotated[str, typer.Option(help="Who filled it in.")],
    run_key: OfRun = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Where the reviewer said otherwise before.")
    ] = False,
    database: Database = None,
) -> None:
    """Store the answers of a sheet."""
    from flows.guarantee.labelling import take_in

    store, run = _found(database, run_key)
    told, empty = take_in(store, run, file, reviewer, replace=replace)
    left = f"; {empty:,} lines have no answer yet" if empty else ""
    out.print(f"{told:,} new labels by {reviewer}{left}")


@label_app.command("agreement", epilog="Example: `tamis label agreement monday --json`")
def label_agreement(
    run_key: RunKey = None, database: Database = None, as_json: AsJson = False
) -> None:
    """Show how far reviewers agree (Cohen's kappa), and whom they disagree about."""
    from flows.guarantee.labelling import agreement

    store, run = _found(database, run_key)
    found = agreement(store, run)
    if as_json:
        print_json(found)
        return
    print_rows(found["pairs"], False, empty="no two people have labelled the same candidate")
    print_rows(_even(found["disputes"]), False, empty="no disputes")


def _found(database: str | None, run_key: str | None) -> tuple["Store", "Run"]:
    """The store, and the run of a key or of a screen file."""
    from tiers.screenfile.file import load_screen

    store = open_store(database)
    if run_key is None or not run_key.endswith((".yaml", ".yml")):
        return store, store.find_run(run_key)
    name = load_screen(Path(run_key)).screen
    found = next((one.run for one in store.runs(1000) if one.run.screen == name), None)
    if found is None:
        fail(f"screen '{name}' has no run yet; run tamis calibrate {run_key}")
    return store, found


def _write_sheet(stream: TextIO, rows: list[dict[str, str]]) -> None:
    from flows.guarantee.labelling import COLUMNS

    shown = visible if stream.isatty() else str
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([shown(defused(row[name])) for name in COLUMNS] for row in rows)


def _unwritable(path: Path, error: OSError) -> NoReturn:
    fail(
        f"{path} cannot be written: {error.strerror or error}; name a file in a folder that exists "
        "and that you may write to"
    )


def _type_in(prompt: str) -> str:
    try:
        return input(f"{prompt} > ")
    except EOFError:
        return "q"


def _show_consequences(found: dict[str, Any]) -> None:
    names = ("reached", "promoted", "accepted", "rejected", "review", "pending")
    rows = [
        {
            "tier": tier["tier"],
            **{
                name: f"{tier['before'][name]:,} -> {tier['after'][name]:,}"
                if tier["before"][name] != tier["after"][name]
                else f"{tier['after'][name]:,}"
                for name in names
            },
            "to judge": tier["to_judge"],
            "usd": tier["usd"],
        }
        for tier in found["tiers"]
    ]
    print_rows(rows, False, empty="")
    bound = found["certified_recall"]
    out.print(
        "no certificate covers these thresholds"
        if bound is None
        else f"certified recall: >= {bound:.4f}"
    )
    if found["not_covered"]:
        out.print(found["not_covered"])
    flips = ", ".join(f"{count:,} {name}" for name, count in found["flips"].items())
    out.print(f"verdicts that change: {flips or 'none'}")
    print_rows(found["candidates"][:SHOWN], False, empty="")
    if len(found["candidates"]) > SHOWN:
        out.print(f"{len(found['candidates']) - SHOWN:,} more with --json")


def _even(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with all columns of any of them."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]
