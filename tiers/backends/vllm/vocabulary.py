"""The tokenizer of a model in Hugging Face's layout: our own words, candidates, and labels.

A candidate is encoded by itself, blind to control tokens. It knows of vLLM only how to install it.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from tiers.backends.tokens import LabelTokens, chat_template
from tiers.prompt import AnswerSet, Prompt, as_turn
from tiers.screenfile.tiers import VllmTier
from tiers.types import Answer, MissingExtra, TierError


class Vocabulary:
    """The model's tokenizer for our own words, and a copy of it for candidates.

    The copy knows no control tokens.
    """

    def __init__(self, config: VllmTier) -> None:
        self._model = _tokenizer(config)
        self.chat = chat_template(config, self._model.chat_template) is not None
        added = self._model.added_tokens_decoder.items()
        self._control = {token for token, text in added if text.content.strip()}
        self._continued = _continuing(self._model)
        self._blind = _continuing(self._model, blind=True)

    def in_chat(self, prompt: Prompt) -> Prompt:
        """The prompt as a user's turn.

        Raises:
            ValueError: the chat template fails.
        """
        render = partial(
            self._model.apply_chat_template, tokenize=False, add_generation_prompt=True
        )
        return as_turn(prompt, render)

    def head(self, text: str) -> list[int]:
        """Our words before the candidate. A chat template writes the first token itself."""
        tokens: list[int] = self._model.encode(text, add_special_tokens=False)
        start = self._model.bos_token_id
        wanted = not self.chat and self._model.encode("")[:1] == [start]
        return [start, *tokens] if wanted else tokens

    def tail(self, text: str) -> list[int]:
        """Our words after the candidate."""
        return list(self._continued.encode(text, add_special_tokens=False).ids)

    def as_text(self, texts: Sequence[str]) -> list[list[int]]:
        """Candidates' texts, in which a control token's name is so many letters."""
        clean = [text.encode("utf-8", "replace").decode() for text in texts]
        encodings = self._blind.encode_batch(clean, add_special_tokens=False)
        return [
            self._spelled_out(encoding, text)
            for encoding, text in zip(encodings, clean, strict=True)
        ]

    def piece(self, token: int) -> str:
        return str(self._blind.decode([token], skip_special_tokens=False))

    def find(self, answers: AnswerSet) -> LabelTokens:
        """The tokens of the answers in this vocabulary."""
        return LabelTokens.find(answers, lambda text: self.as_text([text])[0], self.piece)

    def _spelled_out(self, encoding: Any, text: str) -> list[int]:
        """The ids of an encoding, with the names of control tokens letter by letter.

        Some vocabularies hold these names as words, so that the blind copy still finds them.
        """
        ids: list[int] = encoding.ids
        if self._control.isdisjoint(ids):
            return ids
        spelled: list[int] = []
        for token, (start, end) in zip(ids, encoding.offsets, strict=True):
            letters = text[start:end] if token in self._control else ""
            spelled += [i for letter in letters for i in self._blind.encode(letter).ids] or [token]
        return spelled


def read_named(named: Mapping[int, Any], labels: LabelTokens) -> Answer:
    """The answer by vLLM's log-probabilities of one position.

    Where vLLM has no number it leaves the token out or says -inf or -9999, and none of these is a
    small probability.
    """
    told = [getattr(named.get(token), "logprob", np.nan) for token in labels.tokens.tolist()]
    logprobs = np.array(told)
    if not np.isfinite(logprobs).all() or logprobs.min() <= -9999:
        return Answer()
    return labels.read(logprobs)


def missing(config: VllmTier, error: ImportError) -> TierError:
    """What to tell a user whose vLLM cannot be imported."""
    if error.name in ("vllm", "transformers"):
        return MissingExtra(f"tier '{config.name}' needs vLLM; run: pip install -e '.[vllm]'")
    return TierError(f"tier '{config.name}': vLLM is installed but does not load: {error}")


def _tokenizer(config: VllmTier) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise missing(config, error) from error
    options = config.options
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            options.get("tokenizer") or config.model,
            revision=options.get("tokenizer_revision") or options.get("revision"),
            trust_remote_code=bool(options.get("trust_remote_code")),
        )
    except (OSError, ValueError) as error:
        raise TierError(
            f"tier '{config.name}': model '{config.model}' has no readable tokenizer: "
            f"{str(error).splitlines()[0]}"
        ) from error
    if not tokenizer.is_fast:
        raise TierError(
            f"tier '{config.name}': model '{config.model}' has no tokenizer.json, so control "
            "tokens in candidates could not be kept apart; use another model"
        )
    return tokenizer


def _continuing(tokenizer: Any, *, blind: bool = False) -> Any:
    """A copy that reads its text as the middle of one; blind, it knows no added tokens."""
    from tokenizers import Tokenizer

    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    if blind:
        spec["added_tokens"] = []
    spec |= {"post_processor": None, "truncation": None, "padding": None}
    for part in ("normalizer", "pre_tokenizer"):
        spec[part] = _without_lead(spec.get(part))
    return Tokenizer.from_str(json.dumps(spec))


def _without_lead(part: Any) -> Any:
    """Part of a tokenizer, told not to put a space before a text."""
    match part:
        case {"type": "Prepend"}:
            return None
        case {"type": "Metaspace"}:
            return part | {"prepend_scheme": "never"}
        case {"type": "ByteLevel"}:
            return part | {"add_prefix_space": False}
        case {"type": "Sequence"}:
            (steps,) = (key for key in part if key != "type")
            kept = [step for step in map(_without_lead, part[steps]) if step is not None]
            return part | {steps: kept}
    return part
