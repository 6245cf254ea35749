"""A run's report: aggregates alone, each by the SQL under it, in one file that asks nobody."""

import html
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bench.browser import browser, installed
from db import aggregates as asks
from db.query import ask
from db.store import Run, RunState, Store
from flows.calibrate import calibrate
from flows.cli import app
from flows.report import charts
from flows.report.html import comparison, report
from flows.report.reliability import reliability_of
from flows.settings import Settings
from tiers.screenfile.file import load_screen
from tiers.types import Judgement

from .project import screened, tier_by
from .project import write as write_screen
from .test_calibrate import stored, write
from .test_changes import screened as of_scores
from .test_run import tier
from .test_store import SLOW, a_row, ingested, judge_all, rows, waiting

SIZE = 3_000_000
NASTY = '<script>alert("1")</script> 100% :x'


@pytest.fixture
def finished(folder: Path) -> Path:
    """A run with labels, a certificate, samples and accepted ones, on either database."""
    definition = write(folder)
    assert calibrate.fn(definition)["status"] == "certified"
    screened(definition)
    return folder


def queries(page: str) -> list[str]:
    return [html.unescape(found) for found in re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)]


def cells(page: str, section: str) -> list[list[str]]:
    """The words of a section's table."""
    part = page.partition(f'<section id="{section}">')[2].partition("</section>")[0]
    return [
        [html.unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)]
        for row in re.findall(r"<tr>(.*?)</tr>", part)[1:]
    ]


def test_every_query_under_a_number_gives_that_number(finished: Path) -> None:
    url = Settings().database()
    with stored() as (store, run):
        page = report(store, run)
    asked = queries(page)
    assert len(asked) >= 11
    answers = [ask(url, sql) for sql in asked]
    funnel = next(rows for sql, rows in zip(asked, answers, strict=True) if "FROM funnel" in sql)
    shown = cells(page, "funnel")
    assert (
        [row[0] for row in shown] == [row["tier"] for row in funnel] == ["small", "medium", "large"]
    )
    assert [row[1] for row in shown] == [f"{row['reached']:,}" for row in funnel]
    for section in ("funnel", "scores", "reliability", "costs", "resources", "certificate"):
        assert f'<section id="{section}">' in page
    silent = [sql for sql, rows in zip(asked, answers, strict=True) if not rows]
    assert all("bad_row" in sql for sql in silent), "all answer but the one about what went wrong"


def test_what_was_planned_stands_beside_what_came(folder: Path) -> None:
    second = tier("second", "accept_above: 0.5", options="salt: other")
    write_screen(folder, tier("first", "reject_below: 0.3"), second, count=60)
    screened(load_screen(folder / "screen.yaml"))
    with stored() as (store, run):
        page, held = report(store, run), store.plans.of(run.id)
    assert held is not None
    shown = cells(page, "plan")
    assert shown[0][:2] == ["first", "candidates"]
    assert shown[0][3] == "60"
    (sql,) = [one for one in queries(page) if "plan.body" in one]
    assert json.loads(ask(Settings().database(), sql)[0]["plan"]) == held


def test_the_headline_holds_accepted_cost_and_recall(finished: Path) -> None:
    with stored() as (store, run):
        page, account = report(store, run), store.runs.account(run.id)
    cards = dict(re.findall(r'<a class="card[^>]*><span>(.*?)</span><strong>(.*?)</strong>', page))
    assert cards["accepted"] == f"{account.accepted:,}"
    assert cards["recall"].startswith(("≥ 0.9", "0."))
    assert {"cost", "time", "for a person"} <= set(cards)


def test_bins_of_labelled_scores_are_those_of_tamis_reliability(finished: Path) -> None:
    with stored() as (store, run):
        page = report(store, run)
        for found, shown in zip(
            reliability_of(store, run), cells(page, "reliability"), strict=True
        ):
            error = f"{found.errors.calibration_error:.4f}"
            assert shown == [found.tier, f"{found.labels:,}", f"{found.positive:,}", error]


def edges(store: Store) -> Run:
    """Scores at the edges of bins, and a tier, a key and a text that would be markup."""
    given = [a_row(i, f"{i} {NASTY}", id=f"{i}{NASTY}") for i in range(5)]
    given = [row._replace(key=f"{i}{NASTY}") for i, row in enumerate(given)]
    first = tier_by("fa$t$ <i>", 0.2)
    run = ingested(store, given, tiers=[first, SLOW], key="it's 100% :run <b>")
    judge = store.tiers.set_judge(run.id, 0, {"model": "small"})
    texts = waiting(store, run, 0, judge)
    scores = [0.0, 0.025, 0.5, 0.99999, 1.0]
    answers = [Judgement(c.id, score) for c, score in zip(texts, scores, strict=True)]
    store.judgements.record(run.id, judge, answers)
    store.verdicts.decide(run.id, 0)
    judge_all(store, run, position=1, model="large", score=0.9)
    store.verdicts.decide(run.id, 1)
    return run


def test_scores_fall_into_the_same_bins_on_both_databases(store: Store) -> None:
    rows = store.aggregates.ask(asks.SCORES, edges(store)).rows
    first = [(row["bin"], row["became"], row["candidates"]) for row in rows if not row["position"]]
    assert first == [
        (0, "rejected", 1),
        (1, "rejected", 1),
        (20, "promoted", 1),
        (39, "promoted", 2),
    ]


def test_what_a_candidate_or_a_name_says_is_no_markup(store: Store) -> None:
    page = report(store, edges(store))
    assert "<script" not in page
    assert "<i>" not in page
    assert "&lt;script&gt;" in page
    assert "fa$t$ &lt;i&gt;" in page


