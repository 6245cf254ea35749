"""The llama.cpp tier: packed, prefix-sharing scoring of one position, and packed JSON replies.

Scores move by about 1e-2 nats with what else is in a batch: that is rounding, not leakage.
"""

import importlib.metadata
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from tiers.backends.files import file_digest, model_file
from tiers.backends.llama.engine import Engine, Grammar, Model, Prepared, Tokens
from tiers.prompt import (
    DIGITS,
    VERDICT_LEAD,
    YES_NO,
    Labels,
    Prompt,
    compose,
    in_chat,
    question_for,
    read_labels,
    reply_schema,
)
from tiers.screenfile.ask import JsonAsk
from tiers.screenfile.tiers import LlamaTier
from tiers.tier import Inspection, Job, Tier
from tiers.types import Answer, Candidate, Judgement, TierError

NO_NUMBER = "the model's answer is not a number"


def identity(job: Job) -> dict[str, Any]:
    """What a judgement depends on: file, prompt, question, engine, settings that move scores."""
    config = _config(job)
    return {
        "backend": "llama",
        "engine": f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}",
        "model": model_file(config.model).name,
        "sha256": file_digest(model_file(config.model)),
        "rubric": job.rubric,
        **config.model_dump(
            mode="json",
            by_alias=True,
            include={
                "ask", "prompt", "chat", "max_candidate_tokens", "too_long", "max_tokens",
                "flash_attn", "kv_type",
            },
        ),
    }  # fmt: skip


def inspect(job: Job, text: str) -> Inspection:
    """The prompt and its tokens, from the file's vocabulary alone."""
    path = model_file(_config(job).model)
    model = Model(path, _config(job), only_vocabulary=True)
    try:
        prompt = prompt_of(job, model)
        own = len(model.tokenize(text, special=False))
        tail = len(model.tokenize(prompt.tail, special=True))
        return Inspection(
            f"{path} ({path.stat().st_size / 1e9:,.3f} GB, {model.architecture})",
            f"{prompt.head}{text}{prompt.tail}",
            len(model.tokenize(prompt.head, special=True, start=True)),
            own + tail,
        )
    finally:
        model.close()


def open_here(job: Job) -> Tier:
    """Load the model.

    Raises:
        TierError: it cannot be loaded.
    """
    return Llama(job)


def prompt_of(job: Job, model: Model) -> Prompt:
    """The text around a candidate, in the model's own chat format where it has one.

    Raises:
        TierError: the chat format was asked for and the model has none, or it fails.
    """
    config = _config(job)
    ask, chat, template = config.ask, config.chat, model.chat_template
    question = question_for(ask.fields if isinstance(ask, JsonAsk) else ask)
    prompt = compose(job.rubric, question, config.prompt)
    if chat is None:
        chat = template is not None and config.prompt is None
    if chat:
        if template is None:
            raise TierError(
                f"tier '{config.name}' has chat: true, but its model holds no chat template; "
                "leave it out"
            )
        try:
            prompt = in_chat(prompt, template)
        except ValueError as error:
            raise TierError(f"tier '{config.name}': {error}; write chat: false") from error
    if isinstance(ask, JsonAsk):
        return Prompt(prompt.head, prompt.tail + VERDICT_LEAD)
    return prompt


class Llama:
    """A GGUF model as a tier. The model is loaded, and the rubric evaluated, once."""

    def __init__(self, job: Job) -> None:
        config = _config(job)
        self._config = config
        self._model = Model(model_file(config.model), config)
        prompt = prompt_of(job, self._model)
        self.head = self._model.tokenize(prompt.head, special=True, start=True)
        """The part of the prompt that is evaluated once for all candidates."""
        self._tail = self._model.tokenize(prompt.tail, special=True)
        self._longest = self._room()
        self._engine = Engine(self._model, config, self.head, self._longest + len(self._tail))
        labels = LabelTokens.find(self._model, DIGITS if config.ask == "score" else YES_NO)
        shared = len(self.head)
        self._judge: Scorer | Writer = (
            Writer(self._engine, labels, shared, self._model, config)
            if isinstance(config.ask, JsonAsk)
            else Scorer(self._engine, labels, shared)
        )
        self.rates: Mapping[str, float] = self._engine.measure()
        self.remarks: Sequence[str] = ()

    def judge(self, candidates: Iterable[Candidate]) -> Iterator[Judgement]:
        return self._judge.judge(self._prepare(candidates))

    def close(self) -> None:
        if isinstance(self._judge, Writer):
            self._judge.close()
        self._engine.close()
        self._model.close()

    def _room(self) -> int:
        """Most tokens of a candidate: the setting, or what the model's context leaves."""
        config = self._config
        reply = config.max_tokens if isinstance(config.ask, JsonAsk) else 1
        left = self._model.trained_context - len(self.head) - len(self._tail) - reply
        if left < 1:
            raise TierError(
                f"the rubric takes {len(self.head):,} tokens and the reply {reply:,}; the model "
                f"was trained on {self._model.trained_context:,}; shorten them"
            )
        return min(config.max_candidate_tokens, left)

    def _prepare(self, candidates: Iterable[Candidate]) -> Iterator["Prepared | Judgement"]:
        """Tokenize; what cannot be asked is judged unreadable at once, with the reason."""
        for candidate in candidates:
            tokens, note = self._model.tokenize(candidate.text, special=False), None
            if not len(tokens):
                yield Judgement(candidate.id, None, error="empty text")
                continue
            if len(tokens) > self._longest:
                if self._config.too_long == "review":
                    yield Judgement(candidate.id, None, error=self._too_long(len(tokens)))
                    continue
                note = f"cut from {len(tokens):,} to {self._longest:,} tokens"
                tokens = _cut(tokens, self._longest, self._config.too_long)
            yield Prepared(candidate.id, np.concatenate([tokens, self._tail]), note)

    def _too_long(self, tokens: int) -> str:
        advice = "write too_long: head_tail"
        if self._longest == self._config.max_candidate_tokens:
            advice = f"raise max_candidate_tokens or {advice}"
        return f"{tokens:,} tokens, longer than the {self._longest:,} that fit; {advice}"


