"""Drawing without replacement: exact probabilities, and bounds on what was not drawn.

Every promise of `tiers.calibration` rests on this one distribution, the hypergeometric: the
number of positives in a simple random draw from a finite population. No score enters here.
"""

import math
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]

CELLS = 2_000_000
"""Terms of a sum that are held in memory at once."""
DECIMALS = 10**6


@lru_cache(maxsize=4)
def _log_factorials(size: int) -> Floats:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, size + 1)))])


def log_factorial(numbers: Ids) -> Floats:
    """Natural logarithm of n!, exact to 1e-9; of 0 where n < 0, for the caller to rule out."""
    table = _log_factorials(1 << max(int(numbers.max(initial=1)), 1).bit_length())
    logs: Floats = table[np.maximum(numbers, 0)]
    return logs


def log_chance(hits: Ids, population: Ids, positives: Ids, draws: Ids) -> Floats:
    """Logarithm of P(exactly `hits` positives in the draw); -inf where impossible.

    Args:
        hits: positives drawn.
        population: items of which is drawn.
        positives: positives among them.
        draws: items drawn, at most the population.
    """
    negatives, misses = population - positives, draws - hits
    possible = (hits >= 0) & (hits <= positives) & (misses >= 0) & (misses <= negatives)
    ways = log_factorial(positives) - log_factorial(hits) - log_factorial(positives - hits)
    ways = ways + log_factorial(negatives) - log_factorial(misses)
    ways = ways - log_factorial(negatives - misses)
    total = log_factorial(population) - log_factorial(draws) - log_factorial(population - draws)
    chance: Floats = np.where(possible, ways - total, -np.inf)
    return chance


def chance_of_at_most(most: int, population: Ids, positives: Ids, draws: Ids) -> Floats:
    """P(at most `most` positives in a draw without replacement).

    Args:
        most: number of positives that the draw holds at most; below 0 the chance is 0.
        population: (n,) or one number: items of which is drawn.
        positives: (n,) or one number: positives among them.
        draws: (n,) or one number: items drawn, at most the population.
    """
    population, positives, draws = np.broadcast_arrays(
        np.atleast_1d(population), positives, draws
    )  # fmt: skip
    if most < 0:
        return np.zeros(len(population))
    hits = np.arange(most + 1)[:, None]
    width = max(CELLS // (most + 1), 1)
    sums = [
        np.exp(
            log_chance(
                hits,
                population[start : start + width],
                positives[start : start + width],
                draws[start : start + width],
            )
        ).sum(axis=0)
        for start in range(0, len(population), width)
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
        possible = chance_of_at_most(
            found, np.array(population), np.array(middle), np.array(drawn)
        )  # fmt: skip
        low, high = (middle, high) if possible[0] > risk else (low, middle - 1)
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