def test_only_the_most_disputed_candidates_are_in_it_and_size_does_not_grow(store: Store) -> None:
    pages = []
    for number, count in enumerate((200, 20_000)):
        run = ingested(store, rows(count), tiers=[tier_by("fast", 0.3), SLOW], key=f"run-{number}")
        judge = store.tiers.set_judge(run.id, 0, {"model": "small"})
        texts = waiting(store, run, 0, judge)
        answers = [Judgement(c.id, (i % 101) / 100) for i, c in enumerate(texts)]
        store.judgements.record(run.id, judge, answers)
        store.verdicts.decide(run.id, 0)
        judge_all(store, run, position=1, model="large", score=0.1)
        store.verdicts.decide(run.id, 1)
        pages.append(report(store, run))
    assert len(cells(pages[1], "disputed")) == 20
    assert all(len(page) < SIZE for page in pages)
    assert len(pages[1]) < 1.3 * len(pages[0])
    told = set(re.findall(r"k\d{3,}", pages[1]))
    assert len(told) == 20


def test_a_million_fit_into_the_drawings_too() -> None:
    bins = [{"rejected": 700_398 // 40, "promoted": 299_602 // 40} for _ in range(asks.BINS)]
    flows = [
        charts.Flow(f"tier {i}", 10**6, 1, dict.fromkeys(charts.VERDICTS, 199_999))
        for i in range(5)
    ]
    drawn = [charts.scores(bins, 0.1, 0.9, "x"), charts.funnel(flows), charts.funnel(flows, 1060)]
    assert sum(map(len, drawn)) < 200_000
    assert all(not re.search(r"#[0-9a-f]{6}\b", svg) for svg in drawn), "each colour is a variable"


def test_a_run_that_has_just_begun_has_a_report(store: Store) -> None:
    run = ingested(store, rows(3))
    page = report(store, run)
    assert "3 candidates = 0 accepted" in page
    empty = store.runs.open("papers", {"rubric": "good?"}, "other", [SLOW], "empty")
    assert "0 candidates" in report(store, empty)


def test_two_runs_are_compared_by_counts(store: Store) -> None:
    before = of_scores(store, "papers-1", {1: 0.1, 2: 0.9, 3: 0.9, 5: 0.1, 6: 0.9}, {})
    after = of_scores(store, "papers-2", {1: 0.9, 2: 0.1, 4: 0.9, 5: 0.1, 6: 0.9}, {5: "anew"})
    rows = store.aggregates.ask(asks.CHANGED, after, before=before).rows
    counted = Counter({(r["was"], r["is_now"], r["text"]): r["candidates"] for r in rows})
    listed = Counter(
        (d.was, d.is_now, d.text) for d in store.results.differences(before.id, after.id)
    )
    counted.pop(("accepted", "accepted", "same"))
    assert counted == listed
    page = comparison(store, before, after)
    assert "<strong>50.0%</strong><span>of 4 candidates in both" in page
    assert ["accepted", "rejected", "same", "1"] in cells(page, "changes")


def test_the_command_writes_a_file_and_tells_what_is_wrong(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
    runner = CliRunner()
    told = runner.invoke(app, ["report", "--json"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["file"] == "try-1.html"
    assert Path("try-1.html").read_text().startswith("<!doctype html>")
    done = runner.invoke(app, ["report", "try-1", "try-1", "--output", "two.html"])
    assert (done.exit_code, Path("two.html").exists()) == (0, True)
    wrong = runner.invoke(app, ["report", "--output", "x.pdf"])
    assert wrong.exit_code == 2


def test_no_other_command_waits_for_matplotlib() -> None:
    script = (
        "import sys, flows.cli, flows.run.screening, flows.report.live, flows.commands.report, "
        "flows.report.reliability; sys.exit('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(installed() is None, reason="no Chromium: apt-get install chromium")
def test_it_opens_without_a_network_and_fits_a_phone(sqlite_url: str, tmp_path: Path) -> None:
    from db.engine import check_ready
    from db.store import opened_store

    check_ready(sqlite_url)
    file, talkative = tmp_path / "report.html", tmp_path / "talkative.html"
    with opened_store(sqlite_url) as store:
        run = edges(store)
        store.runs.finish(run.id, RunState.DONE)
        file.write_text(report(store, run), "utf-8")
    talkative.write_text(
        "<p>a page that asks for something</p><img src='http://tamis.invalid/x.png'>"
    )
    with browser() as page:
        page.cut()
        page.open(file.as_uri())
        assert [one for one in page.asked if not one.startswith(("file:", "data:"))] == []
        assert "Most disputed candidates" in page.text()
        for width in (1280, 390):
            page.look(width, dark=width == 390)
            assert page.run("document.documentElement.scrollWidth") <= width
            drawn = page.run("[...document.querySelectorAll('svg')].some(e => e.clientWidth > 200)")
            assert drawn
        page.open(talkative.as_uri())
        assert "http://tamis.invalid/x.png" in page.asked, "else the test above sees nothing"


def shown_colours(svg: str) -> Any:
    return set(re.findall(r"var\(--(\w+)\)", svg))


def test_a_drawing_that_stands_alone_brings_its_colours() -> None:
    svg = charts.alone(charts.reliability([("one", [(0.1, 0.2), (0.9, 0.8)])]))
    assert shown_colours(svg) <= {*charts.LIGHT, "font"}
    assert all(f"--{name}:" in svg for name in shown_colours(svg))
    assert set(charts.LIGHT) == set(charts.DARK) == set(charts.NAMES)
