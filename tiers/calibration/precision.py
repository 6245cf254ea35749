"""Labels to thresholds that keep precision: pilot, plan, sample, and prefixes tested in order.

Of m unlabelled candidates n are drawn at random and x of them are negative. The negatives found
are dropped, L labelled positives are in the set as well, so the set has L + m - x members and K - x
of them are wrong, K being the negatives of the m. K0 = floor(x + (1 - T)(L + m - x)) + 1 is the
smallest K that breaks the promise, and the hypergeometric chance of at most x negatives under K0
is an exact p-value, because it grows with x.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tiers.calibration.draws import Floats, Ids, chance_of_at_most, exact
from tiers.calibration.guarantee import (
    Guarantee,
    Labels,
    Mask,
    Result,
    Sample,
    Status,
    Thresholds,
)
from tiers.calibration.reliability import isotonic, platt

PILOT_SHARE = 0.15
STRATUM = 6
"""Labels of a stratum of the pilot, at least."""
CAUTION = 0.97
"""Factor on the pilot's precision, for planning."""
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Prefixes of the planned region that are tested."""

Steps = Generator[Ids, Labels, Result]


@dataclass(frozen=True)
class Prefix:
    """The candidates at and above a level: what of them is unlabelled, and what is known."""

    level: float
    unlabelled: int
    positives: int
    """Labelled positives in the set for which the precision is promised, drawn ones excluded."""


@dataclass(frozen=True)
class Ranking:
    """Candidates in the order in which they would be accepted; `levels` -inf for never."""

    levels: Floats

    def open(self, sample: Sample) -> Ids:
        """Unlabelled candidates, the best first."""
        ids = np.flatnonzero(np.isfinite(self.levels) & ~sample.asked)
        return ids[np.argsort(-self.levels[ids], kind="stable")]

    def prefix(self, sample: Sample, level: float, drawn: Mask) -> Prefix:
        """The set above a level, where `drawn` (n,) are those of the random draw."""
        above = self.levels >= level
        known = sample.positive & ~(drawn & above)
        unlabelled = int((above & (~sample.asked | drawn)).sum())
        return Prefix(level, unlabelled, int(known.sum()))


def p_value(prefix: Prefix, drawn: int, wrong: int, target: float) -> float:
    """Chance of so few wrong ones in the draw if the set's precision were below the target."""
    members = prefix.positives + prefix.unlabelled - wrong
    fewest = wrong + math.floor((1 - exact(target)) * members) + 1
    if fewest > prefix.unlabelled - (drawn - wrong):
        return 0.0  # so many cannot be there: fewer remain
    return float(chance_of_at_most(wrong, prefix.unlabelled, fewest, drawn)[0])


def precision_bound(prefix: Prefix, drawn: int, wrong: int, delta: float) -> float:
    """Certified precision of a set, in steps of 0.0001: the highest target that passes."""
    low, high = 0, 9_999
    while low < high:
        middle = (low + high + 1) // 2
        passes = p_value(prefix, drawn, wrong, middle / 10_000) <= delta
        low, high = (middle, high) if passes else (low, middle - 1)
    return low / 10_000


def calibrate_precision(scores: Floats, guarantee: Guarantee, sample: Sample) -> Steps:
    """Ask for labels, then decide. See docs/guarantees.md, section "Precision"."""
    rng = np.random.default_rng(guarantee.seed)
    yield from _pilot(_shuffled(scores[:, -1], rng), guarantee, sample, rng)
    levels, tiers = tier_levels(scores, sample)
    ranking = Ranking(levels)
    cut, bound = yield from _certify(ranking, guarantee, sample, rng)
    region = levels >= cut
    rest = ranking.open(sample)
    yield from sample.ask(rest[~region[rest]])
    return _result(scores, guarantee, sample, region, accept_above(scores, tiers, cut), bound)


