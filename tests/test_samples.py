"""Samples of a run at work: true, few, and never in the way; and the view that is made of them."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sqlalchemy import Engine, text

from db.bulk import now
from db.samples import NOBODY, Sample, Samples
from db.store import RunState, Store
from flows.report import live
from flows.run import meters
from flows.run.meters import Sampler, stands_for
from tiers.screenfile.file import Screen, load_screen

from .project import screened, write
from .test_calibrate import stored
from .test_run import tier
from .test_store import new_run

NIGHT = 10 * 3600


def a_screen(folder: Path) -> Screen:
    second = tier("second", "accept_above: 0.5", options="salt: other")
    write(folder, tier("first", "reject_below: 0.3"), second, count=300)
    return load_screen(folder / "screen.yaml")


def test_a_run_leaves_samples_that_agree_with_its_judgements(folder: Path) -> None:
    screened(a_screen(folder))
    with stored() as (store, run):
        last = {one.position: one for one in store.samples.all(run.id)}
        for row in store.results.funnel(run.id):
            sample = last[row.position]
            assert sample.judged == row.judged == sample.expected
            assert sample.prompt_tokens == row.prompt_tokens
            assert sample.judging >= 0
            assert sample.storing > 0
        assert all(one.memory for one in last.values())
        views = store.samples.now(run.id)
        assert [one.tier for one in views] == [row.tier for row in store.results.funnel(run.id)]


def test_a_sample_that_cannot_be_kept_is_told_once_and_stops_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(Samples, "record", fail)
    monkeypatch.setattr(meters, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(meters, "COST", 0)
    screened(a_screen(folder))
    with stored() as (store, run):
        assert store.runs.status(run.id).run.state is RunState.DONE
        assert store.samples.all(run.id) == []
    assert capsys.readouterr().err.count("samples are left out: OSError: the disk is full") == 1


def test_a_sample_is_brought_up_to_date_until_its_time_is_over(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meters, "LOOK_SECONDS", 1000.0)
    run = new_run(store)
    sampler = Sampler(store, run)
    try:
        sampler._look()
        meter = sampler.meter(1)
        meter.at_work, meter.judged = True, 3
        sampler._look()
        meter.judged = 5
        sampler._look()
        monkeypatch.setattr(meters, "FIRST_SECONDS", 0.0)
        meter.at_work = False
        sampler._look()
        sampler._look()
    finally:
        sampler.close()
    told = [(one.number, one.position, one.judged) for one in store.samples.all(run.id)]
    assert told[:3] == [(0, NOBODY, 0), (0, 1, 5), (1, NOBODY, 0)]


def test_a_night_of_three_tiers_takes_less_than_two_megabytes(store: Store, engine: Engine) -> None:
    run, at, number = new_run(store), 0.0, 0
    size = {
        "sqlite": "SELECT SUM(pgsize) FROM dbstat WHERE name = 'sample'",
        "postgresql": "SELECT pg_total_relation_size('sample')",
    }[engine.dialect.name]
    rows = []
    while at < NIGHT:
        rows += [
            Sample(0, number, position, now(), 1.23456789, 10**9, 0.5, 10**10, 10**6, 10**6, 10**9,
                   10**9, 10**8, 12.3456789, 123.456789, 12345.6789, 123.456789)
            for position in range(3)
        ]  # fmt: skip
        at, number = at + max(meters.LOOK_SECONDS, stands_for(at)), number + 1
    store.samples.record(run.id, rows)
    assert 1_000 < number < 1_300
    with engine.connect() as connection:
        try:
            found = connection.scalar(text(size))
        except Exception:  # noqa: BLE001 - this SQLite cannot tell
            found = 160 * len(rows)
    assert found < 2_000_000


class Going:
    """Says that the run works so many times, and then that it is done."""

    def __init__(self, times: int) -> None:
        self._left = times

    def __call__(self, _run_id: int) -> Any:
        self._left -= 1
        state = RunState.RUNNING if self._left >= 0 else RunState.DONE
        return state, None, True


@pytest.fixture
def watched(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Store, Any, list[int]]]:
    run = new_run(store)
    at = now()
    counts = {"expected": 100, "prompt_tokens": 1000, "cached_tokens": 250}
    store.samples.record(run.id, [
        Sample(0, 0, 0, at.replace(microsecond=0), 1.5, 2 * 10**9),
        Sample(0, 1, 0, at.replace(microsecond=500_000), 1.5, 2 * 10**9, judged=40, **counts),
    ])  # fmt: skip
    asked: list[int] = []
    funnel = store.results.funnel
    monkeypatch.setattr(store.results, "funnel", lambda key: asked.append(key) or funnel(key))
    monkeypatch.setattr(store.runs, "standing", Going(4))
    monkeypatch.setattr(live, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(live, "LINE_SECONDS", 0.0)
    return store, run, asked


def test_who_looks_on_counts_all_candidates_once_in_a_while(watched: Any) -> None:
    store, run, asked = watched
    said = io.StringIO()
    live.watch(store, run, Console(file=said, width=200))
    lines = said.getvalue().splitlines()
    assert len(lines) == 5
    assert "fast 40 of 100, 80/s | 1.5 cores busy, 2.00 GB" in lines[0]
    assert lines[-1].startswith(f"run {run.key}: done")
    assert len(asked) == 2, "once while it worked, and once at its end"


def test_programs_that_look_on_get_an_object_a_line(
    watched: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    store, run, _ = watched
    live.watch(store, run, Console(), as_json=True)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["state"] for one in told] == ["running"] * 4 + ["done"]
    first = told[0]["tiers"][0]
    assert (first["judged"], first["expected"], first["cached"]) == (40, 100, 0.25)
    assert told[0]["machine"]["memory"] == 2 * 10**9


def test_a_terminal_shows_a_view_and_leaves_it_clean(watched: Any) -> None:
    store, run, _ = watched
    said = io.StringIO()
    live.watch(store, run, Console(file=said, width=120, force_terminal=True))
    assert "1.5 cores busy" in said.getvalue()
    assert "Ctrl-C leaves the run alone" in said.getvalue()
