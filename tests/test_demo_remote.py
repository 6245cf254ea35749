"""The demo's cascade with its tiers moved to servers: the same verdicts."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from demo.records import applicants, write_jsonl

from .batch_server import BatchServer
from .project import Project

DEMO = Path(__file__).parent.parent / "demo"
COUNT = 400
DEAD_BAND = 2e-2


@contextmanager
def llama_server(model: str, log: Path) -> Iterator[str]:
    """llama-cpp-python's own server of a demo model, on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with log.open("wb") as output:
        server = subprocess.Popen(
            [
                sys.executable, "-m", "llama_cpp.server", "--model", str(DEMO / "models" / model),
                "--host", "127.0.0.1", "--port", str(port), "--model_alias", "m",
                "--logits_all", "true", "--n_ctx", "1024", "--n_threads", "1",
            ],
            stdout=output, stderr=output,
        )  # fmt: skip
        url = f"http://127.0.0.1:{port}/v1"
        try:
            for _ in range(600):
                assert server.poll() is None, log.read_text()[-2000:]
                try:
                    urllib.request.urlopen(f"{url}/models", timeout=2)  # noqa: S310
                    break
                except OSError:
                    time.sleep(0.1)
            yield url
        finally:
            server.terminate()
            server.wait(20)


def ask(url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """One line of a batch, answered by a real model."""
    request = urllib.request.Request(  # noqa: S310
        f"{url}/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310
            return 200, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def screens(folder: Path, http: str, batch: str) -> None:
    """The demo's screen as it is, and with its second and third tier on servers."""
    local = yaml.safe_load((DEMO / "screen.yaml").read_text())
    with (folder / "applicants.jsonl").open("w") as file:
        write_jsonl(applicants(COUNT, 11), file)
    local["candidates"]["from"] = "applicants.jsonl"
    for tier in local["tiers"]:
        tier["model"] = str(DEMO / tier["model"])
    (folder / "local.yaml").write_text(yaml.safe_dump(local))
    remote = yaml.safe_load(yaml.safe_dump(local))
    for tier, moved in zip(
        remote["tiers"][1:],
        (
            {"backend": "http", "base_url": http, "concurrency": 1},
            {"backend": "openai_batch", "base_url": batch},
        ),
        strict=True,
    ):
        del tier["threads"]
        tier |= moved | {"model": "m", "api": "completions"}
    (folder / "remote.yaml").write_text(yaml.safe_dump(remote))


def verdicts(project: Project, screen: str) -> dict[str, dict[str, Any]]:
    for _ in range(6):
        code, out, err = project.tamis(
            "run", screen, "--json", "--key", screen, "--database", project.database
        )
        if code == 0:
            break
    assert code == 0, (out, err)
    return {key: dict(rest) for key, rest in project.results(screen).items()}


def test_tiers_moved_to_servers_give_the_same_verdicts(project):
    project.env["OPENAI_API_KEY"] = "any"
    with (
        llama_server("applicants-medium.gguf", project.folder / "medium.log") as medium,
        llama_server("applicants-large.gguf", project.folder / "large.log") as large,
        BatchServer("half fails", "well", answer=lambda body: ask(large, body)) as batch,
    ):
        screens(project.folder, medium, batch.url)
        local, remote = verdicts(project, "local.yaml"), verdicts(project, "remote.yaml")
    assert local.keys() == remote.keys()
    assert len(local) == COUNT
    assert sum(batch.lines) > 0
    thresholds = {"small": (0.449, 0.9812), "medium": (0.67, 0.9493), "large": (0.9,)}
    compared = 0
    for key, mine in local.items():
        theirs = remote[key]
        near = False
        for tier, bounds in thresholds.items():
            ours, its = mine[f"{tier}_score"], theirs[f"{tier}_score"]
            if ours is None or its is None:
                continue
            compared += 1
            assert abs(ours - its) < DEAD_BAND, (key, tier, ours, its)
            near |= any(abs(ours - bound) < DEAD_BAND for bound in bounds)
        assert near or mine["verdict"] == theirs["verdict"], (key, mine, theirs)
    assert compared > COUNT + 20
