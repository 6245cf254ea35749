"""Labels to thresholds that keep recall: where to stop drawing, and what to do with the rest."""

import math
from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from tiers.calibration.draws import Floats, Ids, most_positives
from tiers.calibration.guarantee import (
    UNKNOWN,
    Guarantee,
    Labels,
    Mask,
    RecallEvidence,
    Result,
    Sample,
    Status,
    Thresholds,
)
from tiers.calibration.path import JointPath, Survival, learn_path
from tiers.calibration.recall_test import (
    COUNT_SHARE,
    best_kth,
    bound_of_kth,
    failure,
    level,
    positives_needed,
    turning_points,
)

PILOT_SHARE = 0.3
PILOT_POSITIVES = 20
"""A pilot that has found so many positives knows the tiers well enough."""
LOOKS = 10
"""Fixed points of the draw at which the number of positives is bounded; the best counts."""
SEPARATION = 2.0
"""How far two normal score curves are assumed apart to plan the end of the draw; nothing else."""

Steps = Generator[Ids, Labels, Result]


@dataclass(frozen=True)
class Draw:
    """A random draw so far, in its order. What may be decided from it before the test: counts."""

    population: int
    looks: tuple[int, ...]
    labels: Labels

    @property
    def drawn(self) -> int:
        """Items with a label; one for which none can be had leaves the population."""
        return int((self.labels != UNKNOWN).sum())

    @property
    def found(self) -> int:
        return int((self.labels == 1).sum())

    def most(self, risk: float) -> int:
        """Positives of the population, exceeded with probability at most `risk` in all.

        The draw stops when its counts say so, hence the bound is taken at points fixed before.
        """
        population = self.population - int((self.labels == UNKNOWN).sum())
        most = population - (self.drawn - self.found)
        for look in self.looks:
            if look <= len(self.labels):
                seen = self.labels[:look]
                drawn, found = int((seen != UNKNOWN).sum()), int((seen == 1).sum())
                most = min(most, _most(population, drawn, found, risk / len(self.looks)))
        return most


@dataclass(frozen=True)
class OrderTest:
    """The order-statistic test as it will be made: the `kth` lowest of the first `drawn` positives.

    All positives found beyond the first `drawn` are known, which is worth more than a slightly
    larger sample. Both numbers come from counts alone.
    """

    kth: int
    drawn: int
    most: int
    known: int

    @property
    def lost_share(self) -> float:
        """Share of the positives that the threshold is expected to lose."""
        return self.kth / (self.drawn + 1)


@lru_cache(maxsize=10_000)
def _most(population: int, drawn: int, found: int, risk: float) -> int:
    return most_positives(population, drawn, found, risk)


@lru_cache(maxsize=10_000)
def plan_test(found: int, most: int, known: int, target: float, delta: float) -> OrderTest:
    """The test with the highest threshold that `found` positives allow.

    Args:
        found: positives drawn.
        most: upper bound on the positives in the population of the draw.
        known: positives known before the draw.
        target: recall.
        delta: all that may be spent, the bound included.
    """
    risk = level(delta)
    kth = best_kth(found, most, target, risk, known=known)
    low, high = kth if kth else found, found
    while low < high:
        middle = (low + high) // 2
        spare = found - middle
        rest = turning_points(middle, most - spare, target, known + spare)
        worst = failure(kth, middle, rest, target, known=known + spare).max()
        low, high = (low, middle) if worst <= risk else (middle + 1, high)
    return OrderTest(kth, low, most - (found - low), known + found - low)


@lru_cache(maxsize=1_000)
def _needed(target: float, delta: float, kth: int) -> int:
    return positives_needed(target, delta, kth)


