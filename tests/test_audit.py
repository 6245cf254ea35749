"""Audits: what they find is kept, what they say is true, and they cost what they must."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from db.bulk import transaction
from db.store import Change, RunState, what_if
from flows.calibrate import calibrate
from flows.guarantee.audit import RunAudit, audit_of, audits_of_promise, in_words
from flows.report.summary import summary
from flows.run import overlap
from flows.run.judging import TierRun
from tiers.screenfile.faults import ScreenError
from tiers.screenfile.file import Screen, load_screen
from tiers.types import TierError

from .project import screened
from .test_calibrate import COUNT, PROMISE, Killed, paid, positives, stored, write

AUDITED = PROMISE.replace("}", ", audit: 30 %}")


def accepted(rows: list[dict[str, Any]]) -> set[str]:
    return {row["key"] for row in rows if row["verdict"] == "accepted"}


def run_over(folder: Path, definition: Screen, key: str, hidden: int = 0) -> dict[str, Any]:
    """Run over new candidates, so many of whose positives the cheap tiers cannot see."""
    with (folder / "in.jsonl").open("w") as file:
        for i in range(COUNT):
            said = "yes" if i % 5 == 0 else "no"
            word = "hidden " if i % 5 == 0 and i // 5 < hidden else ""
            line = {"id": f"{key}{i:04}", "text": f"{key} {i}: {word}{said}"}
            file.write(json.dumps(line) + "\n")
    screened(definition, key=key)
    with stored() as (store, run):
        return asdict(summary(store, run))


def test_the_interval_holds_the_truth_and_finds_are_kept(folder: Path) -> None:
    definition = write(folder, AUDITED)
    made = calibrate.fn(definition)
    assert made["status"] == "certified"
    held = lost_in_all = 0
    for number in range(8):
        screened(definition, key=f"run{number}")
        with stored() as (store, run):
            found = audit_of(store, run)
            rows = list(store.results.all(run.id))
            with store.engine.connect() as connection:
                drawn = connection.exec_driver_sql(
                    "SELECT candidate.key, run_tier.name, audit.drawn, audit.found FROM audit "
                    "JOIN candidate ON candidate.id = audit.candidate_id "
                    "JOIN run_tier ON run_tier.run_id = audit.run_id "
                    f"AND run_tier.position = audit.position WHERE audit.run_id = {run.id}"
                ).all()
            # Whoever asks why somebody was accepted is told.
            assert {row.name for row in drawn[:3]} == {
                store.results.explain(run.id, row.key).audited for row in drawn[:3]
            }
        assert found is not None
        kept = accepted(rows)
        by_lot = {row.key for row in drawn if row.drawn}
        finds = by_lot & positives()
        assert finds == {row.key for row in drawn if row.drawn and row.found}
        assert finds <= kept
        # Who was asked in vain is where it would be: with the tier that rejected it.
        tiers = {row["key"]: (row["verdict"], row["tier"]) for row in rows}
        for row in drawn:
            if not row.found:
                assert tiers[row.key] == ("rejected", row.name)
        lost = len(positives() - kept) + len(finds)
        truth = (len(kept) - len(finds)) / (len(kept) - len(finds) + lost)
        assert found.kept == len(kept) - len(finds)
        assert (found.audited, found.found) == (len(by_lot), len(finds))
        assert found.rejects == sum(
            r["tier"] != "large" for r in rows if r["key"] not in kept
        ) + len(finds)
        assert 0.2 < found.audited / found.rejects < 0.4
        low, high = found.recall
        held += low <= truth <= high
        lost_in_all += lost
    assert lost_in_all > 8  # else there is nothing to find
    assert held >= 7
    # What was found once stays found.
    assert len(positives() - kept) < 5


@pytest.mark.parametrize("how", ["note", "review"])
def test_who_speaks_to_the_judge_counts_in_an_audit_as_kept(folder, monkeypatch, how) -> None:
    definition = write(folder, AUDITED)
    calibrate.fn(definition)
    screened(definition, key="plain")
    with stored() as (store, run):
        plain = audit_of(store, run)
    monkeypatch.setattr("flows.run.suspicion.suspicions", lambda text: ["verdict"] * ("7" in text))
    screened(definition.model_copy(update={"suspicious": how}), key="plain")
    with stored() as (store, run):
        marked = [row for row in store.results.all(run.id) if row["why"] == "suspicious: verdict"]
        assert {row["verdict"] for row in marked} == {"accepted" if how == "note" else "review"}
        assert audit_of(store, run) == plain


def test_a_real_drift_is_told_and_nothing_else(folder: Path) -> None:
    definition = write(folder, AUDITED)
    calibrate.fn(definition)
    screened(definition)
    for key in ("mon", "tue", "wed"):
        finished = run_over(folder, definition, key)
        assert (finished["state"], finished["audit"]["alarm"]) == ("done", False)
        assert finished["audit"]["evidence"] < 1
    assert finished["audit"]["runs"] == 4
    finished = run_over(folder, definition, "thu", hidden=80)
    assert finished["state"] == RunState.ALARM
    assert "recall >= 0.9 is in doubt: the audits of 5 runs weigh" in finished["reason"]
    assert "either candidates are no longer like" in finished["reason"]
    assert "or the calibration was one of those that miss" in finished["reason"]
    assert "(up to 0.1 of them do): calibrate again" in finished["reason"]
    # Good days do not take an alarm back; a calibration does, and its own run is a new one.
    assert run_over(folder, definition, "fri")["state"] == RunState.ALARM
    made = calibrate.fn(definition)
    assert made["run"] not in ("mon", "tue", "wed", "thu", "fri")
    finished = summary_of_run(definition, made["run"])
    assert (finished["state"], finished["audit"]["runs"]) == ("done", 1)


def summary_of_run(definition: Screen, key: str) -> dict[str, Any]:
    screened(definition, key=key)
    with stored() as (store, run):
        return asdict(summary(store, run))


def test_thresholds_moved_by_hand_have_an_interval_and_no_alarm(folder: Path) -> None:
    definition = write(folder, AUDITED)
    calibrate.fn(definition)
    screened(definition)
    with stored() as (store, run):
        before = accepted(list(store.results.all(run.id)))
        (certified,) = (
            v.id for v in store.policies.versions(run.id) if v.in_use and v.position == 1
        )
        high = Change(0.8, None)
        with transaction(store.engine, writes=True):  # a run that works is not in the way
            foretold = what_if(store.engine, run.id, {1: high})
        store.policies.move(run.id, 1, high, author="ada", reason="cheaper")
        store.verdicts.redecide(run.id, 1)
        steps = what_if(store.engine, run.id, {1: high})
        assert foretold.after == steps.before == steps.after
        assert foretold.after[1].rejected > foretold.before[1].rejected
    finished = summary_of_run(definition, run.key)
    assert finished["state"] == RunState.DONE
    assert finished["audit"]["recall"][1] < 0.9
    assert finished["audit"]["evidence"] is None
    with stored() as (store, run):
        assert audits_of_promise(store, run) == []
        assert accepted(list(store.results.all(run.id))) < before
        store.policies.use(run.id, certified, author="ada", reason="too dear")
        store.verdicts.redecide(run.id, 1)
        assert accepted(list(store.results.all(run.id))) == before


@pytest.mark.parametrize("after", [1, 2])
def test_a_killed_audit_ends_as_one_that_was_not(folder, monkeypatch, after) -> None:
    definition = write(folder, AUDITED)
    calibrate.fn(definition)
    times = 0
    judge_waiting = TierRun.judge_waiting

    def dying(self: TierRun, *given: Any) -> int:
        nonlocal times
        judged = judge_waiting(self, *given)
        if self.work.name == "large":
            times += 1
            raise Killed
        return judged

    for _ in range(after):
        with monkeypatch.context() as patched:
            patched.setattr(TierRun, "judge_waiting", dying)
            with pytest.raises(Killed):
                screened(definition)
    screened(definition)
    with stored() as (store, run):
        found, rows = audit_of(store, run), list(store.results.all(run.id))
    other = folder / "other"
    other.mkdir()
    monkeypatch.setenv("TAMIS_DATABASE_URL", f"sqlite:///{other}/other.db")
    whole = write(other, AUDITED)
    calibrate.fn(whole)
    screened(whole)
    with stored() as (store, run):
        assert (audit_of(store, run), list(store.results.all(run.id))) == (found, rows)
    assert found.audited > 0
    assert paid(folder, "large") == paid(other, "large")


def test_tiers_that_work_together_are_audited_alike(folder, monkeypatch) -> None:
    definition = write(folder, AUDITED)
    calibrate.fn(definition)
    found = summary_of_run(definition, "try-1")
    monkeypatch.setattr(overlap, "_apart", lambda *_: True)
    assert overlap.groups(definition) == [[0, 1, 2]]
    again = summary_of_run(definition, "try-1")
    assert (again["audit"], again["accepted"]) == (found["audit"], found["accepted"])
    assert found["audit"]["found"] > 0


def test_an_audit_that_cannot_be_paid_says_nothing_until_it_is(folder: Path) -> None:
    definition = write(folder, AUDITED)
    made = calibrate.fn(definition)
    enough = summary_of_run(definition, "enough")
    # A judgement is ten tokens here; another run finds all its answers but the newly audited.
    short = write(folder, AUDITED, last=", budget: {tokens: 200}")
    poor = summary_of_run(short, "poor")
    assert (poor["state"], poor["audit"]["recall"]) == ("stopped", None)
    assert poor["pending"] == poor["audit"]["waiting"] > 0
    assert audits_before(made["run"], "poor") == ["enough"]
    rich = summary_of_run(write(folder, AUDITED, last=", budget: {tokens: 9000}"), "poor")
    assert (rich["state"], rich["pending"]) == ("done", 0)
    assert rich["audit"]["audited"] > 20
    assert audits_before(made["run"], "poor") == ["enough", "poor"]
    assert enough["audit"]["evidence"] is not None


def audits_before(first: str, key: str) -> list[str]:
    """The runs whose audits count when this one is looked at."""
    with stored() as (store, _):
        return [
            one.run for one in audits_of_promise(store, store.runs.find(key)) if one.run != first
        ]


def test_an_audit_of_nobody_says_nothing(folder: Path) -> None:
    definition = write(folder, AUDITED)
    with pytest.raises(TierError, match="is not calibrated"):
        screened(definition, key="one")
    with stored() as (store, run):
        finished = asdict(summary(store, run))
    assert finished["audit"] is None
    nobody = RunAudit(0.1, 0.9, 0.9, 0, 0, 0, 0, 0, (1.0, 1.0), 1, None, 10.0, False, [])
    assert in_words(nobody) == "audit: nobody was rejected, so nobody was asked about"


def test_an_audit_costs_what_it_asks_and_nothing_twice(folder: Path) -> None:
    definition = write(folder, PROMISE)
    made = calibrate.fn(definition)
    screened(definition)
    without = paid(folder, "large")
    with stored() as (store, run):
        assert audit_of(store, run) is None
    definition = write(folder, AUDITED)  # the same run: an audit moves no score and no threshold
    assert screened(definition, key=made["run"]) == made["run"]
    with stored() as (store, run):
        found = audit_of(store, run)
        assert found.runs == 1
    assert paid(folder, "large") == without + found.audited
    screened(definition, key=made["run"])
    assert paid(folder, "large") == without + found.audited


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("{recall: 0.9, against: large, labels: 9, audit: 1 %}", None),
        ("{recall: 0.9, against: large, labels: 9, audit: 0.5%}", None),
        ("{recall: 0.9, against: large, labels: 9, audit: 0.005}", None),
        ("{recall: 0.9, against: large, labels: 9, audit: 120 %}", "less than 1"),
        ("{recall: 0.9, against: large, labels: 9, audit: some}", "is no number"),
        ("{recall: 0.9, against: people, labels: 9, audit: 1 %}", "against: with the last tier's"),
        ("{accuracy: 0.9, against: large, labels: 9, audit: 1 %}", "write recall"),
    ],
)
def test_what_an_audit_may_be(tmp_path: Path, section: str, said: str | None) -> None:
    if said is None:
        definition = write(tmp_path, section)
        assert definition.guarantee.audit in (0.01, 0.005)
        plain = load_screen(tmp_path / "screen.yaml").digest
        assert definition.digest == plain
    else:
        with pytest.raises(ScreenError, match=said):
            write(tmp_path, section)
