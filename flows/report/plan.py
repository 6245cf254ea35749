"""What a screen is expected to take: its pilot found, its plan kept and held against the run."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from db.run_tiers import judge_digest
from db.store import FunnelRow, Run, RunState, Store
from tiers.opening import identity, inspect
from tiers.planning.alternatives import Alternative, Maker
from tiers.planning.choice import count_range, duration_range, usd_range
from tiers.planning.estimate import Workload
from tiers.planning.measured import Pilot, Range, pilot_of
from tiers.planning.stages import Guess
from tiers.screenfile.file import Screen
from tiers.screenfile.tiers import LlamaTier, ModelTierSection
from tiers.tier import job_of
from tiers.types import TierError

CHARACTERS = Range(5, 4, 3)
"""Of a token: many make few tokens."""
PROMPT_CHARACTERS = 400
"""Of a prompt beside rubric and text."""
FIGURES = ("candidates", "promoted", "seconds", "usd")
"""Of a tier, which a plan tells and a run shows."""


@dataclass(frozen=True)
class Found:
    """The pilot of a screen, if there is one that it may go by."""

    pilot: Pilot | None
    id: int | None
    said: str
    """Which one, or why none."""


def find_pilot(store: Store, definition: Screen, run_id: int | None = None) -> Found:
    """The newest pilot whose judges are those of the screen.

    Args:
        store: the database.
        definition: the screen.
        run_id: a run of it whose tiers have their judges; by default those are worked out.
    """
    known = store.plans.pilots(definition.screen)
    if not known:
        return Found(None, None, "no pilot: tamis pilot measures one")
    if run_id is not None:
        judges = store.tiers.digests(run_id)
    else:
        jobs = [job_of(definition, i) for i in range(len(definition.tiers))]
        judges = [judge_digest(identity(job)) for job in jobs]
    for id_, body in known:
        pilot = pilot_of(body)
        if [tier.judge for tier in pilot.tiers] == judges:
            day = pilot.created[:10]
            return Found(pilot, id_, f"pilot {pilot.key} of {pilot.size:,} candidates, {day}")
    newest = pilot_of(known[0][1])
    what = "models or settings" if newest.rubric == digest_of(definition.rubric) else "rubric"
    said = f"no pilot: {newest.key} is of another {what} and is not used; run tamis pilot again"
    return Found(None, None, said)


def digest_of(rubric: str) -> str:
    """Names a rubric."""
    return hashlib.sha256(rubric.encode()).hexdigest()


def guesses(definition: Screen, texts: Sequence[str]) -> list[Guess | None]:
    """What is known of the tokens without a pilot, by the vocabulary where it is at hand."""
    lengths = sorted(len(text) for text in texts)
    mean = sum(lengths) / len(lengths)
    return [_guess(definition, i, texts, mean) for i in range(len(definition.tiers))]


def _guess(definition: Screen, position: int, texts: Sequence[str], mean: float) -> Guess | None:
    tier, job = definition.tiers[position], job_of(definition, position)
    if not isinstance(tier, ModelTierSection):
        return Guess(Range(0, 0, 0), Range(0, 0, 0))
    # Of a preset, and of a file on the hub, the vocabulary may have to be fetched with all weights.
    if isinstance(tier, LlamaTier) and Path(str(tier.model)).is_file():
        try:
            middle = sorted(texts, key=len)[len(texts) // 2]
            seen = inspect(job, middle)
        except TierError:
            return by_length(definition, mean)
        if seen.shared_tokens is not None and seen.own_tokens is not None:
            own = seen.own_tokens * mean / max(len(middle), 1)
            return Guess(Range(*[seen.shared_tokens] * 3), Range(own * 0.9, own, own * 1.1))
    return by_length(definition, mean)


def by_length(definition: Screen, mean_characters: float) -> Guess:
    """Tokens by the lengths of rubric and texts alone."""
    shared = len(definition.rubric) + PROMPT_CHARACTERS
    parts = (
        Range(*(length / each for each in CHARACTERS if each))
        for length in (shared, mean_characters)
    )
    return Guess(*parts)


def body_of(row: Alternative, candidates: int, said: str) -> dict[str, Any]:
    """A plan as it is kept: the figures of each tier, as ranges."""
    tiers = [asdict(tier) for tier in row.estimate.tiers]
    return plain({
        "by": said, "candidates": candidates, "loads": row.estimate.loads, "tiers": tiers,
        "seconds": row.estimate.seconds, "usd": row.estimate.usd,
    })  # fmt: skip


def plain(value: dict[str, Any]) -> dict[str, Any]:
    """With ranges as lists, as they are read again from JSON."""
    return dict(json.loads(json.dumps(value)))


def keep_plan(store: Store, run: Run, definition: Screen, judges: Sequence[int]) -> None:
    """Keep what a run that begins is expected to take; a run under way keeps the plan of before.

    No model and no vocabulary is opened for it.
    """
    waiting = store.runs.account(run.id).pending
    if not waiting or store.judgements.any(run.id) or store.plans.of(run.id) is not None:
        return
    todo = store.judgements.count_unjudged(run.id, 0, judges[0]) / waiting
    found = find_pilot(store, definition, run.id)
    guess = by_length(definition, store.candidates.mean_characters(run.id))
    size = 0 if found.pilot is None else found.pilot.size
    load = Workload(waiting, size, min(todo, 1.0))
    maker = Maker(definition, load, found.pilot, [guess] * len(definition.tiers))
    store.plans.keep(run.id, body_of(maker.configured(), waiting, found.said), found.id)


@dataclass(frozen=True)
class Held:
    """One tier's plan beside what came of it. Ranges are low, expected, high."""

    tier: str
    planned: dict[str, list[float | None]]
    actual: dict[str, float | None]
    inside: dict[str, bool | None]
    """Whether the actual figure lies in its range; None where nothing was estimated."""


