"""The llama.cpp tier: packed, prefix-sharing scoring of one position, and packed JSON replies.

Scores move by about 1e-2 nats with what else is in a batch: that is rounding, not leakage.
"""

import importlib.metadata
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from tiers.backends.files import file_digest, model_file
from tiers.backends.llama.engine import Engine, Grammar, Model, Prepared
from tiers.backends.tokens import (
    NO_NUMBER,
    NOT_JSON,
    LabelTokens,
    chat_template,
    fit,
    prompt_around,
    reply_cut,
    room,
)
from tiers.prompt import (
    DIGITS,
    VERDICT_LEAD,
    YES_NO,
    AnswerSet,
    Prompt,
    in_chat,
    reply_schema,
    scored_reply,
)
from tiers.screenfile.ask import JsonAsk
from tiers.screenfile.tiers import LlamaTier
from tiers.tier import Inspection, Job, asked, config_of
from tiers.types import Answer, Candidate, Judgement


def identity(job: Job) -> dict[str, Any]:
    """What a judgement depends on: file, prompt, question, engine, settings that move scores."""
    config = config_of(job, LlamaTier)
    return {
        "backend": "llama",
        "engine": f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}",
        "model": model_file(config.model).name,
        "sha256": file_digest(model_file(config.model)),
        **asked(job, "chat", "flash_attn", "kv_type"),
    }


def inspect(job: Job, text: str) -> Inspection:
    """The prompt and its tokens, from the file's vocabulary alone."""
    config = config_of(job, LlamaTier)
    path = model_file(config.model)
    model = Model(path, config, only_vocabulary=True)
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


def prompt_of(job: Job, model: Model) -> Prompt:
    """The text around a candidate, in the model's own chat format where it has one.

    Raises:
        TierError: the chat format was asked for and the model has none, or it fails.
    """
    config = config_of(job, LlamaTier)
    template = chat_template(config, model.chat_template)
    in_format = None if template is None else partial(in_chat, chat_template=template)
    prompt = prompt_around(job, config, in_format)
    if isinstance(config.ask, JsonAsk):
        return Prompt(prompt.head, prompt.tail + VERDICT_LEAD)
    return prompt


class Llama:
    """A GGUF model as a tier. The model is loaded, and the rubric evaluated, once."""

    def __init__(self, job: Job) -> None:
        config = config_of(job, LlamaTier)
        self._config = config
        self._model = Model(model_file(config.model), config)
        prompt = prompt_of(job, self._model)
        self.head = self._model.tokenize(prompt.head, special=True, start=True)
        """The part of the prompt that is evaluated once for all candidates."""
        self._tail = self._model.tokenize(prompt.tail, special=True)
        reply = config.max_tokens if isinstance(config.ask, JsonAsk) else 1
        shared, around = len(self.head), len(self.head) + len(self._tail) + reply
        self._longest = room(config, self._model.trained_context, head=shared, around=around)
        self._engine = Engine(self._model, config, self.head, self._longest + len(self._tail))
        labels = find_labels(self._model, DIGITS if config.ask == "score" else YES_NO)
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

    def _prepare(self, candidates: Iterable[Candidate]) -> Iterator[Prepared | Judgement]:
        """Tokenize; what cannot be asked is judged unreadable at once, with the reason."""
        for candidate in candidates:
            own, note = self._model.tokenize(candidate.text, special=False), None
            if not 0 < len(own) <= self._longest:
                fitted = fit(candidate, own.tolist(), self._longest, self._config)
                if isinstance(fitted, Judgement):
                    yield fitted
                    continue
                own, note = np.array(fitted.tokens, np.int32), fitted.note
            yield Prepared(candidate.id, np.concatenate([own, self._tail]), note)


def find_labels(model: Model, answers: AnswerSet) -> LabelTokens:
    """The tokens of the answers in a model's vocabulary."""

    def piece(token: int) -> str:
        return model.piece(token).decode("utf-8", "replace")

    return LabelTokens.find(answers, partial(model.tokenize, special=False), piece)


def read_logits(logits: NDArray[np.float32], labels: LabelTokens) -> Answer:
    """The answer in one row of logits, (vocabulary,)."""
    top = float(logits.max())
    if not math.isfinite(top):
        return Answer()
    shifted = logits - top
    total = math.log(float(np.exp(shifted).sum(dtype=np.float64)))
    return labels.read(shifted[labels.tokens].astype(np.float64) - total)


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
            answer = read_logits(self._engine.logits(row), self._labels)
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
            reply.answer = read_logits(logits, self._labels)
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
            return self._unread(reply, NO_NUMBER)
        over = self._model.ends(reply.tokens[-1])
        if over or reply.text.rstrip().endswith(b"}"):
            try:
                reading = scored_reply(orjson.loads(reply.text), reply.answer.score)
            except orjson.JSONDecodeError:
                if over:
                    return self._unread(reply, NOT_JSON)
            else:
                answer = reply.answer._replace(reading=reading)
                return _judgement(reply.candidate, self._shared, answer, None, len(reply.tokens))
        if len(reply.tokens) >= self._most:
            return self._unread(reply, reply_cut(self._most))
        return None

    def _unread(self, reply: Reply, error: str) -> Judgement:
        answer = Answer(mass=reply.answer and reply.answer.mass)
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


open_here = Llama
