"""What can be said of a vLLM tier where vLLM is not installed."""

import importlib.util
from pathlib import Path

import pytest
import yaml

from tiers.opening import identity, inspect, open_backend
from tiers.screenfile.faults import ScreenError
from tiers.screenfile.file import load_screen
from tiers.screenfile.tiers import VllmTier
from tiers.tier import Job
from tiers.types import MissingExtra

TIER = {"name": "fast", "backend": "vllm", "model": "models/judge"}

absent = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here"
)


def load(folder: Path, **settings: object) -> VllmTier:
    screen = {
        "screen": "try",
        "candidates": {"from": "in.jsonl", "key": "id"},
        "rubric": "any",
        "tiers": [TIER | settings],
    }
    (folder / "screen.yaml").write_text(yaml.safe_dump(screen))
    (tier,) = load_screen(folder / "screen.yaml").tiers
    assert isinstance(tier, VllmTier)
    return tier


def test_a_model_is_a_folder_beside_the_screen_file_or_a_name(tmp_path: Path) -> None:
    assert load(tmp_path).model == "models/judge"
    (tmp_path / "models" / "judge").mkdir(parents=True)
    assert load(tmp_path).model == str(tmp_path / "models" / "judge")


def test_speculation_belongs_to_tiers_that_write(tmp_path: Path) -> None:
    guess = {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3}}
    assert load(tmp_path, ask="json", options=guess).options == guess
    for ask in ("yes_no", "score"):
        with pytest.raises(ScreenError, match=rf"'speculative_config' .* ask: {ask} writes none"):
            load(tmp_path, ask=ask, options=guess)


def test_a_key_does_not_belong_in_a_screen_file(tmp_path: Path) -> None:
    with pytest.raises(ScreenError, match="set HF_TOKEN in the environment") as caught:
        load(tmp_path, options={"hf_token": "hf_abcdef"})
    assert "hf_abcdef" not in str(caught.value)


@absent
def test_the_missing_extra_is_named_before_anything_is_judged() -> None:
    job = Job("any", VllmTier.model_validate(TIER))
    for ask in (identity, open_backend):
        with pytest.raises(MissingExtra, match=r"tier 'fast' needs vLLM; run: pip install -e"):
            ask(job)


@absent
def test_the_prompt_is_shown_without_its_tokens() -> None:
    found = inspect(Job("the rubric", VllmTier.model_validate(TIER)), "the text")
    assert found.prompt is not None
    assert found.prompt.index("the rubric") < found.prompt.index("the text")
    assert found.shared_tokens is None
