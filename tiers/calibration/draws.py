"""Drawing without replacement: exact probabilities, and bounds on what was not drawn.

Every promise of `tiers.calibration` rests on one distribution, the hypergeometric: the number of
positives in a simple random draw from a finite population. No score enters here.
"""

import math
from bisect import bisect_left
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

import numpy as np
import scipy  # its parts load at their first use
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]

CELLS = 2_000_000
"""Terms of a sum that are held in memory at once."""
DECIMALS = 10**6


def log_ways(items: Ids | int, chosen: Ids | int) -> Floats:
    """Logarithm of the number of ways to choose, exact to 1e-8; -inf where there is no way."""
    log_gamma = scipy.special.gammaln
    ways = log_gamma(items + 1) - log_gamma(chosen + 1) - log_gamma(items - chosen + 1)
    return np.asarray(ways, np.float64)


def log_chance(
    hits: Ids | int, population: Ids | int, positives: Ids | int, draws: Ids | int
) -> Floats:
    """Logarithm of P(exactly `hits` positives in the draw); -inf where impossible.

    Args:
        hits: positives in the draw.
        population: items in all.
        positives: positives among them, at most the population.
        draws: items drawn, at most the population.
    """
    ways = log_ways(positives, hits) + log_ways(population - positives, draws - hits)
    return ways - log_ways(population, draws)


def chance_of_at_most(most: int, population: Ids | int, positives: Ids | int, draws: int) -> Floats:
    """(n,) P(at most `most` positives in a draw without replacement).

    `scipy.stats.hypergeom.cdf` gives the same, but takes 70 times as long for many populations.

    Args:
        most: positives in the draw; below 0 the chance is 0.
        population: (n,) or one number: items in all.
        positives: (n,) or one number: positives among them, at most the population.
        draws: items drawn, at most the population.
    """
    items, marked = np.broadcast_arrays(np.atleast_1d(population), positives)
    hits = np.arange(most + 1)[:, None]
    parts = len(items) * len(hits) // CELLS + 1
    sums = [
        np.exp(log_chance(hits, *part, draws)).sum(axis=0)
        for part in zip(np.array_split(items, parts), np.array_split(marked, parts), strict=True)
    ]
    total: Floats = np.minimum(np.concatenate(sums), 1.0)
    return total


@lru_cache(maxsize=10_000)
def most_positives(population: int, drawn: int, found: int, risk: float) -> int:
    """Upper confidence bound on the positives of a population, after a draw without replacement.

    The largest K with P(at most `found` | K) > risk; the inversion of the exact test (Clopper and
    Pearson 1934, doi:10.1093/biomet/26.4.404, for the hypergeometric). The true number exceeds it
    with probability at most `risk`.

    Args:
        population: items in all.
        drawn: items drawn, a number that was fixed before the draw.
        found: positives among the drawn.
        risk: probability, in (0, 1).
    """
    return highest(
        found,
        population - (drawn - found),
        lambda k: bool(chance_of_at_most(found, population, k, drawn)[0] > risk),
    )


def highest(low: int, high: int, passes: Callable[[int], bool]) -> int:
    """By bisection the highest number from `low` to `high` that passes; `low` if no other does."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if passes(middle) else (low, middle - 1)
    return low


def lowest(low: int, high: int, passes: Callable[[int], bool]) -> int:
    """By bisection the lowest number from `low` to `high` that passes; `high` if no other does."""
    return low + bisect_left(range(low, high), True, key=passes)


def exact(share: float) -> Fraction:
    """The number as a person wrote it: 0.9 is 9/10, so that no rounding changes a test.

    With more than six decimals it is rounded up to six, which makes a target stricter and keeps
    products with counts inside 64 bits.
    """
    written = Fraction(str(float(share)))
    if written.denominator <= DECIMALS:
        return written
    return Fraction(min(math.ceil(written * DECIMALS), DECIMALS - 1), DECIMALS)
