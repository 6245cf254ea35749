"""Engines on a Ray cluster of two machines, which are processes here, that are killed meanwhile."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from db.query import ask
from tiers.cluster import Worker, described
from tiers.placing import open_tier
from tiers.screenfile.tiers import PythonTier
from tiers.screenfile.trust import TRUSTED_FOLDERS
from tiers.tier import Job
from tiers.types import Candidate, TierError

from .own_tiers import score_of
from .project import Process, Project

cluster_utils = pytest.importorskip("ray.cluster_utils", reason="Ray is not here: make test-ray")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray leaves files of its own open
HERE = Path(__file__).parent.parent
COUNT = 1_200


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A head without a processor, and two machines with one each."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    quiet = {"include_dashboard": False, "object_store_memory": 80_000_000}
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **quiet})
    try:
        yield made
    finally:
        made.shutdown()


@pytest.fixture
def machines(cluster: Any) -> list[Any]:
    return [added(cluster) for _ in range(2)]


def added(cluster: Any) -> Any:
    """A machine, whose environment trusts nobody's screens."""
    was = os.environ.pop(TRUSTED_FOLDERS)
    try:
        return cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
    finally:
        os.environ[TRUSTED_FOLDERS] = was


def job(address: str, path: str = "tests.own_tiers:Steady", **more: Any) -> Job:
    workers = {"ray": address, "count": 2, **more.pop("workers", {})}
    section = {"name": "only", "backend": "python", "path": path, "folder": str(HERE), **more}
    return Job("any", PythonTier.model_validate(section | {"workers": workers}))


def candidates(count: int) -> list[Candidate]:
    return [Candidate(number, f"text {number}") for number in range(1, count + 1)]


def workers_of(cluster: Any) -> list[psutil.Process]:
    """The processes that hold an engine each."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if (process.info["cmdline"] or [""])[0].startswith("ray::Worker")
    ]


def test_two_workers_answer_once_for_everybody(cluster: Any, machines: list[Any]) -> None:
    tier = open_tier(job(cluster.address, options={"seconds": 0.001}))
    try:
        judged = list(tier.judge(candidates(500)))
        assert sorted(one.id for one in judged) == list(range(1, 501))
        assert all(one.score == score_of(f"text {one.id}") for one in judged)
        again = list(tier.judge(candidates(3)))
        assert len(again) == 3
        assert "workers: " in tier.remarks[0]
    finally:
        tier.close()
    assert not workers_of(cluster)


def test_what_an_engine_or_an_address_cannot_do_is_a_message(
    cluster: Any, machines: list[Any]
) -> None:
    with pytest.raises(TierError, match="no Ray cluster answers at"):
        open_tier(job("127.0.0.1:9"))
    with pytest.raises(TierError, match="the device is on fire"):
        open_tier(job(cluster.address, "tests.own_tiers:Unopenable"))
    greedy = {"cpus": 64, "patience_seconds": 3}
    with pytest.raises(TierError, match="no machine of the Ray cluster has had room"):
        open_tier(job(cluster.address, workers=greedy))


def test_a_crash_in_native_code_costs_one_candidate(cluster: Any, machines: list[Any]) -> None:
    tier = open_tier(job(cluster.address, "tests.own_tiers:Crashing"))
    texts = [Candidate(1, "fine"), Candidate(2, "please abort"), Candidate(3, "fine too")]
    try:
        judged = {one.id: one for one in tier.judge(texts)}
    finally:
        tier.close()
    assert judged[1].score is not None
    assert judged[3].score is not None
    assert "SIGABRT" in str(judged[2].error)


def test_a_silent_worker_is_replaced(cluster: Any, machines: list[Any], tmp_path: Path) -> None:
    tier = open_tier(
        job(cluster.address, options={"seconds": 0.02}, workers={"patience_seconds": 15})
    )
    try:
        answers = tier.judge(candidates(400))
        judged = [next(answers) for _ in range(20)]
        stopped = workers_of(cluster)[0]
        stopped.suspend()
        judged += list(answers)
    finally:
        tier.close()
    assert sorted(one.id for one in judged) == list(range(1, 401))
    assert any("said nothing for 15 s" in remark for remark in tier.remarks)


@pytest.fixture
def screened(project: Project, cluster: Any) -> Iterator[Process]:
    """A run at work on the cluster."""
    file = project.folder / "screen.yaml"
    paid = project.folder / "paid"
    file.write_text(
        "screen: try\ncandidates: {from: in.jsonl, key: id}\nrubric: any\ntiers:\n"
        "  - {name: only, backend: python, path: 'tests.own_tiers:Steady', "
        f"folder: {HERE}, policy: {{accept_above: 0.5}}, "
        f"options: {{seconds: 0.01, paid: {paid}}}, "
        f"workers: {{ray: '{cluster.address}', count: 2}}}}\n"
    )
    with (project.folder / "in.jsonl").open("w") as lines:
        for number in range(COUNT):
            lines.write(json.dumps({"id": number, "text": f"text {number}"}) + "\n")
    process = project.start("run", "screen.yaml", "--key", "one", "--database", project.database)
    deadline = time.monotonic() + 120
    while not (paid.exists() and paid.stat().st_size > 100):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def test_a_machine_and_a_worker_killed_in_the_middle_lose_and_double_nothing(
    project: Project, cluster: Any, machines: list[Any], screened: Process
) -> None:
    cluster.remove_node(machines[0], allow_graceful=False)
    time.sleep(1)
    for worker in workers_of(cluster)[:1]:
        os.kill(worker.pid, signal.SIGKILL)
    added(cluster)  # joins later, and is used
    out, err = screened.communicate(timeout=240)
    assert screened.returncode == 0, (out, err)
    rows = ask(
        project.database, "SELECT count(*) AS n, count(DISTINCT text_id) AS texts FROM judgement"
    )
    assert rows == [{"n": COUNT, "texts": COUNT}]
    assert "asked again elsewhere" in err
    # Two workers, each with two blocks of at most a second and a half begun, were lost.
    assert COUNT <= (project.folder / "paid").stat().st_size < COUNT * 1.5


def test_a_run_on_a_cluster_ends_on_sigterm_and_goes_on(
    project: Project, cluster: Any, machines: list[Any], screened: Process
) -> None:
    screened.send_signal(signal.SIGTERM)
    screened.communicate(timeout=60)
    assert screened.returncode == 128 + signal.SIGTERM
    kept = ask(project.database, "SELECT count(*) AS n FROM judgement")[0]["n"]
    assert kept
    code, out, err = project.tamis(
        "run", "screen.yaml", "--key", "one", "--json", "--database", project.database
    )
    assert code == 0, err
    finished = json.loads(out)
    assert finished["candidates"] == COUNT
    assert finished["tiers"][0]["judged"] == COUNT


def test_without_ray_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(TierError, match=r"pip install 'tamis\[ray\]'"):
        open_tier(job("auto"))


def test_a_machine_with_another_model_is_refused_by_name() -> None:
    mine = job("auto")
    with pytest.raises(TierError, match=r"has another version: .*, and not 'theirs'; install"):
        Worker(mine, described(mine) | {"version": "theirs"})
