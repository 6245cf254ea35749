"""Calibration of precision: pilot, plan, draw, and prefixes of a region tested in order.

Of m unlabelled candidates n are drawn at random and x of them are negative. The negatives found
are dropped, L labelled positives are in the set as well, so the set has L + m - x members and K - x
of them are wrong, K being the negatives of the m. K0 = floor(x + (1 - T)(L + m - x)) + 1 is the
smallest K that breaks the promise, and the hypergeometric chance of at most x negatives under K0
is an exact p-value, because it grows with x.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tiers.calibration.draws import Floats, Ids, chance_of_at_most, exact, highest
from tiers.calibration.guarantee import (
    Asking,
    Guarantee,
    Mask,
    Result,
    Sample,
    Status,
    Thresholds,
    unread,
)
from tiers.calibration.reliability import isotonic, platt

PILOT_SHARE = 0.15
STRATUM = 6
"""Fewest labels from a stratum of the pilot."""
CAUTION = 0.97
"""Factor on the precision that the pilot predicts, for planning."""
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Prefixes of the planned region that are tested, as shares of it."""


@dataclass(frozen=True)
class Prefix:
    """The set that would be accepted at a level, as counts."""

    unlabelled: int
    """Candidates at and above the level that had no label before the draw."""
    positives: int
    """All other labelled positives; they are accepted whatever their level."""


def open_ids(levels: Floats, sample: Sample) -> Ids:
    """Unlabelled candidates that may be accepted, the best first."""
    ids = np.flatnonzero(np.isfinite(levels) & ~sample.asked)
    return ids[np.argsort(-levels[ids], kind="stable")]


def prefix_at(levels: Floats, sample: Sample, level: float, drawn: Mask | bool = False) -> Prefix:
    """The set at and above a level; `drawn` (n,) are the candidates of the random draw."""
    above = levels >= level
    known = sample.positive & ~(above & drawn)
    unlabelled = above & (~sample.asked | drawn)
    return Prefix(int(unlabelled.sum()), int(known.sum()))


def p_value(prefix: Prefix, drawn: int, wrong: int, target: float) -> float:
    """Chance of at most `wrong` negatives in the draw if the precision were below the target."""
    members = prefix.positives + prefix.unlabelled - wrong
    fewest = wrong + math.floor((1 - exact(target)) * members) + 1
    if fewest > prefix.unlabelled - (drawn - wrong):
        return 0.0  # that many negatives cannot be there
    return float(chance_of_at_most(wrong, prefix.unlabelled, fewest, drawn)[0])


def precision_bound(prefix: Prefix, drawn: int, wrong: int, delta: float) -> float:
    """Certified precision of a set, in steps of 0.0001: the highest target that passes."""

    def passes(precision: int) -> bool:
        return p_value(prefix, drawn, wrong, precision / 10_000) <= delta

    return highest(0, 9_999, passes) / 10_000


def calibrate_precision(scores: Floats, guarantee: Guarantee, sample: Sample) -> Asking[Result]:
    """Ask for labels, then decide. See docs/guarantees.md, section "Precision"."""
    rng = np.random.default_rng(guarantee.seed)
    ids = rng.permutation(np.flatnonzero(~np.isnan(scores[:, -1])))
    order = ids[np.argsort(-scores[ids, -1], kind="stable")]  # the best first, ties at random
    yield from _pilot(order, guarantee, sample, rng)
    levels, tiers = tier_levels(scores, sample)
    cut, bound = yield from _certify(levels, guarantee, sample, rng)
    region = levels >= cut
    rest = open_ids(levels, sample)
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
    # A threshold of the policy is at least 0, so no policy accepts a score of 0.
    tiers = np.where(unread(scores) | (scores == 0), -np.inf, tiers)
    best: Floats = tiers.max(axis=1)
    return best, tiers


def accept_above(scores: Floats, tiers: Floats, cut: float) -> tuple[float | None, ...]:
    """Each tier's threshold: strictly above it are the candidates at or above the level `cut`."""
    if not math.isfinite(cut):
        return tuple(None for _ in range(scores.shape[1]))
    found: list[float | None] = []
    for tier in range(scores.shape[1]):
        inside = scores[tiers[:, tier] >= cut, tier]
        found.append(float(np.nextafter(inside.min(), -np.inf)) if inside.size else None)
    return tuple(found)


