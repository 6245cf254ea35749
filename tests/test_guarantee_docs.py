"""The numbers of docs/guarantees.md are those of the code."""

from math import floor
from pathlib import Path

from tiers.calibration import plan_calibration
from tiers.calibration.recall_test import positives_needed

PAGE = (Path(__file__).parents[1] / "docs" / "guarantees.md").read_text()
SHARES = (0.2, 0.05, 0.02, 0.01, 0.005)


def floor_rows() -> list[str]:
    rows = []
    for target in (0.8, 0.9, 0.95, 0.99):
        plans = [
            plan_calibration(200_000, target=target, delta=0.1, prevalence_hint=share)
            for share in SHARES
        ]
        cells = [f"{target:g}", str(plans[0].positives_needed)]
        rows.append(f"| {' | '.join(cells + [f'{plan.labels_needed:,}' for plan in plans])} |")
    return rows


def best_rows() -> list[str]:
    rows = []
    for budget in (250, 500, 1000, 2000, 5000):
        cells = [f"{budget:,}"]
        for share in SHARES:
            plan = plan_calibration(
                200_000, target=0.99, delta=0.1, prevalence_hint=share, budget=budget
            )
            cells.append(f"{floor(100 * plan.best_bound) / 100:.2f}" if plan.best_bound else "none")
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def step_rows() -> list[str]:
    return [
        f"| {kth} | {positives_needed(0.9, 0.1, kth)} | {positives_needed(0.95, 0.1, kth)} |"
        for kth in (1, 2, 3, 5, 10)
    ]


def test_the_tables_are_computed() -> None:
    for row in floor_rows() + best_rows() + step_rows():
        assert row in PAGE, row


def test_the_example_of_a_refusal_is_what_is_said() -> None:
    plan = plan_calibration(200_000, target=0.95, delta=0.1, prevalence_hint=0.01, budget=1000)
    assert plan.message in PAGE.replace("\n> ", " ")
