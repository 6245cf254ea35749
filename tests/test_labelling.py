"""Sheets, one label at a time, two reviewers, and thresholds moved after a calibration."""

import csv
import io
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from db.engine import open_engine
from db.store import LabelSource, Run, Store, StoreError, rubric_digest
from flows.calibrate import calibrate
from flows.commands import console
from flows.commands.guarantee import decide, reliability
from flows.commands.labels import export_labels
from flows.guarantee import labelling
from flows.guarantee.labelling import COLUMNS, HELP, agreement, ask_in_turn, sheet, take_in
from flows.guarantee.state import Calibration
from flows.guarantee.thresholds import certified_now, change_of, consequences
from flows.report.reliability import bars, reliability_of, svg
from flows.settings import Settings
from tiers.screenfile.file import load_screen

from .project import screened
from .test_calibrate import PROMISE, paid, stored, write

BY_PEOPLE = PROMISE.replace("large", "people")


def filled(file: Path, rows: list[dict[str, str]], **answers: str) -> Path:
    """A sheet as a reviewer gives it back; `answers` by key, else what the text ends in."""
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        for row in rows:
            truth = row["text"].rpartition(" ")[2]
            writer.writerow({**row, "label": answers.get(row["key"], truth)})
    return file


def told(store: Store) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for label in store.labels.all(rubric_digest("any"), LabelSource.PERSON):
        found.setdefault(label.reviewer, []).append(label.answer)
    return found


@pytest.fixture
def asked(folder: Path) -> Path:
    """A folder whose calibration waits for people."""
    assert calibrate.fn(write(folder, BY_PEOPLE))["status"] == "waiting"
    return folder


