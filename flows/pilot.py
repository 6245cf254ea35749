"""A pilot: a random sample goes through every tier, and what that took is measured and kept.

Its judgements are judgements like all others, so that no later run pays for them again. Its run is
of a kind of its own, which no list shows and in which no policy decides.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np

from db.plans import Answered, Worked
from db.store import Run, Store
from flows.files.sampling import Sample, sampled
from flows.guarantee.classifiers import fitted
from flows.report.plan import digest_of
from flows.run.judging import TierRun
from flows.run.screening import tier_works
from flows.run.session import opened
from flows.settings import Settings, load_keys
from tiers.opening import inspect
from tiers.planning.measured import Pilot, Seen
from tiers.prices import check_prices
from tiers.screenfile.file import Screen
from tiers.screenfile.limits import BudgetSection
from tiers.screenfile.tiers import AnyTier, HttpTier, OpenAIBatchTier, RemoteTier
from tiers.tier import job_of
from tiers.types import TierError

LEAST_GROUPS = 8
"""Answers that were stored at so many times tell of a rate at the beginning and at the end."""


def run_pilot(
    definition: Screen,
    size: int,
    *,
    seed: int = 0,
    budget: BudgetSection | None = None,
    announce: Callable[[Sample], None] = lambda sample: None,
) -> Pilot:
    """Draw a sample, ask every tier about all of it, and keep what came of it.

    Args:
        definition: the screen.
        size: of the sample; a larger one than the input is all of it.
        seed: draws the sample.
        budget: of the pilot alone; the screen's own is not touched.
        announce: told of the sample before anything is asked.

    Raises:
        ScreenError: the input cannot be read.
        TierError: a tier could not go on, or the budget was used up; what was judged is kept.
    """
    definition = fitted(definition, Settings().database(), on_trial=True)
    asked = _as_pilot(definition, budget)
    load_keys(tier.key_name for tier in asked.tiers if isinstance(tier, RemoteTier))
    check_prices(asked)
    for position in range(len(asked.tiers)):
        inspect(job_of(asked, position), "")
    busy = _busy()
    sample = sampled(definition.candidates, size, seed)
    announce(sample)
    with opened(asked, None, "pilot, ", kind="pilot") as (store, run, judges, shown, hold):
        store.plans.clear(run.screen)  # those whose process died
        try:
            store.candidates.begin(run.id)
            store.candidates.add(run.id, sample.rows, source=sample.source)
            for position, work in enumerate(tier_works(asked, store, run, judges, hold)):
                tier = TierRun(work, shown)
                try:
                    tier.judge_waiting()
                    tier.finish()
                finally:
                    tier.close()
                store.plans.pass_on(run.id, position)
            pilot = _measured(store, run, asked, judges, sample, seed)
            pilot = replace(pilot, tiers=[replace(tier, busy=busy) for tier in pilot.tiers])
            store.plans.add_pilot(run.id, run.screen, pilot.as_json())
        finally:
            store.plans.clear(run.screen, run.id)
    return pilot


def _busy() -> float:
    """Processes that want to run, for each processor; 0 where the system does not tell."""
    try:
        return round(os.getloadavg()[0] / (os.cpu_count() or 1), 2)
    except OSError:
        return 0.0


def _as_pilot(definition: Screen, budget: BudgetSection | None) -> Screen:
    """The screen without what is meant for a run: its budgets, its promise, what comes after."""
    tiers = tuple(at_once(tier).model_copy(update={"budget": None}) for tier in definition.tiers)
    gone = {"after": None, "guarantee": None, "traces": "none"}
    return definition.model_copy(update={"tiers": tiers, "budget": budget, **gone})


def at_once(tier: AnyTier) -> AnyTier:
    """A tier that answers by batches, asked at once: it is the same judge, at the full price."""
    if not isinstance(tier, OpenAIBatchTier):
        return tier
    kept = set(RemoteTier.model_fields) - {"policy", "price", "budget"}
    return HttpTier(backend="http", base_url=tier.urls, **tier.model_dump(include=kept)).model_copy(
        update={"policy": tier.policy, "price": tier.price, "ask": tier.ask}
    )


def _measured(
    store: Store, run: Run, definition: Screen, judges: Sequence[int], sample: Sample, seed: int
) -> Pilot:
    """What the judgements and the clocks say.

    Raises:
        TierError: fewer than half of the sample were answered by all tiers.
    """
    answers: dict[int, dict[int, Answered]] = defaultdict(dict)
    for one in store.plans.answers(run.id):
        answers[one.judge_id][one.text_id] = one
    whole = sorted(set.intersection(*(set(answers[judge]) for judge in judges)))
    if 2 * len(whole) < len(sample.rows):
        why = "; ".join(store.tiers.reasons(run.id)) or "see tamis sql on the table judgement"
        raise TierError(
            f"only {len(whole):,} of {len(sample.rows):,} candidates were answered by all tiers, "
            f"too few for a pilot: {why}. What was judged is kept; run tamis pilot again"
        )
    worked, spent = store.plans.worked(run.id), store.tiers.spent(run.id)
    digests = store.tiers.digests(run.id)
    tiers = []
    for i, tier in enumerate(definition.tiers):
        told = [answers[judges[i]][text] for text in whole]
        tiers.append(_seen(tier.name, digests[i], told, worked[i], run.id))
    costs = [one.usd for one in spent]
    return Pilot(
        run.key,
        run.screen,
        digest_of(definition.rubric),
        datetime.now(UTC).isoformat(timespec="seconds"),
        sample.candidates,
        seed,
        tiers,
        round(sum(one.seconds for one in spent), 3),
        None if None in costs else round(sum(cost or 0.0 for cost in costs), 6),
    )


def _seen(name: str, judge: str, answers: Sequence[Answered], worked: Worked, run_id: int) -> Seen:
    new = [one for one in answers if one.run_id == run_id]
    seconds, drift = _pace(new, answers, worked) if new else (None, None)
    return Seen(
        name,
        judge,
        [one.score for one in answers],
        [one.mass for one in answers],
        [one.prompt_tokens for one in answers],
        [one.cached_tokens for one in answers],
        [one.completion_tokens for one in answers],
        seconds,
        round(worked.load_seconds or 0.0, 3) if new else 0.0,
        drift,
        worked.prompt_rate,
        worked.decode_rate,
    )


def _pace(
    new: Sequence[Answered], answers: Sequence[Answered], worked: Worked
) -> tuple[float, float | None]:
    """Seconds that the whole sample takes without loading, and how the rate moved meanwhile.

    By the times at which answers were stored, from the first one on: before it, an engine warms up.
    """
    ends: dict[datetime, float] = defaultdict(float)
    for one in new:
        ends[one.judged_at] += _units(one)
    times = sorted(ends)
    units = np.array([ends[time] for time in times])
    at = np.array([(time - times[0]).total_seconds() for time in times])
    all_units = sum(_units(one) for one in answers)
    if len(times) < LEAST_GROUPS or at[-1] <= 0:
        took = max(worked.seconds - (worked.load_seconds or 0.0), 1e-6)
        return took * all_units / units.sum(), None
    few = max(3, len(times) // 10)
    first = units[1 : few + 1].sum() / max(at[few] - at[0], 1e-9)
    last = units[-few:].sum() / max(at[-1] - at[-few - 1], 1e-9)
    return float(at[-1] / units[1:].sum() * all_units), float(round(last / first, 4))


def _units(one: Answered) -> float:
    """Work of an answer, where nothing better is known: the tokens read and written."""
    return max(one.prompt_tokens - one.cached_tokens, 0) + one.completion_tokens + 1.0
