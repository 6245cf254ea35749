"""Calibration, from labels to thresholds that keep a promise: ask, tell, result.

    cal = Calibrator("recall", target=0.95, delta=0.1, budget=1000, seed=7)
    while (ids := cal.ask(scores)).size:
        cal.tell(ids, labels_of(ids))
    result = cal.result()

What is asked next follows from the seed, the scores and the labels so far, and from nothing else: a
new calibrator that is given the stored labels goes on where the other one stopped. Formulas and
their sources: docs/guarantees.md.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiers.calibration.accuracy import calibrate_accuracy
from tiers.calibration.draws import Floats, Ids
from tiers.calibration.guarantee import UNKNOWN, Guarantee, Kind, Labels, Result, Sample, as_table
from tiers.calibration.precision import calibrate_precision
from tiers.calibration.recall import calibrate_recall

PROCEDURES = {
    Kind.RECALL: calibrate_recall,
    Kind.PRECISION: calibrate_precision,
    Kind.ACCURACY: calibrate_accuracy,
}


class Calibrator:
    """Asks for labels until the promise can be certified, or the budget is spent."""

    def __init__(
        self,
        kind: Kind | str = Kind.RECALL,
        *,
        target: float = 0.9,
        delta: float = 0.1,
        budget: int = 400,
        seed: int = 0,
        costs: Sequence[float] | None = None,
        cleaning: bool = True,
    ) -> None:
        """Make a calibrator; see `Guarantee` for what the arguments mean.

        Raises:
            ValueError: an argument is out of its range.
        """
        prices = None if costs is None else tuple(costs)
        self.guarantee = Guarantee(Kind(kind), target, delta, budget, seed, prices, cleaning)
        self._scores: Floats | None = None
        self._told: dict[int, int] = {}
        self._pending: Ids = np.zeros(0, np.int64)
        self._result: Result | None = None

    def ask(self, scores: Floats | None = None) -> Ids:
        """Ids to label next; empty at the end.

        Args:
            scores: (n,) of one tier or (n, tiers), NaN where a tier gave none. Only the first
                call needs them.

        Raises:
            ValueError: there are no scores yet, or they are not those of the first call.
        """
        if self._scores is None:
            if scores is None:
                raise ValueError("the first call of ask needs the scores; give them")
            self._scores = as_table(scores)
            self._sample = Sample(len(self._scores), self.guarantee.budget)
            self.guarantee.prices(self._scores.shape[1])
            procedure = PROCEDURES[self.guarantee.kind]
            self._steps = procedure(self._scores, self.guarantee, self._sample)
            self._advance(None)
        elif scores is not None and not np.array_equal(as_table(scores), self._scores, True):
            raise ValueError(
                "these are not the scores that the calibration began with; make a new Calibrator"
            )
        while self._result is None and all(int(i) in self._told for i in self._pending):
            self._advance(np.array([self._told[int(i)] for i in self._pending], np.int8))
        return np.array([i for i in self._pending if int(i) not in self._told], np.int64)

    def tell(self, ids: Iterable[int] | Ids, labels: Iterable[Any]) -> None:
        """Hand in labels, in any order; the same label may come again.

        Args:
            ids: (n,) rows of the scores.
            labels: (n,) true or 1, false or 0; None or NaN for a candidate that cannot be
                labelled: it is promoted, and the promise leaves it out.

        Raises:
            ValueError: a label contradicts an earlier one, or is no label, or an id has no row.
        """
        pairs = [(int(i), _as_label(value)) for i, value in zip(ids, labels, strict=True)]
        rows = None if self._scores is None else len(self._scores)
        new: dict[int, int] = {}
        for i, label in pairs:
            if i < 0 or (rows is not None and i >= rows):
                raise ValueError(f"id {i} is no row of the scores; give ids that were asked for")
            told = self._told.get(i, new.get(i, label))
            if told != label:
                raise ValueError(
                    f"candidate {i} was labelled {_word(told)} before and {_word(label)} now; "
                    "find out which is right, and give that one alone to a new Calibrator"
                )
            new[i] = label
        self._told.update(new)

    def result(self) -> Result:
        """The thresholds and what they certify.

        Raises:
            ValueError: labels are still missing.
        """
        missing = self.ask()
        if self._result is None:
            raise ValueError(
                f"{len(missing):,} labels are still missing, the first of candidate {missing[0]}; "
                "call tell with them, and with None for a candidate that cannot be labelled"
            )
        return self._result

    def _advance(self, labels: Labels | None) -> None:
        try:
            # A generator is started with None, which its type does not know.
            self._pending = self._steps.send(labels)  # type: ignore[arg-type]
        except StopIteration as done:
            self._pending, self._result = np.zeros(0, np.int64), done.value


def calibrate(
    scores: Floats,
    oracle: Callable[[Ids], Iterable[Any] | NDArray[Any]],
    *,
    kind: Kind | str,
    target: float,
    delta: float,
    budget: int,
    seed: int,
    costs: Sequence[float] | None = None,
    cleaning: bool = True,
) -> Result:
    """Calibrate in one call; `oracle` is asked for at most `budget` different ids, each once.

    Args:
        scores: (n,) of one tier or (n, tiers), NaN where a tier gave none.
        oracle: (m,) ids to (m,) labels in their order.
        kind: recall, precision or accuracy.
        target: what is promised, in (0, 1).
        delta: probability that the promise fails, in (0, 1).
        budget: most labels that may be asked.
        seed: of the random draw.
        costs: of one candidate at each tier, and last of one label; see `Guarantee.prices`.
        cleaning: whether labels left over go to kept candidates.
    """
    calibrator = Calibrator(
        kind, target=target, delta=delta, budget=budget, seed=seed, costs=costs, cleaning=cleaning
    )
    while (ids := calibrator.ask(scores)).size:
        calibrator.tell(ids, oracle(ids))
    return calibrator.result()


def _as_label(value: Any) -> int:
    if value is None or value != value:  # NaN differs from itself
        return UNKNOWN
    if value in (0, 1):
        return int(value)
    raise ValueError(f"label {value!r} is neither yes nor no; give 1, 0, or None for no label")


def _word(label: int) -> str:
    return {1: "yes", 0: "no", UNKNOWN: "unknown"}[label]
