"""Metrics, spans, logs and traces: there when asked for, absent when not, and never in the way."""

import json
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from db.engine import check_ready
from flows.server import ServerError
from flows.watch import telemetry
from flows.watch import traces as tracing
from flows.watch.metrics import served_metrics
from flows.watch.traces import SAMPLE, TierTraces, Traces
from tests.openai_server import ModelServer
from tests.project import Project, screened, write
from tests.receiver import receiving
from tests.test_prefect import until
from tests.test_run import tier
from tiers.policy import Policy
from tiers.screenfile.file import Screen, load_screen
from tiers.screenfile.tiers import PythonTier
from tiers.tier import Job
from tiers.types import Candidate, Judgement

ONLY = tier("only", "accept_above: 0.5")
SLOW = tier("only", "accept_above: 0.5", options="seconds: 0.01")


@pytest.fixture
def alone(project: Project) -> Project:
    """A project without Prefect."""
    project.env["TAMIS_RECORD"] = "false"
    return project


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# Prometheus


def scraped(port: int) -> dict[tuple[str, ...], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as reply:
        text = reply.read().decode()
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_run_is_watched_while_it_works(alone: Project) -> None:
    alone.write(SLOW, count=2_000)
    port = free_port()
    process = alone.start(
        "run", "screen.yaml", "--key", "now", "--metrics-port", str(port), "--database", alone.database
    )  # fmt: skip

    def working() -> dict[tuple[str, ...], float] | None:
        try:
            found = scraped(port)
        except OSError:
            return None
        return found if found.get(("tamis_tier_judged", "now", "only", "try")) else None

    found = until(working)
    process.terminate()
    process.communicate()
    assert found[("tamis_run_state", "now", "running", "try")] == 1
    assert found[("tamis_candidates", "now", "pending", "try")] > 0
    assert found[("tamis_tier_tokens", "now", "only", "prompt", "try")] == 10 * found[("tamis_tier_judged", "now", "only", "try")]  # fmt: skip
    assert found[("tamis_database_up",)] == 1


def test_metrics_listen_on_loopback_and_a_taken_port_is_told(tmp_path: Path) -> None:
    port = free_port()
    url = f"sqlite:///{tmp_path}/none.db"
    with served_metrics(url, port):
        assert scraped(port) == {("tamis_database_up",): 1}  # before the first run
        assert not (tmp_path / "none.db").exists()
        listening = psutil.Process().net_connections("tcp")
        assert {one.laddr.ip for one in listening if one.laddr.port == port} == {"127.0.0.1"}
        with pytest.raises(ServerError, match=f"--metrics-port {port + 1}"), served_metrics(url, port):  # fmt: skip
            pass
    check_ready(url)
    with served_metrics(url, port):
        assert scraped(port)[("tamis_database_up",)] == 1
    with served_metrics(f"postgresql://127.0.0.1:{free_port()}/none", port):
        assert scraped(port) == {("tamis_database_up",): 0}


# OpenTelemetry


@pytest.fixture
def collector() -> Iterator[tuple[str, dict[str, list[bytes]]]]:
    """A server that keeps what an OTLP exporter sends, by path."""
    with receiving() as received:
        yield received


def spans(bodies: list[bytes]) -> list[tuple[str, dict[str, Any]]]:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    found = []
    for body in bodies:
        request = ExportTraceServiceRequest()
        request.ParseFromString(body)
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    values = {
                        each.key: each.value.string_value or each.value.int_value
                        for each in span.attributes
                    }
                    found.append((span.name, values))
    return found


def test_a_span_for_the_run_each_tier_and_each_block_and_none_for_a_candidate(
    alone: Project, collector
) -> None:
    url, got = collector
    alone.env["OTEL_EXPORTER_OTLP_ENDPOINT"] = url
    alone.write(tier("a", "reject_below: 0.5"), tier("b", "accept_above: 0.5", options='salt: "b"'), count=300)  # fmt: skip
    code, found, err = alone.run("--key", "spans")
    assert code == 0, err
    told = spans(got["/v1/traces"])
    assert [name for name, _ in told].count("run spans") == 1
    assert {"tier a", "tier b"} <= {name for name, _ in told}
    judged = sum(int(values["tamis.judged"]) for _, values in told if "tamis.judged" in values)
    assert judged == sum(each["judged"] for each in found["tiers"])
    assert len(told) < 15
    assert b"text number" not in b"".join(got["/v1/traces"])
    metrics = b"".join(got["/v1/metrics"])
    assert b"tamis.judged" in metrics
    assert b"tamis.block.seconds" in metrics


def test_a_collector_that_is_not_there_costs_a_run_nothing(alone: Project) -> None:
    alone.env["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{free_port()}"
    alone.write(ONLY, count=20)
    code, found, err = alone.run()
    assert (code, found["pending"]) == (0, 0), err


def test_a_missing_package_is_told_once_and_costs_nothing_else(monkeypatch, capsys):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    telemetry._telemetry.cache_clear()
    for _ in range(3):
        with telemetry.span("x") as told:
            told["judged"] = 1
        telemetry.count("s", "t", 1, 0.1)
    assert capsys.readouterr().err.count("pip install 'tamis[otel]'") == 1
    telemetry._telemetry.cache_clear()


@pytest.mark.parametrize(
    "switch",
    [{}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"}],
)
def test_nothing_of_it_is_imported_where_nobody_asks(alone: Project, switch) -> None:
    script = (
        "import sys; from flows.cli import main; sys.argv = ['tamis', 'run', 'screen.yaml']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([name for name in sys.modules if name.partition('.')[0] in ('opentelemetry', 'prometheus_client', 'prefect')])"
    )  # fmt: skip
    alone.write(ONLY, count=5)

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=alone.folder, env=alone.env | switch,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


# Logs


@pytest.mark.parametrize("how", ["option", "variable"])
def test_a_log_of_json_has_a_line_a_block_and_a_message(alone: Project, how) -> None:
    alone.write(ONLY, count=600)
    if how == "variable":
        alone.env["TAMIS_LOG_FORMAT"] = "json"
    code, _, err = alone.run("--key", "logged", *["--log-format", "json"] * (how == "option"))
    lines = [json.loads(line) for line in err.splitlines()]
    assert code == 0
    assert {line["run"] for line in lines} == {"logged"}
    blocks = [line for line in lines if line["event"] == "block"]
    assert (
        blocks[-1]["done"] == blocks[-1]["total"] == sum(line["judged"] for line in blocks) == 600
    )
    assert any("run logged of screen try" in line.get("message", "") for line in lines)


# Traces

KEY = "sk-nobody-else-may-see-this-42"


def kept(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(folder.rglob("*.jsonl")) for line in path.read_text().splitlines()]  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "count"), [("none", 0), ("errors", 0), ("sample", 3), ("all", 300)]
)
def test_prompts_and_replies_are_kept_as_asked(folder, monkeypatch, capsys, wanted, count):
    monkeypatch.setenv("TAMIS_DATA_FOLDER", str(folder / "data"))
    monkeypatch.setenv("MY_KEY", KEY)
    with ModelServer(key=KEY) as server:
        write(folder, f'{{name: only, backend: http, base_url: "{server.url}", model: m, key_variable: MY_KEY}}', count=300)  # fmt: skip
        with (folder / "in.jsonl").open("a") as more:
            more.write(json.dumps({"id": "leak", "text": f"my key is {KEY}"}) + "\n")
        definition = load_screen(folder / "screen.yaml").model_copy(update={"traces": wanted})
        key = screened(definition)
    found = kept(folder / "data" / "traces")
    if wanted == "sample":
        assert 0 < len(found) <= 3 * count
    else:
        assert len(found) == count + (wanted == "all")
    assert all("text number" in one["prompt"] or "(key)" in one["prompt"] for one in found)
    assert all("any" in one["prompt"] and one["score"] is not None for one in found)
    assert KEY not in json.dumps(found)
    said = f"{len(found):,} traces in {folder}/data/traces/{key}-1" in capsys.readouterr().err
    assert said == bool(found)


def test_only_judgements_without_an_answer_are_errors(folder, monkeypatch):
    monkeypatch.setenv("TAMIS_DATA_FOLDER", str(folder / "data"))
    write(folder, tier("only", "accept_above: 0.5", "Odd"), count=3)
    with (folder / "in.jsonl").open("a") as more:
        more.write('{"id": "x", "text": "seven"}\n')
    screened(load_screen(folder / "screen.yaml").model_copy(update={"traces": "errors"}))
    [trace] = kept(folder / "data" / "traces")
    assert "seven" in trace["prompt"]
    assert "outside 0 to 1" in trace["error"]
    [path] = (folder / "data" / "traces").rglob("*.jsonl")
    assert path.stat().st_mode & 0o077 == 0


def traced_tier(folder: Path) -> tuple[Traces, TierTraces]:
    traces = Traces(folder, "all")
    config = PythonTier(name="only", backend="python", path="own_tiers:Steady", folder=str(Path(__file__).parent), policy=Policy(accept_above=0.5))  # fmt: skip
    return traces, TierTraces(traces, Job("r", config))


def ask(tier: TierTraces, count: int) -> None:
    for i in range(count):
        tier.asked(Candidate(i, f"text {i}"))
        tier.answered([Judgement(i, 0.5)])


def test_a_full_disk_ends_the_traces_and_not_the_run(tmp_path):
    (tmp_path / "full").symlink_to("/dev/full")
    traces, tier = traced_tier(tmp_path / "full")
    ask(tier, 50)
    said = traces.close()
    assert traces.written == 0
    assert traces.left_out == 50
    assert "50 left out (" in str(said)


def test_a_disk_that_is_full_in_the_middle_keeps_what_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr(tracing, "MOST_BYTES", 5_000)
    traces, tier = traced_tier(tmp_path / "some")
    ask(tier, 500)
    said = traces.close()
    assert 0 < traces.written < 500
    assert traces.written + traces.left_out == 500
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.jsonl")) <= 5_000
    assert "are enough" in str(said)


def test_a_disk_that_stands_still_holds_nobody_up(tmp_path, monkeypatch):
    still = threading.Event()
    monkeypatch.setattr(tracing, "WAITING", 20)
    monkeypatch.setattr(tracing, "END_SECONDS", 0.2)
    monkeypatch.setattr(Traces, "_keep", lambda *_: still.wait(60))
    traces, tier = traced_tier(tmp_path / "slow")
    ask(tier, 1_000)  # would wait for ever if it waited
    said = traces.close()
    still.set()
    assert traces.left_out >= 1_000 - 20 - 1
    assert "left out" in str(said)


def test_traces_move_no_score_and_no_digest(folder):
    write(folder, ONLY)
    screen = load_screen(folder / "screen.yaml")
    other = Screen.model_validate({**screen.model_dump(by_alias=True), "traces": "all"})
    assert screen.traces == "none"
    assert screen.digest == other.digest


def test_a_sample_is_about_one_in_so_many(tmp_path):
    traces = Traces(tmp_path, "sample")
    wanted = sum(traces.wants(Judgement(i, 0.5)) for i in range(20_000))
    traces.close()
    assert 0.8 < wanted * SAMPLE / 20_000 < 1.2