@pytest.fixture
def commands(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands may be called here: what they open is closed."""
    engine = open_engine(Settings().database())
    monkeypatch.setattr(console, "open_store", lambda _: Store(engine))
    yield
    engine.dispose()


def test_a_sheet_is_blind_and_taken_in_once(asked: Path) -> None:
    with stored() as (store, run):
        rows = list(sheet(store, run))
        assert set(rows[0]) == {"key", "text", "rubric", "label"}
        assert {row["label"] for row in rows} == {""}
        file = filled(asked / "ada.csv", rows, **{rows[0]["key"]: "", rows[1]["key"]: " Unknown"})
        assert take_in(store, run, file, "ada", replace=False) == (len(rows) - 1, 1)
        assert take_in(store, run, file, "ada", replace=False) == (0, 1)
        assert told(store)["ada"].count(None) == 1
        # Only what was left empty is still wanted.
        assert [row["key"] for row in sheet(store, run)] == [rows[0]["key"]]


def test_a_longer_sheet_begins_with_the_same_draw(asked: Path) -> None:
    with stored() as (store, run):
        first, more = list(sheet(store, run)), list(sheet(store, run, count=150))
    assert len(more) == 150
    assert more[: len(first)] == first
    assert len({row["key"] for row in more}) == 150


def test_a_sheet_with_faults_names_them_all_and_stores_nothing(asked: Path) -> None:
    with stored() as (store, run):
        rows = list(sheet(store, run))
        rows += [{**rows[0], "key": "nobody"}, {**rows[1], "rubric": "other"}, dict(rows[2])]
        file = filled(asked / "bad.csv", rows, **{rows[4]["key"]: "perhaps"})
        text = file.read_text().splitlines()
        file.write_text("\n".join([*text[:-1], text[-1].rpartition(",")[0] + ",unknown"]))
        with pytest.raises(StoreError) as caught:
            take_in(store, run, file, "ada", replace=False)
        for said in ("'perhaps' is no answer", "no candidate 'nobody'", "rubric", "twice"):
            assert said in str(caught.value)
        assert told(store) == {}
        (asked / "x.csv").write_text("key,text\n")
        with pytest.raises(StoreError, match="no column 'label'"):
            take_in(store, run, asked / "x.csv", "ada", replace=False)


def test_a_sheet_may_have_been_through_any_editor(folder: Path) -> None:
    definition = write(folder, BY_PEOPLE)
    screen_file = (folder / "screen.yaml").read_text()
    (folder / "screen.yaml").write_text(
        screen_file.replace("rubric: any", "rubric: |\n  any\n  kind")
    )
    definition = load_screen(folder / "screen.yaml")
    calibrate.fn(definition)
    long, limit = "x" * 200_000, csv.field_size_limit(100_000)
    with stored() as (store, run):
        rows = [{**row, "text": long} for row in sheet(store, run)][:6]
        assert rows[0]["rubric"].endswith("any\nkind\n")
        for number, (separator, end, rubric) in enumerate(
            (
                (",", "\n", "any\nkind\n"),
                (";", "\r\n", "any\r\nkind\r\n"),
                ("\t", "\r\n", "any\nkind"),
            )
        ):
            lines = io.StringIO(newline="")
            writer = csv.writer(lines, delimiter=separator, lineterminator=end)
            writer.writerow(["Key", "Fault", " RUBRIC", "Label"])
            for row in rows[2 * number : 2 * number + 2]:
                writer.writerow([row["key"], row["text"], rubric, "Yes"])
                writer.writerow(["", "", "", ""])
            writer.writerow(["", "a note", "", ""])
            file = folder / "ada.csv"
            file.write_bytes(lines.getvalue().encode("utf-8-sig"))
            assert take_in(store, run, file, "ada", replace=False) == (2, 0)
        labels = store.labels.all(rubric_digest(definition.rubric), LabelSource.PERSON)
        assert [(one.reviewer, one.answer) for one in labels] == [("ada", True)] * 6
    assert csv.field_size_limit(limit) == 100_000  # as it was found


def test_a_sheet_holds_no_formula_and_its_keys_come_back_as_they_were(
    asked: Path, commands: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = {"text": "=HYPERLINK(1) yes", "rubric": "- must fit", "label": ""}
    keys = ["=1+1", "'=1+1", "-5", "@x", "plain"]
    sheet_of = [{"key": key, **evil} for key in keys]
    monkeypatch.setattr("flows.guarantee.labelling.sheet", lambda *_, **__: sheet_of)
    export_labels(None, asked / "a.csv")
    with (asked / "a.csv").open(newline="") as stream:
        cells = list(csv.DictReader(stream))
    assert [row["key"] for row in cells] == ["'=1+1", "''=1+1", "-5", "'@x", "plain"]
    assert {(row["text"], row["rubric"]) for row in cells} == {
        ("'=HYPERLINK(1) yes", "'- must fit")
    }
    read = labelling._read(asked / "a.csv")
    assert [(row["key"], row["rubric"]) for _, row in read] == [(key, "- must fit") for key in keys]


def test_a_sheet_that_cannot_be_read_says_why(asked: Path, monkeypatch) -> None:
    file = asked / "bad.csv"
    with stored() as (store, run):
        first, *_ = sheet(store, run)
        key = first["key"]

        def fault(content: str, encoding: str = "utf-8") -> str:
            file.write_bytes(content.encode(encoding))
            with pytest.raises(StoreError) as caught:
                take_in(store, run, file, "ada", replace=False)
            return str(caught.value)

        for encoding in ("utf-16", "utf-16-le", "cp1252"):
            said = fault(f"key,text,label\n{key},caf\u00e9,yes\n", encoding)
            assert "is not UTF-8; save it as CSV UTF-8" in said
        head = "key,text,label\n"
        assert "line 2: 2 columns, and the first line has 3" in fault(f"{head}{key},yes\n")
        assert "needs quotes" in fault(f"{head}{key},a,b,yes\n")
        assert "line 2: an answer without a key" in fault(f"{head},a,yes\n")
        assert "more than one column 'label'" in fault(f"key,label,Label\n{key},yes,no\n")
        assert "no column 'key'" in fault("")
        said = fault(f"{head}{key},a,Yes\n{key},a,?\n")
        assert f"line 3: '{key}' is answered twice, yes and unknown" in said

        def broken(*given: object, **options: object) -> None:
            raise csv.Error("line contains no sense")

        monkeypatch.setattr(csv, "reader", broken)
        assert "bad.csv is no table: line contains no sense" in fault(head)
        assert told(store) == {}


def test_two_keys_of_one_text_answered_otherwise_are_both_named(folder: Path) -> None:
    definition = write(folder, BY_PEOPLE)
    with (folder / "in.jsonl").open("a") as file:
        file.write('{"id": "twin", "text": "text number 7: no"}\n')
    calibrate.fn(definition)
    (folder / "a.csv").write_text("key,label\nk0007,no\ntwin,yes\n")
    with (
        stored() as (store, run),
        pytest.raises(StoreError, match="'k0007' and 'twin' are one text answered twice, no and y"),
    ):
        take_in(store, run, folder / "a.csv", "ada", replace=False)


def test_people_are_not_asked_for_what_a_tier_answers(folder: Path, commands, capsys) -> None:
    calibrate.fn(write(folder))
    with stored() as (store, run):
        with pytest.raises(StoreError, match=r"its labels from its tier 'large'.*against: people"):
            list(sheet(store, run))
        with pytest.raises(StoreError, match="export try-1 --count 100"):
            ask_in_turn(store, run, "ada", lambda _: "q", lambda _: None)
        # To compare with, though: the draw as people would have it, whatever the tier has said.
        rows = list(sheet(store, run, count=20))
        assert len(rows) == 20
        assert take_in(store, run, filled(folder / "a.csv", rows), "ada", replace=False) == (20, 0)
        assert len(list(sheet(store, run, labelled_by="ada"))) == 20
    export_labels(None, folder / "b.csv", 20)
    assert "'large': those of people are kept to compare with" in capsys.readouterr().err


def test_a_sheet_of_nobody_is_not_written(asked: Path) -> None:
    with stored() as (store, run):
        with pytest.raises(StoreError, match=r"'zoe' has labelled nothing .*; nor has anybody"):
            list(sheet(store, run, labelled_by="zoe"))
        rows = list(sheet(store, run))[:3]
        take_in(store, run, filled(asked / "a.csv", rows), "ada", replace=False)
        with pytest.raises(StoreError, match=r"'zoe' .* 'try-1'; write one of: ada \(3\)"):
            list(sheet(store, run, labelled_by="zoe"))


def test_files_that_cannot_be_written_are_said_in_words(asked: Path, commands, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        export_labels(None, asked / "nodir" / "x.csv")
    assert stopped.value.code == 2
    with stored() as (store, run):
        rows = list(sheet(store, run))
        take_in(store, run, filled(asked / "a.csv", rows), "ada", replace=False)
    with pytest.raises(SystemExit) as stopped:
        reliability(plot=asked / "nodir" / "x.svg")
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    for name in ("x.csv", "x.svg"):
        assert f"{name} cannot be written: No such file or directory; name a file in a" in said


def test_who_went_back_to_a_version_and_why_is_kept(folder: Path, commands, capsys) -> None:
    definition = write(folder)
    calibrate.fn(definition)
    screened(definition)
    with stored() as (store, run):
        old = next(one for one in store.policies.versions(run.id) if one.in_use)
    decide(run.key, "cheaper", "small", 0.01, by="ada")
    for refused, because in (({"reject_below": 0.9}, "x"), ({}, " ")):
        with pytest.raises(SystemExit):
            decide(run.key, because, policy=old.id, by="bob", **refused)
    said = capsys.readouterr().err
    assert f"--policy {old.id} brings its own thresholds" in said
    assert "the reason is empty" in said
    decide(run.key, "too dear", policy=old.id, by="bob")
    with stored() as (store, run):
        new = next(one for one in store.policies.versions(run.id) if one.in_use)
    assert (new.author, new.reason) == ("bob", "too dear")
    assert (new.thresholds, new.labels_from) == (old.thresholds, old.labels_from)
    assert (new.id != old.id, new.certified) == (True, True)


def test_labels_are_asked_one_by_one_with_a_way_back(asked: Path) -> None:
    script = iter(["y", "?", "nonsense", "", "2", "n", "b", "u", "q"])
    said: list[str] = []
    with stored() as (store, run):
        wanted = len(Calibration(store, run, write(asked, BY_PEOPLE)).missing())
        assert ask_in_turn(store, run, "ada", lambda _: next(script), said.append) == 2
        assert sorted(told(store)["ada"], key=str) == [None, True]
        for typed in ("nonsense", "", "2"):
            assert any(f"'{typed}' is no answer" in one for one in said)
        assert HELP in said
        prompts: list[str] = []

        def stop(prompt: str) -> str:
            prompts.append(prompt)
            return "q"

        ask_in_turn(store, run, "ada", stop, said.append)  # resumed
        assert f"0 told, {wanted - 2} left in this round" in prompts[0]


def test_two_reviewers_are_compared_and_their_disputes_listed(asked: Path) -> None:
    with stored() as (store, run):
        rows = list(sheet(store, run))[:10]
        take_in(store, run, filled(asked / "a.csv", rows), "ada", replace=False)
        again = list(sheet(store, run, labelled_by="ada"))
        assert {row["key"] for row in again} == {row["key"] for row in rows}
        first = rows[0]["key"]
        other = "no" if rows[0]["text"].endswith("yes") else "yes"
        file = filled(asked / "b.csv", again, **{first: other})
        take_in(store, run, file, "bob", replace=False)
        found = agreement(store, run)
        [pair] = found.pairs
        assert (pair.common, pair.agree) == (10, 0.9)
        assert 0 < pair.kappa < 0.9
        [dispute] = found.disputes
        assert (dispute["key"], dispute["settled"]) == (first, "no")
        assert {dispute["ada"], dispute["bob"]} == {"yes", "no"}
        # It is still wanted; a third person settles it.
        assert first in [row["key"] for row in sheet(store, run)]
        take_in(store, run, filled(asked / "c.csv", rows[:1]), "cleo", replace=False)
        assert first not in [row["key"] for row in sheet(store, run)]


def moved(store: Store, run: Run, low: float) -> dict[str, Any]:
    return asdict(consequences(store, run, *change_of(store, run, "small", low, None)))


def test_moved_thresholds_are_told_what_they_certify(folder: Path) -> None:
    definition = write(folder)
    made = calibrate.fn(definition, key="one")
    screened(definition, key="one")
    before = [paid(folder, tier) for tier in ("small", "medium", "large")]
    certified = made["thresholds"][0]["reject_below"]
    with stored() as (store, run):
        lower, higher = moved(store, run, 0.0), moved(store, run, 0.9)
        assert certified_now(store, run) == pytest.approx(made["certified_bound"])
        assert lower["certified_recall"] >= made["certified_bound"]
        assert higher["certified_recall"] < 0.9
        same = moved(store, run, certified)
        assert (same["candidates"], dict(same["flips"])) == ([], {})
        assert set(lower["flips"]) <= {"rejected -> pending"}
        assert lower["tiers"][2]["to_judge"] == len(lower["candidates"])
        assert set(higher["flips"]) <= {"accepted -> rejected"}
        with pytest.raises(StoreError, match="no tier 'smal'; write one of: small, medium, large"):
            change_of(store, run, "smal", 0.1, None)
        with pytest.raises(StoreError, match=r"reject_below 0\.9 lies above accept_above 0\.5"):
            change_of(store, run, "small", 0.9, 0.5)

        position, change = change_of(store, run, "small", 0.0, None)
        store.policies.move(run.id, position, change, author="ada", reason="try")
        store.verdicts.redecide(run.id, position)
    screened(definition, key="one")
    after = [paid(folder, tier) for tier in ("small", "medium", "large")]
    assert after[:2] == before[:2]
    assert after[2] - before[2] == lower["tiers"][2]["to_judge"] > 0


def test_scores_are_held_against_labels(folder: Path) -> None:
    definition = write(folder)
    made = calibrate.fn(definition)
    with stored() as (store, run):
        found = reliability_of(store, run, bins=4)
        assert [one.tier for one in found] == ["small", "medium"]
        small, medium = found
        assert small.labels == medium.labels == made["labels_used"]
        assert sum(row.count for row in small.table) == made["labels_used"]
        # By construction: others score up to the noise, positives from 1 - noise upwards.
        assert medium.table[0].positive_share == 0
        assert medium.table[3].positive_share == 1
        assert small.mapped["platt"].brier < small.errors.brier
        picture = svg(found)
        circles = sum(row.count > 0 for one in found for row in one.table)
        assert ET.fromstring(picture).tag.endswith("svg")  # noqa: S314 - our own
        tiers = picture.split('<g id="tier-')[1:]
        assert sum(one.partition("</g>")[0].count("<use") for one in tiers) == circles
        rows = bars(medium)
        assert rows[-1]["#: positive, |: mean score"].count("#") == 29  # and the mark
        with pytest.raises(StoreError, match="write one of: small, medium"):
            reliability_of(store, run, tier="large")


def test_without_labels_there_is_nothing_to_hold_scores_against(folder: Path) -> None:
    definition = write(folder, PROMISE.replace("large", "people"))
    calibrate.fn(definition)
    with stored() as (store, run):
        with pytest.raises(StoreError, match="no candidate of run 'try-1' has a label"):
            reliability_of(store, run)
        calibration = Calibration(store, run, definition)
        texts = store.labels.texts(calibration.missing())
        answers = {text_id: body.endswith("yes") for text_id, body in texts.items()}
        store.labels.record(calibration.rubric, LabelSource.PERSON, "ada", answers)
        # The last tier has been asked nothing, so nothing is said of it.
        assert [one.tier for one in reliability_of(store, run)] == ["small", "medium"]
