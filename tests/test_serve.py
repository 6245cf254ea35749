"""Screens that people start from the Prefect UI and schedules: a real server, a real serving process."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import create_engine, make_url, text

from .project import Process, Project
from .test_prefect import asked, deployment, fired, until
from .test_run import tier

Form = dict[str, Any]
ROOT = Path(__file__).parent.parent


@contextmanager
def serving(project: Project, *arguments: str) -> Iterator[Process]:
    """A process that serves, until it is ended with SIGTERM."""
    process = project.start("serve", *arguments, "--database", project.database)
    try:
        for line in process.stdout or ():
            if line.startswith("serving"):
                break
        else:
            raise AssertionError((process.stderr.read() if process.stderr else "") or "it ended")
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def started(api: str, name: str, form: Form | None = None) -> str:
    """A run that was started with this form; its id."""
    wanted = {"parameters": form or {}, "state": {"type": "SCHEDULED"}}
    made = asked(f"{api}/deployments/{deployment(api, name)['id']}/create_flow_run", wanted)
    return str(made["id"])


def ended(api: str, run: str) -> tuple[str, str, str]:
    """Name, state and message of a flow run once it has ended."""

    def over() -> Any:
        found = asked(f"{api}/flow_runs/{run}")
        final = found["state_type"] in ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")
        return found if final else None

    found = until(over, 120)
    return found["name"], found["state_name"], found["state"]["message"] or ""


def named(project: Project, name: str) -> None:
    file = project.folder / "screen.yaml"
    file.write_text(file.read_text().replace("screen: try", f"screen: {name}"))


def fast(project: Project, name: str, count: int = 20) -> None:
    second = tier("second", "accept_above: 0.5", options="salt: other")
    project.write(tier("first", "reject_below: 0.3"), second, count=count)
    named(project, name)


def grow(project: Project, count: int) -> None:
    with (project.folder / "in.jsonl").open("w") as file:
        for i in range(count):
            file.write(json.dumps({"id": f"k{i:06}", "text": f"text number {i}"}) + "\n")


def test_a_form_starts_a_run_and_tells_how_it_ended(project: Project, prefect_url: str) -> None:
    fast(project, "formed")
    with serving(project, "screen.yaml") as process:
        form = deployment(prefect_url, "screen/formed")["parameter_openapi_schema"]
        assert list(form["properties"])[:3] == ["file", "key", "limit"]
        assert all(one["description"] for one in form["properties"].values())
        bounds = form["definitions"]["Thresholds"]["properties"]["first_reject_below"]
        assert "In the screen file: 0.3" in bounds["description"]

        run = started(prefect_url, "screen/formed", {"key": "monday"})
        name, state, message = ended(prefect_url, run)
        assert (name, state) == ("formed monday", "Completed")
        assert "20 candidates = " in message
        assert "0 reused" in message

        # Nothing is asked of a tier again; a threshold of the form is a version of its policy.
        thresholds = {"first_reject_below": 0.9}
        again = started(prefect_url, "screen/formed", {"key": "monday", "thresholds": thresholds})
        assert "pending" in ended(prefect_url, again)[2]
        sql = "SELECT reject_below, author FROM policy WHERE author IS NOT NULL"
        code, out, _ = project.tamis("sql", sql, "--json", "--database", project.database)
        assert (code, json.loads(out)) == (0, [{"reject_below": 0.9, "author": "Prefect UI"}])

        crossed = {"first_reject_below": 0.9, "first_accept_above": 0.1}
        refused_run = started(prefect_url, "screen/formed", {"key": "other", "thresholds": crossed})
        state, message = ended(prefect_url, refused_run)[1:]
        assert (state, "reject below 0.9 lies above accept above 0.1" in message) == (
            "Failed",
            True,
        )

        for wrong in (
            {"limit": 0},
            {"nix": 1},
            {"thresholds": {"first_reject_below": 2}},
            {"file": "other"},
        ):
            with pytest.raises(urllib.error.HTTPError) as refused:
                started(prefect_url, "screen/formed", wrong)
            assert refused.value.code in (409, 422)
            refused.value.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert not deployment(prefect_url, "screen/formed")["paused"]


def test_a_fault_is_a_message_that_says_what_to_do(project: Project, prefect_url: str) -> None:
    fast(project, "faulty")
    file = project.folder / "screen.yaml"
    with serving(project, "screen.yaml"):
        good = file.read_text()
        file.write_text(good.replace("rubric: any", "rubrik: any"))  # the old definition goes on
        run = started(prefect_url, "screen/faulty", {"key": "kept"})
        assert ended(prefect_url, run)[1] == "Completed"
        of_run = {"logs": {"flow_run_id": {"any_": [run]}}}
        lines = [one["message"] for one in asked(f"{prefect_url}/logs/filter", of_run)]
        assert any("did you mean 'rubric'?" in line for line in lines), lines

        file.write_text(good)
        (project.folder / "in.jsonl").unlink()
        state, message = ended(prefect_url, started(prefect_url, "screen/faulty"))[1:]
        assert (state, "no such file; write its path" in message) == ("Failed", True)


def test_a_run_that_works_is_not_begun_twice(project: Project, prefect_url: str) -> None:
    project.write(tier("slow", "accept_above: 0.5", options="seconds: 0.5"), count=200)
    named(project, "twice")
    with serving(project, "screen.yaml"):
        first = started(prefect_url, "screen/twice", {"key": "one"})
        until(lambda: asked(f"{prefect_url}/flow_runs/{first}")["name"] == "twice one")
        time.sleep(1)
        second = started(prefect_url, "screen/twice", {"key": "one"})
        assert ended(prefect_url, second)[1:2] == ("Already running",)
        cancel = {"state": {"type": "CANCELLING"}}
        asked(f"{prefect_url}/flow_runs/{first}/set_state", cancel)
        assert ended(prefect_url, first)[1] == "Cancelled"


def grows_in_a_file(project: Project, _: pytest.FixtureRequest) -> Callable[[int], None]:
    return lambda count: grow(project, count)


def grows_in_a_table(project: Project, request: pytest.FixtureRequest) -> Callable[[int], None]:
    """The candidates are rows of somebody's Postgres."""
    url = make_url(str(request.getfixturevalue("postgres_url")))
    url = url.set(drivername="postgresql+psycopg")
    project.env["WAREHOUSE_URL"] = url.render_as_string(hide_password=False)
    query = '{sql: "SELECT id, text FROM paper", url_variable: WAREHOUSE_URL}'
    file = project.folder / "screen.yaml"
    file.write_text(file.read_text().replace("from: in.jsonl", f"from: {query}"))
    engine = create_engine(url)

    def add(count: int) -> None:
        rows = [{"id": f"k{i:06}", "text": f"text number {i}"} for i in range(count)]
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE IF NOT EXISTS paper (id TEXT UNIQUE, text TEXT)"))
            connection.execute(
                text("INSERT INTO paper VALUES (:id, :text) ON CONFLICT DO NOTHING"), rows
            )
        engine.dispose()

    return add


