"""tamis bench: real small models and a server, through the backends of a run."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner

from db.benchmarks import Benchmark
from db.store import Store
from flows.cli import app
from tiers.planning import measure as measuring
from tiers.planning import roofline
from tiers.planning.guidellm import read_report
from tiers.planning.measure import Measured, measure, plan_of
from tiers.policy import Policy
from tiers.screenfile.tiers import HttpTier, LlamaTier
from tiers.tier import Job
from tiers.types import Candidate, Judgement, TierError

from .openai_server import ModelServer

TEXTS = [(f"k{i:03}", f"text number {i}") for i in range(12)]
MODELS = Path(__file__).parents[1] / "demo" / "models"


def write(folder: Path, *tiers: str) -> None:
    lines = [json.dumps({"id": key, "text": text}) for key, text in TEXTS]
    (folder / "in.jsonl").write_text("\n".join(lines) + "\n")
    listed = "\n".join(f"  - {each}" for each in tiers)
    (folder / "screen.yaml").write_text(
        f"screen: try\ncandidates: {{from: in.jsonl, key: id, text: '{{{{ text }}}}'}}\n"
        f"rubric: Is this a match?\ntiers:\n{listed}\n"
    )


def asked(*arguments: str) -> tuple[int, Any, str]:
    reply = CliRunner().invoke(app, ["bench", "screen.yaml", *arguments])
    assert reply.exception is None or isinstance(reply.exception, SystemExit), reply.exception
    return reply.exit_code, reply.stdout, reply.stderr


@pytest.mark.slow
def test_models_are_measured_compared_and_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TAMIS_DATA_FOLDER", str(folder / "data"))
    monkeypatch.setattr(measuring, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(roofline, "PROBE_SECONDS", 0.01)
    write(
        folder,
        f"{{name: a, backend: llama, model: {MODELS}/applicants-small.gguf, threads: 1, "
        "price: {hour: 3.6}, policy: {accept_above: 0.5}}",
    )
    files = f"{MODELS}/applicants-medium.gguf,none.gguf"
    code, out, err = asked("--batch-sizes", "1,4", "--quantizations", files, "--json")
    assert code == 0, err
    assert "12 candidates, handed over 1, 4 at once, 3 models: 84 answers" in " ".join(err.split())
    found = json.loads(out.splitlines()[-1])
    one, four, _, other, missing = found["benchmarks"]
    assert [x["batch_size"] for x in (one, four, other, missing)] == [1, 4, 4, None]
    assert sum(x["suggested"] for x in (one, four)) == 1
    assert one["candidates"] == 12
    assert 0 < one["p50"] <= one["p95"] <= one["p99"]
    assert one["per_dollar"] == pytest.approx(1000 * one["rate"], rel=1e-6)
    assert one["first_token"] > 0
    assert one["prefill_rate"] > one["rate"]
    assert one["decode_rate"] > 0
    assert 20e6 < one["peak_memory"] < 500e6
    assert one["agreement"] is None
    assert other["agreement"] == 1 - other["flips"] / 12
    assert 0 <= other["flips_near"] <= other["flips"]
    assert missing["rate"] is None
    assert "none.gguf" in missing["problem"]
    assert "of the ceiling" in found["rooflines"][0]["measured"]

    code, out, _ = asked("--history", "--json")
    kept = json.loads(out.splitlines()[-1])["benchmarks"]
    assert [x["rate"] for x in reversed(kept)] == [x["rate"] for x in found["benchmarks"]]
    _, table, _ = asked("--history")
    assert "not measured" in table
    store_is_untouched(database_url)


def store_is_untouched(url: str) -> None:
    """No judgement, no candidate, no run."""
    from sqlalchemy import text

    from db.engine import open_engine

    engine = open_engine(url)
    with engine.connect() as connection:
        for table in ("judgement", "candidate", "run", "text"):
            assert connection.scalar(text(f"SELECT COUNT(*) FROM {table}")) == 0
    engine.dispose()


def test_a_gpu_that_is_not_there_is_not_measured_and_the_code_is_2(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    write(
        folder,
        f"{{name: a, backend: llama, model: {MODELS}/applicants-small.gguf, n_gpu_layers: -1}}",
    )
    code, out, _ = asked("--batch-sizes", "4")
    assert code == 2
    assert "not measured" in out
    assert "built without GPU support" in out


@pytest.mark.slow
def test_a_server_is_asked_as_a_run_would_and_no_more_than_announced(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with ModelServer(latency=0.01) as server:
        write(
            folder,
            f"{{name: a, backend: http, model: m, base_url: '{server.url}', concurrency: 4, "
            "price: {input: 1, output: 1}}",
        )
        arguments = ("--batch-sizes", "1,12", "--concurrency", "1,8", "--sample", "12", "--json")
        code, out, err = asked(*arguments)
        told = " ".join(err.split())
        assert code == 0, told
        assert "1, 8 under way: 56 answers; at most about 0.0" in told
        assert len(server.bodies) == 56
    found = json.loads(out.splitlines()[-1])["benchmarks"]
    assert [(x["concurrency"], x["batch_size"]) for x in found] == [
        (1, 1),
        (1, 12),
        (8, 1),
        (8, 12),
    ]
    assert found[3]["rate"] > found[1]["rate"]
    assert found[3]["per_dollar"] > 1
    assert found[0]["peak_memory"] is None
    assert all(x["first_token"] >= 0.01 for x in found)


def test_the_knee_is_the_smallest_setting_that_is_nearly_the_best() -> None:
    rates = {1: 10.0, 8: 91.0, 32: 100.0, 64: 99.0}
    rows = [Measured("m", size, None, rate=rate) for size, rate in rates.items()]
    found = measuring._with_knee([*rows, Measured("m", None, None, problem="why")])
    assert [one.batch_size for one in found if one.suggested] == [8]
    assert not any(one.suggested for one in measuring._with_knee([Measured("m", 1, None)]))


def test_percentiles_are_ranks() -> None:
    values = [float(x) for x in range(1, 101)]
    assert [measuring._percentile(values, p) for p in (50, 95, 99)] == [50, 95, 99]
    assert measuring._percentile([3.0], 99) == 3.0


def test_flips_are_outcomes_that_change_and_those_near_a_threshold_are_told() -> None:
    plan = plan_of(
        Job("r", LlamaTier(name="a", backend="llama", model="m")),
        Policy(reject_below=0.2, accept_above=0.8), last=False, texts=TEXTS[:4],
        batch_sizes=[1], concurrencies=[], files=[],
    )  # fmt: skip
    reference, scores = [0.1, 0.5, 0.79, 0.9], [0.1, 0.9, 0.81, 0.95]
    one = measuring._compared(Measured("m", 1, None), scores, reference, plan)
    assert (one.agreement, one.flips, one.flips_near) == (0.5, 2, 1)


def test_a_server_that_refuses_everything_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        rates: ClassVar[dict[str, float]] = {}

        def judge(self, candidates: list[Candidate]) -> list[Judgement]:
            return [Judgement(one.id, None, error="no room", failed=True) for one in candidates]

        def close(self) -> None:
            pass

    monkeypatch.setattr(measuring, "open_tier", lambda _job: Failing())
    config = {"name": "a", "backend": "http", "model": "m", "base_url": "http://127.0.0.1:9/v1"}
    plan = plan_of(
        Job("r", HttpTier.model_validate(config)), Policy(accept_above=0.5), last=True,
        texts=TEXTS, batch_sizes=[4], concurrencies=[], files=[],
    )  # fmt: skip
    (one,) = measure(plan)
    assert (one.rate, one.problem) == (None, "no room")


def test_options_that_mean_nothing_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    write(folder, "{name: a, backend: llama, model: gemma-2-2b}")
    for arguments, said in (
        (("--batch-sizes", "1,x"), "write whole numbers"),
        (("--concurrency", "0"), "write whole numbers"),
        (("--batch-sizes", ""), "names none"),
        (("--tier", "z"), "has no tier 'z'; it has a"),
    ):
        code, _, err = asked(*arguments)
        assert code == 2
        assert said in " ".join(err.split())


def test_a_report_of_guidellm_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    write(folder, "{name: a, backend: llama, model: gemma-2-2b}")
    latency = {"mean": 0.5, "percentiles": {"p50": 0.4, "p95": 0.9, "p99": 1.2}}
    metrics = {
        "request_totals": {"successful": 90, "errored": 10, "total": 100},
        "requests_per_second": {"successful": {"mean": 12.5}},
        "request_concurrency": {"successful": {"mean": 7.8}},
        "request_latency": {"successful": latency},
        "time_to_first_token_ms": {"successful": {"median": 80.0, "percentiles": {"p50": 81.0}}},
        "prompt_tokens_per_second": {"successful": {"mean": 4000.0}},
        "output_tokens_per_second": {"successful": {"mean": 300.0}},
    }
    report = {"args": {"model": "some/model"}, "benchmarks": [{"metrics": metrics}]}
    (folder / "report.json").write_text(json.dumps(report))
    code, out, _ = asked("--import", "report.json", "--json")
    assert code == 0
    (one,) = json.loads(out.splitlines()[-1])["benchmarks"]
    wanted = {
        "source": "guidellm", "tier": "a", "model": "some/model", "candidates": 90, "rate": 12.5,
        "concurrency": 8, "p50": 0.4, "p95": 0.9, "p99": 1.2, "first_token": 0.081,
        "prefill_rate": 4000.0, "decode_rate": 300.0,
    }  # fmt: skip
    assert wanted.items() <= one.items()
    for broken in ("[]", "{", '{"benchmarks": [{}]}', '{"benchmarks": []}'):
        (folder / "report.json").write_text(broken)
        with pytest.raises(TierError, match=r"report\.json"):
            read_report(folder / "report.json")


def test_rows_come_back_newest_first(store: Store) -> None:
    rows = [Benchmark("m", "s", tier, "x", rate=1.0) for tier in ("a", "b")]
    store.benchmarks.add(rows)
    store.benchmarks.add([Benchmark("m", "t", "a", "x", problem="nul \0 here", peak_memory=2**40)])
    assert [one.tier for one in store.benchmarks.of_screen("s")] == ["b", "a"]
    assert [one.tier for one in store.benchmarks.of_screen("s", "a")] == ["a"]
    (other,) = store.benchmarks.of_screen("t")
    assert other.measured_at is not None
    assert (other.peak_memory, other.rate) == (2**40, None)
    store.benchmarks.add([])
