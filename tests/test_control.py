"""Runs as people steer them: paused, resumed, asked again, set otherwise, repaired."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from db.query import ask
from db.store import RunState, Store, StoreError
from flows.repair import repair
from flows.run.retune import retuned
from tiers.screenfile.file import Screen
from tiers.screenfile.tiers import HttpTier

from .openai_server import ModelServer
from .project import Process, Project
from .test_prefect import flow_run, judged, named, until
from .test_remote_run import ACCEPT, PRICE, http
from .test_run import tier
from .test_store import new_run


def slow(project: Project, seconds: float = 0.005) -> str:
    paid = project.folder / "paid"
    return tier("only", "accept_above: 0.5", options=f"seconds: {seconds}, paid: {paid}")


def begun(project: Project, *extra: str) -> Process:
    return project.start(
        "run", "screen.yaml", "--key", "one", "--database", project.database, *extra
    )


def ran(project: Project) -> int:
    return tamis(project, "run", "screen.yaml", "--key", "one")[0]


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


MENDING = """
from pathlib import Path
from tiers import Judgement

class Mending:
    def __init__(self, rubric, folder):
        self.folder = Path(folder)

    def judge(self, candidates):
        for one in candidates:
            with (self.folder / "paid").open("a") as paid:
                paid.write(".")
            if one.text.endswith("7") and not (self.folder / "up").exists():
                yield Judgement(one.id, None, failed=True, error="away")
            else:
                yield Judgement(one.id, 0.9)

    def close(self):
        pass