def calibrate_recall(scores: Floats, guarantee: Guarantee, sample: Sample) -> Steps:
    """Ask for labels, then decide. See docs/guarantees.md, section "Recall"."""
    order = np.random.default_rng(guarantee.seed).permutation(len(scores))
    path, rest = yield from _pilot(scores, order, guarantee, sample)
    known = int(sample.positive.sum())
    draw, test = yield from _draw(rest, known, sample, guarantee, scores.shape[1])
    complete = not (~sample.asked).any()
    if complete:
        # Every label is known: the thresholds need not lean on them.
        risk = level(guarantee.delta)
        kth = best_kth(test.drawn, test.most, guarantee.target, risk, known=test.known, kept=False)
        test = replace(test, kth=kth)
    drawn = rest[: len(draw.labels)][draw.labels == 1]
    thresholds = _thresholds(scores, path, drawn[: test.drawn], test.kth)
    yield from _clean(scores, path, thresholds, sample)
    evidence = _evidence(draw, test, known, guarantee.delta)
    result = _result(scores, guarantee, sample, thresholds, evidence, complete)
    return replace(result, drawn_positives=drawn)


def _pilot(
    scores: Floats, order: Ids, guarantee: Guarantee, sample: Sample
) -> Generator[Ids, Labels, tuple[JointPath, Ids]]:
    """With several tiers: labels to learn the path from. They leave the population of the test."""
    tiers = scores.shape[1]
    if tiers == 1:
        return JointPath((Survival(np.zeros(0), 1.0),), (1.0,)), order
    end, most = 0, min(int(PILOT_SHARE * guarantee.budget), len(order))
    while end < most and sample.positive.sum() < PILOT_POSITIVES:
        step = max(_labels_until(PILOT_POSITIVES, int(sample.positive.sum()), end), 8)
        yield from sample.ask(order[end : min(end + step, most)])
        end = min(end + step, most)
    miss = 0.6 * (1 - guarantee.target)
    prices = guarantee.prices(tiers)
    return learn_path(scores, sample.positive, prices=prices, miss=miss), order[end:]


