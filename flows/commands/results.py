"""What a run has come to: tamis status, results, explain, sql."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.console import (
    AsJson,
    Database,
    fail,
    open_store,
    out,
    print_json,
    print_rows,
    settings,
)
from flows.files.writing import Format, format_of, names_of, results_of, write_results
from flows.terminal import number, visible

if TYPE_CHECKING:
    from db.store import Explanation, JudgementDetail, RunStatus

app = typer.Typer()


Verdict = Annotated[
    str | None,
    typer.Option(help="Only these: accepted, rejected, review, failed or pending."),
]


@app.command(epilog="Example: `tamis status` or `tamis status monday --watch`")
def status(
    run_key: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run's key.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Look on while the run works.")] = False,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """List the runs; or show the funnel of one, its newest answer, and what a resume would do."""
    from db.errors import EmptyDatabase

    try:
        store = open_store(database)
    except EmptyDatabase as nothing:
        if run_key is not None:
            raise
        print_rows([], as_json, empty=str(nothing))
        return
    if watch:
        from flows.report.live import watch as look_on

        look_on(store, store.runs.find(run_key), out, as_json=as_json)
        if as_json:
            return  # each line was an object of one kind, and so is the last
        run_key = store.runs.find(run_key).key
    if run_key is None:
        rows = [status_row(status) for status in store.runs.newest(50)]
        print_rows(rows, as_json, empty="no runs yet; start one with tamis run FILE")
        return
    from flows.report.summary import outlook, show

    if shards := store.runs.shards(run_key):
        print_rows([status_row(status) for status in shards], as_json, empty="")
        return
    finished = outlook(store, store.runs.find(run_key))
    if as_json:
        print_json(finished.as_json())
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
        store.runs.find(run_key),
        verdict=verdict,
        limit=limit,
        columns=[] if no_fields else wanted,
    )
    names = names_of(store, store.runs.find(run_key))
    write_results(rows, output, chosen, raw=raw, names=names)


@app.command(epilog="Example: `tamis explain monday A0000017`")
def explain(
    run_key: Annotated[str, typer.Argument(metavar="RUN", help="A run's key.")],
    key: Annotated[str, typer.Argument(metavar="KEY", help="A candidate's key.")],
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Show one candidate at every tier: text, score, reading, outcome and why."""
    store = open_store(database)
    found = store.results.explain(store.runs.find(run_key).id, key)
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
    """Ask the database; nothing is changed. Views: result, funnel, judgement_detail, evidence."""
    from db.query import ask

    print_rows(ask(settings().database(database), query), as_json, empty="no rows")


def status_row(status: "RunStatus") -> dict[str, Any]:
    """A run as one line of a list."""
    from flows.owner import state_of

    return {
        "run": status.run.key,
        "state": str(state_of(status)),
        **asdict(status.account),
        "seconds": round(status.seconds, 1),
        "started": None if status.started is None else f"{status.started:%Y-%m-%d %H:%M}",
    }


def _plain(found: "Explanation") -> dict[str, Any]:
    from db.policies import columns_of

    tiers = [
        detail._asdict() | {"policy": {"name": detail.tier, **columns_of(detail.policy)}}
        for detail in found.judgements
    ]
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
        why = detail.error or "; ".join(filter(None, (_because(detail), detail.note)))
        outcome = str(detail.outcome or "pending")
        table.add_row(detail.tier, score, visible(detail.reading or ""), outcome, visible(why))
    out.print(table)
    for one in found.evidence:
        where = "not in the text" if one.start is None else f"characters {one.start} to {one.stop}"
        out.print(f"{one.tier}, {one.field}: '{visible(one.quote)}': {where}")
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
    if policy.top is not None:
        return f"{'not ' * (detail.outcome is Outcome.REJECT)}among the top {policy.top:,}"
    bounds = (("not below reject_below", low), ("not above accept_above", high))
    return ", ".join(f"{side} {bound:g}" for side, bound in bounds if bound is not None)
