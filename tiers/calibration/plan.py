"""What a promise needs, and what a budget can buy, before a label is paid for."""

import math
from dataclasses import dataclass

import numpy as np

from tiers.calibration.draws import chance_of_at_most, highest, lowest
from tiers.calibration.evalues import log_evidence_of_fewer
from tiers.calibration.guarantee import Kind
from tiers.calibration.recall import PILOT_POSITIVES, PILOT_SHARE
from tiers.calibration.recall_test import (
    allowed_misses,
    best_kth,
    bound_of_kth,
    level,
    positives_needed,
)

CONFIDENT = 0.8
"""Probability that a draw finds as many positives as a plan counts on."""


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

    Recall: the smallest sample whose lowest positive is a certified threshold; no method that
    assumes nothing about the scores needs fewer. Precision and accuracy: the smallest sample
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
    """Drawn positives that certify where so many exist; in a small population fewer are enough.

    Where ten times as many exist as are needed, the difference is too small for a plan.
    """
    if positives >= 10 * needed:
        return needed
    most = min(needed, positives)
    return lowest(1, most, lambda drawn: best_kth(drawn, positives, target, risk) > 0)


def _best_recall(items: int, positives: int, drawn: int, delta: float) -> float:
    """Recall that a draw certifies with its lowest positive, with probability `CONFIDENT`."""
    if drawn == items:
        return 1.0

    def unlikely(more: int) -> bool:
        return bool(1 - chance_of_at_most(more, items, positives, drawn)[0] < CONFIDENT)

    found = lowest(0, min(positives, drawn), unlikely)
    return bound_of_kth(1, found, positives, level(delta)) if found else 0.0


def _errorless(items: int, target: float, delta: float) -> int:
    """Labels without an error that certify all candidates' answers."""
    claimed = int(allowed_misses(items, target)) + 1
    drawn = np.arange(1, items + 1)
    evidence = log_evidence_of_fewer(0, items, claimed, drawn)
    enough = np.flatnonzero(evidence >= -math.log(delta))
    return int(drawn[enough[0]]) if enough.size else items


def _best_accuracy(items: int, delta: float, drawn: int) -> float:
    """The highest accuracy, in steps of 0.001, that so many labels without an error certify."""

    def passes(accuracy: int) -> bool:
        claimed = int(allowed_misses(items, accuracy / 1000)) + 1
        return bool(log_evidence_of_fewer(0, items, claimed, drawn)[0] >= -math.log(delta))

    return highest(0, 999, passes) / 1000
