"""The tokenizer of a model in Hugging Face's layout: our own words, candidates, and labels.

A candidate is encoded by itself, blind to control tokens. It knows of vLLM only how to install it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tiers.prompt import Labels, Prompt, read_labels
from tiers.screenfile.tiers import VllmTier
from tiers.types import Answer, MissingExtra, TierError


class Vocabulary:
    """The model's tokenizer for our own words, and a copy of it for candidates.

    The copy knows no control tokens.
    """

    def __init__(self, config: VllmTier) -> None:
        self._name = config.name
        self._model = _tokenizer(config)
        self.chat = config.chat
        if self.chat is None:
            self.chat = self._model.chat_template is not None and config.prompt is None
        added = self._model.added_tokens_decoder.items()
        self._control = {token for token, text in added if text.content.strip()}
        self._continued = _continuing(self._model)
        self._blind = _continuing(self._model, blind=True)

    def in_chat(self, prompt: Prompt) -> Prompt:
        """The prompt as a user's turn.

        A mark holds the candidate's place, so that the candidate itself is never rendered or
        parsed.

        Raises:
            TierError: the model has no chat template, or it fails.
        """
        from jinja2 import TemplateError

        mark = "\u2063candidate\u2063"
        turn = {"role": "user", "content": f"{prompt.head}{mark}{prompt.tail}"}
        if self._model.chat_template is None:
            raise TierError(
                f"tier '{self._name}' has chat: true, but its model holds no chat template; "
                "leave it out"
            )
        try:
            text = self._model.apply_chat_template(
                [turn], tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise TierError(
                f"tier '{self._name}': the model's chat template fails: {error}; write chat: false"
            ) from error
        if text.count(mark) != 1:
            raise TierError(
                f"tier '{self._name}': the model's chat template does not show the turn once; "
                "write chat: false"
            )
        return Prompt(*text.split(mark))

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


@dataclass(frozen=True)
class LabelTokens:
    """The single tokens that spell the labels, and the label that each spells."""

    labels: Labels
    tokens: list[int]
    label: list[int]

    @classmethod
    def find(cls, vocabulary: Vocabulary, labels: Labels) -> "LabelTokens":
        """Look the spellings up in the model's vocabulary.

        Raises:
            TierError: a label is no single token, so that one position cannot answer.
        """
        found: dict[int, int] = {}
        for number, name in enumerate(labels.names):
            spellings = labels.spellings(name)
            for spelling, ids in zip(spellings, vocabulary.as_text(spellings), strict=True):
                if len(ids) == 1 and vocabulary.piece(ids[0]).strip() == spelling.strip():
                    found.setdefault(ids[0], number)
            if number not in found.values():
                raise TierError(
                    f"the model spells '{name}' with several tokens, so one position cannot "
                    "answer; use another ask or another model"
                )
        return cls(labels, list(found), list(found.values()))

    def read(self, named: Mapping[int, Any]) -> Answer:
        """Score, reading and label mass from vLLM's log-probabilities of one position.

        Where vLLM has no number it leaves the token out or says -inf or -9999, and none of
        these is a small probability.
        """
        logprobs = np.array([getattr(named.get(t), "logprob", np.nan) for t in self.tokens])
        if not np.isfinite(logprobs).all() or logprobs.min() <= -9999:
            return Answer()
        return read_labels(logprobs, self.label, self.labels)


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
