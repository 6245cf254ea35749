"""What is new since the run before: counted, listed, and the same by the query of the docs."""

import json
from typing import Any

import pytest
from sqlalchemy import Engine, text
from typer.testing import CliRunner

from db.store import Store, StoreError
from flows.cli import app
from flows.commands.changes import changes_between
from tests.project import tier_by
from tests.test_sql_docs import QUERIES
from tests.test_store import a_row, ingested, judge_all
from tiers.types import Judgement

ONLY = (tier_by("only", accept_above=0.5),)


def screened(store: Store, key: str, scores: dict[int, float], bodies: dict[int, str]) -> Any:
    """A run over these candidates; a score belongs to a text, whoever asks."""
    run = ingested(store, [a_row(i, bodies.get(i)) for i in scores], tiers=ONLY, key=key)
    judge = store.tiers.set_judge(run.id, 0, {"model": key})
    for candidate in store.judgements.unjudged(run.id, 0, judge, 0, 1000):
        number = next(i for i in scores if candidate.text in (f"text {i}", bodies.get(i)))
        store.judgements.record(run.id, judge, [Judgement(candidate.id, scores[number])])
    store.verdicts.decide(run.id, 0)
    return run


@pytest.fixture
def two(store: Store) -> tuple[Any, Any]:
    """From papers-1 to papers-2: 1 rises, 2 falls, 3 goes, 4 comes, 5 has another text, 6 stays."""
    before = screened(store, "papers-1", {1: 0.1, 2: 0.9, 3: 0.9, 5: 0.1, 6: 0.9}, {})
    after = screened(store, "papers-2", {1: 0.9, 2: 0.1, 4: 0.9, 5: 0.1, 6: 0.9}, {5: "anew"})
    return before, after


def test_what_changed_between_two_runs_is_counted_and_listed(store: Store, two: Any) -> None:
    found = changes_between(store, *two)
    assert found["counts"] == {
        "newly_accepted": 2,
        "no_longer_accepted": 2,
        "new_candidates": 1,
        "gone": 1,
        "changed_text": 1,
        "other_verdict": 4,
    }
    assert [tuple(one.values()) for one in found["candidates"]] == [
        ("k001", "rejected", "accepted", "same"),
        ("k002", "accepted", "rejected", "same"),
        ("k003", "accepted", None, "gone"),
        ("k004", None, "accepted", "new"),
        ("k005", "rejected", "rejected", "changed"),
    ]
    assert changes_between(store, two[1], two[1])["candidates"] == []


def test_the_query_of_the_docs_finds_the_same(store: Store, engine: Engine, two: Any) -> None:
    (query,) = (one.sql for one in QUERIES if "two runs" in one.question or "papers-2" in one.sql)
    with engine.connect() as connection:
        rows = connection.execute(text(query)).all()
    found = changes_between(store, *two)["candidates"]
    assert [tuple(row) for row in rows] == [
        (one["key"], one["was"], one["is_now"], one["text"] == "changed") for one in found
    ]


def test_the_command_compares_the_newest_run_with_the_one_before(
    store: Store, two: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.commands.changes.open_store", lambda _database: store)
    asked = ["changes", "--json"]
    reply = CliRunner().invoke(app, asked)
    assert reply.exit_code == 0, reply.output
    assert json.loads(reply.stdout) == changes_between(store, *two)
    turned = CliRunner().invoke(app, [*asked, "papers-2", "papers-1"])
    assert json.loads(turned.stdout)["counts"]["new_candidates"] == 1
    shown = CliRunner().invoke(app, ["changes"])
    assert "from run papers-1 to run papers-2" in shown.stdout
    with pytest.raises(StoreError, match="'papers-1' is the first of screen 'papers'; name the"):
        store.runs.before(two[0])


def test_new_known_and_changed_are_told_apart_while_reading(store: Store) -> None:
    first = ingested(store, [a_row(i) for i in range(3)], tiers=ONLY, key="one")
    judge_all(store, first)
    run = store.runs.open("papers", {"rubric": "good?"}, "hash", ONLY, "two")
    store.candidates.begin(run.id)
    read = store.candidates.add(
        run.id, [a_row(1), a_row(2, "anew"), a_row(3), a_row(3)], "papers.csv"
    )
    assert (read.new, read.changed, read.known, read.duplicate) == (1, 1, 1, 1)
