"""Several tiers as one number: how far a candidate gets as all thresholds rise together.

A path maps one level in [0, inf] to one threshold a tier. All that is below some threshold at a
level is below it at every higher level, so the sets are nested and one test on the level is a test
on all tiers at once, at the full delta: no union bound, no splitting of the recall.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
import scipy

from tiers.calibration.draws import Floats
from tiers.calibration.guarantee import Mask, Thresholds, unread

FEW = 4
"""Positives below which a pilot says nothing about a tier's scores."""
WIDTH = 0.5
"""Width of the kernel, in standard deviations of the logits."""


@dataclass(frozen=True)
class JointPath:
    """`level_of` turns (n, tiers) scores into (n,) levels, `thresholds` a level into thresholds."""

    survival: tuple["Survival", ...]
    weights: tuple[float, ...]

    def level_of(self, scores: Floats) -> Floats:
        """(n,) the level up to which a candidate survives every tier; inf where none may reject."""
        reachable: Floats = np.where(unread(scores), np.inf, self.levels(scores)).min(axis=1)
        return reachable

    def thresholds(self, scores: Floats, level: float) -> tuple[Thresholds, ...]:
        """The lowest score of each tier that survives the level; None where all do.

        It is one of the tier's own scores, so that no rounding separates it from `level_of`.
        """
        kept = self.levels(scores) >= level
        return tuple(lowest_kept(scores[:, tier], kept[:, tier]) for tier in range(scores.shape[1]))

    def levels(self, scores: Floats) -> Floats:
        """(n, tiers) the level up to which a candidate survives that tier, NaN without a score."""
        shares = [one.share_below(scores[:, tier]) for tier, one in enumerate(self.survival)]
        levels: Floats = np.column_stack(shares) / np.array(self.weights)
        return levels


@dataclass(frozen=True)
class Survival:
    """A rising function of one tier's score: the smoothed share of the positives below it.

    Normal kernels on the logits of the pilot's positives; without a pilot the score itself.
    """

    logits: Floats
    width: float

    def share_below(self, scores: Floats) -> Floats:
        """(n,) in [0, 1], NaN for NaN; monotone in the score, whatever the pilot was."""
        if not len(self.logits) or np.isnan(scores).all():
            return scores
        grid = np.unique(scores[~np.isnan(scores)])
        steps = [
            scipy.special.ndtr((logit(part)[:, None] - self.logits) / self.width).mean(axis=1)
            for part in np.array_split(grid, max(len(grid) * len(self.logits) // 1_000_000, 1))
        ]
        # Far from all positives shares would round to one number; the score breaks such ties.
        shares = np.maximum.accumulate(np.concatenate(steps) + 1e-12 * grid)
        at = np.minimum(np.searchsorted(grid, scores), len(grid) - 1)
        return np.where(np.isnan(scores), np.nan, shares[at])


def logit(scores: Floats) -> Floats:
    """Log odds of scores in [0, 1], finite at both ends."""
    inside = np.clip(scores, 1e-9, 1 - 1e-9)
    return np.log(inside / (1 - inside))


def lowest_kept(scores: Floats, kept: Mask) -> Thresholds:
    """The threshold that keeps exactly these of one tier's scores, if a threshold can."""
    read = ~np.isnan(scores)
    inside, outside = scores[read & kept], scores[read & ~kept]
    if not outside.size:
        return Thresholds()
    lowest = inside.min() if inside.size else np.nextafter(outside.max(), np.inf)
    return Thresholds(reject_below=min(float(lowest), 1.0))


def learn_path(
    scores: Floats, positive: Mask, *, prices: tuple[float, ...], miss: float
) -> JointPath:
    """The path of least predicted cost that loses about `miss` of the pilot's positives.

    Args:
        scores: (n, tiers) of all candidates.
        positive: (n,) the pilot's positives.
        prices: (tiers + 1,) cost of a candidate at each tier, and of a label.
        miss: share of the positives, in (0, 1), at which costs are compared.
    """
    tiers = scores.shape[1]
    survival = tuple(_survival(scores[positive, tier]) for tier in range(tiers))
    equal = JointPath(survival, (1.0,) * tiers)
    if tiers == 1 or positive.sum() < FEW:
        return equal
    shares = np.where(unread(scores), np.inf, equal.levels(scores))
    costs = {
        weights: _predicted_cost(shares / np.array(weights), positive, prices, miss)
        for weights in _simplex(tiers)
    }
    return JointPath(survival, min(costs, key=lambda weights: costs[weights]))


def _survival(scores: Floats) -> Survival:
    """The kernel's width falls with the fifth root of the number of positives, as Silverman's."""
    logits = logit(scores[~np.isnan(scores)])
    if len(logits) < FEW:
        return Survival(np.zeros(0), 1.0)
    spread = max(float(logits.std()), 1e-3)
    return Survival(np.sort(logits), WIDTH * spread * len(logits) ** -0.2 * 2)


def _predicted_cost(
    levels: Floats, positive: Mask, prices: tuple[float, ...], miss: float
) -> float:
    """Cost of all tiers and of the labels of the survivors, at the level that loses `miss`."""
    reached = np.minimum.accumulate(levels, axis=1)
    level = np.quantile(reached[positive, -1], miss)
    survivors = (reached >= level).sum(axis=0)
    counts = np.concatenate([[len(levels)], survivors])
    return float(counts @ np.array(prices))


def _simplex(tiers: int) -> Iterator[tuple[float, ...]]:
    """Weights above 0 that sum to 1, in steps of 1/12 (two tiers) to 1/8."""
    steps = {2: 12, 3: 10}.get(tiers, max(8, tiers + 1))
    for cuts in combinations(range(1, steps), tiers - 1):
        yield tuple((end - start) / steps for start, end in pairwise((0, *cuts, steps)))
