"""Runs as people steer them: paused, resumed, asked again, set otherwise, repaired."""

import json
import subprocess
import sys
import time

import pytest

from db.query import ask
from db.store import Store, StoreError

from .openai_server import ModelServer
from .project import Project
from .test_prefect import flow_run, judged, named, until
from .test_remote_run import http
from .test_run import tier
from .test_store import new_run


def slow(project: Project, seconds: float = 0.005) -> str:
    paid = project.folder / "paid"
    return tier("only", "accept_above: 0.5", options=f"seconds: {seconds}, paid: {paid}")


def begun(project: Project, *extra: str) -> subprocess.Popen[str]:
    return project.start(
        "run", "screen.yaml", "--key", "one", "--database", project.database, *extra
    )


def tamis(project: Project, *arguments: str) -> tuple[int, str, str]:
    return project.tamis(*arguments, "--database", project.database)


@pytest.mark.postgres
def test_a_paused_run_keeps_its_answers_and_resumes_by_its_name_alone(
    project: Project, database_url: str
) -> None:
    project.database = database_url
    project.write(slow(project), count=1_500)
    project.env["TAMIS_RECORD"] = "false"
    process = begun(project)
    until(lambda: asked_so_far(project) > 50)
    began = time.monotonic()
    code, out, err = tamis(project, "pause", "one")
    assert code == 0, err
    assert out == "run one: paused, as asked for; go on with: tamis resume one\n"
    assert time.monotonic() - began < 30
    out, err = process.communicate(timeout=30)
    assert process.returncode == 3, err
    assert "run one: paused" in out
    (row,) = ask(project.database, "SELECT state, lock_owner FROM run")
    assert row == {"state": "paused", "lock_owner": None}
    kept = counted(project)
    assert 50 < kept < 1_500
    assert asked_so_far(project) == kept, "what was under way is in, and nothing is paid twice"

    (project.folder / "in.jsonl").unlink()
    (project.folder / "screen.yaml").unlink()
    code, out, err = tamis(project, "resume", "one", "--json")
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["state"] == "done"
    assert counted(project) == asked_so_far(project) == 1_500


def asked_so_far(project: Project) -> int:
    paid = project.folder / "paid"
    return paid.stat().st_size if paid.exists() else 0


def counted(project: Project) -> int:
    return int(ask(project.database, "SELECT count(*) AS n FROM judgement")[0]["n"])


def test_a_pause_does_not_wait_for_an_answer_that_does_not_come(project: Project) -> None:
    project.write(slow(project, 300.0), count=10)
    project.env["TAMIS_RECORD"] = "false"
    short = "import flows.run.hold as h; h.PAUSE_SECONDS = 1.0; from flows.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", short, "run", "screen.yaml", "--key", "one", "--database", project.database],
        cwd=project.folder, env=project.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    until(lambda: started(project))
    code, out, err = tamis(project, "pause", "one")
    assert (code, "run one: paused" in out) == (0, True), err
    out, err = process.communicate(timeout=30)
    assert process.returncode == 3, err
    assert "Traceback" not in err


def started(project: Project) -> bool:
    try:
        return bool(ask(project.database, "SELECT 1 FROM run_tier WHERE state = 'running'"))
    except StoreError:
        return False


def test_a_paused_run_is_grey_in_prefect(project: Project, prefect_url: str) -> None:
    project.write(slow(project), count=3_000)
    name = named(project, "greyed")
    process = begun(project)
    until(lambda: flow_run(prefect_url, f"{name} one") and judged(project) > 10)
    assert tamis(project, "pause", "one")[0] == 0
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    run = flow_run(prefect_url, f"{name} one")
    assert run is not None
    assert (run["state_type"], run["state_name"]) == ("CANCELLED", "Paused")
    assert "tamis resume one" in run["state"]["message"]


def test_what_cannot_be_paused_or_resumed_says_why(project: Project) -> None:
    project.env["TAMIS_RECORD"] = "false"
    project.write(slow(project), count=1_000)
    process = begun(project)
    until(lambda: judged(project) > 10)
    code, _, err = tamis(project, "resume", "one")
    assert (code, "is being worked on; wait for it, or: tamis pause one" in err) == (5, True)
    process.kill()
    process.communicate()
    code, _, err = tamis(project, "pause", "one")
    assert (code, "is gone; go on with: tamis resume one" in err) == (2, True)

    # Another rubric: refused, and nothing is lost.
    file, kept = project.folder / "screen.yaml", judged(project)
    file.write_text(file.read_text().replace("rubric: any", "rubric: other"))
    code, _, err = tamis(project, "run", "screen.yaml", "--key", "one")
    assert (code, "undo the change to the screen" in err) == (2, True)
    assert judged(project) == kept

    assert tamis(project, "resume", "one")[0] == 0
    code, _, err = tamis(project, "resume", "one")
    assert (code, "is done, so that nothing is left to do" in err) == (2, True)
    code, _, err = tamis(project, "pause", "one")
    assert (code, "nobody works on it, so there is nothing to pause" in err) == (2, True)


def test_a_pause_that_was_meant_for_another_attempt_is_not_heard(store: Store) -> None:
    run = new_run(store)
    with pytest.raises(StoreError, match="nobody works on it"):
        store.runs.pause(run.id)
    first = store.runs.lock(run.id, "host-1")
    assert store.runs.pause(run.id) == first
    assert store.runs.pause_asked(run.id, first)
    assert not store.runs.pause_asked(run.id, store.runs.lock(run.id, "host-1"))


def test_tiers_that_work_together_pause_together(project: Project) -> None:
    """Overlapping tiers judge in threads; no answer that was under way is thrown away."""
    project.env["TAMIS_RECORD"] = "false"
    with ModelServer(latency=0.05) as one, ModelServer(latency=0.05) as two:
        first = http(one, "concurrency: 4", "policy: {reject_below: 0.3}", name="first")
        second = http(two, "concurrency: 4", "policy: {accept_above: 0.5}", name="second")
        project.write(first, second, count=2_000)
        process = begun(project)
        until(lambda: len(two.asked) > 5)
        code, _, err = tamis(project, "pause", "one")
        assert code == 0, err
        _, err = process.communicate(timeout=60)
        assert process.returncode == 3, err
        assert 0 < judged(project) < 2_000
        assert judged(project) == sum(one.good.values()) + sum(two.good.values())
        one.latency = two.latency = 0.0
        code, _, err = tamis(project, "resume", "one")
        assert code == 0, err
        assert set(one.asked.values()) | set(two.asked.values()) == {1}
