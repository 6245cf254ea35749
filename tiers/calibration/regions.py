"""Nested regions, certified one after the other by evidence that may be read after every label.

A region is a set of candidates that a cheap tier would answer. The hypothesis against it is that
it holds at least `claimed` errors. Labels are drawn uniformly from the largest region that is still
worth it, so those that fall into a smaller region are a uniform draw from that one, too. Region j
is certified once the evidence of each region up to j has reached 1/delta at some time. A fixed
sequence of tests, each at delta, certifies a wrong region only with probability delta.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tiers.calibration.draws import Floats, Ids
from tiers.calibration.evalues import log_evidence_of_fewer
from tiers.calibration.guarantee import Asking, Labels, Mask, Sample

STEPS = 40
"""Number of regions, from one that may be all wrong to all candidates."""
FIRST = 10
"""Labels before the first decision: one early error must not end the walk."""


@dataclass(frozen=True)
class Regions:
    """Regions from the smallest to the largest."""

    entry: Ids
    """(n,) the first region that a candidate is in; the number of regions if it is in none."""
    sizes: Ids
    """(regions,) candidates in each."""
    claimed: Ids
    """(regions,) errors that would break the promise, at least 1."""
    wrong: Callable[[Ids, Labels], Mask]
    """(drawn,) ids and labels to (drawn, regions): whether the region's answer errs."""


def walk(regions: Regions, sample: Sample, delta: float, rng: np.random.Generator) -> Asking[int]:
    """Label until more labels cost more than they save; the last certified region, or -1.

    Args:
        regions: what may be certified.
        sample: its labels so far are no evidence; the regions must not count them.
        delta: probability that any certified region breaks its promise.
        rng: draws the permutation.
    """
    order = rng.permutation(np.flatnonzero(regions.entry < len(regions.sizes)))
    drawn = np.zeros(0, np.int64)
    # A region with fewer candidates than errors that would break the promise is certain.
    highest = np.where(regions.sizes < regions.claimed, np.inf, -np.inf)
    largest, passed = len(regions.sizes) - 1, _passed(highest, delta)
    while sample.left > 0:
        order = order[regions.entry[order] <= largest]
        batch = order[: max(2, len(drawn) // 20) if drawn.size else FIRST]
        if not batch.size:
            break
        order = order[len(batch) :]
        yield from sample.ask(batch)
        drawn = np.concatenate([drawn, batch[sample.asked[batch]]])
        counts, errors = _counts(regions, drawn, sample.labels[drawn])
        highest[: largest + 1] = np.maximum(
            highest, log_evidence_of_fewer(errors, regions.sizes, regions.claimed, counts)
        )[: largest + 1]
        passed = _passed(highest, delta)
        costs = _costs(regions, counts, errors, highest, delta, passed)
        current = costs[passed] if passed >= 0 else regions.sizes[-1]
        ahead = costs[passed + 1 : largest + 1]
        if not ahead.size or ahead.min() >= current - 1:
            break
        near = ahead <= ahead.min() + 0.05 * regions.sizes[-1]
        largest = passed + 1 + int(np.flatnonzero(near)[-1])
    return passed


def _passed(highest: Floats, delta: float) -> int:
    """The last region up to which all evidence has reached 1/delta."""
    certified = highest >= -math.log(delta)
    return (len(certified) if certified.all() else int(np.argmin(certified))) - 1


def _counts(regions: Regions, drawn: Ids, labels: Labels) -> tuple[Ids, Ids]:
    """(regions,) labels in each region, and errors among them."""
    inside = regions.entry[drawn][:, None] <= np.arange(len(regions.sizes))
    return inside.sum(axis=0), (inside & regions.wrong(drawn, labels)).sum(axis=0)


def _costs(
    regions: Regions, counts: Ids, errors: Ids, highest: Floats, delta: float, passed: int
) -> Floats:
    """(regions,) labels in all if the walk ends with that region.

    At the error rate p log evidence grows by KL(p || claimed share) a label, which gives the labels
    still needed. The rate is estimated low: a high estimate gives up on regions that would pass.
    """
    rate = (errors + 0.5) / (counts + 1)
    rate = np.clip(rate - np.sqrt(rate * (1 - rate) / (counts + 1)), 1e-6, 1 - 1e-6)
    broken = np.clip(regions.claimed / np.maximum(regions.sizes, 1), 1e-6, 1 - 1e-6)
    gain = rate * np.log(rate / broken) + (1 - rate) * np.log((1 - rate) / (1 - broken))
    missing = np.maximum(-math.log(delta) - np.where(np.isfinite(highest), highest, 0.0), 0.0)
    needed = np.where(rate < broken, missing / np.maximum(gain, 1e-12), np.inf)
    needed[: passed + 1] = 0.0
    outside = regions.sizes[-1] - regions.sizes  # each of these candidates costs a label
    total: Floats = outside + counts + needed
    return total
