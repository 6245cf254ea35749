"""The http tier against vLLM's own server: the same weights must give the same verdicts."""

from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from tiers.backends.vllm.tier import Vllm
from tiers.placing import open_tier
from tiers.screenfile.file import Screen
from tiers.tier import Job

from .conftest import RUBRIC
from .test_vllm import judged


def over_http(url: str, **settings: object) -> Job:
    tier = {"name": "only", "backend": "http", "base_url": url, "model": "tiny"} | settings
    screen = Screen.model_validate(
        {
            "screen": "filter",
            "candidates": {"from": "input.jsonl", "key": "id", "text": "{{ text }}"},
            "rubric": RUBRIC,
            "tiers": [tier],
        }
    )
    return Job(screen.rubric, screen.tiers[0])


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rng = np.random.default_rng(4)
    words = ["value", "returns", "object", "module", "import", "error", "type", "list"]
    return [" ".join(rng.choice(words, rng.integers(1, 60))) for _ in range(40)]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [({}, {}), ({"profile": "vllm"}, {}), ({"api": "completions"}, {"chat": False})],
    ids=["chat", "profile", "completions"],
)
def test_a_server_and_the_engine_in_process_give_the_same_scores(
    opened: Callable[..., Vllm],
    server_url: str,
    texts: list[str],
    theirs: dict[str, Any],
    ours: dict[str, Any],
) -> None:
    with closing(open_tier(over_http(server_url, ask="yes_no", **theirs))) as tier:
        served = judged(tier, texts)
    in_process = judged(opened(ask="yes_no", **ours), texts)
    assert {judgement.error for judgement in served} == {None}
    gaps = [abs(a.score - b.score) for a, b in zip(in_process, served, strict=True)]
    assert max(gaps) < 2e-2
    assert np.ptp([judgement.score for judgement in in_process]) > 0.05
    assert sum(judgement.prompt_tokens for judgement in served) > 200 * len(texts)
