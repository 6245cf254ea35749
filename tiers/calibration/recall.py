"""Calibration of recall: how long to draw, the thresholds, and what else to label."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from tiers.calibration.draws import Floats, Ids, lowest, most_positives
from tiers.calibration.guarantee import (
    UNKNOWN,
    Asking,
    Guarantee,
    Labels,
    Mask,
    RecallEvidence,
    Result,
    Sample,
    Status,
    Thresholds,
    unread,
)
from tiers.calibration.path import JointPath, learn_path
from tiers.calibration.recall_test import (
    COUNT_SHARE,
    best_kth,
    bound_for_source,
    bound_of_kth,
    level,
    positives_needed,
    worst_failure,
)

PILOT_SHARE = 0.3
PILOT_POSITIVES = 12
"""A pilot that has found so many positives knows the tiers well enough.

Of 5 to 35 this is the cheapest: see bench/README.md."""
LOOKS = 10
"""Fixed points of the draw at which the number of positives is bounded; the best bound counts."""
SEPARATION = 1.5
"""Assumed distance of two normal score curves, only to decide how long to draw.

From 0.3 to 2 little depends on it: see bench/README.md."""


@dataclass(frozen=True)
class Draw:
    """A random draw so far, in its order. Before the test, decisions follow from its counts."""

    population: int
    looks: tuple[int, ...]
    labels: Labels

    @property
    def drawn(self) -> int:
        """Items with a label; an item that cannot be labelled leaves the population."""
        return int((self.labels != UNKNOWN).sum())

    @property
    def found(self) -> int:
        return int((self.labels == 1).sum())

    def most(self, risk: float) -> int:
        """Upper bound on the positives of the population; it fails with probability `risk`.

        The draw stops when its counts say so, hence the bound is taken at points fixed before.
        """
        population = self.population - int((self.labels == UNKNOWN).sum())
        most = population - (self.drawn - self.found)
        for look in self.looks:
            if look <= len(self.labels):
                seen = self.labels[:look]
                drawn, found = int((seen != UNKNOWN).sum()), int((seen == 1).sum())
                most = min(most, most_positives(population, drawn, found, risk / len(self.looks)))
        return most


@dataclass(frozen=True)
class OrderTest:
    """The test on order statistics: the `kth` lowest of the first `drawn` positives.

    All positives beyond the first `drawn` count as known, which is worth more than a slightly
    larger sample. All numbers come from counts alone.
    """

    kth: int
    drawn: int
    most: int
    """Upper bound on the positives of which `drawn` are a random draw."""
    known: int

    @property
    def lost_share(self) -> float:
        """Share of the positives that the threshold is expected to lose."""
        return self.kth / (self.drawn + 1)


@lru_cache(maxsize=10_000)
def plan_test(found: int, most: int, known: int, target: float, delta: float) -> OrderTest:
    """The test with the highest threshold that `found` positives allow.

    Args:
        found: positives drawn.
        most: upper bound on the positives in the population of the draw.
        known: positives known before the draw.
        target: recall.
        delta: probability of failure of the test and of the upper bound together.
    """
    risk = level(delta)
    kth = best_kth(found, most, target, risk, known=known)

    def passes(drawn: int) -> bool:
        spare = found - drawn
        return worst_failure(kth, drawn, most - spare, target, known=known + spare) <= risk

    drawn = lowest(kth, found, passes) if kth else found
    return OrderTest(kth, drawn, most - (found - drawn), known + found - drawn)


def calibrate_recall(scores: Floats, guarantee: Guarantee, sample: Sample) -> Asking[Result]:
    """Ask for labels, then decide. See docs/guarantees.md, section "Recall"."""
    order = np.random.default_rng(guarantee.seed).permutation(len(scores))
    path, rest = yield from _pilot(scores, order, guarantee, sample)
    known = int(sample.positive.sum())
    draw, test = yield from _draw(rest, known, sample, guarantee, scores.shape[1])
    complete = bool(sample.asked.all())
    if complete:
        # Every label is known, so the thresholds need no labelled positives below them.
        risk = level(guarantee.delta)
        kth = best_kth(test.drawn, test.most, guarantee.target, risk, known=test.known, kept=False)
        test = replace(test, kth=kth)
    drawn = rest[: len(draw.labels)][draw.labels == 1]
    thresholds = _thresholds(scores, path, drawn[: test.drawn], test.kth)
    if guarantee.cleaning:
        yield from _clean(scores, path, thresholds, sample)
    evidence = _evidence(draw, test, known, guarantee.delta)
    result = _result(scores, guarantee, sample, thresholds, evidence, complete)
    return replace(result, drawn_positives=drawn)


def _pilot(
    scores: Floats, order: Ids, guarantee: Guarantee, sample: Sample
) -> Asking[tuple[JointPath, Ids]]:
    """The path, and the population of the draw: several tiers need labels to learn the path."""
    tiers = scores.shape[1]
    end, most = 0, min(int(PILOT_SHARE * guarantee.budget), len(order)) if tiers > 1 else 0
    while end < most and sample.positive.sum() < PILOT_POSITIVES:
        step = max(_labels_until(PILOT_POSITIVES, int(sample.positive.sum()), end), 8)
        yield from sample.ask(order[end : min(end + step, most)])
        end = min(end + step, most)
    miss = 0.6 * (1 - guarantee.target)
    prices = guarantee.prices(tiers)
    return learn_path(scores, sample.positive, prices=prices, miss=miss), order[end:]


def _draw(
    rest: Ids, known: int, sample: Sample, guarantee: Guarantee, tiers: int
) -> Asking[tuple[Draw, OrderTest]]:
    """Draw until another label costs more than it is expected to save, by counts alone."""
    budget = max(min(sample.left, len(rest)), 0)
    looks = tuple(sorted({math.ceil(budget * look / LOOKS) for look in range(1, LOOKS + 1)} - {0}))
    risk = COUNT_SHARE * guarantee.delta
    grain = max(budget // 50, 1)
    draw = Draw(len(rest), looks, np.zeros(0, np.int8))
    while True:
        test = plan_test(draw.found, draw.most(risk), known, guarantee.target, guarantee.delta)
        left = budget - len(draw.labels)
        if left == 0:
            return draw, test
        wanted = next_stop(draw, test, budget, guarantee, clean=tiers == 1 and guarantee.cleaning)
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
    """Positives after which to decide again; those found already, if it is best to stop now.

    Args:
        draw: the draw so far.
        test: what could be tested now.
        budget: labels for the draw, and for cleaning after it.
        guarantee: the promise.
        clean: whether labels left over clean the kept set. Otherwise each kept candidate costs a
            label, and so does each drawn one.
    """
    first = positives_needed(guarantee.target, guarantee.delta, test.kth + 1)
    if test.kth == 0:
        return max(first, draw.found + 1)
    share = (draw.found + 0.5) / (draw.drawn + 1)
    best, wanted = _waste(draw, draw.drawn, test.lost_share, budget, share, clean), draw.found
    for kth in range(test.kth + 1, test.kth + 9):
        needed = positives_needed(guarantee.target, guarantee.delta, kth)
        drawn = draw.drawn + (needed - draw.found) / share
        if drawn > budget:
            break
        waste = _waste(draw, drawn, kth / (needed + 1), budget, share, clean)
        if waste < best:
            best, wanted = waste, max(needed, draw.found + 1)
    return wanted


def _waste(draw: Draw, drawn: float, lost: float, budget: int, share: float, clean: bool) -> float:
    """Expected after a stop at `drawn` labels: false positives, or labels still to pay."""
    normal = NormalDist()
    passed = normal.cdf(normal.inv_cdf(1 - min(lost, 0.999)) - SEPARATION)
    if clean:
        kept = (draw.population - drawn) * (1 - share) * passed
        return max(kept - (budget - drawn) * (1 - share), 0.0)
    survive = share * (1 - lost) + (1 - share) * passed
    return draw.population * survive + drawn * (1 - survive)


def _thresholds(scores: Floats, path: JointPath, drawn: Ids, kth: int) -> tuple[Thresholds, ...]:
    """The only place that reads scores of drawn positives."""
    if kth == 0:
        return tuple(Thresholds() for _ in range(scores.shape[1]))
    cut = np.sort(path.level_of(scores)[drawn])[kth - 1]
    return path.thresholds(scores, float(cut))


def kept_by(scores: Floats, thresholds: tuple[Thresholds, ...]) -> Mask:
    """(n,) candidates that none of the tiers rejects, one tier after the other."""
    reached = scores[:, : len(thresholds)]
    lowest_kept = np.array([one.lowest_kept for one in thresholds])
    rejected = ~unread(reached) & (reached < lowest_kept)
    return ~np.asarray(rejected.any(axis=1), np.bool_)


def _clean(
    scores: Floats, path: JointPath, thresholds: tuple[Thresholds, ...], sample: Sample
) -> Asking[None]:
    """Spend what is left on the kept candidates that are most likely false, the lowest first."""
    ids = np.flatnonzero(kept_by(scores, thresholds) & ~sample.asked)
    yield from sample.ask(ids[np.argsort(path.level_of(scores)[ids], kind="stable")])


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
    kept = kept_by(scores, thresholds)
    accepted = (kept & ~sample.negative) | sample.positive | sample.refused
    return Result(
        guarantee=guarantee,
        status=Status.CERTIFIED if evidence.kth or done else Status.INFEASIBLE_BUDGET,
        thresholds=thresholds,
        accepted=accepted,
        promoted=accepted & ~sample.positive,
        by_proxy=~kept & ~sample.asked,
        certified_bound=1.0 if done else max(bound, guarantee.target),
        threshold_bound=bound_of_kth(*test, risk, kept=False),
        source_bound=bound_for_source(evidence.kth, evidence.positives_tested, guarantee.delta),
        labels_used=sample.used,
        positives_found=int(sample.positive.sum()),
        unlabelled=np.flatnonzero(sample.refused),
        evidence=evidence,
    )
