"""Thresholds moved by hand: the recall that the labels of a calibration certify for them."""

import math
from collections.abc import Sequence

from tiers.calibration.draws import Floats
from tiers.calibration.guarantee import Kind, Result, Thresholds, as_table
from tiers.calibration.recall_test import bound_of_kth, level


def recall_of_thresholds(scores: Floats, thresholds: Sequence[Thresholds], result: Result) -> float:
    """Certified recall of any thresholds, from the draw behind a result; labelled positives count.

    Of the x drawn positives some lie below. As many and one more, k, make the test of
    `tiers.calibration.recall_test`. Thresholds that were chosen after a look at the labels need a
    bound that holds for all of them at once: the k are then 1, 2, 4, 8 and so on, and share the
    risk; each tier gets its own share, and the misses of the tiers are added up. The certificate's
    own thresholds, and any that reject less, keep the certified bound.

    Args:
        scores: (n, tiers) or (n,) the scores of the calibration.
        thresholds: one a tier.
        result: of a recall calibration.

    Raises:
        ValueError: the result is of another kind, or has other tiers.
    """
    kind = result.guarantee.kind
    if kind is not Kind.RECALL:
        raise ValueError(
            f"a result of {kind.value} bounds no recall of other thresholds; calibrate recall"
        )
    table = as_table(scores)
    if not table.shape[1] == len(thresholds) == len(result.thresholds):
        raise ValueError(
            f"{len(thresholds)} thresholds for {table.shape[1]} tiers that were calibrated with "
            f"{len(result.thresholds)}; write one a tier"
        )
    pairs = list(zip(thresholds, result.thresholds, strict=True))
    covered = all(_lowest(moved) <= _lowest(certified) for moved, certified in pairs)
    floor = result.certified_bound if covered else 0.0
    missed = 0.0
    rejecting = sum(moved.reject_below is not None for moved in thresholds)
    for tier, moved in enumerate(thresholds):
        if moved.reject_below is not None:
            lost = table[result.drawn_positives, tier] < moved.reject_below
            missed += 1 - _bound_of_lost(int(lost.sum()), result, rejecting)
    return max(floor, 1 - missed, 0.0)


def _lowest(thresholds: Thresholds) -> float:
    return -math.inf if thresholds.reject_below is None else thresholds.reject_below


def _bound_of_lost(lost: int, result: Result, shares: int) -> float:
    """Certified recall with `lost` of the drawn positives below, at 1 / `shares` of the risk."""
    drawn = len(result.drawn_positives)
    looks = drawn.bit_length() + 1  # 1, 2, 4 ... up to all of them and one
    kth = min(1 << lost.bit_length(), drawn + 1)  # the lowest of those above `lost`
    if drawn == 0:
        return 0.0
    evidence = result.evidence
    delta, most = evidence["test_delta"], int(evidence["drawn_most"])
    return bound_of_kth(
        kth, drawn, most, level(delta) / (looks * shares), known=int(evidence["drawn_known"])
    )