@pytest.mark.parametrize(
    "growing",
    [grows_in_a_file, pytest.param(grows_in_a_table, marks=pytest.mark.postgres)],
)
def test_a_schedule_judges_what_is_new_and_outlives_its_process(
    project: Project,
    prefect_url: str,
    request: pytest.FixtureRequest,
    growing: Callable[[Project, pytest.FixtureRequest], Callable[[int], None]],
) -> None:
    screen = growing.__name__
    fast(project, screen, count=20)
    add = growing(project, request)
    add(20)
    with serving(project, "screen.yaml", "--cron", "0 6 * * *"):
        name, _, message = ended(prefect_url, fired(prefect_url, f"screen/{screen}", 0))
        assert re.fullmatch(rf"{screen} {screen}-\d{{8}}-0600", name)
        assert "20 candidates" in message
    assert deployment(prefect_url, f"screen/{screen}")["schedules"][0]["active"]
    add(30)
    with serving(project, "screen.yaml", "--cron", "0 6 * * *"):
        other, _, message = ended(prefect_url, fired(prefect_url, f"screen/{screen}", -1))
        assert other != name
        assert "30 candidates" in message
    code, out, _ = project.tamis(
        "sql", "SELECT run, SUM(judged) AS judged, SUM(reused) AS reused FROM funnel GROUP BY run "
        "ORDER BY run", "--json", "--database", project.database,
    )  # fmt: skip
    assert code == 0
    rows = json.loads(out)
    assert rows[0]["reused"] == 0
    assert rows[1]["reused"] == rows[0]["judged"]
    assert 10 <= rows[1]["judged"] <= 20


