"""The http tier against vLLM's own server: the same weights must give the same verdicts."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tiers.backends.vllm import Vllm
from tiers.base import Job, open_tier
from tiers.config import Screen

from .conftest import RUBRIC
from .test_vllm import judged

pytest.importorskip("tiers.backends.http")


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
    "settings",
    [
        {"ask": "yes_no"},
        {"ask": "yes_no", "profile": "vllm"},
        {"ask": {"json": {"level": "junior | mid | senior"}}, "max_tokens": 80},
    ],
    ids=["yes_no", "profile", "json"],
)
def test_a_server_and_the_engine_in_process_give_the_same_scores(
    opened: Callable[..., Vllm],
    server_url: str,
    model: Path,
    texts: list[str],
    settings: dict[str, Any],
) -> None:
    with closing(open_tier(over_http(server_url, **settings))) as tier:
        theirs = judged(tier, texts)
    settings.pop("profile", None)
    ours = judged(opened(**settings), texts)
    assert {judgement.error for judgement in theirs} == {None}
    gaps = [abs(a.score - b.score) for a, b in zip(ours, theirs, strict=True)]
    assert max(gaps) < 2e-2
    assert np.ptp([judgement.score for judgement in ours]) > 0.1
    assert all(judgement.prompt_tokens > 200 for judgement in theirs)
