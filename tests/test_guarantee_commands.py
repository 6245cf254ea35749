"""The commands of a promise, as a user types them, with Prefect and tiers in their processes."""

import json
import os
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from .project import Process, Project
from .test_calibrate import PROMISE, paid, write


def test_from_a_promise_to_a_moved_threshold(project: Project) -> None:
    write(project.folder)
    database = ("--database", project.database)
    code, _, err = project.tamis("run", "screen.yaml", *database)
    assert code == 2
    assert "no run of it is calibrated for that; run 'tamis calibrate' first" in err
    assert "audit" not in err
    code, out, _ = project.tamis("status", "--json", *database)
    assert json.loads(out) == []

    process = project.start("calibrate", "screen.yaml", *database)
    while process.poll() is None and paid(project.folder, "large") < 20:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    code, out, err = project.tamis("calibrate", "screen.yaml", "--json", *database)
    assert code == 0, err
    assert "plan: " in err
    made = json.loads(out)
    assert (made["status"], made["run"]) == ("certified", "try-1")

    code, out, err = project.tamis("certificate", "try-1", "--check", *database)
    assert code == 0, err
    assert "checked: stored scores and labels lead to this certificate" in out
    assert f"| seed of the draw | {made['seed']} |" in out

    code, finished, err = project.run("--key", "try-1")
    assert (code, finished["run"], finished["pending"]) == (0, "try-1", 0), err

    move = ("--tier", "small", "--reject-below", "0.01", *database)
    code, out, err = project.tamis("what-if", "try-1", "--json", *move)
    assert code == 0, err
    foretold = json.loads(out)
    assert foretold["certified_recall"] >= 0.9
    code, out, err = project.tamis("what-if", "try-1", *move)
    assert "certified recall: >= " in out
    code, out, err = project.tamis("decide", "try-1", "--because", "too strict", "--json", *move)
    assert code == 0, err
    assert json.loads(out)["pending"] == foretold["tiers"][2]["to_judge"] > 0
    code, out, _ = project.tamis("certificate", "try-1", *database)
    assert "thresholds were changed since" in out
    code, _, err = project.tamis("decide", "try-1", "--policy", "99", "--because", "x", *database)
    assert code == 2
    assert "no policy 99" in err


def test_too_few_labels_end_with_code_4(project: Project) -> None:
    few = PROMISE.replace("labels: 200", "labels: 30, prevalence: 0.1")
    write(project.folder, few)
    code, out, _ = project.tamis("calibrate", "screen.yaml", "--database", project.database)
    assert code == 4
    assert "budget 30: with 30 the best certificate is recall >=" in out


def test_people_are_waited_for_with_code_3(project: Project, tmp_path: Path) -> None:
    write(project.folder, PROMISE.replace("large", "people"))
    database = ("--database", project.database)
    code, out, err = project.tamis("calibrate", "screen.yaml", *database)
    assert code == 3, err
    assert "tamis label export try-1" in out
    code, _, err = project.tamis(
        "label", "export", "screen.yaml", "--output", "sheet.csv", *database
    )
    assert code == 0, err
    filled = (tmp_path / "sheet.csv").read_text().replace(",any,", ",any,no")
    (tmp_path / "sheet.csv").write_text(filled)
    code, out, err = project.tamis("label", "import", "sheet.csv", "--reviewer", "ada", *database)
    assert (code, "new labels by ada" in out) == (0, True), err
    code, out, err = project.tamis("label", "agreement", "--json", *database)
    assert json.loads(out)["pairs"] == []
    code, out, err = project.tamis("label", "--reviewer", "ada", *database)
    assert code == 0, err


