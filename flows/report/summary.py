"""What a run amounts to: one JSON object, a table for people, a page for the Prefect UI."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from db.quotes import QuoteCounts
from db.store import BatchState, FunnelRow, Run, RunState, RunStatus, Store
from flows.guarantee.audit import RunAudit, audit_of, in_words, table_of
from flows.owner import state_of
from flows.report import forecast as coming
from flows.report.forecast import Forecast
from flows.report.plan import Held, figures_of, held, planned_words
from flows.terminal import number, visible

OUTCOMES = ("accepted", "rejected", "review", "failed", "pending")
ALWAYS = ("judged", "promoted", "accepted", "rejected")
"""Columns that a table for people shows even where all is zero."""
COUNTS = ("judged", "reused", "promoted", *OUTCOMES)
TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens")
SENT = (BatchState.SUBMITTED, BatchState.ENDED)


@dataclass(frozen=True)
class Rows:
    """Rows of input: all that were read, those that repeat another, those that are unreadable."""

    read: int
    duplicate: int
    bad: int


@dataclass(frozen=True)
class TierSummary:
    """One tier's part of the summary: candidates, tokens, working seconds, dollars."""

    name: str
    judged: int
    reused: int
    promoted: int
    accepted: int
    rejected: int
    review: int
    failed: int
    pending: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    seconds: float
    usd: float | None
    """None where a price is not known."""


@dataclass(frozen=True)
class AddressSummary:
    """One address of a tier that asks servers."""

    tier: str
    url: str
    state: str
    """untried, answering, away, set aside or removed; of a run that is over, as it was then."""
    since: str
    """In ISO 8601, UTC."""
    in_flight: int
    judged: int
    error: str | None
    """The last one."""


