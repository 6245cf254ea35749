"""A short form of `bench.chaos`: faults that no other test has, in the middle of a run."""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.chaos import one_trial
from bench.chaos_world import Services

from .conftest import SHARED

AGAIN = 300
"""Answers on their way to the database: of a flush, of what the engine has sent, at two tiers."""


@pytest.fixture(scope="module")
def services() -> Iterator[Services]:
    """Servers of these tests alone, because they are killed."""
    folder = Path(os.environ[SHARED]) / f"chaos-{os.getpid()}"
    folder.mkdir(mode=0o755)
    with ExitStack() as stack:
        yield Services(folder, stack)
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "fault",
    [
        "kill_flow",
        pytest.param("stop_postgres", marks=pytest.mark.postgres),
        pytest.param("cut_network", marks=pytest.mark.postgres),
        "kill_model_server",
        "disk_full",
        "clock_back",
        "two_at_once",
        "rows_before",
        "other_model",
    ],
)
def test_nothing_is_lost_or_doubled(services: Services, fault: str) -> None:
    trial = one_trial(services, fault, seed=2, count=1_500)
    assert (trial.lost, trial.doubled, trial.locks) == (0, 0, 0), trial
    assert trial.again <= AGAIN, trial