def tier_levels(scores: Floats, sample: Sample) -> tuple[Floats, Floats]:
    """(n,) level of acceptance, and (n, tiers) each tier's; -inf for never.

    One tier: its scores. Several: the chance of a positive by a logistic curve in each tier's
    score, fitted to the labels so far, and the best of them; only its order counts.
    """
    tiers = scores.copy()
    if scores.shape[1] > 1:
        labelled = sample.positive | sample.negative
        for tier in range(scores.shape[1]):
            tiers[:, tier] = platt(scores[:, tier], labelled, sample.positive)
    # A threshold of the policy lies at or above 0, so that nothing can be accepted for a 0. Whom a
    # tier could not read it sends to a person, so that no later tier sees them.
    unread = np.maximum.accumulate(np.isnan(scores), axis=1)
    tiers = np.where(unread | (scores == 0), -np.inf, tiers)
    best: Floats = tiers.max(axis=1)
    return best, tiers


def accept_above(scores: Floats, tiers: Floats, cut: float) -> tuple[float | None, ...]:
    """Each tier's threshold: accepted, strictly above it, is what reaches the level `cut`."""
    if not math.isfinite(cut):
        return tuple(None for _ in range(scores.shape[1]))
    found: list[float | None] = []
    for tier in range(scores.shape[1]):
        inside = scores[tiers[:, tier] >= cut, tier]
        found.append(float(np.nextafter(inside.min(), -np.inf)) if inside.size else None)
    return tuple(found)


def _shuffled(scores: Floats, rng: np.random.Generator) -> Ids:
    """Ids from the best score down, ties at random, those without a score left out."""
    ids = rng.permutation(np.flatnonzero(~np.isnan(scores)))
    return ids[np.argsort(-scores[ids], kind="stable")]


