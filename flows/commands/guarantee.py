"""The commands of promises: calibrate, certificate, label, what-if, decide, reliability."""

import getpass
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.console import (
    DONE,
    INTERRUPTED,
    UNFINISHED,
    UNKEPT,
    AllowCode,
    AllowShrink,
    AsJson,
    Database,
    File,
    RunKey,
    err,
    fail,
    found_run,
    out,
    print_json,
    print_rows,
    settings,
    unwritable,
)

if TYPE_CHECKING:
    from flows.guarantee.thresholds import RunConsequences

CODES = {
    "certified": DONE,
    "infeasible_budget": UNKEPT,
    "refused": UNKEPT,
    "waiting": UNFINISHED,
    "paused": UNFINISHED,
}
SHOWN = 20

app = typer.Typer()

Tier = Annotated[str | None, typer.Option(help="The tier's name.")]
Threshold = Annotated[float | None, typer.Option(min=0, max=1)]


@app.command(epilog="Example: `tamis calibrate screen.yaml`")
def calibrate(
    file: File,
    database: Database = None,
    key: Annotated[str | None, typer.Option(help="Name of the run; the same key goes on.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Read only so many rows.")] = None,
    allow_shrink: AllowShrink = False,
    allow_code: AllowCode = False,
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
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print_json(made)
    else:
        out.print(f"run {made['run']}: {made['message']}")
        if made["status"] == "certified":
            out.print(f"see: tamis certificate {made['run']}; then: tamis run {file}")
    raise typer.Exit(CODES[made["status"]])


@app.command(epilog="Example: `tamis certificate monday --check`")
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
    from flows.guarantee.certificate import certificate_in_use, markdown
    from flows.guarantee.certifying import differences
    from flows.guarantee.labelling import definition_of
    from flows.guarantee.state import Calibration
    from flows.guarantee.thresholds import standing

    store, run = found_run(database, run_key)
    found = certificate_in_use(store, run)
    if found is None:
        fail(f"run '{run.key}' is not calibrated; run tamis calibrate FILE")
    made_for = store.runs.find(found.run)
    wrong = (
        differences(Calibration(store, made_for, definition_of(made_for)), found) if check else []
    )
    audits = audits_of_promise(store, run)
    if as_json:
        checked = {"differences": wrong} if check else {}
        print_json({**found.as_json(), "audits": audits, **checked})
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


@app.command("what-if", epilog="Example: `tamis what-if monday --tier fast --reject-below 0.2`")
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

    store, run = found_run(database, run_key)
    if tier is None:
        fail("name the tier; write --tier NAME")
    found = consequences(store, run, *change_of(store, run, tier, reject_below, accept_above))
    if as_json:
        print_json(found)
    else:
        _show_consequences(found)


@app.command(epilog="Example: `tamis decide monday --tier fast --reject-below 0.2 --because typo`")
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
    from flows.guarantee.labelling import definition_of
    from flows.guarantee.thresholds import change_of
    from flows.report.summary import show, summary
    from flows.run.hold import held
    from flows.run.session import how_it_stands
    from flows.run.suspicion import mark_suspicious

    store, run = found_run(database, run_key)
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
    with held(store, run) as hold:
        if policy is not None:
            position = store.policies.use(run.id, policy, **said)
        else:
            position, change = change_of(store, run, str(tier), reject_below, accept_above)
            store.policies.move(run.id, position, change, **said)
        store.verdicts.redecide(run.id, position)
        mark_suspicious(store, run.id, definition_of(run).suspicious)
        store.runs.finish(run.id, *how_it_stands(store, run), attempt=hold.attempt)
    finished = summary(store, run)
    if as_json:
        print_json(finished.as_json())
    else:
        show(finished, out)
        if finished.pending:
            out.print(f"{finished.pending:,} wait for a model; go on with: tamis run FILE")


@app.command(epilog="Example: `tamis reliability monday --plot scores.svg`")
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
    from flows.report.reliability import bars, in_words, reliability_of, svg

    if plot is not None and plot.suffix != ".svg":
        fail(f"{plot} is no .svg file, and only those are drawn; write --plot {plot.stem}.svg")
    store, run = found_run(database, run_key)
    found = reliability_of(store, run, tier=tier, bins=bins)
    if plot is not None:
        try:
            plot.write_text(svg(found), "utf-8")
        except OSError as error:
            unwritable(plot, error)
    if as_json:
        print_json([one.as_json() for one in found])
        return
    for one in found:
        out.print(in_words(one))
        print_rows(bars(one), False, empty="")


def _show_consequences(found: "RunConsequences") -> None:
    names = ("reached", "promoted", "accepted", "rejected", "review", "pending")
    rows = [
        {
            "tier": tier.tier,
            **{
                name: f"{tier.before[name]:,} -> {tier.after[name]:,}"
                if tier.before[name] != tier.after[name]
                else f"{tier.after[name]:,}"
                for name in names
            },
            "to judge": tier.to_judge,
            "usd": tier.usd,
        }
        for tier in found.tiers
    ]
    print_rows(rows, False, empty="")
    bound = found.certified_recall
    out.print(
        "no certificate covers these thresholds"
        if bound is None
        else f"certified recall: >= {bound:.4f}"
    )
    if found.not_covered:
        out.print(found.not_covered)
    flips = ", ".join(f"{count:,} {name}" for name, count in found.flips.items())
    out.print(f"verdicts that change: {flips or 'none'}")
    print_rows(found.candidates[:SHOWN], False, empty="")
    if len(found.candidates) > SHOWN:
        out.print(f"{len(found.candidates) - SHOWN:,} more with --json")