def test_a_broken_promise_ends_with_code_4(project: Project, prefect_url: str) -> None:
    database = ("--database", project.database)
    write(project.folder, PROMISE.replace("}", ", audit: 30 %}"))
    code, out, err = project.tamis("calibrate", "screen.yaml", *database)
    assert code == 0, err
    code, finished, err = project.run("--key", "try-1")
    assert (code, finished["state"]) == (0, "done"), err
    low, high = finished["audit"]["recall"]
    assert 0.8 < low < high <= 1

    file = project.folder / "in.jsonl"
    file.write_text(file.read_text().replace(": yes", ": hidden yes"))
    code, out, err = project.tamis("run", "screen.yaml", "--key", "later", *database)
    assert code == 4, err
    assert "run later: alarm, recall >= 0.9 is in doubt: the audits of 2 runs weigh" in out
    assert "rejects were asked about all the same" in out
    code, out, _ = project.tamis("status", *database)
    assert "alarm" in out
    code, out, _ = project.tamis("certificate", "later", *database)
    assert "| later | " in out
    assert "evidence against the promise" in out
    pages = {"artifacts": {"key": {"any_": ["try-later-alarm"]}}}
    (page,) = asked(f"{prefect_url}/artifacts/filter", pages)
    assert "# Alarm: run later" in page["data"]
    (report, *_) = asked(
        f"{prefect_url}/artifacts/filter",
        {"artifacts": {"key": {"any_": ["try-later-report"]}}, "sort": "CREATED_DESC"},
    )
    assert "| tier | rejects | audited | found |" in report["data"]

    code, out, err = project.tamis("reliability", "try-1", "--plot", "scores.svg", *database)
    assert code == 0, err
    assert "small: 200 labels" in out
    assert (project.folder / "scores.svg").read_text().startswith("<svg ")
    code, out, _ = project.tamis("reliability", "try-1", "--tier", "medium", "--json", *database)
    assert [one["tier"] for one in json.loads(out)] == ["medium"]
    code, _, err = project.tamis("reliability", "try-1", "--plot", "scores.png", *database)
    assert (code, "write --plot scores.svg" in err) == (2, True)


def answer(prefect_url: str, process: Process, **form: object) -> None:
    """What a person does in the Prefect UI: finds the paused run, and fills in its form."""
    paused: list[dict[str, str]] = []
    while process.poll() is None and not paused:
        time.sleep(0.2)
        wanted = {"flow_runs": {"state": {"type": {"any_": ["PAUSED"]}}}}
        paused = asked(f"{prefect_url}/flow_runs/filter", wanted)
    resume = f"{prefect_url}/flow_runs/{paused[0]['id']}/resume"
    told = asked(resume, {"run_input": form})
    while "schema not found" in str(told["details"]):  # the form is stored after the state
        time.sleep(0.2)
        told = asked(resume, {"run_input": form})
    assert told["status"] == "ACCEPT", told


def asked(url: str, body: object) -> Any:
    request = urllib.request.Request(  # noqa: S310
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    for attempt in range(20):
        try:
            with urllib.request.urlopen(request) as reply:  # noqa: S310
                return json.load(reply)
        except urllib.error.HTTPError as error:
            with error:
                if error.code != 503 or attempt == 19:  # Prefect's database is busy
                    raise
        time.sleep(0.5)
    raise AssertionError


def test_a_person_approves_or_refuses_in_the_ui(project: Project, prefect_url: str) -> None:
    write(project.folder, PROMISE.replace("}", ", approval: true}"))
    command = ("calibrate", "screen.yaml", "--database", project.database)
    code, out, err = project.tamis(*command, "--wait", "1")
    assert code == 3, err
    assert "certified and wait for approval" in out
    labelled = paid(project.folder, "large")

    process = project.start(*command, "--wait", "200")
    answer(prefect_url, process, approved=False, by="ada", reason="too many")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 4, err
    assert "refused by ada: too many" in out
    assert "run try-1 waits 200 s for a person to approve" in err
    code, _, err = project.tamis("certificate", "try-1", "--database", project.database)
    assert (code, "is not calibrated" in err) == (2, True)

    process = project.start(*command, "--wait", "200")
    answer(prefect_url, process, approved=True, by="bob", reason="")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    code, out, err = project.tamis("certificate", "try-1", "--database", project.database)
    assert "| approved by | bob |" in out
    assert paid(project.folder, "large") == labelled


@pytest.mark.parametrize("command", ["certificate", "what-if"])
def test_a_run_without_a_promise_is_told_so(project: Project, command: str) -> None:
    project.write('{name: only, backend: python, path: "own_tiers:Steady", folder: x}', count=3)
    code, _, err = project.tamis(command, "--database", project.database)
    assert code == 2
    assert "no runs yet: looked in" in err
