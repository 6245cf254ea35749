"""What a run amounts to: one JSON object, a table for people, a page for the Prefect UI."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from db.store import FunnelRow, Run, Store

OUTCOMES = ("accepted", "rejected", "review", "failed", "pending")
ALWAYS = ("judged", "promoted", "accepted", "rejected")
"""Columns that a table for people shows even where all is zero."""
COUNTS = ("judged", "reused", "promoted", *OUTCOMES)
TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens")


def summary(store: Store, run: Run) -> dict[str, Any]:
    """The run in one JSON object. `usd` is None where the price is not known."""
    status = store.status(run.id)
    return {
        "run": run.key,
        "screen": run.screen,
        "state": str(status.run.state),
        "reason": status.reason,
        "candidates": status.account.candidates,
        **{name: getattr(status.account, name) for name in OUTCOMES},
        "rows": {
            "read": status.rows_read,
            "duplicate": status.rows_duplicate,
            "bad": status.account.bad_rows,
        },
        "seconds": round(status.seconds, 3),
        "tiers": [tier_summary(row) for row in store.funnel(run.id)],
    }


def tier_summary(row: FunnelRow) -> dict[str, Any]:
    """One tier's part of the summary."""
    return {
        "name": row.tier,
        **{name: getattr(row, name) for name in (*COUNTS, *TOKENS)},
        "seconds": round(row.seconds, 3),
        "usd": None,
    }


def show(finished: dict[str, Any], console: Console) -> None:
    """The funnel as a table, with the sum that shows that nobody is lost."""
    tiers = finished["tiers"]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("tier")
    shown = [name for name in COUNTS if name in ALWAYS or any(tier[name] for tier in tiers)]
    for name in (*shown, "tokens", "cached", "written", "seconds"):
        table.add_column(name, justify="right", no_wrap=True, min_width=len(name))
    for tier in tiers:
        share = tier["cached_tokens"] / max(tier["prompt_tokens"], 1)
        table.add_row(
            tier["name"],
            *(f"{tier[name]:,}" for name in shown),
            f"{tier['prompt_tokens']:,}",
            f"{share:.0%}",
            f"{tier['completion_tokens']:,}",
            f"{tier['seconds']:,.1f}",
        )
    console.print(f"run {finished['run']}: {finished['state']}", style="bold")
    console.print(table)
    console.print(f"{account_line(finished)}; {finished['seconds']:,.1f} s in all")
    rows = finished["rows"]
    if rows["bad"] or rows["duplicate"]:
        look = '; tamis sql "SELECT line, reason FROM bad_row"' if rows["bad"] else ""
        console.print(
            f"{rows['read']:,} rows read, {rows['duplicate']:,} of them repeated and "
            f"{rows['bad']:,} unreadable{look}"
        )


def account_line(finished: dict[str, Any]) -> str:
    """The sum of all outcomes, in words."""
    parts = " + ".join(f"{finished[name]:,} {name}" for name in OUTCOMES)
    return f"{finished['candidates']:,} candidates = {parts}"


def markdown(finished: dict[str, Any]) -> str:
    """The report that the Prefect UI shows."""
    header = ["tier", *COUNTS, "prompt tokens", "of which cached", "written", "seconds"]
    lines = [
        f"# {finished['screen']}: run {finished['run']}",
        "",
        account_line(finished),
        "",
        f"| {' | '.join(header)} |",
        "|---|" + "---:|" * (len(header) - 1),
    ]
    for tier in finished["tiers"]:
        cells = [f"{tier[name]:,}" for name in (*COUNTS, *TOKENS)]
        lines.append(f"| {tier['name']} | {' | '.join(cells)} | {tier['seconds']:,.1f} |")
    asks = [f"tamis results {finished['run']}", f"tamis explain {finished['run']} KEY"]
    return "\n".join([*lines, "", "Look further:", "", "```", *asks, "```"])
