"""What each cheap tier of a calibrated cascade earns: the cost with it, and about the cost without.

An estimate, and no part of a promise: the cascade without a tier keeps the same share of the drawn
positives, by a path learned from the same pilot.
"""

from dataclasses import dataclass

import numpy as np

from tiers.calibration.draws import Floats, Ids
from tiers.calibration.guarantee import Result
from tiers.calibration.path import learn_path

MISS = 0.1
"""Share of the pilot's positives at which paths are compared, as `learn_path` wants it."""


@dataclass(frozen=True)
class TierWorth:
    """What a cascade costs with and without one of its tiers, in labels a candidate."""

    tier: int
    """Its position."""
    cost: float
    without: float

    @property
    def earns_nothing(self) -> bool:
        """Whether the cascade is no dearer without it."""
        return self.without <= self.cost


def worth_of_tiers(scores: Floats, result: Result) -> list[TierWorth]:
    """What each tier below the last earns; empty where there is one, or nothing is certified.

    Args:
        scores: (n, tiers) of all candidates, as they were calibrated.
        result: of a calibration of recall.
    """
    tiers = scores.shape[1]
    if tiers < 2 or result.evidence is None or not result.evidence.kth:
        return []
    prices = np.array(result.guarantee.prices(tiers))
    cost = _cost(scores, result, list(range(tiers)), prices)
    return [
        TierWorth(
            tier,
            cost,
            _cost(scores, result, [each for each in range(tiers) if each != tier], prices),
        )
        for tier in range(tiers)
    ]


def expected_cost(
    scores: Floats, positives: Floats, prices: tuple[float, ...], miss: float, labels: int
) -> float:
    """What a cascade is expected to cost, in labels a candidate, before any label is drawn.

    Args:
        scores: (n, tiers) of all candidates; without a tier each candidate costs a label.
        positives: (m, tiers) scores of known positives that are none of the candidates.
        prices: (tiers + 1,) cost of a candidate at each tier, and of a label.
        miss: share of the positives that the thresholds lose.
        labels: how many will be drawn: of the candidates that a tier rejects they cost more.
    """
    if not scores.shape[1]:
        return 1.0
    table = np.vstack([scores, positives])
    known = np.arange(len(table)) >= len(scores)
    path = learn_path(table, known, prices=prices, miss=miss)
    levels = np.minimum.accumulate(np.nan_to_num(path.levels(table), nan=np.inf), axis=1)
    level = np.quantile(levels[known, -1], miss) if known.any() else -np.inf
    reached = (levels[~known] >= level).sum(axis=0)
    drawn = min(labels, len(scores)) * (1 - reached[-1] / len(scores))
    counts = np.concatenate([[len(scores)], reached[:-1], [reached[-1] + drawn]])
    return float(counts @ np.array(prices) / len(scores) / prices[-1])


def _cost(scores: Floats, result: Result, kept: list[int], prices: Floats) -> float:
    """Of these tiers and of a label for each survivor, in labels a candidate."""
    some = scores[:, kept]
    paid = prices[[*kept, -1]]
    path = learn_path(some, _pilot(result, len(scores)), prices=tuple(paid), miss=MISS)
    evidence = result.evidence
    assert evidence is not None  # noqa: S101 - worth_of_tiers asks first
    tested = path.level_of(some)[result.drawn_positives[: evidence.positives_tested]]
    level = np.sort(tested)[evidence.kth - 1]
    levels = np.nan_to_num(path.levels(some), nan=np.inf)
    reached = (np.minimum.accumulate(levels, axis=1) >= level).sum(axis=0)
    counts = np.concatenate([[len(scores)], reached])
    return float(counts @ paid / len(scores) / prices[-1])


def _pilot(result: Result, items: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """(n,) positives that were labelled before the draw, or beside it."""
    pilot = np.zeros(items, np.bool_)
    positives: Ids = np.flatnonzero(result.accepted & ~result.promoted)
    pilot[np.setdiff1d(positives, result.drawn_positives)] = True
    return pilot