@dataclass(frozen=True)
class LabelTokens:
    """The single tokens that spell the labels."""

    labels: Labels
    tokens: Tokens
    label: tuple[int, ...]
    plain: dict[str, int]
    """The token that spells a label exactly, as JSON needs it."""

    @classmethod
    def find(cls, model: Model, labels: Labels) -> "LabelTokens":
        """Look the spellings up in the model's vocabulary.

        Raises:
            TierError: a label is no single token, so that one position cannot answer.
        """
        found: dict[int, int] = {}
        plain: dict[str, int] = {}
        for number, name in enumerate(labels.names):
            for spelling in labels.spellings(name):
                tokens = model.tokenize(spelling, special=False)
                # Some tokenizers put a space of their own before a text.
                if (
                    len(tokens) == 1
                    and model.piece(int(tokens[0])).strip() == spelling.strip().encode()
                ):
                    found.setdefault(int(tokens[0]), number)
                    if spelling == name:
                        plain[name] = int(tokens[0])
            if number not in found.values():
                raise TierError(
                    f"the model spells '{name}' with several tokens, so one position cannot "
                    "answer; use another ask or another model"
                )
        return cls(labels, np.array(list(found), np.int32), tuple(found.values()), plain)

    def read(self, logits: NDArray[np.float32]) -> Answer:
        """Score, reading and label mass of one row of logits over the whole vocabulary."""
        top = float(logits.max())
        if not math.isfinite(top):
            return Answer()
        shifted = logits - top
        total = math.log(float(np.exp(shifted).sum(dtype=np.float64)))
        return read_labels(shifted[self.tokens].astype(np.float64) - total, self.label, self.labels)


class Scorer:
    """Reads one position of every candidate."""

    def __init__(self, engine: Engine, labels: LabelTokens, shared: int) -> None:
        self._engine = engine
        self._labels = labels
        self._shared = shared

    def judge(self, prepared: Iterable[Prepared | Judgement]) -> Iterator[Judgement]:
        """Judgements in the order of the candidates."""
        ending: list[tuple[int, Prepared]] = []
        for item in prepared:
            if isinstance(item, Judgement):
                yield item
                continue
            if self._engine.crowded:
                yield from self._read(ending)
            self._engine.fork(item)
            while item.sent < len(item.tokens):
                row = self._engine.fill(item)
                if row is not None:
                    ending.append((row, item))
                if self._engine.full:
                    yield from self._read(ending)
        if not self._engine.empty:
            yield from self._read(ending)

    def _read(self, ending: list[tuple[int, Prepared]]) -> Iterator[Judgement]:
        self._engine.decode()
        for row, candidate in ending:
            answer = self._labels.read(self._engine.logits(row))
            self._engine.drop(candidate)
            error = None if answer.score is not None else NO_NUMBER
            yield _judgement(candidate, self._shared, answer, error)
        ending.clear()


@dataclass(slots=True)
class Reply:
    """A JSON reply being written. `answer` is None until the verdict is read."""

    candidate: Prepared
    answer: Answer | None = None
    sampler: Any = None
    tokens: list[int] = field(default_factory=list)
    text: bytes = b""


