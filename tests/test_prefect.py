"""What Prefect is told of a run, and what it may ask for: real servers, real runs."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from db.errors import StoreError
from db.query import ask

from .project import Project
from .test_run import tier

SLOW = tier("only", "accept_above: 0.5", options="seconds: 0.01")


def asked(url: str, body: object = None) -> Any:
    """A reply of Prefect's API; a busy database of its is asked again."""
    data = None if body is None else json.dumps(body).encode()
    for _ in range(240):
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310
                return json.loads(reply.read() or b"null")
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.5)
    raise AssertionError(f"{url} does not answer")


def flow_run(api: str, name: str) -> dict[str, Any] | None:
    wanted = {"flow_runs": {"name": {"any_": [name]}}}
    found = asked(f"{api}/flow_runs/filter", wanted)
    return found[0] if found else None


def until(found: Callable[[], Any], seconds: float = 120.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := found():
            return value
        time.sleep(0.1)
    raise AssertionError("it did not happen")


def deployment(api: str, name: str) -> Any:
    return asked(f"{api}/deployments/name/{name}")


def fired(api: str, name: str, order: int) -> str:
    """A flow run that a schedule wants later, in this order, had now; its id."""
    of_schedule = {
        "deployments": {"id": {"any_": [deployment(api, name)["id"]]}},
        "flow_runs": {"tags": {"all_": ["auto-scheduled"]}},
        "sort": "EXPECTED_START_TIME_ASC",
    }
    planned = until(lambda: len(one := asked(f"{api}/flow_runs/filter", of_schedule)) > 1 and one)
    assert {one["expected_start_time"][11:16] for one in planned} == {"06:00"}
    run = str(planned[order]["id"])
    now = {"type": "SCHEDULED", "state_details": {"scheduled_time": datetime.now(UTC).isoformat()}}
    asked(f"{api}/flow_runs/{run}/set_state", {"state": now, "force": True})
    return run


def judged(project: Project) -> int:
    if not Path(project.database.removeprefix("sqlite:///")).exists():
        return 0
    try:
        return int(ask(project.database, "SELECT count(*) AS n FROM judgement")[0]["n"])
    except StoreError:  # the tables are not there yet
        return 0


def named(project: Project, name: str) -> str:
    """A screen whose flow run can be told from those of other tests."""
    file = project.folder / "screen.yaml"
    file.write_text(file.read_text().replace("screen: try", f"screen: {name}"))
    return name


def test_prefect_has_a_record_of_a_run_that_never_waited_for_it(
    project: Project, prefect_url: str
) -> None:
    project.write(tier("first", "reject_below: 0.3"), tier("second", "accept_above: 0.5"), count=50)
    named(project, "recorded")
    code, _, err = project.run("--key", "one")
    assert code == 0, err
    run = flow_run(prefect_url, "recorded one")
    assert run is not None
    assert (run["state_type"], run["tags"]) == ("COMPLETED", ["recorded"])
    assert run["parameters"] == {"key": "one", "limit": None}, "ids, and nothing of the data"
    mine = {"flow_runs": {"id": {"any_": [run["id"]]}}}
    artifacts = asked(f"{prefect_url}/artifacts/filter", mine)
    assert {one["type"] for one in artifacts} == {"progress", "table", "markdown"}
    (table,) = (one for one in artifacts if one["type"] == "table")
    assert [row["name"] for row in json.loads(table["data"])] == ["first", "second"]
    (screen,) = (one for one in artifacts if one["key"] == "recorded-one-screen")
    shown = json.loads(screen["data"].partition("```json\n")[2].rpartition("\n```")[0])
    assert [each["name"] for each in shown["tiers"]] == ["first", "second"]
    of_run = {"logs": {"flow_run_id": {"any_": [run["id"]]}}}
    lines = [one["message"] for one in asked(f"{prefect_url}/logs/filter", of_run)]
    assert any("50 candidates = " in line for line in lines)
    blocks = until(lambda: asked(f"{prefect_url}/task_runs/filter", mine))
    assert "first 1..50" in {one["name"] for one in blocks}
    assert all(one["state_type"] == "COMPLETED" for one in blocks)


def test_a_run_that_needs_a_person_has_a_red_mark_in_prefect(
    project: Project, prefect_url: str
) -> None:
    project.write(tier("deaf", "reject_below: 0.5", "Deaf"))
    named(project, "reddened")
    assert project.run("--key", "one")[0] == 3
    run = flow_run(prefect_url, "reddened one")
    assert run is not None
    assert (run["state_type"], run["state_name"]) == ("FAILED", "Stopped")
    assert "does not answer the question" in run["state"]["message"]


def test_a_run_cancelled_in_the_ui_stops_and_keeps_what_it_has(
    project: Project, prefect_url: str
) -> None:
    project.write(SLOW, count=6_000)
    name = named(project, "cancelled")
    process = project.start("run", "screen.yaml", "--key", "one", "--database", project.database)
    run = until(lambda: flow_run(prefect_url, f"{name} one"))
    state = {"type": "CANCELLING", "name": "Cancelling"}
    asked(f"{prefect_url}/flow_runs/{run['id']}/set_state", {"state": state, "force": True})
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "cancelled in the Prefect UI; what was judged is kept" in err
    assert 0 < judged(project) < 6_000
    (row,) = ask(project.database, "SELECT state, lock_owner FROM run")
    assert (row["state"], row["lock_owner"]) == ("cancelled", None)
    ended = flow_run(prefect_url, f"{name} one")
    assert ended is not None
    assert ended["state_type"] == "CANCELLED"


def test_prefects_server_killed_in_mid_run_costs_the_run_nothing(project: Project) -> None:
    project.write(SLOW, count=1_500)
    project.env.pop("PREFECT_API_URL")
    project.env["TAMIS_KEEP_SERVER_SECONDS"] = "3"
    process = project.start("run", "screen.yaml", "--key", "one", "--database", project.database)
    until(lambda: judged(project) > 50)
    for child in psutil.Process(process.pid).children():
        if "flows.prefect_child" in child.cmdline():
            child.kill()
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert judged(project) == 1_500
    assert "Traceback" not in out + err
    known = project.folder / "data" / "prefect" / "server.json"
    api = json.loads(until(lambda: known.exists() and known.read_text()))["url"]
    run = until(lambda: (found := flow_run(api, "try one")) and found["end_time"] and found)
    assert run["state_type"] == "COMPLETED", "the next server was told all of it"


def test_a_run_that_is_killed_shows_as_crashed(project: Project, prefect_url: str) -> None:
    project.write(SLOW, count=6_000)
    name = named(project, "killed")
    process = project.start("run", "screen.yaml", "--key", "one", "--database", project.database)
    until(lambda: flow_run(prefect_url, f"{name} one"))
    process.kill()
    process.communicate()
    run = until(
        lambda: (found := flow_run(prefect_url, f"{name} one")) and found["end_time"] and found
    )
    assert run["state_type"] == "CRASHED"
    _, out, _ = project.tamis("status", "--json", "--database", project.database)
    assert json.loads(out)[0]["state"] == "interrupted"


def test_without_a_record_prefect_is_not_started(project: Project) -> None:
    project.write(tier("only", "accept_above: 0.5"), count=20)
    project.env.pop("PREFECT_API_URL")
    project.env["TAMIS_RECORD"] = "false"
    assert project.run()[0] == 0
    assert not (project.folder / "data").exists()


def test_a_schedule_fires(project: Project, prefect_url: str) -> None:
    """With SQLAlchemy 2.1 Prefect 3.8's scheduler fails each time, and nothing says so."""
    project.write(tier("only", "accept_above: 0.5"), count=20)
    served = (
        "from pathlib import Path\n"
        "from prefect import serve\n"
        "from flows.screen import screen\n"
        "from tiers.screenfile.file import load_screen\n"
        "definition = load_screen('screen.yaml').model_dump(mode='json', by_alias=True, exclude_none=True)\n"
        "serve(screen.to_deployment('daily', cron='0 6 * * *', parameters={'definition': definition}))\n"
    )
    env = project.env | {"TAMIS_DATABASE_URL": project.database}
    with (project.folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", served], cwd=project.folder, env=env, stdout=log, stderr=log
        )
        try:
            daily = {"deployments": {"name": {"any_": ["daily"]}}}
            until(lambda: asked(f"{prefect_url}/deployments/filter", daily))
            run = fired(prefect_url, "screen/daily", 0)
            until(lambda: asked(f"{prefect_url}/flow_runs/{run}")["state_type"] == "COMPLETED")
            assert judged(project) == 20
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def test_the_ui_sends_no_telemetry_and_names_the_server_of_the_user(
    project: Project, prefect_url: str
) -> None:
    code, out, _ = project.tamis("ui")
    assert (code, out) == (0, f"Prefect UI: {prefect_url.removesuffix('/api')} (your own server)\n")
    project.env.pop("PREFECT_API_URL")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.listen()
        code, _, err = project.tamis("ui", "--port", str(port))
        assert code == 2
        assert f"port {port} is taken" in err
    process = project.start("ui", "--port", str(port))
    try:
        api = f"http://127.0.0.1:{port}/api"
        settings = asked(f"{api}/admin/settings")
        assert settings["server"]["analytics_enabled"] is False
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as page:
            assert b"<html" in page.read()
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_is_heard(project: Project, number: signal.Signals) -> None:
    project.write(SLOW, count=6_000)
    project.env["TAMIS_RECORD"] = "false"
    process = project.start("run", "screen.yaml", "--database", project.database)
    until(lambda: judged(project) > 50)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "what was judged is kept" in err
    (row,) = ask(project.database, "SELECT state, lock_owner FROM run")
    assert (row["state"], row["lock_owner"]) == ("cancelled", None)
