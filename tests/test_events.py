"""Who wants to hear of trouble hears of it: events in Prefect, and an automation that sends one on."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from db.store import Account, RunState
from flows.watch.events import (
    BUDGET,
    DRIFT,
    ERRORS,
    EVENTS,
    FAILED,
    MASS,
    PAUSED,
    REVIEW,
    Limits,
    events_of,
)
from tests.project import Project
from tests.receiver import receiving
from tests.test_prefect import SLOW, asked, judged, until
from tests.test_run import tier

PAGE = (Path(__file__).parents[1] / "docs" / "observability.md").read_text()
FINE = Account(100, 10, 80, 10, 0, 0, 0)


@pytest.mark.parametrize(
    ("state", "reason", "account", "told"),
    [
        (RunState.DONE, None, FINE, []),
        (RunState.CANCELLED, None, FINE, []),
        (RunState.INCOMPLETE, None, FINE, []),
        (RunState.WAITING, "for the answers of a batch", FINE, []),
        (RunState.ALARM, "recall may be lost", FINE, [DRIFT]),
        (RunState.PAUSED, "as asked for", FINE, [PAUSED]),
        (RunState.FAILED, "ValueError: x", FINE, [FAILED]),
        (RunState.STOPPED, "tier 'a': the key is wrong", FINE, [FAILED]),
        (RunState.DONE, None, Account(100, 10, 70, 20, 0, 0, 0), [REVIEW]),
        (RunState.INCOMPLETE, None, Account(100, 10, 80, 5, 5, 0, 0), [ERRORS]),
        (RunState.STOPPED, "x", Account(100, 0, 0, 30, 70, 0, 0), [FAILED, REVIEW, ERRORS]),
        (RunState.STOPPED, "x", Account(0, 0, 0, 0, 0, 0, 0), [FAILED]),
    ],
)
def test_each_kind_of_trouble_has_its_event(state, reason, account, told):
    found = list(events_of(state, reason, account, Limits(review=20, errors=0.05)))
    assert [name for name, _ in found] == told
    assert all(message for _, message in found)


def test_the_page_names_every_event_and_shows_how_to_send_it_on():
    for name in EVENTS:
        assert PAGE.count(name) >= 1, name


def events(api: str, run: str) -> list[dict[str, Any]]:
    wanted = {"filter": {"resource": {"id": [f"tamis.run.{run}"]}}}
    return list(asked(f"{api}/events/filter", wanted)["events"])


@pytest.mark.parametrize(
    ("budget", "backend", "name"),
    [("budget: {tokens: 500}", "Steady", BUDGET), ("", "Deaf", MASS)],
)
def test_a_tier_that_stops_is_told_by_why(
    project: Project, prefect_url: str, budget, backend, name
):
    project.write(tier("only", "accept_above: 0.5", backend), count=300)
    screen = project.folder / "screen.yaml"
    screen.write_text(f"{screen.read_text()}\n{budget}\n")
    code, found, err = project.run("--key", f"trouble-{backend}")
    assert code == 3, err
    [event] = until(lambda: events(prefect_url, found["run"]))
    assert event["event"] == name
    assert event["payload"]["screen"] == "try"
    assert event["payload"]["accepted"] == found["accepted"]
    assert event["resource"]["tamis.screen"] == "try"
    assert event["related"][0]["prefect.resource.role"] == "flow-run"


@pytest.fixture
def hook() -> Iterator[tuple[str, list[bytes]]]:
    """The address of a web hook, and what is posted to it."""
    with receiving() as (address, got):
        yield f"{address}/hook", got.setdefault("/hook", [])


def webhook_block(api: str, url: str) -> str:
    """The number of a new webhook block, made as the page says, through the API."""
    kinds = {"block_types": {"slug": {"any_": ["webhook"]}}}
    [kind] = asked(f"{api}/block_types/filter", kinds)
    [schema, *_] = asked(
        f"{api}/block_schemas/filter", {"block_schemas": {"block_type_id": {"any_": [kind["id"]]}}}
    )
    made = asked(
        f"{api}/block_documents/",
        {"name": "hook", "block_type_id": kind["id"], "block_schema_id": schema["id"],
         "data": {"method": "POST", "url": url, "allow_private_urls": True}},
    )  # fmt: skip
    return str(made["id"])


def test_an_automation_sends_a_pause_on_to_a_webhook(project: Project, prefect_url: str, hook):
    url, posted = hook
    [block] = [text for text in PAGE.split("```json\n")[1:] if PAUSED in text]
    automation = json.loads(block.partition("```")[0])
    automation["actions"][0]["block_document_id"] = webhook_block(prefect_url, url)
    asked(f"{prefect_url}/automations/", automation)
    project.write(SLOW, count=5_000)
    process = project.start("run", "screen.yaml", "--key", "hooked", "--database", project.database)
    until(lambda: judged(project))
    assert project.tamis("pause", "hooked", "--database", project.database)[0] == 0
    assert process.wait(60) == 3
    process.communicate()
    until(lambda: posted)
    assert "hooked" in posted[0].decode()
    assert "tamis resume hooked" in posted[0].decode()