"""


def test_who_failed_is_asked_again_and_nobody_else(project: Project) -> None:
    project.env["TAMIS_RECORD"] = "false"
    (project.folder / "mending.py").write_text(MENDING)
    project.write(
        '{name: only, backend: python, path: "mending:Mending", policy: {accept_above: 0.5}, '
        f"options: {{folder: {project.folder}}}}}",
        count=40,
    )
    assert ran(project) == 3
    code, _, err = tamis(project, "retry", "one")
    assert (code, "write: tamis retry one --failed" in err) == (2, True)
    code, out, _ = tamis(project, "status", "one")
    assert "a resume would ask 4 candidates (only 4), at an unknown cost" in out
    (project.folder / "up").touch()
    before = asked_so_far(project)
    code, out, err = tamis(project, "retry", "one", "--failed", "--json")
    assert code == 0, err
    assert "a resume would ask 4 candidates" in err
    assert json.loads(out.splitlines()[-1])["accepted"] == 40
    assert asked_so_far(project) == before + 4
    code, _, err = tamis(project, "retry", "one", "--failed")
    assert (code, "no candidate of run 'one' failed" in err) == (2, True)


def test_settings_are_changed_for_the_next_resume_and_the_cost_is_told_before(
    project: Project,
) -> None:
    project.env["TAMIS_RECORD"] = "false"
    with ModelServer(latency=0.01) as server:
        project.write(http(server, PRICE, "concurrency: 8", ACCEPT), count=300)
        file = project.folder / "screen.yaml"
        file.write_text(file.read_text() + "budget: {usd: 0.01}\n")
        assert ran(project) == 3
        code, out, err = tamis(project, "status", "one", "--json")
        assert code == 0, err
        stopped = json.loads(out)
        assert 0 <= stopped["newest_seconds"] < 60
        foreseen = stopped["resume"]
        assert foreseen["candidates"] == stopped["pending"] > 0
        assert foreseen["tiers"][0]["tier"] == "only"

        for wrong, said in (
            ((), "nothing is set; write --concurrency 32"),
            (("--budget", "1", "--tier", "other"), "no tier 'other'; write one of: only"),
            (("--concurrency", "0"), "--concurrency"),
        ):
            code, _, err = tamis(project, "set", "one", *wrong)
            assert (code, said in err) == (2, True), err
        code, out, err = tamis(project, "set", "one", "--budget", "5", "--concurrency", "2")
        assert code == 0, err
        assert "it takes effect with: tamis resume one (tamis run FILE goes by" in out
        server.most_in_flight = 0
        code, out, err = tamis(project, "resume", "one", "--json")
        assert code == 0, err
        assert f"would ask {foreseen['candidates']:,} candidates (only" in err
        done = json.loads(out.splitlines()[-1])
        assert done["usd"] - stopped["usd"] == pytest.approx(foreseen["usd"], rel=0.2)
        assert server.most_in_flight <= 2
        assert set(server.asked.values()) == {1}
    code, out, _ = tamis(project, "status", "one")
    assert "newest answer: " in out
    assert "a resume would" not in out


def test_settings_of_one_tier_leave_the_others_and_the_identity_of_the_run() -> None:
    tiers = [
        {"name": name, "backend": "http", "base_url": f"http://127.0.0.1:{port}/v1", "model": "m",
         "policy": {"accept_above": 0.5}, "price": 0}
        for name, port in (("first", 1), ("second", 2))
    ]  # fmt: skip
    before = Screen.model_validate(
        {"screen": "x", "candidates": {"from": "f", "key": "id"}, "rubric": "r", "tiers": tiers}
        | {"budget": {"tokens": 7}}
    )
    after = retuned(before, tier="second", concurrency=3, budget_usd=2.0)
    first, second = after.tiers
    assert first == before.tiers[0]
    assert isinstance(second, HttpTier)
    assert second.budget is not None
    assert (second.concurrency, second.budget.usd) == (3, 2.0)
    assert after.digest == before.digest
    whole = retuned(before, tier=None, concurrency=None, budget_usd=9.0)
    assert whole.budget is not None
    assert (whole.budget.usd, whole.budget.tokens) == (9.0, 7)


def test_a_concurrency_is_for_tiers_that_have_one(project: Project) -> None:
    project.env["TAMIS_RECORD"] = "false"
    project.write(tier("only", "accept_above: 0.5"), count=3)
    assert ran(project) == 0
    code, _, err = tamis(project, "set", "one", "--concurrency", "2")
    assert (code, "only tiers with backend: http have a concurrency, here none" in err) == (2, True)
    code, _, err = tamis(project, "set", "one", "--budget", "2")
    assert (code, "a budget in usd needs the price of every tier" in err) == (2, True)


def test_runs_whose_process_is_gone_are_put_right_here_and_in_prefect(
    project: Project, prefect_url: str
) -> None:
    project.write(slow(project), count=3_000)
    name = named(project, "ghost")
    gone = begun(project)
    until(lambda: flow_run(prefect_url, f"{name} one") and judged(project) > 10)
    family = psutil.Process(gone.pid)
    for one in (*family.children(recursive=True), family):  # with the one that would tell Prefect
        one.kill()
    gone.communicate()
    living = project.start("run", "screen.yaml", "--key", "two", "--database", project.database)
    try:
        until(lambda: flow_run(prefect_url, f"{name} two"))
        until(lambda: len(ask(project.database, "SELECT 1 FROM run WHERE lock_until > 0")) == 2)
        ghost = flow_run(prefect_url, f"{name} one")
        assert ghost is not None
        assert ghost["state_type"] == "RUNNING"
        code, out, err = tamis(project, "runs", "--repair", "--json")
        assert code == 0, err
        assert "run one: its process is gone; go on with: tamis resume one" in err
        assert "marked as crashed in Prefect: 1 flow runs" in err
        states = {row["run"]: row["state"] for row in json.loads(out)}
        assert states == {"one": "interrupted", "two": "running"}
        row = ask(project.database, "SELECT state, lock_owner, reason FROM run WHERE key = 'one'")[
            0
        ]
        assert (row["state"], row["lock_owner"]) == ("interrupted", None)
        assert "tamis resume one" in row["reason"]
        ghost, other = (flow_run(prefect_url, f"{name} {key}") for key in ("one", "two"))
        assert ghost is not None
        assert ghost["state_type"] == "CRASHED"
        assert other is not None
        assert other["state_type"] == "RUNNING"
        code, _, err = tamis(project, "runs", "--repair")
        assert (code, "nothing to repair" in err) == (0, True)
    finally:
        os.killpg(living.pid, signal.SIGKILL)
        living.communicate()


def test_a_repaired_run_that_was_not_gone_writes_nothing_any_more(store: Store) -> None:
    run = new_run(store)
    store.runs.lock(run.id, "elsewhere 1 0 boot space", seconds=60)
    assert repair(store) == [], "it may live, as far as can be seen from here"
    attempt = store.runs.lock(run.id, "elsewhere 1 0 boot space", seconds=0)
    (repaired,) = repair(store)
    assert repaired.id == run.id
    assert not store.runs.interrupt(run.id, "again", attempt=attempt)
    store.runs.finish(run.id, RunState.DONE, attempt=attempt)
    status = store.runs.status(run.id)
    assert (status.run.state, status.lock_owner) == (RunState.INTERRUPTED, None)
    assert repair(store) == []
