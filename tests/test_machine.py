"""What a machine has, and what a screen lacks on it."""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from db.engine import open_engine
from flows.cli import app
from flows.report import readiness
from tests.gguf_bare import BARE, write_bare
from tests.gguf_models import SHAPES, write_model
from tiers.container import cores
from tiers.planning import machine
from tiers.planning.machine import Gpu, Llama, Machine, look

from .openai_server import ModelServer

GIB = 1 << 30


def put(root: Path, files: dict[str, str]) -> Path:
    for name, words in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(words)
    return root


def test_the_quota_of_a_container_counts_and_not_its_host(tmp_path: Path) -> None:
    whole = float(len(os.sched_getaffinity(0)))
    assert cores(put(tmp_path / "none", {"proc/self/cgroup": "0::/\n"})) == whole
    second = {
        "proc/self/cgroup": "0::/jobs/mine\n",
        "sys/fs/cgroup/jobs/mine/cpu.max": "max 100000\n",
        "sys/fs/cgroup/jobs/cpu.max": "50000 100000\n",
    }
    assert cores(put(tmp_path / "second", second)) == 0.5
    first = {
        "proc/self/cgroup": "4:memory:/m\n1:cpu,cpuacct:/docker/abc\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "75000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    }
    assert cores(put(tmp_path / "first", first)) == 0.75
    unbounded = first | {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n"}
    assert cores(put(tmp_path / "unbounded", unbounded)) == whole


@pytest.mark.parametrize("version", [1, 2])
def test_the_memory_of_a_container_counts(version: int, tmp_path: Path) -> None:
    folder, limit, used, cached = {
        1: ("memory/", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("", "memory.max", "memory.current", "inactive_file"),
    }[version]
    group = f"sys/fs/cgroup/{folder}"
    root = put(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n4:memory:/somewhere\n",
            "proc/cpuinfo": "model name\t: A Processor\nflags\t\t: fpu avx2 avx512f\n",
            group + limit: f"{GIB // 2}\n",
            group + used: f"{GIB // 4}\n",
            group + "memory.stat": f"anon 5\n{cached} {GIB // 8}\n",
        },
    )
    seen = look(tmp_path / "not" / "yet", root)
    assert seen.memory == GIB // 2
    assert seen.free_memory == min(GIB // 2 - GIB // 8, psutil.virtual_memory().available)
    assert (seen.processor, seen.features) == ("A Processor", ["AVX2", "AVX-512"])
    assert seen.disk > 0


def test_llama_cpp_is_asked_how_it_was_built_without_being_loaded_here() -> None:
    found = machine._llama()
    assert found.problem is None
    assert "OPENMP" in found.features
    assert not found.gpu


def test_an_engine_that_dies_of_its_first_step_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_ASK", "import os; os.kill(os.getpid(), 4)")
    assert "built for another processor" in (machine._llama().problem or "")


def of(**changes: Any) -> Machine:
    usual = Machine("A", ["AVX2"], 2, 2, 16 * GIB, 15 * GIB, 99 * GIB, [], Llama(["AVX2"]))
    return usual._replace(**changes)


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`tamis doctor` on a machine made up, in a folder with a screen."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TAMIS_DATA_FOLDER", str(tmp_path / "data"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))

    def run(*tiers: str, seen: Machine | None = None, **more: str) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr(readiness, "look", lambda _folder: seen or of())
        (tmp_path / "in.jsonl").write_text('{"id": "a", "text": "x"}\n')
        lines = "\n".join(f"  - {each}" for each in tiers)
        (tmp_path / "screen.yaml").write_text(
            f"screen: try\ncandidates: {{from: {more.get('source', 'in.jsonl')}, key: id}}\n"
            f"rubric: any\ntiers:\n{lines}\n"
        )
        asked = ["doctor", *(["screen.yaml"] if tiers else []), "--json"]
        asked += ["--database", more["database"]] if "database" in more else []
        reply = CliRunner().invoke(app, asked)
        assert reply.exception is None or isinstance(reply.exception, SystemExit), reply.exception
        return reply.exit_code, json.loads(reply.stdout.splitlines()[-1])

    return run


def chosen(found: dict[str, Any]) -> dict[str, Any]:
    (one,) = [each for each in found["models"] if each["chosen"]]
    return one


def test_a_machine_alone_is_told_what_it_could_hold(doctor: Any) -> None:
    code, found = doctor()
    assert code == 0
    assert len(found["models"]) == 9
    (best,) = [each for each in found["models"] if each["best"]]
    assert (best["model"], best["quantization"]) == ("gemma-3-12b", "Q8_0")
    code, small = doctor(seen=of(free_memory=4 * GIB))
    (best,) = [each for each in small["models"] if each["best"]]
    assert (best["model"], best["quantization"]) == ("gemma-2-2b", "Q8_0")


def test_a_screen_that_could_run_ends_with_0(doctor: Any, tmp_path: Path) -> None:
    write_model(tmp_path / "small.gguf", SHAPES["llama"])
    code, found = doctor("{name: a, backend: llama, model: small.gguf, policy: {top: 1}}")
    assert (code, found["missing"]) == (0, [])
    assert chosen(found)["fits"]
    assert chosen(found)["total"] < 300e6
    assert found["answers"]["input"].endswith("can be read")
    assert not (tmp_path / "data").exists()


def test_a_model_that_does_not_fit_is_told_in_numbers(doctor: Any, tmp_path: Path) -> None:
    write_bare(tmp_path / "large.gguf", BARE["qwen2"])
    code, found = doctor("{name: a, backend: llama, model: large.gguf}", seen=of(free_memory=GIB))
    assert code == 2
    assert not chosen(found)["fits"]
    assert "large.gguf needs 1." in found["missing"][0]
    assert "1.1 GB of memory are free" in found["missing"][0]


def test_a_card_counts_where_the_tier_uses_it(doctor: Any) -> None:
    tier = "{name: a, backend: llama, model: gemma-2-9b, n_gpu_layers: -1}"
    seen = of(gpus=[Gpu("a card", 8 * GIB, 8 * GIB)], llama=Llama([], gpu=True))
    _, found = doctor(tier, seen=seen)
    assert (chosen(found)["where"], chosen(found)["room"]) == ("GPU", 8 * GIB)
    code, without = doctor(tier)
    assert code == 2
    assert "built without GPU support" in "".join(without["missing"])


def test_files_that_are_cut_or_not_there_are_told(doctor: Any, tmp_path: Path) -> None:
    path = write_bare(tmp_path / "cut.gguf", BARE["gpt2"])
    with path.open("r+b") as file:
        file.truncate(400)
    code, found = doctor(
        "{name: a, backend: llama, model: cut.gguf, policy: {top: 1}}",
        "{name: b, backend: llama, model: none.gguf}",
        source="gone.jsonl",
    )
    assert code == 2
    assert [any(words in one for one in found["missing"]) for words in (
        "tier 'a': ", "its header ends amid entry", "neither a file nor a preset", "no such file",
    )] == [True] * 4  # fmt: skip


def test_servers_and_keys_are_looked_at_and_keys_not_shown(
    doctor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret-0123456789")
    with socket.create_server(("127.0.0.1", 0)) as silent, ModelServer() as server:
        held = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        tier = "name: {}, backend: http, model: m, base_url: '{}', policy: {{top: 1}}"
        began = time.monotonic()
        code, found = doctor(
            f"{{{tier.format('a', server.url)}, key_variable: MY_KEY}}",
            f"{{{tier.format('b', held)}}}",
            f"{{{tier.format('c', 'http://127.0.0.1:9/v1')}, key_variable: OTHER_KEY}}",
        )
    assert time.monotonic() - began < 60
    assert code == 2
    told = found["answers"]
    assert told[f"server {server.url}"].startswith("answers")
    assert "does not answer" in told[f"server {held}"]
    assert told["key MY_KEY"] == "set"
    assert "sk-very" not in json.dumps(found)
    missing = "".join(found["missing"])
    assert "tier 'b'" in missing
    assert "tier 'c'" in missing
    assert "set the variable OTHER_KEY" in missing
    assert server.url not in missing


def test_an_older_database_is_told_with_what_to_do(doctor: Any, database_url: str) -> None:
    tier = "{name: a, backend: llama, model: gemma-2-2b}"
    _, found = doctor(tier, database=database_url)
    assert "nothing there yet" in found["answers"]["database"]
    engine = open_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num varchar(32))"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('0001')"))
    engine.dispose()
    code, found = doctor(tier, database=database_url)
    assert code == 2
    assert "tamis db upgrade" in "".join(found["missing"])


def test_an_address_of_a_database_that_means_nothing_is_told(doctor: Any) -> None:
    code, found = doctor(database="nonsense")
    assert (code, found["answers"]["database"]) == (2, "not usable")
    code, found = doctor(database="postgresql://me:secret@127.0.0.1:9/x")
    assert code == 2
    assert "secret" not in json.dumps(found)


def test_what_is_not_installed_is_told(doctor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "find_spec", lambda _name: None)
    code, found = doctor(
        "{name: a, backend: vllm, model: owner/model, policy: {top: 1}}",
        "{name: b, backend: llama, model: gemma-2-2b, workers: {ray: '127.0.0.1:9'}, policy: {top: 1}}",
        "{name: c, backend: llama, model: gemma-2-2b}",
    )
    assert code == 2
    missing = "".join(found["missing"])
    for extra in ("tamis[vllm]", "tamis[ray]", "tamis[hub]"):
        assert extra in missing
