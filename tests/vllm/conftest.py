"""Tests against a real vLLM on a processor, in an environment of their own: `make test-vllm`."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Before vllm is imported, which reads them once.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "2",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}

import vllm

from tiers.backends.vllm.tier import Vllm
from tiers.screenfile.tiers import VllmTier
from tiers.tier import Job

from .tiny import write_model

RUBRIC = "The module imports nothing outside the standard library. " * 12
COMPACT = {"backend": "xgrammar", "disable_any_whitespace": True}
OPTIONS = {"enforce_eager": True, "dtype": "float32"}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "default")  # vLLM's warnings are not ours to mend


def job(model: Path, **settings: object) -> Job:
    config = {"name": "only", "backend": "vllm", "model": str(model), "options": OPTIONS}
    return Job(RUBRIC, VllmTier.model_validate(config | settings))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def engine(model: Path) -> Any:
    """The session's one engine in this process: a start takes longer than all tests."""
    return vllm.LLM(str(model), max_model_len=4096, structured_outputs_config=COMPACT, **OPTIONS)


@pytest.fixture
def opened(
    engine: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Vllm]]:
    """Opens tiers that share the session's engine; what they asked for is `opened.arguments`."""

    def shared(name: str, **arguments: Any) -> Any:
        open_one.arguments = arguments  # type: ignore[attr-defined]
        return engine

    def open_one(**settings: object) -> Vllm:
        return Vllm(job(model, **settings))

    monkeypatch.setattr(vllm, "LLM", shared)
    yield open_one
    engine.reset_prefix_cache()


@pytest.fixture(scope="session")
def server_url(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """vLLM's own server on the same weights, under the name `tiny`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    said = tmp_path_factory.mktemp("server") / "log"
    with said.open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1",
             "--port", port, "--model", str(model), "--served-model-name", "tiny",
             "--enforce-eager", "--dtype", "float32", "--max-model-len", "4096",
             "--structured-outputs-config", json.dumps(COMPACT)],
            env=os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        _await(f"http://127.0.0.1:{port}/health", server, said)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _await(url: str, server: subprocess.Popen[bytes], said: Path) -> None:
    for _ in range(600):
        try:
            with urllib.request.urlopen(url, timeout=2):  # noqa: S310
                return
        except OSError:
            if server.poll() is not None:
                break
            time.sleep(0.5)
    pytest.fail(f"the server did not start: {said.read_text()[-3000:]}")
