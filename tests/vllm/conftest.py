"""Tests against a real vLLM on a processor, in an environment of their own: `make test-vllm`."""

import os
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

from tiers.backends.vllm import Vllm
from tiers.base import Job
from tiers.sections import VllmTier

from .tiny import write_model

RUBRIC = "The module imports nothing outside the standard library. " * 12
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
    replies = {"backend": "xgrammar", "disable_any_whitespace": True}
    return vllm.LLM(str(model), max_model_len=4096, structured_outputs_config=replies, **OPTIONS)


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
