"""What a second reading of the input does to a run: nothing that nobody asked for."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from db.engine import open_engine
from db.store import InputRefused, RunState, Store
from flows.calibrate import calibrate
from flows.run.screening import prepare, screen_candidates
from flows.settings import Settings
from tiers.screenfile.faults import ScreenError
from tiers.screenfile.file import Screen, load_screen

from . import test_calibrate
from .project import screened as screen_again
from .project import write

HERE = Path(__file__).parent
TIER = (
    f"{{name: only, backend: python, path: 'own_tiers:Steady', folder: {HERE}, "
    "policy: {accept_above: 0.5}}"
)


def screened(folder: Path, *, source: str = "in.jsonl", bad: str = "") -> Screen:
    """A run `one` over 50 candidates, done."""
    write(folder, TIER, count=50)
    with (folder / "in.jsonl").open("a") as file:
        file.write(bad)
    file = folder / "screen.yaml"
    file.write_text(file.read_text().replace("in.jsonl", source))
    definition = load_screen(file)
    screen_again(definition, key="one")
    return definition


def put(folder: Path, *numbers: int, body: str = "text number") -> None:
    rows = ({"id": f"k{i:06}", "text": f"{body} {i}"} for i in numbers)
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@contextmanager
def stored() -> Iterator[Store]:
    engine = open_engine(Settings().database())
    try:
        yield Store(engine)
    finally:
        engine.dispose()


def everything() -> dict[str, Any]:
    """All that is remembered of the run but the count of its readings and their marks."""
    engine = open_engine(Settings().database())
    queries = {
        "run": "SELECT id, key, config, state, reason, finished_at, seconds, rows_read, "
        "rows_duplicate FROM run",
        "verdict": "SELECT run_id, candidate_id, position, outcome, why FROM verdict ORDER BY 1, 2",
        "bad_row": "SELECT id, line, reason FROM bad_row ORDER BY id",
    }
    with engine.connect() as connection:
        found = {name: connection.execute(text(query)).all() for name, query in queries.items()}
    engine.dispose()
    return found


def candidates(key: str = "one") -> int:
    with stored() as store:
        run = store.runs.find(key)
        return len(list(store.results.all(run.id)))


@pytest.mark.parametrize("content", ["", "\n\n", "no json\n{broken\n"])
def test_an_input_without_a_candidate_changes_nothing(folder: Path, content: str) -> None:
    definition = screened(folder)
    before = everything()
    (folder / "in.jsonl").write_text(content)
    for start in (prepare, screen_candidates):
        with pytest.raises(ScreenError, match=r"holds no candidate: .*nothing was changed"):
            start(definition, key="one")  # type: ignore[operator]
        assert everything() == before
    with pytest.raises(ScreenError, match="holds no candidate"):
        screen_again(definition, key="one", allow_shrink=True)
    assert everything() == before
    with pytest.raises(ScreenError, match="holds no candidate"):
        prepare(definition, "two")
    assert everything() == before, "and begins no run"


def test_a_header_alone_is_no_candidate(folder: Path) -> None:
    write(folder, TIER, count=1)
    file = folder / "screen.yaml"
    file.write_text(file.read_text().replace("in.jsonl", "in.csv"))
    (folder / "in.csv").write_text("id,text\n")
    with pytest.raises(ScreenError, match="holds no candidate: it has no rows"):
        prepare(load_screen(file), "one")


def test_what_is_wrong_with_an_input_that_cannot_be_read_at_all_is_told(folder: Path) -> None:
    write(folder, TIER, count=1)
    (folder / "in.jsonl").write_text('\n{"id": "", "text": "nobody"}\n7\n')
    said = r"none of its 2 rows can be read, the first \(in.jsonl, line 2\): no value in the key"
    with pytest.raises(ScreenError, match=said):
        prepare(load_screen(folder / "screen.yaml"), "one")


def test_more_than_half_leave_a_run_only_where_that_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    definition = screened(folder)
    before = everything()
    put(folder, *range(24), 100, 101)
    with pytest.raises(InputRefused, match=r"lacks 26 of the run's 50 .* --allow-shrink"):
        screen_again(definition, key="one")
    assert everything() == before
    put(folder, *range(25), 200, 201)
    capsys.readouterr()
    screen_again(definition, key="one")
    assert "read: 2 new, 25 known; 25 candidates left the run" in capsys.readouterr().err
    assert candidates() == 27
    put(folder, 0)
    screen_again(definition, key="one", allow_shrink=True)
    assert "read: 1 known; 26 candidates left the run" in capsys.readouterr().err
    assert candidates() == 1


def test_a_run_that_was_stopped_is_so_after_a_refusal(folder: Path) -> None:
    definition = screened(folder)
    with stored() as store:
        store.runs.finish(store.runs.find("one").id, RunState.STOPPED, "the budget is spent")
    before = everything()
    put(folder, 0, 1)
    with pytest.raises(InputRefused):
        screen_again(definition)
    assert everything() == before


def test_contents_that_changed_are_no_loss(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    definition = screened(folder)
    put(folder, *range(48), body="other text")
    capsys.readouterr()
    screen_again(definition, key="one")
    assert "read: 48 changed; 2 candidates left the run" in capsys.readouterr().err
    assert candidates() == 48


def test_a_file_that_breaks_off_changes_nothing(folder: Path) -> None:
    definition = screened(folder, source="in.jsonl*")
    before = everything()
    put(folder, *range(3_000))
    (folder / "in.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00broken")
    with pytest.raises(ScreenError, match="cannot be read"):
        screen_again(definition, key="one")
    assert everything() == before


def test_with_a_limit_nobody_leaves(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    definition = screened(folder, bad="no json\n")
    with stored() as store:
        before = list(store.results.all(store.runs.find("one").id))
        account = store.runs.account(store.runs.find("one").id)
    capsys.readouterr()
    screen_again(definition, key="one", limit=10)
    assert "read: 10 known\n" in capsys.readouterr().err
    with stored() as store:
        run = store.runs.find("one")
        assert list(store.results.all(run.id)) == before
        assert store.runs.account(run.id) == account
        assert store.runs.status(run.id).rows_read == 51
    # What the part holds with other content is replaced all the same, and no bad row doubled.
    (folder / "in.jsonl").write_text('{"id": "k000007", "text": "corrected"}\nno json\n')
    screen_again(definition, key="one", limit=2)
    with stored() as store:
        run = store.runs.find("one")
        assert store.runs.account(run.id).candidates == 52
        assert store.results.explain(run.id, "k000007").text == "text: corrected"


def test_a_calibration_is_held_to_the_same(folder: Path) -> None:
    definition = test_calibrate.write(folder)
    made = calibrate.fn(definition)
    screen_again(definition)
    before = everything()
    file = folder / "in.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:300]))
    with pytest.raises(InputRefused, match="lacks 600 of the run's 900"):
        calibrate.fn(definition, key=made["run"])
    file.write_text("")
    with pytest.raises(ScreenError, match="holds no candidate"):
        calibrate.fn(definition, key=made["run"])
    assert everything() == before
    file.write_text("".join(lines[:300]))
    calibrate.fn(definition, key=made["run"], limit=100)
    assert candidates(made["run"]) == 900
    again = calibrate.fn(definition, key=made["run"], allow_shrink=True)
    assert again["run"] == made["run"]
    assert candidates(made["run"]) == 300
