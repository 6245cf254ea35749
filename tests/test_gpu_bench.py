"""The GPU bench has minutes on a machine that is lent: what it has found must not be lost."""

import json
import sys
from pathlib import Path

import pytest

from bench.gpu import REAL, REHEARSED, Bench, cascade_parts, main, model_parts, tier_parts
from bench.gpu_build import SOURCES
from bench.large_model import FILE_TYPES, write_large
from tests.gguf_models import SHAPES
from tiers.backends.llama.tier import Llama
from tiers.screenfile.tiers import LlamaTier
from tiers.tier import Job
from tiers.types import Candidate


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "work", tmp_path / "out", 20.0, rehearse=True)


def kept(tmp_path: Path) -> list[dict[str, object]]:
    return [json.loads(x) for x in (tmp_path / "out" / "gpu.jsonl").read_text().splitlines()]


def script(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_every_figure_of_a_part_is_a_line_with_its_step(bench, tmp_path):
    bench.run(
        "tier", "small", script("print('{\"bench\": 1}'); print('x'); print('{\"bench\": 2}')")
    )
    assert [(line["step"], line["part"], line["bench"]) for line in kept(tmp_path)] == [
        ("tier", "small", 1),
        ("tier", "small", 2),
    ]


def test_a_part_that_fails_says_why_and_the_next_goes_on(bench, tmp_path):
    bench.run("vllm", "gemma", script("import nowhere_to_be_found"))
    bench.run("vllm", "missing", ["/nowhere/program"])
    bench.run("vllm", "good", script("print('{\"bench\": 3}')"))
    first, second, third = kept(tmp_path)
    assert "ended with 1" in first["error"]
    assert "No module named 'nowhere_to_be_found'" in first["error"]
    assert "/nowhere/program" in second["error"]
    assert third["bench"] == 3
    assert "error" not in third


def test_a_part_that_is_cut_keeps_what_it_found(tmp_path):
    bench = Bench(tmp_path / "work", tmp_path / "out", 1.0, rehearse=True)
    bench.run("cascade", "slow", script("import time; print('{\"bench\": 4}'); time.sleep(60)"))
    (line,) = kept(tmp_path)
    assert line["bench"] == 4
    assert "the time was over" in line["error"]


def test_a_step_whose_files_did_not_travel_says_so_and_the_next_goes_on(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "sys.argv", ["gpu", "build", "vllm", "--out", "out", "--work", "work", "--rehearse"]
    )
    main()
    first, *rest = kept(tmp_path)
    assert ".gpu/llama.tar.xz" in first["error"]
    assert {line["step"] for line in rest} == {"vllm"}


def test_goals_stand_beside_what_was_measured(bench, tmp_path, capsys):
    figures = {
        "bench": "local_tier",
        "faster": {"raw llama_decode": 0.93, "completion, no prefix reuse": 31.0},
    }
    bench.run("tier", "small", script(f"print('{json.dumps(figures)}')"))
    bench.run("cascade", "all", script('print(\'{"bench": 5, "minutes_of_all": 42.0}\')'))
    bench.compare()
    said = capsys.readouterr().out
    assert "| small | 0.93 | at least 0.90 |" in said
    assert "| small | 31 | at least 20 |" in said
    assert "| all | 42 | less than 60 |" in said


@pytest.mark.parametrize("way", [REAL, REHEARSED])
def test_the_tier_and_the_cascade_ask_for_models_that_were_written(bench, way):
    bench.way = way
    written = {
        part for _, command in model_parts(bench) for part in command if part.endswith(".gguf")
    }
    for parts in (tier_parts(bench), cascade_parts(bench)):
        wanted = {part for _, command in parts for part in command if part.endswith(".gguf")}
        assert wanted
        assert wanted <= written


@pytest.mark.parametrize(
    ("path", "travels"),
    [
        ("vendor/llama.cpp/src/models/gemma2.cpp", True),
        ("vendor/llama.cpp/ggml/src/ggml-cuda/mmq.cu", True),
        ("vendor/llama.cpp/ggml/src/ggml.c", True),
        ("llama_cpp/llama_cpp.py", True),
        ("vendor/llama.cpp/ggml/src/ggml-vulkan/ggml-vulkan.cpp", False),
        ("vendor/llama.cpp/models/ggml-vocab-gpt-2.gguf", False),
        ("vendor/llama.cpp/tools/server/server.cpp", False),
        ("vendor/llama.cpp/tests/test-chat.cpp", False),
    ],
)
def test_only_sources_of_the_libraries_travel(path, travels):
    assert bool(SOURCES.fullmatch(f"llama_cpp_python-1/{path}")) is travels


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILE_TYPES)
@pytest.mark.parametrize("shape", ["gemma-small", "gemma-large"])
def test_a_random_model_answers_so_that_a_run_goes_through_it(tmp_path, shape, kind):
    path = tmp_path / "model.gguf"
    write_large(path, SHAPES[shape], kind)
    section = {"name": "large", "backend": "llama", "model": str(path), "threads": 1}
    tier = Llama(Job("anything", LlamaTier.model_validate(section)))
    judged = list(tier.judge(Candidate(i, f"import {'value ' * i}") for i in range(6)))
    tier.close()
    assert all((judgement.mass or 0) > 0.9 for judgement in judged)
    assert len({judgement.score for judgement in judged}) == len(judged)