def _draw(
    rest: Ids, known: int, sample: Sample, guarantee: Guarantee, tiers: int
) -> Generator[Ids, Labels, tuple[Draw, OrderTest]]:
    """Draw until another label promises less than it costs, by counts alone."""
    budget = max(min(sample.left, len(rest)), 0)
    looks = tuple(sorted({math.ceil(budget * look / LOOKS) for look in range(1, LOOKS + 1)} - {0}))
    risk = COUNT_SHARE * guarantee.delta
    grain = max(budget // 50, 1)
    draw = Draw(len(rest), looks, np.zeros(0, np.int8))
    while True:
        test = plan_test(
            draw.found, draw.most(risk), known, guarantee.target, guarantee.delta
        )  # fmt: skip
        left = budget - len(draw.labels)
        if left == 0:
            return draw, test
        wanted = next_stop(draw, test, budget, guarantee, clean=tiers == 1)
        if wanted <= draw.found:
            return draw, test
        step = min(max(_labels_until(wanted, draw.found, draw.drawn) // 2, grain), left)
        if not draw.found:
            step = min(max(step, wanted), left)
        labels = yield from sample.ask(rest[len(draw.labels) :][:step])
        draw = replace(draw, labels=np.concatenate([draw.labels, labels]))


def _labels_until(wanted: int, found: int, drawn: int) -> int:
    """Labels that bring half of the positives still wanted, at the prevalence seen so far."""
    return math.ceil((wanted - found) * (drawn + 1) / (2 * found + 1))


def next_stop(
    draw: Draw, test: OrderTest, budget: int, guarantee: Guarantee, *, clean: bool
) -> int:
    """Positives at which to look again; those found already, if it is best to stop now.

    Args:
        draw: the draw so far.
        test: what could be tested now.
        budget: labels for the draw, and for cleaning after it.
        guarantee: the promise.
        clean: whether labels left over clean the kept set. Else all that is kept costs a label,
            and so does every item drawn.
    """
    first = _needed(guarantee.target, guarantee.delta, test.kth + 1)
    if test.kth == 0:
        return max(first, draw.found + 1)
    share = (draw.found + 0.5) / (draw.drawn + 1)
    best, wanted = _waste(draw, draw.drawn, test.lost_share, budget, share, clean), draw.found
    for kth in range(test.kth + 1, test.kth + 9):
        needed = _needed(guarantee.target, guarantee.delta, kth)
        drawn = draw.drawn + (needed - draw.found) / share
        if drawn > budget:
            break
        waste = _waste(draw, drawn, kth / (needed + 1), budget, share, clean)
        if waste < best:
            best, wanted = waste, max(needed, draw.found + 1)
    return wanted


def _waste(draw: Draw, drawn: float, lost: float, budget: int, share: float, clean: bool) -> float:
    """What a stop after `drawn` labels is expected to leave: false positives, or labels to pay."""
    normal = NormalDist()
    passed = normal.cdf(normal.inv_cdf(1 - min(lost, 0.999)) - SEPARATION)
    if clean:
        kept = (draw.population - drawn) * (1 - share) * passed
        return max(kept - (budget - drawn) * (1 - share), 0.0)
    survive = share * (1 - lost) + (1 - share) * passed
    return draw.population * survive + drawn * (1 - survive)


def _thresholds(scores: Floats, path: JointPath, drawn: Ids, kth: int) -> tuple[Thresholds, ...]:
    """Only here are the scores of drawn positives looked at."""
    if kth == 0:
        return tuple(Thresholds() for _ in range(scores.shape[1]))
    lowest = np.sort(path.level_of(scores)[drawn])[kth - 1]
    return path.thresholds(scores, float(lowest))


def kept_by(scores: Floats, thresholds: tuple[Thresholds, ...]) -> Mask:
    """(n,) candidates that no tier rejects, one after the other.

    A tier without a score sends to a person, so that no later tier rejects.
    """
    rejected = np.zeros(len(scores), np.bool_)
    unread = np.zeros(len(scores), np.bool_)
    for tier, threshold in enumerate(thresholds):
        unread |= np.isnan(scores[:, tier])
        if threshold.reject_below is not None:
            rejected |= ~unread & (scores[:, tier] < threshold.reject_below)
    return ~rejected


def _clean(
    scores: Floats,
    path: JointPath,
    thresholds: tuple[Thresholds, ...],
    sample: Sample,
) -> Generator[Ids, Labels, None]:
    """Spend what is left on the kept candidates that are most likely false, the lowest first."""
    kept = kept_by(scores, thresholds) & ~sample.asked
    ids = np.flatnonzero(kept)
    levels = path.level_of(scores)[ids]
    yield from sample.ask(ids[np.argsort(levels, kind="stable")])


def _evidence(draw: Draw, test: OrderTest, known: int, delta: float) -> RecallEvidence:
    best = 0.0
    if test.drawn:
        best = bound_of_kth(1, test.drawn, test.most, level(delta), known=test.known)
    return RecallEvidence(
        kth=test.kth,
        positives_tested=test.drawn,
        positives_known=test.known,
        most_positives=test.most,
        best_bound=best,
        drawn_most=draw.most(COUNT_SHARE * delta),
        drawn_known=known,
        test_delta=delta,
    )


def _result(
    scores: Floats,
    guarantee: Guarantee,
    sample: Sample,
    thresholds: tuple[Thresholds, ...],
    evidence: RecallEvidence,
    complete: bool,
) -> Result:
    test = (evidence.kth, evidence.positives_tested, evidence.most_positives)
    risk = level(guarantee.delta)
    bound = bound_of_kth(*test, risk, known=evidence.positives_known)
    done = complete and not sample.refused.any()
    certified = evidence.kth > 0 or done
    kept = kept_by(scores, thresholds)
    accepted = (kept & ~sample.negative) | sample.positive | sample.refused
    return Result(
        guarantee=guarantee,
        status=Status.CERTIFIED if certified else Status.INFEASIBLE_BUDGET,
        thresholds=thresholds,
        accepted=accepted,
        promoted=accepted & ~sample.positive,
        by_proxy=~kept & ~sample.asked,
        certified_bound=1.0 if done else max(bound, guarantee.target),
        threshold_bound=bound_of_kth(*test, risk, kept=False),
        labels_used=sample.used,
        positives_found=int(sample.positive.sum()),
        unlabelled=np.flatnonzero(sample.refused),
        evidence=evidence,
    )
