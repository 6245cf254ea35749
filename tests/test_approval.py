"""Approvals are rows of ours: no pause of Prefect's that comes back without one approves anything."""

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from db.query import ask
from db.store import Store
from flows.calibrate import calibrate
from flows.guarantee import approval
from flows.guarantee.certificate import certificate_in_use
from flows.settings import Settings

from .project import Project
from .test_calibrate import PROMISE, stored, write
from .test_guarantee_commands import asked
from .test_prefect import named, until
from .test_store import new_run

APPROVED = PROMISE.replace("}", ", approval: true}")


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Within a flow run, every pause is skipped: it comes back at once, without an answer."""
    seen: list[dict[str, Any]] = []

    def skipped(**arguments: Any) -> None:
        seen.append(arguments)

    monkeypatch.setattr(approval, "FlowRunContext", SimpleNamespace(get=lambda: "a flow run"))
    monkeypatch.setattr(approval, "pause_flow_run", skipped)
    return seen


def test_a_pause_that_comes_back_without_an_answer_approves_nothing(
    folder: Path, pauses: list[dict[str, Any]]
) -> None:
    definition = write(folder, APPROVED)
    for _ in range(2):
        made = calibrate.fn(definition)
        assert made["status"] == "waiting"
        assert "wait for approval" in made["message"]
    assert rows() == []
    first, second = (each["key"] for each in pauses)
    assert first != second, "one pause is never taken for another, which has been answered"


def test_a_refusal_from_before_does_not_answer_the_next_question(
    folder: Path, pauses: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    definition = write(folder, APPROVED)
    skipped = approval.pause_flow_run
    form = approval.ApprovalForm(approved=False, by="ada", reason="too many")
    monkeypatch.setattr(approval, "pause_flow_run", lambda **_: form)
    made = calibrate.fn(definition)
    assert made["status"] == "refused"
    assert "refused by ada: too many" in made["message"]
    monkeypatch.setattr(approval, "pause_flow_run", skipped)
    assert calibrate.fn(definition)["status"] == "waiting"
    assert calibrate.fn(definition, approve=True, author="bob")["status"] == "certified"
    assert [(one["author"], bool(one["approved"])) for one in rows()] == [
        ("ada", False),
        ("bob", True),
    ]
    with stored() as (store, run):
        assert store.approvals.newest(run.id, certificate_in_use(store, run).digest())


def test_the_newest_word_on_a_certificate_counts_and_no_other(store: Store) -> None:
    run = new_run(store)
    store.approvals.say(run.id, "aa", approved=True, author="ada")
    store.approvals.say(run.id, "aa", approved=False, author="bob", reason="no\0")
    newest = store.approvals.newest(run.id, "aa")
    assert newest is not None
    assert (newest.approved, newest.author, newest.reason) == (False, "bob", "no\ufffd")
    assert store.approvals.newest(run.id, "bb") is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_calibration_that_ends_while_it_waits_is_still_not_approved(
    project: Project, prefect_url: str, number: signal.Signals
) -> None:
    write(project.folder, APPROVED)
    name = named(project, f"waiting-{number}")
    command = ("calibrate", "screen.yaml", "--database", project.database)
    process = project.start(*command, "--wait", "200")
    waits = f"{name} {name}-1"
    until(lambda: paused(prefect_url, waits))
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (128 + number, -number), err
    # Somebody presses Resume in the UI all the same, with or without a word: nobody listens.
    form = {"approved": True, "by": "late", "reason": ""}
    for one in paused(prefect_url, waits):
        resumed(prefect_url, one, form)
    assert ask(project.database, "SELECT * FROM approval") == []
    code, out, err = project.tamis(*command, "--wait", "1")
    assert (code, "certified and wait for approval" in out) == (3, True), err
    process = project.start(*command, "--wait", "200")
    (waiting,) = until(lambda: paused(prefect_url, waits))
    until(lambda: resumed(prefect_url, waiting, form | {"by": "bob"})["status"] == "ACCEPT")
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    (row,) = ask(project.database, "SELECT approved, author FROM approval")
    assert row["author"] == "bob"


def paused(api: str, name: str) -> list[str]:
    wanted = {"name": {"any_": [name]}, "state": {"type": {"any_": ["PAUSED"]}}}
    return [one["id"] for one in asked(f"{api}/flow_runs/filter", {"flow_runs": wanted})]


def resumed(api: str, flow_run: str, form: dict[str, Any]) -> Any:
    return asked(f"{api}/flow_runs/{flow_run}/resume", {"run_input": form})


def rows() -> list[dict[str, Any]]:
    return ask(Settings().database(), "SELECT author, approved FROM approval ORDER BY id")
