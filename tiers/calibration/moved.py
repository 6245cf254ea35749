"""Thresholds moved by hand: the recall that the labels of a calibration certify for them."""

from collections.abc import Sequence

from tiers.calibration.draws import Floats
from tiers.calibration.guarantee import RecallEvidence, Thresholds, as_table
from tiers.calibration.recall_test import bound_of_kth, level


def bound_of_moved(
    scores: Floats,
    moved: Sequence[Thresholds],
    *,
    certified: Sequence[Thresholds],
    bound: float,
    evidence: RecallEvidence,
) -> float:
    """Certified recall of any thresholds, by the draw of a calibration; labelled positives count.

    Of the x drawn positives some lie below. As many and one more, k, make the test of
    `tiers.calibration.recall_test`. Thresholds that were chosen after a look at the labels need a
    bound that holds for all of them at once: the k are then 1, 2, 4, 8 and so on, and share the
    risk; each tier gets its own share, and the misses of the tiers are added up. The certificate's
    own thresholds, and any that reject less, keep the certified bound.

    Args:
        scores: (x, tiers) or (x,) of the drawn positives: `Result.drawn_positives`.
        moved: one a tier.
        certified: the thresholds that were calibrated, one a tier.
        bound: certified recall of those.
        evidence: of the same calibration.

    Raises:
        ValueError: there are not as many thresholds as tiers.
    """
    table = as_table(scores)
    if not table.shape[1] == len(moved) == len(certified):
        raise ValueError(
            f"{len(moved)} thresholds for {table.shape[1]} tiers that were calibrated with "
            f"{len(certified)}; write one a tier"
        )
    pairs = zip(moved, certified, strict=True)
    floor = bound if all(one.lowest_kept <= other.lowest_kept for one, other in pairs) else 0.0
    missed = 0.0
    rejecting = sum(one.reject_below is not None for one in moved)
    for tier, one in enumerate(moved):
        if one.reject_below is not None:
            lost = int((table[:, tier] < one.reject_below).sum())
            missed += 1 - _bound_of_lost(lost, len(table), rejecting, evidence)
    return max(floor, 1 - missed, 0.0)


def _bound_of_lost(lost: int, drawn: int, shares: int, evidence: RecallEvidence) -> float:
    """Certified recall with `lost` of the drawn positives below, at 1 / `shares` of the risk."""
    if drawn == 0:
        return 0.0
    looks = drawn.bit_length() + 1  # 1, 2, 4 ... up to all of them and one
    kth = min(1 << lost.bit_length(), drawn + 1)  # the lowest of those above `lost`
    risk = level(evidence.test_delta) / (looks * shares)
    return bound_of_kth(kth, drawn, evidence.drawn_most, risk, known=evidence.drawn_known)
