"""A run looked at while it works: a view in the terminal, or lines elsewhere.

It asks for samples and for the rows of the tiers, which costs a millisecond or so. The funnel
counts all candidates: it is asked for so seldom that all stays below a hundredth of a core.
"""

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from db.samples import Sample, TierNow
from db.store import Run, RunState, Store
from flows.owner import state_by
from flows.report.summary import COUNTS
from flows.terminal import json_text, visible

LOOK_SECONDS = 2.0
LINE_SECONDS = 10.0
"""Between two lines, where nobody sees a view."""
FUNNEL_SHARE = 300
FUNNEL_SECONDS = 30.0
"""Between two counts of all candidates at least; more where counting takes longer."""


class TierView(NamedTuple):
    """One tier, as far as samples tell; None where there is none."""

    tier: str
    state: str
    judged: int
    expected: int
    rate: float | None
    """Candidates a second."""
    tokens: float | None
    """A second, read and written."""
    cached: float | None
    """Share of the tokens read that came from the cache."""
    left: float | None
    """Seconds."""


class View(NamedTuple):
    """What is shown at one time."""

    state: RunState
    tiers: list[TierView]
    newest: Sample | None
    funnel: list[dict[str, Any]]
    """Counts of each tier, as they were a while ago."""
    age: float
    """Of these counts, in seconds."""


def watch(store: Store, run: Run, console: Console, *, as_json: bool = False) -> None:
    """Show the run until it no longer works, or until Ctrl-C."""
    with suppress(KeyboardInterrupt):
        if as_json or not console.is_terminal:
            _lines(store, run, console, as_json=as_json)
            return
        with Live(console=console, auto_refresh=False, transient=True) as live:
            for view in _views(store, run, LOOK_SECONDS):
                live.update(_drawn(run, view), refresh=True)


def _lines(store: Store, run: Run, console: Console, *, as_json: bool) -> None:
    for view in _views(store, run, LINE_SECONDS):
        if as_json:
            print(_json(run, view), flush=True)  # noqa: T201 - one object a line
        else:
            console.print(_line(run, view))


def _views(store: Store, run: Run, seconds: float) -> Iterator[View]:
    """The run as it is, every so often; the last one is that of its end."""
    funnel: list[dict[str, Any]] = []
    counted, wait = 0.0, 0.0
    while True:
        stored, holder, locked = store.runs.standing(run.id)
        state = state_by(stored, holder, locked=locked)
        began = time.monotonic()
        if began - counted >= wait or state is not RunState.RUNNING:
            funnel = [
                {"tier": row.tier, **{name: getattr(row, name) for name in COUNTS}}
                for row in store.results.funnel(run.id)
            ]
            counted = time.monotonic()
            wait = max(FUNNEL_SECONDS, FUNNEL_SHARE * (counted - began))
        tiers = store.samples.now(run.id)
        newest = max((one.sample for one in tiers if one.sample), key=_number, default=None)
        views = [_tier(one) for one in tiers]
        yield View(state, views, newest, funnel, time.monotonic() - counted)
        if state is not RunState.RUNNING:
            return
        time.sleep(seconds)


def _number(sample: Sample) -> int:
    return sample.number


def _tier(one: TierNow) -> TierView:
    now, before = one.sample, one.before
    if now is None:
        return TierView(one.tier, str(one.state), 0, 0, None, None, None, None)
    rate = tokens = left = None
    if before is not None and (seconds := (now.at - before.at).total_seconds()) > 0:
        rate = (now.judged - before.judged) / seconds
        read = now.prompt_tokens + now.completion_tokens
        tokens = (read - before.prompt_tokens - before.completion_tokens) / seconds
        left = (now.expected - now.judged) / rate if rate else None
    cached = now.cached_tokens / now.prompt_tokens if now.prompt_tokens else None
    expected = max(now.expected, now.judged)
    return TierView(one.tier, str(one.state), now.judged, expected, rate, tokens, cached, left)


def _drawn(run: Run, view: View) -> Group:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("tier", "", "judged", "of", "a second", "tokens/s", "cached", "left"):
        table.add_column(name, justify="left" if name in ("tier", "") else "right")
    for one in view.tiers:
        table.add_row(
            visible(one.tier),
            ProgressBar(max(one.expected, 1), one.judged, width=24),
            f"{one.judged:,}", f"{one.expected:,}", _words(one.rate), _words(one.tokens),
            "" if one.cached is None else f"{one.cached:.0%}",
            "" if one.left is None or one.state != "running" else f"{one.left:,.0f} s",
        )  # fmt: skip
    return Group(
        Text(f"run {run.key}: {view.state}", style="bold"), table, Text(_machine(view.newest)),
        Text(_counts(view), style="dim"),
    )  # fmt: skip


def _line(run: Run, view: View) -> str:
    tiers = "; ".join(
        f"{one.tier} {one.judged:,} of {one.expected:,}"
        + ("" if one.rate is None else f", {_words(one.rate)}/s")
        for one in view.tiers
        if one.expected
    )
    parts = (f"run {run.key}: {view.state}", tiers, _machine(view.newest))
    return " | ".join(part for part in parts if part)


def _json(run: Run, view: View) -> str:
    newest = view.newest
    machine = {
        name: getattr(newest, name) for name in ("at", "cpu", "memory", "gpu", "gpu_memory")
    } if newest else None  # fmt: skip
    return json_text({
        "run": run.key, "state": view.state, "tiers": [one._asdict() for one in view.tiers],
        "machine": machine, "funnel": view.funnel, "funnel_age": round(view.age, 1),
    })  # fmt: skip


def _machine(newest: Sample | None) -> str:
    if newest is None:
        return ""
    words = []
    if newest.cpu is not None:
        words.append(f"{newest.cpu:.1f} cores busy")
    if newest.memory is not None:
        words.append(f"{newest.memory / 1e9:,.2f} GB")
    if newest.gpu is not None and newest.gpu_memory is not None:
        words.append(f"GPU {newest.gpu:.0%}, {newest.gpu_memory / 1e9:,.1f} GB")
    return ", ".join(words)


def _counts(view: View) -> str:
    """What the funnel said when it was last counted."""
    totals = {
        name: sum(row[name] for row in view.funnel)
        for name in ("accepted", "rejected", "review", "failed", "pending")
    }
    counted = ", ".join(f"{count:,} {name}" for name, count in totals.items() if count)
    return f"{counted}; counted {view.age:,.0f} s ago, Ctrl-C leaves the run alone"


def _words(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
