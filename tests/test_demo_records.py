"""The demo's made-up applicants, and the models that were trained on their like."""

import csv
import hashlib
import io
import json
from itertools import islice
from pathlib import Path

import duckdb
import numpy as np
import pytest

from demo.records import (
    ROLE,
    RUBRIC,
    Applicant,
    applicants,
    main,
    population,
    write_csv,
    write_jsonl,
    write_parquet,
)
from demo.task import KINDS, Difficulty, dice, draw_hard_truth, draw_record, draw_role, reply

MODELS = Path(__file__).parents[1] / "demo" / "models"


@pytest.fixture(scope="module")
def drawn() -> list[Applicant]:
    return list(applicants(4_000, seed=3))


def test_equal_seeds_give_equal_people_and_others_give_others():
    first = list(applicants(200, seed=5))
    assert first == list(applicants(200, seed=5))
    assert {row.resume for row in first}.isdisjoint(row.resume for row in applicants(200, seed=6))


def test_a_shorter_draw_is_the_start_of_a_longer_one():
    assert list(applicants(50, seed=5)) == list(islice(applicants(500, seed=5), 50))


def test_ids_are_distinct(drawn):
    assert drawn[0].applicant_id == "A0000000"
    assert len({row.applicant_id for row in drawn}) == len(drawn)


def test_a_tenth_fits(drawn):
    share = np.mean([row.truth for row in drawn])
    assert share == pytest.approx(0.10, abs=3 * (0.1 * 0.9 / len(drawn)) ** 0.5)


def test_truth_does_not_show_in_length(drawn):
    fits = np.array([row.truth for row in drawn])
    for measure in (len, lambda text: text.count(","), lambda text: text.count(".")):
        lengths = np.array([measure(row.text) for row in drawn], float)
        gap = lengths[fits].mean() - lengths[~fits].mean()
        assert abs(gap) < 0.25 * lengths.std()


def test_skill_lists_are_as_long_whether_or_not_the_skill_is_there():
    random, skill = dice(1), ROLE.needs["skill"]
    entries = {
        met: np.mean(
            [skill.sentence(random, met, 1, Difficulty()).count(",") for _ in range(3_000)]
        )
        for met in (True, False)
    }
    assert entries[True] == pytest.approx(entries[False], abs=0.12)  # 4 standard errors


def test_jsonl_round_trip(drawn):
    written = io.StringIO()
    write_jsonl(drawn, written)
    assert [Applicant(**json.loads(line)) for line in written.getvalue().splitlines()] == drawn


def test_csv_round_trip(drawn):
    written = io.StringIO()
    write_csv(drawn, written)
    rows = csv.DictReader(io.StringIO(written.getvalue()))
    assert [Applicant(**{**row, "truth": row["truth"] == "true"}) for row in rows] == drawn


def test_parquet_round_trip(drawn, tmp_path):
    path = tmp_path / "applicants.parquet"
    write_parquet(drawn, path)
    with duckdb.connect() as connection:
        rows = connection.read_parquet(str(path)).order("applicant_id").fetchall()
    assert [Applicant(*row) for row in rows] == drawn


def test_the_command_writes_what_it_is_asked_for(tmp_path, capsys):
    path = tmp_path / "applicants.csv"
    main(["--count", "3", "--seed", "5", "--format", "csv", "--output", str(path)])
    main(["--count", "3", "--seed", "5", "--format", "csv"])
    assert path.read_text() == capsys.readouterr().out
    assert path.read_text().count("\n") == 4


def test_parquet_needs_a_file(capsys):
    with pytest.raises(SystemExit):
        main(["--format", "parquet"])
    assert "add --output applicants.parquet" in capsys.readouterr().err


def test_the_rubric_is_the_one_the_models_were_measured_on():
    assert RUBRIC == (
        "Role: data engineer. Needs: 5 or more years of work; knows a relational database; "
        "based in Scandinavia or remote; salary up to 84k."
    )


def test_a_reply_is_json_with_one_field_a_criterion_in_the_rubrics_order():
    record = next(population(seed=9))
    answered = json.loads('{"verdict":"' + reply(record))
    assert list(answered) == ["verdict", *ROLE.needs]
    assert (answered["verdict"] == "yes") == record.fits


def test_every_met_criterion_is_spoken_of():
    random = dice(2)
    for _ in range(300):
        role = draw_role(random, len(KINDS), Difficulty())
        truth = draw_hard_truth(random, list(role.needs))
        record = draw_record(random, role, truth, Difficulty())
        assert {kind for kind, met in truth.items() if met} <= set(record.settled)
        assert all(record.text[end - 1] == "." for end in record.settled.values())


def test_checksums_match_the_models():
    lines = (MODELS / "SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, name in (line.split("  ") for line in lines)}
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in MODELS.glob("*.gguf")
    }
    assert listed == found
    assert set(found) == {f"applicants-{size}.gguf" for size in ("small", "medium", "large")}
