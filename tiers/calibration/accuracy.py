"""Calibration of accuracy: how confident a cheap tier must be to answer.

Confidence is max(s, 1 - s), the answer is yes from 0.5 on. Of n candidates floor((1 - T) n) may be
answered wrongly. With several tiers a candidate is answered by the first tier that is confident
enough, and one level, the rank of the confidence in its tier, sets all thresholds.
"""

import numpy as np

from tiers.calibration.draws import Floats, Ids
from tiers.calibration.guarantee import (
    UNKNOWN,
    Asking,
    Guarantee,
    Labels,
    Mask,
    Result,
    Sample,
    Status,
    Thresholds,
    unread,
)
from tiers.calibration.recall_test import allowed_misses
from tiers.calibration.regions import STEPS, Regions, walk


def calibrate_accuracy(scores: Floats, guarantee: Guarantee, sample: Sample) -> Asking[Result]:
    """Ask for labels, then decide. See docs/guarantees.md, section "Accuracy"."""
    rng = np.random.default_rng(guarantee.seed)
    ranks = confidence_ranks(scores)
    regions, levels = accuracy_regions(scores, ranks, guarantee.target)
    last = yield from walk(regions, sample, guarantee.delta, rng)
    level = levels[last] if last >= 0 else -1
    return _result(scores, guarantee, sample, ranks, int(level))


def confidence_ranks(scores: Floats) -> Ids:
    """(n, tiers) how many candidates are at least as confident in that tier.

    n + 1 from the first tier on that gave no score: see `unread`.
    """
    ranks = np.full(scores.shape, len(scores) + 1)
    skipped = unread(scores)
    for tier in range(scores.shape[1]):
        read = ~skipped[:, tier]
        confidence = np.maximum(scores[read, tier], 1 - scores[read, tier])
        rising = np.sort(confidence)
        ranks[read, tier] = len(rising) - np.searchsorted(rising, confidence, side="left")
    return ranks


def accuracy_regions(scores: Floats, ranks: Ids, target: float) -> tuple[Regions, Ids]:
    """Regions of the candidates that are answered at each level, and those levels."""
    first = ranks.min(axis=1)
    rising = np.sort(first[first <= len(scores)])
    allowed = int(allowed_misses(len(scores), target))
    wanted = np.linspace(max(allowed, 1), len(scores), STEPS + 1).round().astype(int)
    wanted = np.minimum(wanted, len(rising))
    levels = np.unique(rising[wanted - 1]) if len(rising) else np.zeros(0, np.int64)
    sizes = np.searchsorted(rising, levels, side="right")

    def wrong(ids: Ids, labels: Labels) -> Mask:
        answers = [answer(scores[ids], ranks[ids], int(level)) for level in levels]
        errs: Mask = np.stack(answers, axis=1) != (labels == 1)[:, None]
        errs[labels == UNKNOWN] = True  # without a label, no answer counts as right
        return errs

    entry = np.searchsorted(levels, first)
    return Regions(entry, sizes, np.full(len(levels), allowed + 1), wrong), levels


def answer(scores: Floats, ranks: Ids, level: int) -> Mask:
    """(n,) the answer of the first tier that is confident enough; any answer where none is."""
    tier = np.argmax(ranks <= level, axis=1)
    yes: Mask = scores[np.arange(len(scores)), tier] >= 0.5
    return yes


def _thresholds(scores: Floats, ranks: Ids, level: int) -> tuple[Thresholds, ...]:
    """Yes above, no below, promoted in between."""
    found = []
    for tier in range(scores.shape[1]):
        answered = scores[:, tier][ranks[:, tier] <= level]
        yes, no = answered[answered >= 0.5], answered[answered < 0.5]
        above = max(float(np.nextafter(yes.min(), 0)), 0.0) if yes.size else None
        below = float(np.nextafter(no.max(), 1)) if no.size else None
        if above is not None and below is not None:
            below = min(below, above)
        found.append(Thresholds(reject_below=below, accept_above=above))
    return tuple(found)


def _result(scores: Floats, guarantee: Guarantee, sample: Sample, ranks: Ids, level: int) -> Result:
    answered = (ranks <= level).any(axis=1)
    by_proxy = answered & ~sample.asked
    complete = sample.asked.all() and not sample.refused.any()
    status = Status.CERTIFIED if answered.any() or complete else Status.INFEASIBLE_BUDGET
    bound = guarantee.target if by_proxy.any() else 1.0
    return Result(
        guarantee=guarantee,
        status=status,
        thresholds=_thresholds(scores, ranks, level),
        accepted=(answer(scores, ranks, level) & by_proxy) | sample.positive,
        promoted=~by_proxy & ~sample.positive & ~sample.negative,
        by_proxy=by_proxy,
        certified_bound=bound,
        threshold_bound=bound,
        labels_used=sample.used,
        positives_found=int(sample.positive.sum()),
        unlabelled=np.flatnonzero(sample.refused),
    )