@dataclass(frozen=True)
class Summary:
    """What a run amounts to: the JSON of `tamis run` and `tamis status`."""

    run: str
    screen: str
    state: str
    reason: str | None
    candidates: int
    accepted: int
    rejected: int
    review: int
    failed: int
    pending: int
    rows: Rows
    seconds: float
    """Working time over all resumes."""
    usd: float | None
    """None where a price is not known; lacks the candidates that are `out`."""
    out: int
    """Candidates in batches that a server works on."""
    tiers: list[TierSummary]
    audit: RunAudit | None
    addresses: Sequence[AddressSummary] = ()
    quotes: QuoteCounts | None = None
    """Where a tier's reply has to quote the text."""
    whole_seconds: float | None = None
    """From the start of the command to its end, where a command has just run it."""
    newest_seconds: float | None = None
    """Age of the newest answer, where it was looked for."""
    resume: Forecast | None = None
    """What a resume would ask, where it was looked for."""
    plan: Sequence[Held] | None = None
    """What each tier was expected to do when the run began, where it was looked for."""

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it: what was not measured or looked for is left out."""
        told = asdict(self)
        told["quotes"] = None if self.quotes is None else self.quotes._asdict()
        for name in ("quotes", "whole_seconds", "newest_seconds", "resume", "plan"):
            if told[name] is None:
                del told[name]
        return told


def summary(store: Store, run: Run, funnel: Sequence[FunnelRow] | None = None) -> Summary:
    """The run as it stands; its funnel costs most, for whoever has it."""
    funnel = store.results.funnel(run.id) if funnel is None else funnel
    status = store.runs.status(run.id)
    account = status.account
    tiers = [_tier_summary(row) for row in funnel]
    costs = [tier.usd for tier in tiers if tier.usd is not None]
    out = [one for one in store.batches.all(run.id, open_only=True) if one.state in SENT]
    return Summary(
        run=run.key,
        screen=run.screen,
        state=str(state_of(status)),
        reason=status.reason or _why_interrupted(status),
        candidates=account.candidates,
        accepted=account.accepted,
        rejected=account.rejected,
        review=account.review,
        failed=account.failed,
        pending=account.pending,
        rows=Rows(status.rows_read, status.rows_duplicate, account.bad_rows),
        seconds=round(status.seconds, 3),
        usd=None if len(costs) < len(tiers) else round(sum(costs), 6),
        out=sum(batch.lines for batch in out),
        tiers=tiers,
        addresses=_addresses(store, run, working=state_of(status) is RunState.RUNNING),
        quotes=counts if (counts := store.quotes.counts(run.id)).texts else None,
        audit=audit_of(store, run),
    )


def outlook(store: Store, run: Run) -> Summary:
    """The run as it stands, how fresh that is, and what a resume would do."""
    funnel = store.results.funnel(run.id)
    newest = max((row.newest for row in funnel if row.newest is not None), default=None)
    age = None if newest is None else (datetime.now(UTC) - newest).total_seconds()
    plan = store.plans.of(run.id)
    return replace(
        summary(store, run, funnel),
        newest_seconds=None if age is None else round(max(age, 0.0), 1),
        resume=coming.forecast(store, run, funnel),
        plan=None if plan is None else held(plan, funnel, run.state),
    )


def _addresses(store: Store, run: Run, *, working: bool) -> Sequence[AddressSummary]:
    return [
        AddressSummary(
            one.tier,
            one.url,
            one.state,
            one.since.isoformat(timespec="seconds"),
            one.in_flight if working else 0,
            one.judged,
            one.error,
        )
        for one in store.addresses.all(run.id)
    ]


def _why_interrupted(status: RunStatus) -> str | None:
    if state_of(status) is not RunState.INTERRUPTED:
        return None
    return "its process is gone; run the same command again to go on"


def _tier_summary(row: FunnelRow) -> TierSummary:
    return TierSummary(
        row.tier,
        **{name: getattr(row, name) for name in (*COUNTS, *TOKENS, "reasoning_tokens")},
        seconds=round(row.seconds, 3),
        usd=None if row.usd is None else round(row.usd, 6),
    )


def show(finished: Summary, console: Console) -> None:
    """The funnel as a table, with the sum that shows that nobody is lost."""
    tiers = finished.tiers
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("tier")
    shown = [
        name for name in COUNTS if name in ALWAYS or any(getattr(tier, name) for tier in tiers)
    ]
    priced = any(tier.usd for tier in tiers)
    for name in (*shown, "tokens", "cached", "written", "seconds", *(["usd"] if priced else [])):
        table.add_column(name, justify="right", no_wrap=True, min_width=len(name))
    for tier in tiers:
        share = tier.cached_tokens / max(tier.prompt_tokens, 1)
        table.add_row(
            tier.name,
            *(f"{getattr(tier, name):,}" for name in shown),
            f"{tier.prompt_tokens:,}",
            f"{share:.0%}",
            f"{tier.completion_tokens:,}",
            f"{tier.seconds:,.1f}",
            *([_usd(tier.usd)] if priced else []),
        )
    why = f", {finished.reason}" if finished.reason else ""
    console.print(f"run {finished.run}: {finished.state}{why}", style="bold")
    console.print(table)
    _show_addresses(finished.addresses, console)
    _show_plan(finished.plan or (), console)
    money = f"; {_usd(finished.usd)} USD" if priced else ""
    whole = finished.whole_seconds
    times = f"{finished.seconds:,.1f} s of work"
    if whole is not None:
        times += f", {whole:,.1f} s from start to end"
    console.print(f"{account_line(finished)}; {times}{money}")
    if finished.out:
        console.print(f"{finished.out:,} are out in batches, not counted in the cost so far")
    if finished.newest_seconds is not None:
        console.print(f"newest answer: {_age(finished.newest_seconds)} ago")
    if finished.resume is not None and finished.resume.candidates:
        console.print(coming.in_words(finished.resume))
    if finished.audit:
        console.print(in_words(finished.audit))
    if finished.quotes is not None:
        console.print(quotes_line(finished.quotes))
    rows = finished.rows
    if rows.bad or rows.duplicate:
        of_run = f"JOIN run ON run.id = run_id WHERE run.key = '{finished.run}'"
        query = f"SELECT line, reason FROM bad_row {of_run}"  # noqa: S608 - a line to copy
        look = f'; tamis sql "{query}"' if rows.bad else ""
        console.print(
            f"{rows.read:,} rows read, {rows.duplicate:,} of them repeated and "
            f"{rows.bad:,} unreadable{look}"
        )


def quotes_line(counts: QuoteCounts) -> str:
    """How many of the replies' quotes the texts hold, in words."""
    missing = counts.quotes - counts.found
    return (
        f"{counts.quotes:,} quotes in {counts.texts:,} replies, {missing:,} of them not in the "
        f"text ({counts.without:,} replies); a yes with such a quote goes to review"
    )


