"""A database of the version before opens, migrates, and a run that was begun in it goes on."""

import json
import sqlite3
from pathlib import Path

import pytest

from db.engine import upgrade
from db.store import opened_store
from flows.settings import Settings
from tests.project import screened
from tiers.screenfile.file import load_screen

DUMP = Path(__file__).parent / "data" / "begun_at_0004.sql"
CANDIDATES = 40
ANSWERED_BEFORE = 40 + 7
"""At the two tiers, when the process was killed."""
OWN = """
from tiers.types import Judgement


class Own:
    version = "1"

    def __init__(self, rubric, paid, seconds=0.0):
        self.paid = paid

    def judge(self, candidates):
        for candidate in candidates:
            with open(self.paid, "a") as file:
                file.write(candidate.text + "\\n")
            yield Judgement(candidate.id, sum(map(ord, candidate.text)) % 10 / 10, "yes")
"""
SCREEN = """
screen: before
candidates: {from: in.jsonl, key: id}
rubric: any
tiers:
  - {name: small, backend: python, path: "own:Own", policy: {reject_below: 0.5}, options: {paid: small.paid}}
  - {name: large, backend: python, path: "own:Own", policy: {accept_above: 0.6}, options: {paid: large.paid, seconds: 0.25}}
"""


@pytest.fixture
def before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the version before left it when it was killed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TAMIS_DATABASE_URL", f"sqlite:///{tmp_path}/tamis.db")
    monkeypatch.setenv("TAMIS_RECORD", "false")
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "screen.yaml").write_text(SCREEN)
    records = ({"id": f"k{i:03}", "text": f"text {i}"} for i in range(CANDIDATES))
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    digest = load_screen(tmp_path / "screen.yaml").digest
    dump = DUMP.read_text().replace("@FOLDER@", str(tmp_path)).replace("@HASH@", digest)
    connection = sqlite3.connect(tmp_path / "tamis.db")
    connection.executescript(dump)
    connection.close()
    return tmp_path


def test_a_run_begun_before_the_upgrade_goes_on_and_pays_for_nothing_twice(before: Path) -> None:
    upgrade(Settings().database())
    assert screened(load_screen(before / "screen.yaml")) == "monday"
    with opened_store(Settings().database()) as store:
        run = store.runs.find("monday")
        account = store.runs.account(run.id)
        promoted = store.results.funnel(run.id)[0].promoted
    assert account.candidates == account.accepted + account.rejected == CANDIDATES
    assert not (before / "small.paid").exists()
    paid = (before / "large.paid").read_text().splitlines()
    assert len(paid) == len(set(paid)) == CANDIDATES + promoted - ANSWERED_BEFORE
