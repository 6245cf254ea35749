"""Drawing without replacement: exact probabilities, and bounds on what was not drawn.

Every promise of `tiers.calibration` rests on this one distribution, the hypergeometric: the
number of positives in a simple random draw from a finite population. No score enters here.
"""

import math
from fractions import Fraction

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
        hits: positives drawn.
        population: items of which is drawn.
        positives: positives among them, at most the population.
        draws: items drawn, at most the population.
    """
    ways = log_ways(positives, hits) + log_ways(population - positives, draws - hits)
    return ways - log_ways(population, draws)


def chance_of_at_most(most: int, population: Ids | int, positives: Ids | int, draws: int) -> Floats:
    """(n,) P(at most `most` positives in a draw without replacement).

    `scipy.stats.hypergeom` says the same, but takes a hundred times as long for many populations.

    Args:
        most: number of positives that the draw holds at most; below 0 the chance is 0.
        population: (n,) or one number: items of which is drawn.
        positives: (n,) or one number: positives among them.
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


def most_positives(population: int, drawn: int, found: int, risk: float) -> int:
    """Upper confidence bound on the positives of a population, after a draw without replacement.

    The largest K with P(at most `found` | K) > risk; the inversion of the exact test (Clopper and
    Pearson 1934, doi:10.1093/biomet/26.4.404, for the hypergeometric). The true number exceeds it
    with probability at most `risk`.

    Args:
        population: items of which was drawn.
        drawn: items drawn, fixed before the draw.
        found: positives among them.
        risk: probability, in (0, 1).
    """
    low, high = found, population - (drawn - found)
    while low < high:
        middle = (low + high + 1) // 2
        possible = chance_of_at_most(found, population, middle, drawn)[0] > risk
        low, high = (middle, high) if possible else (low, middle - 1)
    return low


def exact(share: float) -> Fraction:
    """The number as a person wrote it: 0.9 is 9/10, so that no rounding tips a test.

    With more than six decimals it is rounded up to six, which makes a target stricter and keeps
    products with counts inside 64 bits.
    """
    written = Fraction(str(float(share)))
    if written.denominator <= DECIMALS:
        return written
    return Fraction(min(math.ceil(written * DECIMALS), DECIMALS - 1), DECIMALS)