class Writer:
    """Has the model write a JSON reply on every candidate, as many at once as there is room for.

    The score is read from the probabilities of the verdict itself, which is worth more than any
    confidence that a model writes down. Each call carries one token of every reply under way and
    fills up with the next candidates' prompts.
    """

    def __init__(
        self, engine: Engine, labels: LabelTokens, shared: int, model: Model, config: LlamaTier
    ) -> None:
        assert isinstance(config.ask, JsonAsk)  # noqa: S101 - for the type checker
        self._engine = engine
        self._labels = labels
        self._shared = shared
        self._model = model
        self._most = config.max_tokens
        self._grammar = Grammar(model, reply_schema(config.ask.fields), VERDICT_LEAD)
        self._replies: list[Reply] = []
        self._waiting: Prepared | None = None

    def judge(self, prepared: Iterable[Prepared | Judgement]) -> Iterator[Judgement]:
        """Judgements as the replies end."""
        source = iter(prepared)
        while True:
            rows = [
                (
                    self._engine.go_on(reply.candidate, reply.tokens[-1], len(reply.tokens) - 1),
                    reply,
                )
                for reply in self._replies
                if reply.answer is not None
            ]
            yield from self._fill_up(source, rows)
            if self._engine.empty:
                return
            self._engine.decode()
            for row, reply in rows:
                self._advance(reply, self._engine.logits(row))
                if (judgement := self._ended(reply)) is not None:
                    self._release(reply)
                    yield judgement

    def close(self) -> None:
        self._grammar.close()

    def _fill_up(
        self, source: Iterator[Prepared | Judgement], rows: list[tuple[int, Reply]]
    ) -> Iterator[Judgement]:
        """Fill the batch with prompts: of the reply that was cut, then of new candidates."""
        while not self._engine.full:
            reply = next(
                (r for r in self._replies if r.candidate.sent < len(r.candidate.tokens)), None
            )
            if reply is None:
                if self._waiting is None:
                    item = next(source, None)
                    if isinstance(item, Judgement):
                        yield item
                        continue
                    self._waiting = item
                if self._waiting is None or not self._fits(self._waiting):
                    return
                reply, self._waiting = Reply(self._waiting), None
                self._engine.fork(reply.candidate)
                self._replies.append(reply)
            row = self._engine.fill(reply.candidate)
            if row is not None:
                rows.append((row, reply))

    def _fits(self, candidate: Prepared) -> bool:
        used = sum(len(reply.candidate.tokens) + self._most for reply in self._replies)
        return not self._engine.crowded and (
            used + len(candidate.tokens) + self._most <= self._engine.cells
        )

    def _advance(self, reply: Reply, logits: NDArray[np.float32]) -> None:
        if reply.answer is None:
            reply.answer = self._labels.read(logits)
            if reply.answer.score is None:
                return
            reply.text = VERDICT_LEAD.encode()
            reply.sampler = self._grammar.clone()
            token = self._labels.plain["yes" if reply.answer.score >= 0.5 else "no"]
        else:
            token = self._grammar.pick(reply.sampler, logits)
        reply.tokens.append(token)
        if not self._model.ends(token):
            self._grammar.accept(reply.sampler, token)
            reply.text += self._model.piece(token)

    def _ended(self, reply: Reply) -> Judgement | None:
        """The judgement, once the reply is a whole object, or cannot become one."""
        if reply.answer is None or reply.answer.score is None:
            return self._judgement(reply, error=NO_NUMBER)
        if self._model.ends(reply.tokens[-1]) or reply.text.rstrip().endswith(b"}"):
            try:
                fields = orjson.loads(reply.text)
            except orjson.JSONDecodeError:
                if self._model.ends(reply.tokens[-1]):
                    return self._judgement(reply, error="the model's reply is not JSON")
            else:
                return self._judgement(reply, fields=fields)
        if len(reply.tokens) >= self._most:
            said = f"the reply was cut at {self._most:,} tokens; raise max_tokens or ask for less"
            return self._judgement(reply, error=said)
        return None

    def _judgement(
        self, reply: Reply, *, fields: dict[str, Any] | None = None, error: str | None = None
    ) -> Judgement:
        answer = (reply.answer or Answer())._replace(reading=None)
        if error is not None:
            answer = answer._replace(score=None)
        elif fields is not None and answer.score is not None:
            confidence = round(max(answer.score, 1 - answer.score), 4)
            verdict = {"verdict": fields.pop("verdict"), "confidence": confidence}
            answer = answer._replace(reading=orjson.dumps(verdict | fields).decode())
        return _judgement(reply.candidate, self._shared, answer, error, len(reply.tokens))

    def _release(self, reply: Reply) -> None:
        if reply.sampler:
            self._grammar.free(reply.sampler)
        self._engine.drop(reply.candidate)
        self._replies.remove(reply)


def _judgement(
    candidate: Prepared, shared: int, answer: Answer, error: str | None, written: int = 0
) -> Judgement:
    return Judgement(
        candidate.id,
        score=answer.score,
        reading=answer.reading,
        mass=answer.mass,
        prompt_tokens=shared + len(candidate.tokens),
        cached_tokens=shared,
        completion_tokens=written,
        seconds=candidate.seconds,
        error=error,
        note=candidate.note,
    )


def _config(job: Job) -> LlamaTier:
    if not isinstance(job.config, LlamaTier):
        raise TypeError(f"not a llama tier: {job.config!r}")
    return job.config


def _cut(tokens: Tokens, longest: int, how: str) -> Tokens:
    if how == "head":
        return tokens[:longest]
    head = (longest + 1) // 2
    return np.concatenate([tokens[:head], tokens[len(tokens) - (longest - head) :]])