def _show_addresses(addresses: Sequence[AddressSummary], console: Console) -> None:
    """How the servers are, where there is more to say than that the one of a tier answers."""
    tiers = [one.tier for one in addresses]
    well = {"untried", "answering"}
    if len(set(tiers)) == len(tiers) and all(one.state in well for one in addresses):
        return
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("tier", "address", "state", "since (UTC)", "in flight", "judged", "last error"):
        table.add_column(name, justify="right" if name in ("in flight", "judged") else "left")
    for one in addresses:
        table.add_row(
            one.tier,
            visible(one.url),
            one.state,
            one.since[:19].replace("T", " "),
            f"{one.in_flight:,}",
            f"{one.judged:,}",
            visible(one.error or ""),
        )
    console.print(table)


def _show_plan(plan: Sequence[Held], console: Console) -> None:
    """What was expected beside what came, each in a column of its own."""
    if not plan:
        return
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("tier")
    shown = figures_of(plan)
    for name in shown:
        table.add_column(f"{name}, planned", justify="right")
        table.add_column("actual", justify="right")
    for one in plan:
        cells = []
        for name in shown:
            actual = one.actual[name]
            mark = " (outside)" if one.inside[name] is False else ""
            words = "unknown" if actual is None else planned_words(name, [actual] * 3)
            cells += [planned_words(name, one.planned[name]), words + mark]
        table.add_row(one.tier, *cells)
    console.print(table)


def _usd(dollars: float | None) -> str:
    """Dollars as people read them; what is not known is said to be so."""
    if dollars is None:
        return "unknown"
    return number(dollars) if dollars else "0.00"


def _age(seconds: float) -> str:
    """A stretch of time in the unit that people would use."""
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:,.0f} s"


def cost_words(finished: Summary) -> str:
    """Time and money of the tiers, in words; no money where no tier has a price."""
    words = f"{sum(tier.seconds for tier in finished.tiers):,.1f} s of the tiers"
    return words + f"; {_usd(finished.usd)} USD" * any(tier.usd for tier in finished.tiers)


def account_line(finished: Summary) -> str:
    """The sum of all outcomes, in words."""
    parts = " + ".join(f"{getattr(finished, name):,} {name}" for name in OUTCOMES)
    return f"{finished.candidates:,} candidates = {parts}"


def reuse_line(finished: Summary) -> str:
    """The account of a run, and how many answers it had not to pay for."""
    reused = sum(tier.reused for tier in finished.tiers)
    judged = sum(tier.judged for tier in finished.tiers)
    return f"{account_line(finished)}; {judged:,} answers judged, {reused:,} reused"


def markdown(finished: Summary) -> str:
    """The report that the Prefect UI shows."""
    used = {name for name in COUNTS for tier in finished.tiers if getattr(tier, name)}
    counts = [name for name in COUNTS if name in ALWAYS or name in used]
    # Two tables, because the page beside the Prefect UI's panel is narrow.
    lines = [
        f"# {finished.screen}: run {finished.run}",
        "",
        account_line(finished),
        "",
        *_table(["tier", *counts], [_cells(tier, counts) for tier in finished.tiers]),
        "",
        *_table(
            ["tier", "tokens", "of which cached", "written", "seconds", "USD"],
            [
                [*_cells(tier, TOKENS), f"{tier.seconds:,.1f}", _usd(tier.usd)]
                for tier in finished.tiers
            ],
        ),
    ]
    if finished.quotes is not None:
        lines += ["", quotes_line(finished.quotes)]
    if finished.audit:
        lines += ["", in_words(finished.audit), "", *table_of(finished.audit)]
    key = shlex.quote(finished.run)
    asks = [f"tamis report {key}", f"tamis results {key}", f"tamis explain {key} KEY"]
    return "\n".join([*lines, "", "Look further:", "", "```", *asks, "```"])


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in markdown: the first column to the left, numbers to the right."""
    lines = [f"| {' | '.join(header)} |", "|---|" + "---:|" * (len(header) - 1)]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def _cells(tier: TierSummary, names: Iterable[str]) -> list[str]:
    return [tier.name, *(f"{getattr(tier, name):,}" for name in names)]
