"""Recall: the exact order-statistic test, its inversion, and the fewest positives that pass it.

The test (certifying recall by order statistics of a random sample of positives: Lewis, Yang and
Frieder 2021, arXiv:2108.12746; here exact, without replacement). Of P positives x were drawn at
random. Keep everything from the k-th lowest drawn positive upwards, and every labelled positive.
If that positive is the R-th lowest of all P, the kept set misses R - k. With a misses allowed, it
fails exactly if fewer than k of the lowest a + k positives were drawn. That has the probability
of a hypergeometric draw and depends on no score.
"""

from functools import lru_cache

import numpy as np
import scipy

from tiers.calibration.draws import Floats, Ids, chance_of_at_most, exact, highest

COUNT_SHARE = 0.005
"""Share of delta spent on the upper bound of the number of positives. It is so small that 22 drawn
positives still certify recall 0.9 at delta 0.1, and 45 certify 0.95, as if the number were known.
"""


def level(delta: float) -> float:
    """The part of delta for the order-statistic test, beside `COUNT_SHARE`.

    The test may fail with this probability where the bound on the positives holds, and with any
    probability where it does not: d + (1 - d) * level = delta.
    """
    bound = COUNT_SHARE * delta
    return (delta - bound) / (1 - bound)


def allowed_misses(positives: Ids | int, target: float) -> Ids:
    """(n,) how many of (n,) positives may be missed: floor((1 - target) * positives), exactly."""
    share = 1 - exact(target)
    return np.asarray(positives) * share.numerator // share.denominator


def failure(
    kth: int, drawn: int, rest: Ids, target: float, *, known: int = 0, kept: bool = True
) -> Floats:
    """P(the set from the `kth` lowest drawn positive upwards has recall below target).

    Args:
        kth: which drawn positive is the lowest to be kept, from 1.
        drawn: x, positives drawn.
        rest: (n,) possible numbers of positives in the population of the draw, each >= drawn.
        target: recall, in (0, 1).
        known: positives that were known before the draw and left the population; they are kept.
        kept: whether labelled positives are kept whatever their score.
    """
    below = allowed_misses(known + rest, target) + (kth if kept else 1)
    chance = chance_of_at_most(kth - 1, rest, np.minimum(below, rest), drawn)
    return np.where(below > rest, 0.0, chance)


def worst_failure(
    kth: int, drawn: int, most: int, target: float, *, known: int = 0, kept: bool = True
) -> float:
    """The largest `failure` for any number of positives from `drawn` to `most`.

    Between two jumps of the allowed misses it grows with the number of positives, so only the last
    number before each jump and the largest number of all are computed.
    """
    share = 1 - exact(target)
    jumps = np.arange(int(allowed_misses(known + most, target)) + 1)
    before = -(-(jumps + 1) * share.denominator // share.numerator) - 1 - known
    rest = np.append(before[(before >= drawn) & (before < most)], most)
    return float(failure(kth, drawn, rest, target, known=known, kept=kept).max())


def best_kth(
    drawn: int, most: int, target: float, risk: float, *, known: int = 0, kept: bool = True
) -> int:
    """The highest k whose kept set fails with probability at most `risk`; 0 to keep everything.

    Args:
        drawn: positives drawn.
        most: upper bound on the positives of the population.
        target: recall, in (0, 1).
        risk: probability of failure where `most` holds.
        known: positives known before the draw.
        kept: whether labelled positives are kept whatever their score.
    """
    return highest(
        0,
        drawn,
        lambda kth: worst_failure(kth, drawn, most, target, known=known, kept=kept) <= risk,
    )


@lru_cache(maxsize=10_000)
def bound_of_kth(
    kth: int, drawn: int, most: int, risk: float, *, known: int = 0, kept: bool = True
) -> float:
    """Certified recall of the set from the `kth` lowest drawn positive upwards.

    The highest recall, in steps of 0.0001, for which that k passes; 1 if k is 0, and 0 if none.
    """
    if kth == 0:
        return 1.0

    def passes(recall: int) -> bool:
        return worst_failure(kth, drawn, most, recall / 10_000, known=known, kept=kept) <= risk

    return highest(0, 9_999, passes) / 10_000


def bound_for_source(kth: int, drawn: int, delta: float) -> float:
    """Recall of the same thresholds on new candidates of the source, with probability 1 - delta.

    The positives drawn are then a sample of all that the source will ever give, so that the share
    of them below the `kth` lowest of `drawn` follows a beta distribution (Wilks 1941,
    doi:10.1214/aoms/1177731788). No labelled positive below the thresholds is kept.

    Returns:
        In [0, 1]; 1 where nothing is rejected.
    """
    if kth == 0:
        return 1.0
    return float(1 - scipy.special.betaincinv(kth, drawn - kth + 1, 1 - delta))


@lru_cache(maxsize=1_000)
def positives_needed(target: float, delta: float, kth: int = 1) -> int:
    """Drawn positives that certify recall with the `kth` lowest as threshold, in any population.

    No method that assumes nothing about the scores needs fewer: target ** x <= delta for k = 1.
    """
    drawn, risk = kth, level(delta)
    while scipy.special.bdtr(kth - 1, drawn, 1 - target) > risk:
        drawn += 1
    return drawn
