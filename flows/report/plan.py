"""What a screen is expected to take: its pilot found, its plan kept and held against the run."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from db.run_tiers import judge_digest
from db.store import FunnelRow, Run, RunState, Store
from tiers.opening import identity, inspect
from tiers.planning.alternatives import Alternative, Maker
from tiers.planning.choice import count_range, duration_range, usd_range
from tiers.planning.estimate import Workload
from tiers.planning.measured import Pilot, Range, Seen, pilot_of, verdicts
from tiers.planning.stages import Guess
from tiers.screenfile.file import Screen
from tiers.screenfile.tiers import LlamaTier, ModelTierSection
from tiers.tier import job_of
from tiers.types import Outcome, TierError

CHARACTERS = Range(5, 4, 3)
"""Of a token: many make few tokens."""
PROMPT_CHARACTERS = 400
"""Of a prompt beside rubric and text."""
SOME = 200
"""Texts of a run that stand for all where kept answers are counted."""
OVER = (RunState.DONE, RunState.ALARM)
FIGURES = ("candidates", "promoted", "seconds", "usd")
"""Of a tier, which a plan tells and a run shows."""


@dataclass(frozen=True)
class Found:
    """The pilot of a screen, if there is one that it may go by."""

    pilot: Pilot | None
    id: int | None
    said: str
    """Which one, or why none."""
    judges: Sequence[str] = ()
    """Digests of the screen's judges, where they were worked out."""


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
    pilots = [(id_, pilot_of(body)) for id_, body in known]
    for id_, pilot in pilots:
        by_judge = {tier.judge: tier for tier in pilot.tiers}
        if set(judges) <= set(by_judge):
            tiers = [_timed(by_judge[judge], [one for _, one in pilots]) for judge in judges]
            day = pilot.created[:10]
            said = f"pilot {pilot.key} of {pilot.size:,} candidates, {day}"
            return Found(replace(pilot, tiers=tiers), id_, said, judges)
    newest = pilots[0][1]
    same = newest.rubric == digest_of(definition.rubric)
    what = "other models or settings" if same else "another rubric"
    said = f"no pilot: {newest.key} is of {what} and is not used; run tamis pilot again"
    return Found(None, None, said, judges)


def _timed(tier: Seen, pilots: Sequence[Pilot]) -> Seen:
    """A tier of a pilot; where all its answers were there, with the speed of an earlier one."""
    if tier.seconds is not None:
        return tier
    for before in (one for pilot in pilots for one in pilot.tiers):
        if before.judge == tier.judge and before.seconds is not None:
            share = float(tier.fresh.sum() / max(before.fresh.sum(), 1.0))
            return replace(
                tier, seconds=before.seconds * share, load_seconds=before.load_seconds,
                drift=before.drift, prefill=before.prefill, decode=before.decode, busy=before.busy,
            )  # fmt: skip
    return tier


def unanswered(
    store: Store, definition: Screen, judges: Sequence[str], texts: Sequence[bytes]
) -> list[float]:
    """At each tier, the share of those who reach it that its judge has not answered yet.

    Args:
        store: the database.
        definition: the screen.
        judges: the digests of its tiers' judges.
        texts: digests of some texts of its input, which stand for all.
    """
    said = store.plans.scores(judges, texts)
    weights = dict.fromkeys(texts, 1.0)
    shares = []
    for position, judge in enumerate(judges):
        known = [text for text in texts if text in said[judge] and weights[text]]
        whole = sum(weights.values())
        shares.append(1 - sum(weights[text] for text in known) / whole if whole else 1.0)
        scores = [said[judge][text] for text in known]
        last = position == len(judges) - 1
        outcomes = verdicts(scores, definition.policy(position), last=last) if known else []
        passed = [outcome is Outcome.PROMOTE for outcome in outcomes]
        # Of those without an answer as many go on as of the others; all, where there are none.
        rate = sum(passed) / len(passed) if passed else 1.0
        went_on = {text: weights[text] * on for text, on in zip(known, passed, strict=True)}
        weights = {text: weight * rate for text, weight in weights.items()} | went_on
    return shares


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
    found = find_pilot(store, definition, run.id)
    guess = by_length(definition, store.candidates.mean_characters(run.id))
    size = 0 if found.pilot is None else found.pilot.size
    part = found.pilot is not None and found.pilot.candidates == waiting
    texts = store.plans.some_texts(run.id, SOME)
    todo = unanswered(store, definition, store.tiers.digests(run.id), texts)
    todo[0] = min(store.judgements.count_unjudged(run.id, 0, judges[0]) / waiting, 1.0)
    load = Workload(waiting, size, part)
    maker = Maker(definition, load, found.pilot, [guess] * len(definition.tiers), todo)
    store.plans.keep(run.id, body_of(maker.configured(), waiting, found.said), found.id)


@dataclass(frozen=True)
class Held:
    """One tier's plan beside what came of it. Ranges are low, expected, high."""

    tier: str
    planned: dict[str, list[float | None]]
    actual: dict[str, float | None]
    inside: dict[str, bool | None]
    """Whether the actual figure lies in its range; None where nothing was estimated."""


def held(
    body: dict[str, Any], rows: Sequence[FunnelRow], state: RunState = RunState.DONE
) -> list[Held]:
    """A plan held against a run, tier by tier; while it is not over, nothing has missed."""
    over = state in OVER
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
        inside = {name: _inside(ranges[name], actual[name]) if over else None for name in FIGURES}
        told.append(Held(planned["tier"], ranges, actual, inside))
    return told


def figures_of(plan: Sequence[Held]) -> list[str]:
    """The figures of which there is something to say."""
    return [
        name for name in FIGURES if any(one.planned[name][2] or one.actual[name] for one in plan)
    ]


def _inside(planned: Sequence[float | None], actual: float | None) -> bool | None:
    low, expected, high = planned
    if actual is None or low is None or expected is None or high is None:
        return None
    # Counts are whole, and a range of money may be a hair wide.
    slack = 0.5 if expected >= 1 else 1e-9
    inside = low - slack <= actual <= high + slack
    known = high - low <= 1e-6 * high
    return None if known and inside else inside  # to be right about what is known proves nothing


def planned_words(name: str, planned: Sequence[float | None]) -> str:
    """A figure of a plan as people read it."""
    words = {"seconds": duration_range, "usd": usd_range}.get(name, count_range)
    return words(Range(*planned))


def plans_kept(store: Store) -> list[dict[str, Any]]:
    """Of all runs that are done: how often each figure lay inside the range of its plan."""
    counts = {name: [0, 0] for name in FIGURES}
    for plan in store.plans.all(OVER):
        for tier in held(plan.body, store.results.funnel(plan.run_id)):
            for name, inside in tier.inside.items():
                if inside is not None:
                    counts[name][0] += inside
                    counts[name][1] += 1
    return [
        {"figure": name, "inside": hits, "of": of, "share": round(hits / of, 3) if of else None}
        for name, (hits, of) in counts.items()
    ]