def _pilot(
    order: Ids, guarantee: Guarantee, sample: Sample, rng: np.random.Generator
) -> Asking[None]:
    """A few labels from each stratum of ranks, each twice as wide as the one above it."""
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
    levels: Floats, guarantee: Guarantee, sample: Sample, rng: np.random.Generator
) -> Asking[tuple[float, float | None]]:
    """The level from which on everything may be accepted, and its bound; inf and None if none.

    Args:
        levels: (n,) candidates are accepted from the highest downwards; -inf for never.
        guarantee: the promise.
        sample: its labels so far are known and no evidence. The budget that is left pays for the
            draw, and for labels of the next lower candidates.
        rng: for the draw alone.
    """
    target, delta, budget = guarantee.target, guarantee.delta, sample.left
    plan = _plan(levels, sample, target, delta, budget)
    if plan is None:
        return math.inf, None
    region, cuts, size = plan
    rest = open_ids(levels, sample)
    inside = rest[levels[rest] >= region]
    yield from sample.ask(rest[len(inside) :][: max(budget - size, 0)])
    before = sample.asked.copy()
    yield from sample.ask(rng.permutation(inside)[:size])
    drawn = sample.asked & ~before
    passed: list[tuple[float, float]] = []
    for cut in cuts:
        tested = drawn & (levels >= cut)
        hits, wrong = int(tested.sum()), int((tested & ~sample.positive).sum())
        prefix = prefix_at(levels, sample, cut, drawn)
        if p_value(prefix, hits, wrong, target) > delta:
            break
        passed.append((cut, max(precision_bound(prefix, hits, wrong, delta), target)))
    return min(passed) if passed else (math.inf, None)


def _plan(
    levels: Floats, sample: Sample, target: float, delta: float, budget: int
) -> tuple[float, list[float], int] | None:
    """The region's lowest level, the levels to test in their order, and the size of the draw."""
    rest = open_ids(levels, sample)
    if not rest.size or budget <= 0:
        return None
    chances = CAUTION * _curve(levels, sample)[rest]
    ends = _tie_ends(levels[rest])
    grid = np.unique(ends[np.searchsorted(ends, np.geomspace(1, len(rest), 40).round())])
    known = int(sample.positive.sum())
    sums = np.concatenate([[0.0], np.cumsum(chances)])
    best, choice = 0.0, None
    for end in grid:
        prefix = prefix_at(levels, sample, float(levels[rest[end - 1]]))
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
    cuts = _cuts(levels, sample, rest[:end], size, chances, target)
    return float(levels[rest[end - 1]]), cuts, size


def _cuts(
    levels: Floats, sample: Sample, region: Ids, size: int, chances: Floats, target: float
) -> list[float]:
    """Lowest levels of the prefixes, the most promising first; fixed before the draw is seen."""
    ends = _tie_ends(levels[region])
    predicted: dict[float, float] = {}
    for share in SHARES:
        end = int(ends[np.searchsorted(ends, max(round(share * len(region)), 1))])
        cut = float(levels[region[end - 1]])
        hits = min(max(round(size * end / len(region)), 1), end)
        prefix = prefix_at(levels, sample, cut)
        predicted[cut] = _predicted(prefix, hits, float(chances[:end].mean()), target)
    return sorted(predicted, key=lambda cut: (predicted[cut], cut))


def _predicted(prefix: Prefix, drawn: int, chance: float, target: float) -> float:
    """The p-value of a slightly unlucky draw, 1.3 standard deviations above the expected errors."""
    share = 1 - chance
    finite = 1 - drawn / prefix.unlabelled
    unlucky = drawn * share + 1.3 * math.sqrt(max(drawn * share * (1 - share) * finite, 0.0))
    return p_value(prefix, drawn, min(math.ceil(unlucky), drawn), target)


def _curve(levels: Floats, sample: Sample) -> Floats:
    """(n,) chance of a positive, rising with the level; for planning only."""
    usable = np.isfinite(levels)
    labelled = usable & (sample.positive | sample.negative)
    chances = np.zeros(len(levels))
    if labelled.any():
        chances[usable] = isotonic(levels[labelled], sample.positive[labelled], levels[usable])
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
    complete = not (np.isfinite(scores).any(axis=1) & ~sample.asked).any()
    status = Status.INFEASIBLE_BUDGET if bound is None and not complete else Status.CERTIFIED
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