def test_what_cannot_be_deployed_is_refused(project: Project, prefect_url: str) -> None:
    fast(project, "refused")
    code, _, err = project.tamis("serve", "screen.yaml", "--cron", "every day")
    assert (code, "write five fields" in err) == (2, True)
    code, _, err = project.tamis(
        "serve", "screen.yaml", "--cron", "0 6 * * *", "--timezone", "Mars"
    )
    assert (code, "time zone 'Mars'" in err) == (2, True)
    code, _, err = project.tamis("deploy", "screen.yaml", "--pool", "nowhere")
    assert (code, "no work pool 'nowhere'" in err) == (2, True)
    (project.folder / "other.yaml").write_text((project.folder / "screen.yaml").read_text())
    code, _, err = project.tamis("serve", "screen.yaml", "other.yaml")
    assert (code, "are both called 'refused'" in err) == (2, True)


def test_screens_are_deployed_to_a_pool_listed_and_taken_away(
    project: Project, prefect_url: str
) -> None:
    fast(project, "pooled")
    asked(f"{prefect_url}/work_pools/", {"name": "machines", "type": "process"})
    code, out, err = project.tamis(
        "deploy", "screen.yaml", "--pool", "machines", "--cron", "0 6 * * *", "--timezone", "Europe/Berlin",
    )  # fmt: skip
    assert code == 0, err
    assert "deployed screen/pooled to pool machines" in out
    code, out, _ = project.tamis("deploy", "--list", "--json")
    (row,) = [one for one in json.loads(out) if one["deployment"] == "screen/pooled"]
    assert (row["pool"], row["schedule"]) == ("machines", "0 6 * * * (Europe/Berlin)")
    assert deployment(prefect_url, "screen/pooled")["entrypoint"] == "flows.served.screen"
    prefect_yaml = (ROOT / "examples" / "prefect.yaml").read_text()
    (project.folder / "prefect.yaml").write_text(prefect_yaml)
    deploying = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    subprocess.run(deploying, cwd=project.folder, env=project.env, check=True, capture_output=True)
    assert deployment(prefect_url, "screen/papers")["entrypoint"] == "flows.served.screen"

    assert project.tamis("deploy", "--delete", "pooled")[0] == 0
    code, _, err = project.tamis("deploy", "--delete", "pooled")
    assert (code, "no deployment of screen 'pooled'" in err) == (2, True)


def test_a_name_and_a_schedule_belong_to_one_file(project: Project, prefect_url: str) -> None:
    fast(project, "owned")
    with serving(project, "screen.yaml", "--cron", "0 6 * * *"):
        pass
    with serving(project, "screen.yaml"):
        (kept,) = deployment(prefect_url, "screen/owned")["schedules"]
        assert (kept["schedule"]["cron"], kept["active"]) == ("0 6 * * *", True)
    elsewhere = project.folder / "elsewhere"
    elsewhere.mkdir()
    for name in ("screen.yaml", "in.jsonl"):
        (elsewhere / name).write_text((project.folder / name).read_text())
    code, _, err = project.tamis("serve", "elsewhere/screen.yaml")
    assert (code, "screen 'owned' is deployed for" in err) == (2, True), err


def test_one_process_serves_a_folder_and_leaves_no_server(project: Project) -> None:
    fast(project, "alone")
    del project.env["PREFECT_API_URL"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    first = project.start("serve", "screen.yaml", "--port", port, "--database", project.database)
    known = project.folder / "data" / "prefect" / "server.json"
    until(known.exists)
    server = psutil.Process(json.loads(known.read_text())["pid"])
    code, _, err = project.tamis("serve", "screen.yaml", "--port", port)
    assert (code, f"process {first.pid} serves this folder already" in err) == (2, True), err
    code, out, _ = project.tamis("ui")
    assert (code, out) == (0, f"Prefect UI: http://127.0.0.1:{port} (tamis serve)\n")
    first.send_signal(signal.SIGTERM)  # in the middle of its start
    assert first.wait(60) in (0, 128 + signal.SIGTERM)
    assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE
    first.communicate(timeout=60)
