"""Preparing candidates for a model whose tokens we make ourselves: what all such backends share."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from tiers.prompt import AnswerSet, Prompt, compose, question_for, read_labels
from tiers.screenfile.ask import CriteriaAsk, JsonAsk
from tiers.screenfile.tiers import LlamaTier, VllmTier
from tiers.tier import Job
from tiers.types import Answer, Candidate, Judgement, TierError

EMPTY = "empty text"
NO_NUMBER = "the model's answer is not a number"
NOT_JSON = "the model's reply is not JSON"

LocalTier = LlamaTier | VllmTier
Text = TypeVar("Text", str, list[int])


class Fitted(NamedTuple):
    """A candidate's own tokens, as many as fit, and what was done to its text."""

    id: int
    tokens: list[int]
    note: str | None = None


def fit(
    candidate: Candidate, tokens: list[int], longest: int, config: LocalTier
) -> Fitted | Judgement:
    """As many of a candidate's tokens as the tier reads; or why it cannot be asked."""
    if not tokens:
        return Judgement(candidate.id, None, error=EMPTY)
    if len(tokens) <= longest:
        return Fitted(candidate.id, tokens)
    if config.too_long == "review":
        advice = "write too_long: head_tail"
        if longest == config.max_candidate_tokens:
            advice = f"raise max_candidate_tokens or {advice}"
        error = f"{len(tokens):,} tokens, longer than the {longest:,} that fit; {advice}"
        return Judgement(candidate.id, None, error=error)
    note = f"cut from {len(tokens):,} to {longest:,} tokens"
    return Fitted(candidate.id, cut(tokens, longest, config.too_long), note)


def cut(text: Text, longest: int, how: str) -> Text:
    """The `head` of a text that is too long, or `head_tail`: half of its beginning and its end."""
    head = longest if how == "head" else (longest + 1) // 2
    return text[:head] + text[len(text) - (longest - head) :]


def room(config: LocalTier, context: int | None, *, head: int, around: int) -> int:
    """Most tokens of a candidate: the setting, or what the model's context leaves.

    Args:
        config: the tier.
        context: most tokens that the model reads; None if not known.
        head: tokens of the prompt before the candidate.
        around: tokens of the prompt before and after the candidate, and of the reply.

    Raises:
        TierError: nothing is left.
    """
    left = config.max_candidate_tokens if context is None else context - around
    if left < 1:
        raise TierError(
            f"the rubric takes {head:,} tokens and the prompt with its reply {around:,}; "
            f"the model reads {context:,}; shorten them"
        )
    return min(config.max_candidate_tokens, left)


def questions(config: LocalTier) -> dict[str, str]:
    """What is asked about each candidate: one question, or one of each criterion by its name."""
    match config.ask:
        case JsonAsk(fields=fields):
            return {"": question_for(fields)}
        case CriteriaAsk(criteria=criteria):
            return {
                name: f"Is criterion {number}, {name}, met: yes or no?"
                for number, name in enumerate(criteria, 1)
            }
        case word:
            return {"": question_for(word)}


def prompt_around(
    job: Job, config: LocalTier, in_chat: Callable[[Prompt], Prompt] | None, name: str = ""
) -> Prompt:
    """The text around a candidate, in the model's own chat format unless `in_chat` is None.

    `name` is the criterion that is asked about, where there are criteria.

    Raises:
        TierError: the model's chat template fails.
    """
    ask = config.ask
    rubric = (
        f"{job.rubric.strip()}\n\n{ask.listed()}" if isinstance(ask, CriteriaAsk) else job.rubric
    )
    prompt = compose(rubric, questions(config)[name], config.prompt)
    try:
        return prompt if in_chat is None else in_chat(prompt)
    except ValueError as error:
        raise TierError(f"tier '{config.name}': {error}; write chat: false") from error


def chat_template(config: LocalTier, template: str | None) -> str | None:
    """The model's chat template if the prompt is to be written in it.

    By default it is where the model has one and the tier has no layout of its own.

    Raises:
        TierError: the tier asks for it and the model has none.
    """
    if config.chat and template is None:
        raise TierError(
            f"tier '{config.name}' has chat: true, but its model holds no chat template; "
            "leave it out"
        )
    wanted = config.prompt is None if config.chat is None else config.chat
    return template if wanted else None


@dataclass(frozen=True)
class LabelTokens:
    """The single tokens that spell the answers asked for."""

    answers: AnswerSet
    tokens: NDArray[np.int32]
    """(spellings,)"""
    label: tuple[int, ...]
    """(spellings,) the position in `answers` of the one that each token spells."""
    plain: dict[str, int]
    """The token that spells an answer exactly, as JSON needs it."""

    @classmethod
    def find(
        cls, answers: AnswerSet, encode: Callable[[str], Iterable[int]], piece: Callable[[int], str]
    ) -> "LabelTokens":
        """Look the spellings up in a model's vocabulary.

        Raises:
            TierError: an answer is no single token, so that one position cannot answer.
        """
        found: dict[int, int] = {}
        plain: dict[str, int] = {}
        for number, name in enumerate(answers.names):
            for spelling in answers.spellings(name):
                tokens = [int(token) for token in encode(spelling)]
                # Some tokenizers put a space of their own before a text.
                if len(tokens) == 1 and piece(tokens[0]).strip() == spelling.strip():
                    found.setdefault(tokens[0], number)
                    if spelling == name:
                        plain[name] = tokens[0]
            if number not in found.values():
                raise TierError(
                    f"the model spells '{name}' with several tokens, so one position cannot "
                    "answer; use another ask or another model"
                )
        return cls(answers, np.array(list(found), np.int32), tuple(found.values()), plain)

    def read(self, logprobs: NDArray[np.float64]) -> Answer:
        """The answer by the log-probabilities of `tokens`, (spellings,)."""
        return read_labels(logprobs, self.label, self.answers)


def reply_cut(tokens: int) -> str:
    """Why a reply that is as long as the tier allows cannot be read."""
    return f"the reply was cut at {tokens:,} tokens; raise max_tokens or ask for less"
