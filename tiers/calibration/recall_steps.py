"""Calibration of recall: the pilot before the draw, and cleaning after it."""

import math
from collections.abc import Generator

import numpy as np

from tiers.calibration.draws import Floats, Ids
from tiers.calibration.guarantee import Guarantee, Labels, Mask, Result, Sample, Status, Thresholds
from tiers.calibration.path import Path, Survival, learn_path

PILOT_SHARE = 0.3
PILOT_POSITIVES = 20
"""A pilot that has found so many positives knows the tiers well enough."""


def pilot(
    scores: Floats, order: Ids, guarantee: Guarantee, sample: Sample
) -> Generator[Ids, Labels, tuple[Path, Ids]]:
    """With several tiers: labels to learn the path from. They leave the population of the test."""
    tiers = scores.shape[1]
    if tiers == 1:
        return Path((Survival(np.zeros(0), 1.0),), (1.0,)), order
    end, most = 0, min(int(PILOT_SHARE * guarantee.budget), len(order))
    while end < most and sample.positive.sum() < PILOT_POSITIVES:
        step = max(labels_until(PILOT_POSITIVES, int(sample.positive.sum()), end), 8)
        yield from sample.ask(order[end : min(end + step, most)])
        end = min(end + step, most)
    miss = 0.6 * (1 - guarantee.target)
    prices = guarantee.prices(tiers)
    return learn_path(scores, sample.positive, prices=prices, miss=miss), order[end:]


def labels_until(wanted: int, found: int, drawn: int) -> int:
    """Labels that bring half of the positives still wanted, at the prevalence seen so far."""
    return math.ceil((wanted - found) * (drawn + 1) / (2 * found + 1))


def kept_by(scores: Floats, thresholds: tuple[Thresholds, ...]) -> Mask:
    """(n,) candidates that no tier rejects, one after the other.

    A tier without a score sends to a person, so that no later tier rejects.
    """
    rejected = np.zeros(len(scores), np.bool_)
    unread = np.zeros(len(scores), np.bool_)
    for tier, threshold in enumerate(thresholds):
        unread |= np.isnan(scores[:, tier])
        if threshold.reject_below is not None:
            rejected |= ~unread & (scores[:, tier] < threshold.reject_below)
    return ~rejected


def clean(
    scores: Floats,
    path: Path,
    thresholds: tuple[Thresholds, ...],
    sample: Sample,
) -> Generator[Ids, Labels, None]:
    """Spend what is left on the kept candidates that are most likely false, the lowest first."""
    kept = kept_by(scores, thresholds) & ~sample.asked
    ids = np.flatnonzero(kept)
    levels = path.level_of(scores)[ids]
    yield from sample.ask(ids[np.argsort(levels, kind="stable")])


def build_result(
    scores: Floats,
    guarantee: Guarantee,
    sample: Sample,
    thresholds: tuple[Thresholds, ...],
    *,
    status: Status,
    bound: float,
    alone: float,
    evidence: dict[str, float],
) -> Result:
    """Masks of a recall result: kept, and of them what still goes on to the top tier."""
    kept = kept_by(scores, thresholds)
    accepted = (kept & ~sample.negative) | sample.positive | sample.refused
    return Result(
        guarantee=guarantee,
        status=status,
        thresholds=thresholds,
        accepted=accepted,
        promoted=accepted & ~sample.positive,
        by_proxy=~kept & ~sample.asked,
        certified_bound=bound,
        threshold_bound=alone,
        labels_used=sample.used,
        positives_found=int(sample.positive.sum()),
        unlabelled=np.flatnonzero(sample.refused),
        evidence=evidence,
    )
