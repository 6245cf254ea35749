"""Labels to thresholds that keep a promise: ask, tell, result. Arrays in, arrays out.

    cal = Calibrator("recall", target=0.95, delta=0.1, budget=1000, seed=7)
    while (ids := cal.ask(scores)).size:
        cal.tell(ids, labels_of(ids))
    result = cal.result()

What is asked next follows from the seed, the scores and the labels told so far, and from nothing
else: a calibrator made anew and told the stored labels goes on where the other one was. Formulas
and their sources: docs/guarantees.md.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiers.calibration.accuracy import calibrate_accuracy
from tiers.calibration.draws import Floats, Ids, chance_of_at_most
from tiers.calibration.evalues import log_evidence_of_fewer
from tiers.calibration.guarantee import (
    UNKNOWN,
    Guarantee,
    Kind,
    Labels,
    Result,
    Sample,
    Status,
    Thresholds,
    as_table,
)
from tiers.calibration.moved import recall_of_thresholds
from tiers.calibration.precision import calibrate_precision
from tiers.calibration.recall import calibrate_recall
from tiers.calibration.recall_steps import PILOT_POSITIVES, PILOT_SHARE
from tiers.calibration.recall_test import (
    allowed_misses,
    best_kth,
    bound_of_kth,
    level,
    positives_needed,
)

__all__ = [
    "Calibrator",
    "Guarantee",
    "Kind",
    "Plan",
    "Result",
    "Status",
    "Thresholds",
    "calibrate",
    "plan_calibration",
    "recall_of_thresholds",
]

CONFIDENT = 0.8
"""Probability with which a draw finds as many positives as a plan counts on."""

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
    ) -> None:
        """Make a calibrator; see `Guarantee` for what the arguments mean.

        Raises:
            ValueError: an argument is out of its range.
        """
        self.guarantee = Guarantee(
            kind=Kind(kind),
            target=target,
            delta=delta,
            budget=budget,
            seed=seed,
            costs=None if costs is None else tuple(costs),
        )
        self._scores: Floats | None = None
        self._told: dict[int, int] = {}
        self._pending: Ids = np.zeros(0, np.int64)
        self._result: Result | None = None

    def ask(self, scores: Floats | None = None) -> Ids:
        """Ids to label next; empty when done, or when labels asked earlier are still to come.

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
        """Hand in labels, in any order and as often as one likes.

        Args:
            ids: (n,) rows of the scores.
            labels: (n,) true or 1, false or 0; None or NaN where no label can be had: such a
                candidate is promoted, and the promise leaves it out.

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
                    "settle which is right and tell that one to a new Calibrator"
                )
            new[i] = label
        self._told.update(new)

    def result(self) -> Result:
        """The thresholds and what they are worth.

        Raises:
            ValueError: labels are still missing.
        """
        missing = self.ask()
        if self._result is None:
            raise ValueError(
                f"{len(missing):,} labels are still missing, the first of candidate {missing[0]}; "
                "tell them, or tell None where none can be had"
            )
        return self._result

    def _advance(self, labels: Labels | None) -> None:
        try:
            # A generator is started with None, and knows no other type for it.
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
) -> Result:
    """Calibrate in one call; `oracle` is asked for at most `budget` different ids, each once.

    Args:
        scores: (n,) of one tier or (n, tiers).
        oracle: (m,) ids to (m,) labels in their order.
        kind: recall, precision or accuracy.
        target: what is promised, in (0, 1).
        delta: probability with which the promise may fail, in (0, 1).
        budget: most labels that may be asked.
        seed: draws the sample.
        costs: of one candidate at each tier, and last of one label; see `Guarantee.prices`.
    """
    calibrator = Calibrator(kind, target=target, delta=delta, budget=budget, seed=seed, costs=costs)
    while (ids := calibrator.ask(scores)).size:
        calibrator.tell(ids, oracle(ids))
    return calibrator.result()


@dataclass(frozen=True)
class Plan:
    """What a promise needs, before a label is paid for."""

    kind: Kind
    target: float
    items: int
    prevalence: float | None
    budget: int | None
    positives_needed: int | None
    """Positives that the draw has to find; None for kinds that need none."""
    labels_needed: int | None
    """Labels of the smallest certificate; None if it depends on an unknown prevalence."""
    best_bound: float | None
    """The best that the budget can certify with probability 0.8; None where that is unknown."""

    @property
    def feasible(self) -> bool | None:
        """Whether the budget is enough; None where budget or prevalence are unknown."""
        if self.budget is None or self.labels_needed is None:
            return None
        return self.budget >= self.labels_needed or (self.best_bound or 0.0) >= self.target

    @property
    def message(self) -> str:
        """The plan in one sentence."""
        if self.labels_needed is None:
            return (
                f"{self.kind.value} >= {self.target:g} needs {self.positives_needed:,} positives "
                "in the sample; how many labels that takes depends on the share of positives"
            )
        at = "" if self.prevalence is None else f" at {100 * self.prevalence:.3g} % positives"
        text = f"{self.labels_needed:,} labels needed{at}"
        if self.budget is None:
            return text
        text += f", budget {self.budget:,}"
        if self.feasible:
            return f"{text}: enough for {self.kind.value} >= {self.target:g}"
        best = math.floor(100 * (self.best_bound or 0.0)) / 100
        return (
            f"{text}: with {self.budget:,} the best certificate is {self.kind.value} >= {best:.2f}"
        )


def plan_calibration(
    n_items: int,
    *,
    target: float,
    delta: float,
    kind: Kind | str = Kind.RECALL,
    prevalence_hint: float | None = None,
    budget: int | None = None,
    tiers: int = 1,
) -> Plan:
    """What the promise needs, and what the budget can buy; no label is asked.

    Recall: the floor of every method that assumes nothing about the scores; the smallest sample
    certifies with its lowest positive as threshold. Precision and accuracy: the smallest sample
    without any error.

    Args:
        n_items: candidates.
        target: what is promised, in (0, 1).
        delta: probability with which the promise may fail.
        kind: recall, precision or accuracy.
        prevalence_hint: share of positives, assumed or estimated, in (0, 1]; for recall.
        budget: labels that can be paid for.
        tiers: cheap tiers; several need a pilot.
    """
    kind = Kind(kind)
    if kind is Kind.RECALL:
        return _plan_recall(n_items, target, delta, prevalence_hint, budget, tiers)
    if kind is Kind.PRECISION:
        drawn = positives_needed(target, delta)
        best = None if not budget else delta ** (1 / budget)
    else:
        drawn = _errorless(n_items, target, delta)
        best = None if budget is None else _best_accuracy(n_items, delta, min(budget, n_items))
    return Plan(kind, target, n_items, prevalence_hint, budget, None, min(drawn, n_items), best)


def _plan_recall(
    items: int,
    target: float,
    delta: float,
    prevalence: float | None,
    budget: int | None,
    tiers: int,
) -> Plan:
    needed = positives_needed(target, delta)
    if prevalence is None:
        return Plan(Kind.RECALL, target, items, None, budget, needed, None, None)
    positives = max(round(prevalence * items), 1)
    needed = _enough(positives, needed, target, level(delta))
    labels = math.ceil(needed / prevalence - 1e-9)
    if tiers > 1:
        pilot = math.ceil(PILOT_POSITIVES / prevalence)
        labels = min(math.ceil(labels / (1 - PILOT_SHARE)), labels + pilot)
    labels = min(labels, items)
    best = None
    if budget is not None:
        drawn = min(budget, items)
        if tiers > 1:
            drawn -= min(int(PILOT_SHARE * budget), math.ceil(PILOT_POSITIVES / prevalence))
        best = _best_recall(items, positives, max(drawn, 0), delta)
    return Plan(Kind.RECALL, target, items, prevalence, budget, needed, labels, best)


def _enough(positives: int, needed: int, target: float, risk: float) -> int:
    """Drawn positives that certify where so many exist; in a small population fewer do.

    Where they are ten times as many as needed it makes no difference worth a plan.
    """
    if positives >= 10 * needed:
        return needed
    low, high = 1, min(needed, positives)
    while low < high:
        middle = (low + high) // 2
        enough = best_kth(middle, positives, target, risk) > 0
        low, high = (low, middle) if enough else (middle + 1, high)
    return low


def _best_recall(items: int, positives: int, drawn: int, delta: float) -> float:
    """Certified recall of the lowest positive of a draw that finds no more than is likely."""
    if drawn == items:
        return 1.0
    found = 0
    while found < min(positives, drawn):
        fewer = chance_of_at_most(found, np.array(items), np.array(positives), np.array(drawn))
        if 1 - fewer[0] < CONFIDENT:
            break
        found += 1
    return bound_of_kth(1, found, positives, level(delta)) if found else 0.0


def _errorless(items: int, target: float, delta: float) -> int:
    """Labels without an error that certify all candidates' answers."""
    claimed = int(allowed_misses(np.array(items), target)) + 1
    drawn = np.arange(1, items + 1)
    zeros = np.zeros(len(drawn), np.int64)
    evidence = log_evidence_of_fewer(zeros, np.array(items), np.array(claimed), drawn)
    enough = np.flatnonzero(evidence >= -math.log(delta))
    return int(drawn[enough[0]]) if enough.size else items


def _best_accuracy(items: int, delta: float, drawn: int) -> float:
    """The highest accuracy, in steps of 0.001, that so many labels without an error certify."""
    low, high = 0, 999
    while low < high:
        middle = (low + high + 1) // 2
        claimed = int(allowed_misses(np.array(items), middle / 1000)) + 1
        evidence = log_evidence_of_fewer(
            np.zeros(1, np.int64), np.array(items), np.array(claimed), np.array(drawn)
        )
        low, high = (middle, high) if evidence[0] >= -math.log(delta) else (low, middle - 1)
    return low / 1000


def _as_label(value: Any) -> int:
    if value is None or value != value:  # NaN differs from itself
        return UNKNOWN
    if value in (0, 1):
        return int(value)
    raise ValueError(f"label {value!r} is neither yes nor no; give 1, 0, or None for no label")


def _word(label: int) -> str:
    return {1: "yes", 0: "no", UNKNOWN: "as not to be had"}[label]