def _pilot(
    order: Ids, guarantee: Guarantee, sample: Sample, rng: np.random.Generator
) -> Generator[Ids, Labels, None]:
    """A few labels of every stratum of ranks, each twice as wide as the one above it."""
    budget = int(PILOT_SHARE * guarantee.budget)
    edges = [0]
    while edges[-1] < len(order):
        edges.append(min(2 * edges[-1] + 2 * STRATUM, len(order)))
    size = max(STRATUM, budget // max(len(edges) - 1, 1))
    empty = 0
    for start, end in pairwise(edges):
        if empty == 2 or sample.used >= budget:
            return
        drawn = rng.choice(order[start:end], min(size, end - start), replace=False)
        labels = yield from sample.ask(drawn)
        empty = empty + 1 if not (labels == 1).any() else 0


def _certify(
    ranking: Ranking, guarantee: Guarantee, sample: Sample, rng: np.random.Generator
) -> Generator[Ids, Labels, tuple[float, float | None]]:
    """The level from which on everything may be accepted, and its bound; inf and None if none.

    Args:
        ranking: candidates in the order of acceptance.
        guarantee: the promise.
        sample: labels so far; they are known, not evidence. What is left of the budget pays for
            the draw and for the band below the region.
        rng: for the draw alone.
    """
    target, delta, budget = guarantee.target, guarantee.delta, sample.left
    plan = _plan(ranking, sample, target, delta, budget)
    if plan is None:
        return math.inf, None
    levels, size = plan
    rest = ranking.open(sample)
    inside = rest[ranking.levels[rest] >= levels[0]]
    yield from sample.ask(rest[len(inside) :][: max(budget - size, 0)])
    before = sample.asked.copy()
    yield from sample.ask(rng.permutation(inside)[:size])
    drawn = sample.asked & ~before
    passed: list[tuple[float, float]] = []
    for level in levels[1:]:
        prefix, hits, wrong = _outcome(ranking, sample, level, drawn)
        if p_value(prefix, hits, wrong, target) > delta:
            break
        passed.append((level, max(precision_bound(prefix, hits, wrong, delta), target)))
    return min(passed) if passed else (math.inf, None)


def _outcome(
    ranking: Ranking, sample: Sample, level: float, drawn: Mask
) -> tuple[Prefix, int, int]:
    """The prefix, how many were drawn from it, and how many of them were not positive."""
    inside = drawn & (ranking.levels >= level)
    wrong = int((inside & ~sample.positive).sum())
    return ranking.prefix(sample, level, drawn), int(inside.sum()), wrong


def _plan(
    ranking: Ranking, sample: Sample, target: float, delta: float, budget: int
) -> tuple[list[float], int] | None:
    """The region's level, then the levels to test in their order; and the size of the draw."""
    rest = ranking.open(sample)
    if not rest.size or budget <= 0:
        return None
    chances = CAUTION * _curve(ranking, sample)[rest]
    ends = _tie_ends(ranking.levels[rest])
    grid = np.unique(ends[np.searchsorted(ends, np.geomspace(1, len(rest), 40).round())])
    known = int(sample.positive.sum())
    sums = np.concatenate([[0.0], np.cumsum(chances)])
    none = np.zeros(len(ranking.levels), np.bool_)
    best, choice = 0.0, None
    for end in grid:
        prefix = ranking.prefix(sample, float(ranking.levels[rest[end - 1]]), none)
        for size in np.unique(np.linspace(budget / 12, budget, 12).round().astype(int)):
            size = min(int(size), int(end))
            if size == 0 or _predicted(prefix, size, sums[end] / end, target) > delta:
                continue
            band = sums[min(end + budget - size, len(rest))] - sums[end]
            gain = known + band + 0.85 * sums[end] + 0.15 * sums[end] * size / end
            if gain > best:
                best, choice = gain, (int(end), size)
            break  # a larger draw only costs
    if choice is None:
        return None
    end, size = choice
    lowest = float(ranking.levels[rest[end - 1]])
    return [lowest, *_tests(ranking, sample, rest[:end], size, chances, target)], size


def _tests(
    ranking: Ranking, sample: Sample, region: Ids, size: int, chances: Floats, target: float
) -> list[float]:
    """Levels of the prefixes, the most promising first; fixed before the draw is seen."""
    ends = _tie_ends(ranking.levels[region])
    none = np.zeros(len(ranking.levels), np.bool_)
    predicted: dict[float, float] = {}
    for share in SHARES:
        end = int(ends[np.searchsorted(ends, max(round(share * len(region)), 1))])
        lowest = float(ranking.levels[region[end - 1]])
        hits = min(max(round(size * end / len(region)), 1), end)
        prefix = ranking.prefix(sample, lowest, none)
        predicted[lowest] = _predicted(prefix, hits, float(chances[:end].mean()), target)
    return sorted(predicted, key=lambda level: (predicted[level], level))


def _predicted(prefix: Prefix, drawn: int, chance: float, target: float) -> float:
    """The p-value of a slightly unlucky draw, 1.3 standard deviations above the expected errors."""
    share = 1 - chance
    finite = 1 - drawn / prefix.unlabelled
    unlucky = drawn * share + 1.3 * math.sqrt(max(drawn * share * (1 - share) * finite, 0.0))
    return p_value(prefix, drawn, min(math.ceil(unlucky), drawn), target)


def _curve(ranking: Ranking, sample: Sample) -> Floats:
    """(n,) chance of a positive, rising with the level; for planning only."""
    usable = np.isfinite(ranking.levels)
    labelled = usable & (sample.positive | sample.negative)
    chances = np.zeros(len(ranking.levels))
    if labelled.any():
        chances[usable] = isotonic(
            ranking.levels[labelled], sample.positive[labelled], ranking.levels[usable]
        )
    return chances


def _tie_ends(levels: Floats) -> Ids:
    """(k,) prefix lengths that split no tie, of levels in falling order."""
    return np.append(np.flatnonzero(np.diff(levels)) + 1, len(levels))


def _result(
    scores: Floats,
    guarantee: Guarantee,
    sample: Sample,
    region: Mask,
    above: tuple[float | None, ...],
    bound: float | None,
) -> Result:
    accepted = (region & ~sample.negative & ~sample.refused) | sample.positive
    status = Status.CERTIFIED
    if bound is None:
        status = Status.INFEASIBLE_BUDGET
        if not (np.isfinite(scores).any(axis=1) & ~sample.asked).any():
            status = Status.CERTIFIED  # every label is known
    bound = 1.0 if bound is None else bound  # only labelled positives are accepted then
    return Result(
        guarantee=guarantee,
        status=status,
        thresholds=tuple(Thresholds(accept_above=value) for value in above),
        accepted=accepted,
        promoted=~accepted & ~sample.negative,
        by_proxy=accepted & ~sample.asked,
        certified_bound=bound,
        threshold_bound=bound,
        labels_used=sample.used,
        positives_found=int(sample.positive.sum()),
        unlabelled=np.flatnonzero(sample.refused),
    )
