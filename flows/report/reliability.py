"""How far a run's scores are probabilities, by the labels that are stored: tables and a plot."""

from dataclasses import asdict
from typing import Any

import numpy as np

from db.store import LabelSource, Run, Store, StoreError, rubric_digest
from flows.guarantee.labelling import definition_of
from flows.guarantee.state import Calibration, truth
from tiers.calibration import (
    brier,
    cross_fitted,
    expected_calibration_error,
    reliability_table,
)
from tiers.screenfile.file import Screen

SIDE = 400
"""Of the plot's square, in pixels."""
COLOURS = ("#1b6ca8", "#d1495b", "#2e933c", "#8d5a97", "#e08e45")
BAR = 30
"""Characters of a bar that stands for 1."""


def reliability_of(
    store: Store, run: Run, *, tier: str | None = None, bins: int = 10
) -> list[dict[str, Any]]:
    """One entry a tier: labels, Brier score, calibration error, the same after two maps, a table.

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
        {"tier": name, **_of_tier(scores[:, place], positive, bins)}
        for place, name in enumerate(names)
        if tier in (None, name) and not np.isnan(scores[:, place]).all()
    ]


def bars(found: dict[str, Any]) -> list[dict[str, Any]]:
    """A tier's table with a picture: the bar is the share of positives, `|` the mean score."""
    rows = []
    for one in found["table"]:
        if not one["count"]:
            continue
        filled, mark = round(BAR * one["positive_share"]), round(BAR * one["mean_score"])
        bar = "".join(
            "|" if place == mark else "#" if place < filled else " " for place in range(BAR + 1)
        )
        rows.append(
            {
                "scores": f"{one['low']:g} to {one['high']:g}",
                "labels": one["count"],
                "mean score": one["mean_score"],
                "positive": one["positive_share"],
                "#: positive, |: mean score": bar,
            }
        )
    return rows


def svg(found: list[dict[str, Any]]) -> str:
    """The reliability diagram: mean score to the right, share of positives upwards."""

    def at(score: float, share: float) -> tuple[float, float]:
        return round(40 + SIDE * score, 1), round(20 + SIDE * (1 - share), 1)

    def words(x: float, y: float, said: str, fill: str = "#333") -> str:
        return f'<text x="{x}" y="{y}" fill="{fill}">{said}</text>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIDE + 60} {SIDE + 70}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect x="40" y="20" width="{SIDE}" height="{SIDE}" fill="none" stroke="#999"/>',
        f'<path d="M40 {SIDE + 20}L{SIDE + 40} 20" stroke="#bbb" stroke-dasharray="4"/>',
        words(SIDE / 2, SIDE + 55, "mean score"),
        words(40, 14, "share of positives"),
    ]
    for tick in (0.0, 0.5, 1.0):
        parts += [
            words(at(tick, 0)[0] - 8, SIDE + 36, f"{tick:g}"),
            words(14, at(0, tick)[1], f"{tick:g}"),
        ]
    for number, one in enumerate(found):
        colour = COLOURS[number % len(COLOURS)]
        points = [
            at(row["mean_score"], row["positive_share"]) for row in one["table"] if row["count"]
        ]
        line = " ".join(f"{x},{y}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>' for x, y in points]
        parts.append(words(52, 40 + 16 * number, one["tier"], colour))
    return "\n".join([*parts, "</svg>\n"])


def markdown(found: list[dict[str, Any]]) -> list[str]:
    """The figures of all tiers, without their tables."""
    return [
        "| tier | labels | Brier score | calibration error | after Platt | after isotonic |",
        "|---|---:|---:|---:|---:|---:|",
        *(
            f"| {one['tier']} | {one['labels']:,} | {one['brier']:.4f} | "
            f"{one['calibration_error']:.4f} | {_error(one, 'platt')} | {_error(one, 'isotonic')} |"
            for one in found
        ),
    ]


def _labels(store: Store, run: Run, definition: Screen) -> tuple[dict[int, bool | None], int]:
    """Answers by text, and how many tiers they can be held against."""
    if definition.guarantee is not None and not definition.guarantee.by_people:
        return Calibration(store, run, definition).labels(), len(definition.tiers) - 1
    told = store.labels.all(rubric_digest(definition.rubric), LabelSource.PERSON)
    return truth(told), len(definition.tiers)


def _of_tier(scores: Any, positive: Any, bins: int) -> dict[str, Any]:
    known = ~np.isnan(scores)
    scores, positive = scores[known], positive[known]
    maps = cross_fitted(scores, positive)
    return {
        "labels": len(scores),
        "positive": int(positive.sum()),
        **_errors(scores, positive, bins),
        **{name: _errors(mapped, positive, bins) for name, mapped in maps.items()},
        "table": [asdict(row) for row in reliability_table(scores, positive, bins)],
    }


def _errors(scores: Any, positive: Any, bins: int) -> dict[str, float]:
    return {
        "brier": brier(scores, positive),
        "calibration_error": expected_calibration_error(scores, positive, bins),
    }


def _error(found: dict[str, Any], curve: str) -> str:
    return f"{found[curve]['calibration_error']:.4f}" if curve in found else "-"
