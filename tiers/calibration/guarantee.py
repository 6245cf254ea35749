"""What is promised, what came of it, and the labels that were asked for."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tiers.calibration.draws import Floats, Ids

Mask = NDArray[np.bool_]
Labels = NDArray[np.int8]
"""1 for yes, 0 for no, UNKNOWN where a candidate cannot be labelled."""

UNKNOWN = -1

T = TypeVar("T")
Asking = Generator[Ids, Labels, T]
"""A procedure that yields the ids to label next, is sent their labels, and returns a T."""


class Kind(StrEnum):
    """What is promised to be at least the target."""

    RECALL = "recall"
    """Share of the positives that is kept."""
    PRECISION = "precision"
    """Share of the accepted that is positive."""
    ACCURACY = "accuracy"
    """Share of all answers that agree with the labels."""


class Status(StrEnum):
    """What a result is worth."""

    CERTIFIED = "certified"
    INFEASIBLE_BUDGET = "infeasible_budget"
    """No threshold could be certified: nothing is rejected (recall), or answered without a label.
    """


@dataclass(frozen=True)
class Guarantee:
    """The promise: `kind` >= `target` with probability >= 1 - `delta`, for `budget` labels."""

    kind: Kind
    target: float
    delta: float
    budget: int
    seed: int = 0
    """Seed of the random draw. To try several seeds voids the promise."""
    costs: tuple[float, ...] | None = None
    """Cost of one candidate at each tier, and last of one label; see `prices`."""
    cleaning: bool = True
    """Whether labels left over go to kept candidates; of use where they are nobody's to pay twice.
    """

    def __post_init__(self) -> None:
        for name, share in (("target", self.target), ("delta", self.delta)):
            if not 0 < share < 1:
                raise ValueError(f"{name} {share} is no share; write a number between 0 and 1")
        if self.budget < 0:
            raise ValueError(f"budget {self.budget} is negative; write the number of labels")

    def prices(self, tiers: int) -> tuple[float, ...]:
        """(tiers + 1,) cost of one candidate at each tier, and of one label.

        Without costs every tier is four times as dear as the one before it; where only the
        tiers have costs, a label is ten times as dear as the last of them.

        Raises:
            ValueError: there are neither as many costs as tiers, nor one more.
        """
        if self.costs is None:
            return tuple(4.0**tier for tier in range(tiers + 1))
        if len(self.costs) == tiers:
            return (*self.costs, 10 * self.costs[-1])
        if len(self.costs) == tiers + 1:
            return self.costs
        raise ValueError(
            f"{len(self.costs)} costs for {tiers} tiers; "
            "write one a tier, and the cost of a label last"
        )


@dataclass(frozen=True)
class Thresholds:
    """One tier's thresholds, as `tiers.policy.Policy` reads them; None for no threshold."""

    reject_below: float | None = None
    """Scores strictly below are rejected."""
    accept_above: float | None = None
    """Scores strictly above are accepted."""

    @property
    def lowest_kept(self) -> float:
        """-inf where all scores are kept."""
        return -np.inf if self.reject_below is None else self.reject_below


@dataclass(frozen=True)
class RecallEvidence:
    """The numbers of the test of recall; the certificate has them under the same names."""

    kth: int
    """Which tested positive, from the lowest upwards, is the first to be kept; 0 to keep all."""
    positives_tested: int
    """Drawn positives in the test, the first of the draw."""
    positives_known: int
    """Positives beside them: of the pilot, and the last of the draw."""
    most_positives: int
    """Upper bound on the positives of which the tested ones are a random draw."""
    best_bound: float
    """Recall that the lowest tested positive certifies; 0 without positives."""
    drawn_most: int
    """Upper bound on the positives of which all drawn ones are a random draw."""
    drawn_known: int
    """Positives of the pilot."""
    test_delta: float
    """Probability that the test or an upper bound fails."""


@dataclass(frozen=True)
class Result:
    """What the labels allow. Every candidate is accepted, rejected or promoted."""

    guarantee: Guarantee
    status: Status
    thresholds: tuple[Thresholds, ...]
    accepted: Mask
    """(n,) recall: all that is kept; precision: all that is accepted. Labelled positives are in it,
    labelled negatives are not."""
    promoted: Mask
    """(n,) left to the last tier. For recall they are also in `accepted`: not lost."""
    by_proxy: Mask
    """(n,) answered by a cheap tier without a label, either way."""
    certified_bound: float
    """The kind's certified lower bound, in [0, 1], labelled candidates included."""
    threshold_bound: float
    """For recall the bound of the thresholds alone, where labelled positives below them are lost,
    too. Else `certified_bound`."""
    labels_used: int
    """Different candidates for which a label was asked."""
    positives_found: int
    unlabelled: Ids
    """Candidates that cannot be labelled. They are promoted, and the promise leaves them out."""
    evidence: RecallEvidence | None = None
    """None for other kinds than recall."""
    source_bound: float | None = None
    """For recall, what the thresholds keep of new candidates of the same source, at 1 - delta. None
    for other kinds."""
    drawn_positives: Ids = field(default_factory=lambda: np.zeros(0, np.int64))
    """Positives of the random draw, in its order; `bound_of_moved` needs their scores."""

    @property
    def rejected(self) -> Mask:
        """(n,) neither accepted nor promoted."""
        return ~self.accepted & ~self.promoted


class Sample:
    """The labels that one calibration has asked for, and what they are."""

    def __init__(self, size: int, budget: int) -> None:
        self.labels: Labels = np.full(size, UNKNOWN, np.int8)
        self.asked: Mask = np.zeros(size, np.bool_)
        self._budget = budget

    @property
    def used(self) -> int:
        """Different ids asked so far."""
        return int(self.asked.sum())

    @property
    def left(self) -> int:
        """Labels that the budget still pays for."""
        return self._budget - self.used

    @property
    def positive(self) -> Mask:
        return np.asarray(self.labels == 1, np.bool_)

    @property
    def negative(self) -> Mask:
        return np.asarray(self.labels == 0, np.bool_)

    @property
    def refused(self) -> Mask:
        """Asked, but cannot be labelled."""
        return np.asarray(self.asked & (self.labels == UNKNOWN), np.bool_)

    def ask(self, ids: Ids) -> Asking[Labels]:
        """Labels of these ids in their order; those known are not asked again.

        Asks for no more than the budget pays for: of the ids beyond it the label is UNKNOWN.
        """
        new = ids[~self.asked[ids]][: max(self.left, 0)]
        if new.size:
            self.labels[new] = yield new
            self.asked[new] = True
        return self.labels[ids]


def as_table(scores: Floats | Sequence[float] | Sequence[Sequence[float]]) -> Floats:
    """(n, tiers) of the scores of one tier (n,) or of several, as floats.

    Raises:
        ValueError: they have another shape, or there are no tiers.
    """
    table = np.asarray(scores, np.float64)
    if table.ndim == 1:
        table = table[:, None]
    if table.ndim != 2 or table.shape[1] == 0:
        raise ValueError(
            f"scores of shape {table.shape}; give (candidates,) or (candidates, tiers)"
        )
    return table


def unread(scores: Floats) -> Mask:
    """(n, tiers) whether this tier or one before it gave no score (NaN).

    Such a tier sends the candidate to a person, so no later tier decides about it.
    """
    missing: Mask = np.maximum.accumulate(np.isnan(scores), axis=1)
    return missing
