"""Audits of what thresholds reject: the recall of one run, and evidence over many runs.

`audit_evidence` is of the form that `tiers.calibration.evalues` explains.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tiers.calibration.draws import Floats, exact, log_chance, most_positives

MORE = np.array([1.25, 1.5, 2.0, 4.0])
"""Alternatives of the drift alarm: multiples of the misses that the promise allows."""


@dataclass(frozen=True)
class Audit:
    """One run's audit: a random share of the rejects was sent to the last tier all the same."""

    kept_positives: int
    """Positives among the kept candidates, by the last tier's answers."""
    rejects: int
    """Candidates that the thresholds rejected."""
    audited: int
    """Rejects that were drawn at random and labelled."""
    lost_positives: int
    """Positives among the audited."""

    def __post_init__(self) -> None:
        if not 0 <= self.lost_positives <= self.audited <= self.rejects:
            raise ValueError(
                f"an audit found {self.lost_positives} positives among {self.audited} audited of "
                f"{self.rejects} rejects; each number must be at least the one before it"
            )


def audit_interval(audit: Audit, delta: float) -> tuple[float, float]:
    """Recall of one run's thresholds: bounds that hold together with probability 1 - delta.

    Exact: Clopper and Pearson's inversion for the draw among the rejects, half of delta a side.
    Without any positive, recall is undefined: (0, 1) where some may exist, (1, 1) where none can.
    """
    rejects, audited, lost = audit.rejects, audit.audited, audit.lost_positives
    most = most_positives(rejects, audited, lost, delta / 2) if rejects else 0
    # The fewest positives are the most negatives.
    fewest = rejects - most_positives(rejects, audited, audited - lost, delta / 2) if rejects else 0
    kept = audit.kept_positives
    low = kept / (kept + most) if kept + most else 1.0
    high = kept / (kept + fewest) if kept + fewest else 1.0
    return low, high


def audit_evidence(audit: Audit, target: float) -> float:
    """Evidence of one run against "recall >= target", at most 1 on average while that holds.

    The promise allows floor(kept * (1 - target) / target) positives among the rejects. Evidence is
    the chance of the audit with more of them, divided by its chance with as many as allowed. It
    grows with the positives found, so its mean is largest at the number allowed, and is 1 there.
    inf is proof.
    """
    share = exact(target)
    allowed = math.floor(audit.kept_positives * (1 - share) / share)
    if audit.audited == 0 or allowed >= audit.rejects:
        return 1.0
    more = np.minimum(np.maximum(np.ceil(MORE * allowed), allowed + 1), audit.rejects)
    counts = np.concatenate([[allowed], more]).astype(np.int64)
    logs = log_chance(audit.lost_positives, audit.rejects, counts, audit.audited)
    if math.isinf(logs[0]):
        # More were found than the promise allows, or fewer than that number would show at least.
        return math.inf if audit.lost_positives > allowed else 0.0
    return float(np.exp(logs[1:] - logs[0]).mean())


def drift(audits: Iterable[Audit], target: float) -> Floats:
    """(n,) evidence after each of n runs that the promise broke at some run so far.

    The mean over all runs s of the product of the evidence since s, weighted by 1 / (s (s + 1)):
    one process that finds a break early or late. While every run keeps its recall, it exceeds
    1 / delta at any time with probability at most delta. Beyond 1 / delta it is an alarm.
    """
    weights_left, started, reached = 1.0, 0.0, []
    for run, audit in enumerate(audits, start=1):
        weight = 1 / (run * (run + 1))
        weights_left -= weight
        started = (started + weight) * audit_evidence(audit, target)
        reached.append(started + weights_left)
    return np.array(reached)