def held(body: dict[str, Any], rows: Sequence[FunnelRow]) -> list[Held]:
    """A plan held against a run, tier by tier."""
    by_name = {row.tier: row for row in rows}
    told = []
    for planned in body["tiers"]:
        row = by_name.get(planned["tier"])
        if row is None:
            continue
        actual = {
            "candidates": row.reached, "promoted": row.promoted,
            "seconds": round(row.seconds, 3), "usd": row.usd,
        }  # fmt: skip
        ranges = {name: planned[name] for name in FIGURES}
        inside = {name: _inside(ranges[name], actual[name]) for name in FIGURES}
        told.append(Held(planned["tier"], ranges, actual, inside))
    return told


def _inside(planned: Sequence[float | None], actual: float | None) -> bool | None:
    low, expected, high = planned
    if actual is None or low is None or expected is None or high is None:
        return None
    if high - low <= 1e-6 * high:
        return None  # it was known
    # Counts are whole, and a range of money may be a hair wide.
    slack = 0.5 if expected >= 1 else 1e-9
    return low - slack <= actual <= high + slack


def planned_words(name: str, planned: Sequence[float | None]) -> str:
    """A figure of a plan as people read it."""
    words = {"seconds": duration_range, "usd": usd_range}.get(name, count_range)
    return words(Range(*planned))


def plans_kept(store: Store) -> list[dict[str, Any]]:
    """Of all runs that are done: how often each figure lay inside the range of its plan."""
    counts = {name: [0, 0] for name in FIGURES}
    for plan in store.plans.all([RunState.DONE, RunState.ALARM]):
        for tier in held(plan.body, store.results.funnel(plan.run_id)):
            for name, inside in tier.inside.items():
                if inside is not None:
                    counts[name][0] += inside
                    counts[name][1] += 1
    return [
        {"figure": name, "inside": hits, "of": of, "share": round(hits / of, 3) if of else None}
        for name, (hits, of) in counts.items()
    ]
