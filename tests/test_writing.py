"""Results as files: whole, in order, and harmless in a spreadsheet."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine
from typer.testing import CliRunner

from db.engine import check_ready, open_engine
from db.store import Row, Store, StoreError
from flows.cli import app
from flows.files.writing import WritingError, as_it_was, defused
from tests.project import tier_by
from tiers.types import Judgement

EVIL = '=HYPERLINK("http://evil.example","x")'
RECORDS: list[dict[str, Any]] = [
    {"id": "k1", "name": EVIL, "Score": -5, "debt": "-12.5", "tags": ["a", "b"], "open": True},
    {"id": "k2", "name": "ada", "verdict": "mine", "late": "only here"},
    {"id": "+k3", "name": "'=x", "Score": 1.5, "it's": "@SUM(A1)", "none": None},
]


@pytest.fixture
def run_key(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A run of three candidates: one accepted, one rejected, one in review."""
    opened: list[Engine] = []

    def open_and_note(url: str) -> Engine:
        opened.append(open_engine(url))
        return opened[-1]

    monkeypatch.setattr("db.engine.open_engine", open_and_note)
    monkeypatch.setenv("TAMIS_DATABASE_URL", database_url)
    check_ready(database_url)
    engine = open_engine(database_url)
    store = Store(engine)
    plan = tier_by("fast", accept_above=0.5)
    run = store.runs.open("try", {"tiers": []}, "digest", [plan], key=None)
    store.candidates.begin(run.id)
    rows = [
        Row(i, one["id"], f"text {i}", orjson.dumps(one), None) for i, one in enumerate(RECORDS)
    ]
    store.candidates.add(run.id, rows, source="in.jsonl")
    store.candidates.finish(run.id, 3, 0)
    judge = store.tiers.set_judge(run.id, 0, {"model": "m"})
    waiting = store.judgements.unjudged(run.id, 0, judge, after=0, limit=10)
    scores = {"text 0": 0.9, "text 1": 0.1, "text 2": None}
    store.judgements.record(
        run.id,
        judge,
        [
            Judgement(one.id, scores[one.text], "yes", error=None if scores[one.text] else "torn")
            for one in waiting
        ],
    )
    store.verdicts.decide(run.id, 0)
    engine.dispose()
    yield run.key
    for each in opened:  # a command leaves its own to the end of its process
        each.dispose()


def results(*arguments: str, code: int = 0) -> str:
    told = CliRunner().invoke(app, ["results", *arguments])
    if code and isinstance(told.exception, StoreError | WritingError):  # as `main` tells it
        return str(told.exception)
    assert told.exit_code == code, told.output
    return told.output


def test_every_column_of_the_input_follows_ours_and_a_review_says_why(run_key):
    rows = {row["key"]: row for row in map(json.loads, results(run_key, "--json").splitlines())}
    assert list(rows["k1"]) == [
        "key", "verdict", "tier", "score", "why", "fast_score", "fast_reading",
        "id", "name", "input_Score", "debt", "tags", "open", "it's", "late", "none", "input_verdict",
    ]  # fmt: skip
    assert (rows["k1"]["verdict"], rows["k1"]["input_Score"], rows["k1"]["tags"]) == ("accepted", -5, ["a", "b"])  # fmt: skip
    assert (rows["k2"]["verdict"], rows["k2"]["input_verdict"]) == ("rejected", "mine")
    assert (rows["+k3"]["verdict"], rows["+k3"]["why"]) == ("review", "torn")


def test_columns_are_chosen_left_out_and_refused_by_name(run_key):
    def names(*arguments: str) -> list[str]:
        return list(json.loads(results(run_key, "--json", *arguments).splitlines()[0]))[5:]

    assert names("--columns", "name, tags") == ["fast_score", "fast_reading", "name", "tags"]
    assert names("--no-fields") == ["fast_score", "fast_reading"]
    assert len(results(run_key, "--json", "--limit", "2").splitlines()) == 2
    assert "has no column 'nmae'; it has id, name" in results(run_key, "--columns", "nmae", code=2)
    assert "contradict" in results(run_key, "--no-fields", "--columns", "name", code=2)


