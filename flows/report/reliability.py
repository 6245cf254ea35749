"""How far a run's scores are probabilities, by the labels that are stored: tables and a plot."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from db.store import LabelSource, Run, Store, StoreError, rubric_digest
from flows.guarantee.labelling import definition_of
from flows.guarantee.state import Calibration, truth
from flows.terminal import visible
from tiers.calibration import (
    Bin,
    brier,
    cross_fitted,
    expected_calibration_error,
    reliability_table,
)
from tiers.screenfile.file import Screen

BAR = 30
"""Characters of a bar that stands for 1."""


@dataclass(frozen=True)
class Errors:
    """How far scores are from labels, both in [0, 1]: 0 is perfect."""

    brier: float
    calibration_error: float


@dataclass(frozen=True)
class Reliability:
    """One tier's scores against the labels."""

    tier: str
    labels: int
    positive: int
    """Labels that say yes."""
    errors: Errors
    mapped: dict[str, Errors]
    """After a curve, by its name: `platt`, `isotonic`; empty for fewer than two labels."""
    table: list[Bin]

    def as_json(self) -> dict[str, Any]:
        """The same for `--json`, errors of the scores themselves without a name before them."""
        mapped = {name: asdict(errors) for name, errors in self.mapped.items()}
        return {
            "tier": self.tier,
            "labels": self.labels,
            "positive": self.positive,
            **asdict(self.errors),
            **mapped,
            "table": [asdict(row) for row in self.table],
        }


def reliability_of(
    store: Store, run: Run, *, tier: str | None = None, bins: int = 10
) -> list[Reliability]:
    """One entry a tier that has scores.

    Raises:
        StoreError: there is no such tier, or nobody has labelled anything.
    """
    definition = definition_of(run)
    answers, tiers = _labels(store, run, definition)
    names = [one.name for one in definition.tiers[:tiers]]
    if tier is not None and tier not in names:
        raise StoreError(
            f"run '{run.key}' has no tier '{tier}' to hold against its labels; write one of: "
            f"{', '.join(names)}"
        )
    rows = [
        one for one in store.labels.scored(run.id, tiers) if answers.get(one.text_id) is not None
    ]
    if not rows:
        raise StoreError(
            f"no candidate of run '{run.key}' has a label; tamis calibrate or tamis label tells "
            "some"
        )
    scores = np.array([one.scores for one in rows], np.float64)
    positive = np.array([answers[one.text_id] for one in rows], np.bool_)
    return [
        _of_tier(name, scores[:, place], positive, bins)
        for place, name in enumerate(names)
        if tier in (None, name) and not np.isnan(scores[:, place]).all()
    ]


def in_words(found: Reliability) -> str:
    """A tier's figures in one sentence."""
    curves = {"platt": "Platt's curve", "isotonic": "an isotonic one"}
    maps = ", ".join(
        f"{errors.calibration_error:.4f} after {curves[name]}"
        for name, errors in found.mapped.items()
    )
    return (
        f"{found.tier}: {found.labels:,} labels, {found.positive:,} positive; Brier score "
        f"{found.errors.brier:.4f}, calibration error {found.errors.calibration_error:.4f}"
        f"{f' ({maps})' if maps else ''}"
    )


def bars(found: Reliability) -> list[dict[str, Any]]:
    """A tier's table with a picture: the bar is the share of positives, `|` the mean score."""
    rows = []
    for one in found.table:
        if one.positive_share is None or one.mean_score is None:
            continue
        filled, mark = round(BAR * one.positive_share), round(BAR * one.mean_score)
        bar = "".join(
            "|" if place == mark else "#" if place < filled else " " for place in range(BAR + 1)
        )
        rows.append(
            {
                "scores": f"{one.low:g} to {one.high:g}",
                "labels": one.count,
                "mean score": one.mean_score,
                "positive": one.positive_share,
                "#: positive, |: mean score": bar,
            }
        )
    return rows


def svg(found: list[Reliability]) -> str:
    """The reliability diagram as a file: mean score to the right, share of positives upwards."""
    from flows.report import charts  # matplotlib takes a while to import

    points = [
        [
            (row.mean_score, row.positive_share)
            for row in one.table
            if row.mean_score is not None and row.positive_share is not None
        ]
        for one in found
    ]
    names = [visible(one.tier) for one in found]
    return charts.alone(charts.reliability(zip(names, points, strict=True)))


def markdown(found: list[Reliability]) -> list[str]:
    """The figures of all tiers, without their tables."""
    return [
        "| tier | labels | Brier score | calibration error | after Platt | after isotonic |",
        "|---|---:|---:|---:|---:|---:|",
        *(
            f"| {one.tier} | {one.labels:,} | {one.errors.brier:.4f} | "
            f"{one.errors.calibration_error:.4f} | {_error(one, 'platt')} | "
            f"{_error(one, 'isotonic')} |"
            for one in found
        ),
    ]


def _labels(store: Store, run: Run, definition: Screen) -> tuple[dict[int, bool | None], int]:
    """Answers by text, and how many tiers they can be held against."""
    if definition.guarantee is not None and not definition.guarantee.by_people:
        return Calibration(store, run, definition).labels(), len(definition.tiers) - 1
    told = store.labels.all(rubric_digest(definition.rubric), LabelSource.PERSON)
    return truth(told), len(definition.tiers)


def _of_tier(
    tier: str, scores: NDArray[np.float64], positive: NDArray[np.bool_], bins: int
) -> Reliability:
    known = ~np.isnan(scores)
    scores, positive = scores[known], positive[known]
    maps = cross_fitted(scores, positive)
    return Reliability(
        tier=tier,
        labels=len(scores),
        positive=int(positive.sum()),
        errors=_errors(scores, positive, bins),
        mapped={name: _errors(mapped, positive, bins) for name, mapped in maps.items()},
        table=reliability_table(scores, positive, bins),
    )


def _errors(scores: NDArray[np.float64], positive: NDArray[np.bool_], bins: int) -> Errors:
    return Errors(brier(scores, positive), expected_calibration_error(scores, positive, bins))


def _error(found: Reliability, curve: str) -> str:
    return f"{found.mapped[curve].calibration_error:.4f}" if curve in found.mapped else "-"
