"""The numbers of docs/guarantees.md are those of the code."""

import re
from dataclasses import fields
from math import floor
from pathlib import Path

import pytest

from flows.calibrate import calibrate
from tests.test_calibrate import PROMISE, write
from tiers.calibration import RecallEvidence, plan_calibration
from tiers.calibration.recall_test import positives_needed

HOUSE = Path(__file__).parents[1]
PAGE = (HOUSE / "docs" / "guarantees.md").read_text()
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


def fields_listed(after: str) -> list[str]:
    """The names in the first column of the table that follows."""
    table = PAGE[PAGE.index(after) :].split("\n\n")[1]
    return re.findall(r"`(\w+)`", " ".join(row.split("|")[1] for row in table.splitlines()))


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_list_of_what_a_certificate_holds_is_complete(folder: Path) -> None:
    definition = write(folder, PROMISE.replace("}", ", approval: true}"))
    made = calibrate.fn(definition, approve=True, author="ada")
    assert sorted(fields_listed("It holds:")) == sorted(made)
    names = [one.name for one in fields(RecallEvidence)]
    assert list(made["evidence"]) == names
    assert sorted(fields_listed("The numbers of the test, `evidence`:")) == sorted(names)


def test_the_modules_that_are_named_are_there() -> None:
    named = re.findall(r"`(\w+/[\w/]*(?:\.py)?)`", PAGE)
    assert len(named) > 5
    for path in named:
        assert (HOUSE / path).exists(), path