def test_no_cell_of_a_csv_is_a_formula_and_numbers_stay_numbers(run_key):
    rows = list(csv.DictReader(io.StringIO(results(run_key))))
    by_key = {row["key"]: row for row in rows}
    assert set(by_key) == {"k1", "k2", "'+k3"}
    assert by_key["k1"]["name"] == f"'{EVIL}"
    assert by_key["'+k3"]["name"] == "''=x"
    assert by_key["'+k3"]["it's"] == "'@SUM(A1)"
    assert (by_key["k1"]["input_Score"], by_key["k1"]["debt"]) == ("-5", "-12.5")
    assert by_key["k1"]["tags"] == '["a","b"]'
    raw = list(csv.DictReader(io.StringIO(results(run_key, "--raw"))))
    assert {row["name"] for row in raw} == {EVIL, "ada", "'=x"}


FULL_WIDTH = [f"{chr(ord(each) + 0xFEE0)}1" for each in "=+-@"]


@pytest.mark.parametrize(
    "cell",
    [EVIL, "+1+cmd", "-1-1", "@SUM(1)", "\tx", "\r=1", "\n=1", *FULL_WIDTH, "'=1", "''-x"],
)
def test_what_a_spreadsheet_takes_for_a_formula_gets_an_apostrophe(cell):
    assert defused(cell) == f"'{cell}"
    assert as_it_was(defused(cell)) == cell


@pytest.mark.parametrize("cell", ["-5", "+3.5e-7", "0", "a=b", "'quoted'", "", " =1", "'"])
def test_other_cells_stay_as_they_are(cell):
    assert defused(cell) == as_it_was(cell) == cell


@given(st.text(alphabet="'=+-@\t\r1a ", max_size=6))
def test_every_cell_comes_back_as_it_was(cell):
    assert as_it_was(defused(cell)) == cell


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl", "ndjson", "parquet", "CSV"])
def test_the_name_of_a_file_says_how_it_is_written(run_key, tmp_path, suffix):
    file = tmp_path / f"out.{suffix}"
    results(run_key, "--output", str(file))
    match suffix.lower():
        case "csv":
            rows = list(csv.DictReader(io.StringIO(file.read_text())))
        case "json":
            rows = json.loads(file.read_text())
        case "parquet":
            found = duckdb.execute("SELECT * FROM read_parquet(?)", [str(file)])
            names = [each[0] for each in found.description or ()]
            rows = [dict(zip(names, row, strict=True)) for row in found.fetchall()]
            assert rows[1]["score"] == 0.9
            assert json.loads(rows[1]["tags"]) == ["a", "b"]
        case _:
            rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["verdict"] for row in rows] == ["review", "accepted", "rejected"]
    assert rows[1]["input_Score"] in (-5, "-5")


@pytest.mark.parametrize("name", ["a.xlsx", "a.txt", "a", "a.csv.gz"])
def test_a_suffix_that_nothing_is_written_as_is_refused(run_key, tmp_path, name):
    file = tmp_path / name
    said = " ".join(results(run_key, "--output", str(file), code=2).split())
    assert "results are written as .csv, .json, .jsonl or .parquet" in said
    assert not file.exists()


def test_json_of_nobody_is_an_empty_array(run_key, tmp_path):
    file = tmp_path / "out.json"
    results(run_key, "--verdict", "failed", "--output", str(file))
    assert json.loads(file.read_text()) == []


def test_a_file_is_not_emptied_by_a_wrong_verdict(run_key, tmp_path):
    file = tmp_path / "out.csv"
    file.write_text("mine")
    told = CliRunner().invoke(app, ["results", run_key, "--verdict", "good", "--output", str(file)])
    assert told.exit_code != 0
    assert file.read_text() == "mine"
    assert Path(file).exists()
