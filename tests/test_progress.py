"""What is told of a step that goes on: totals that hold, and no estimate before it means something."""

import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from sqlalchemy import text

from flows import progress
from flows.progress import Display
from flows.report.summary import Rows, Summary, show
from flows.run import judging
from flows.run.judging import TierRun, TierWork
from tests.test_store import FAST, SLOW, ingested, judge_all, rows
from tiers.types import Candidate, Judgement


class Clock:
    """A time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_slow_start_is_no_measure_of_the_rest(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    step = Display().start("big", 500)
    clock.now += 60  # a model is loaded
    step.advance(1)
    assert capsys.readouterr().err == "big: 1 of 500\n"
    for _ in range(29):
        clock.now += 2
        step.advance(1)
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "big: 6 of 500", "five in ten seconds are too few"
    assert told[-1] == "big: 26 of 500, 0.5/s, 948 s left"


def test_nothing_is_told_to_be_left_where_the_total_is_overrun(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    step = Display().start("big", 112)
    for _ in range(40):
        clock.now += 1
        step.advance(8)
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "big: 80 of 112, 8/s, 4 s left"
    assert told[-1] == "big: 320 of 320, 8/s"
    step.expect(800)
    clock.now += 10
    step.advance(80)
    assert capsys.readouterr().err == "big: 400 of 1,120, 8/s, 90 s left\n"


def test_a_bar_tells_the_same(clock: Clock) -> None:
    with progress.Progress(console=Console(stderr=True, quiet=True)) as shown:
        step = Display(shown).start("big", 10)
        for _ in range(4):
            clock.now += 1
            step.advance(10)
        step.expect(60)
        (task,) = shown.tasks
        assert (task.completed, task.total) == (40, 100)
        clock.now += 1
        step.advance(10)
        assert (task.fields["rate"], task.fields["left"]) == ("10/s", "5 s left")


def test_the_total_follows_what_is_promoted_meanwhile(
    store: Any, engine: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ingested(store, rows(600), tiers=[FAST, SLOW])
    judge_all(store, run)
    promote = "UPDATE verdict SET position = 1 WHERE run_id = :run_id AND candidate_id <= :last"

    def promoted(last: int) -> None:
        with engine.begin() as connection:
            connection.execute(text(promote), {"run_id": run.id, "last": last})

    class Promoting:
        remarks: tuple[str, ...] = ()

        def judge(self, candidates: Iterable[Candidate]) -> Iterator[Judgement]:
            for number, candidate in enumerate(candidates):
                if number == 50:
                    promoted(600)
                yield Judgement(candidate.id, 0.9)

        def close(self) -> None: ...

    promoted(112)
    monkeypatch.setattr(judging, "open_tier", lambda _job: Promoting())
    monkeypatch.setattr(judging, "COUNT_SECONDS", 0.0)
    monkeypatch.setattr(judging, "COUNT_SHARE", 0)
    monkeypatch.setattr(judging, "FLUSH_ROWS", 10)
    monkeypatch.setattr(judging, "MOST_ROWS", 10)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    job: Any = SimpleNamespace(config=SimpleNamespace(name="big"))
    work = TierWork(store, run, 1, job, store.tiers.set_judge(run.id, 1, {"model": "large"}))
    tier = TierRun(work.beside(lambda: False, follows=True), Display())
    assert tier.judge_waiting() == 600
    told = re.findall(r"big: (\d+) of (\d+)", capsys.readouterr().err)
    totals = [int(total) for _, total in told]
    assert totals[0] == 112
    assert all(int(done) <= int(total) for done, total in told)
    assert totals[-1] == 600
    assert [total for total in totals if total not in (112, 600)] == []


def test_working_time_and_whole_time_are_told_apart() -> None:
    counts = dict.fromkeys(("accepted", "rejected", "review", "failed", "pending"), 0)
    finished = Summary(
        run="one", screen="try", state="done", reason=None, candidates=0, **counts,
        rows=Rows(0, 0, 0), seconds=4.6, usd=None, out=0, tiers=[], audit=None,
    )  # fmt: skip
    for whole, told in ((38.8, ", 38.8 s from start to end\n"), (None, "\n")):
        said = io.StringIO()
        show(replace(finished, whole_seconds=whole), Console(file=said, width=200))
        assert f"4.6 s of work{told}" in said.getvalue()
