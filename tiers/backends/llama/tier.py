"""The llama.cpp tier: packed, prefix-sharing scoring of one position, and packed JSON replies.

Scores move by about 1e-2 nats with what else is in a batch: that is rounding, not leakage.
"""

import importlib.metadata
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from tiers.backends.files import file_digest, model_file
from tiers.backends.llama.engine import Engine, Grammar, Model, Prepared, Tokens
from tiers.backends.llama.sizes import batch_size
from tiers.backends.tokens import (
    NO_NUMBER,
    NOT_JSON,
    LabelTokens,
    chat_template,
    fit,
    prompt_around,
    questions,
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
from tiers.screenfile.ask import CriteriaAsk, JsonAsk
from tiers.screenfile.tiers import LlamaTier
from tiers.tier import Inspection, Job, asked, config_of
from tiers.types import Answer, Candidate, Judgement, TierError

WAITING = 12
"""Candidates whose questions wait, of the sequences that questions need."""


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
        prompts = prompts_of(job, model)
        prompt = next(iter(prompts.values()))
        own = len(model.tokenize(text, special=False))
        tail = sum(len(model.tokenize(each.tail, special=True)) for each in prompts.values())
        return Inspection(
            f"{path} ({path.stat().st_size / 1e9:,.3f} GB, {model.architecture})",
            f"{prompt.head}{text}{prompt.tail}",
            len(model.tokenize(prompt.head, special=True, start=True)),
            own + tail,
        )
    finally:
        model.close()


def prompts_of(job: Job, model: Model) -> dict[str, Prompt]:
    """The text around a candidate for each question, in the model's own chat format if it has one.

    Raises:
        TierError: the chat format was asked for and the model has none, or it fails; or the layout
            has the question before the candidate, where there are several.
    """
    config = config_of(job, LlamaTier)
    template = chat_template(config, model.chat_template)
    in_format = None if template is None else partial(in_chat, chat_template=template)
    prompts = {name: prompt_around(job, config, in_format, name) for name in questions(config)}
    if len({prompt.head for prompt in prompts.values()}) > 1:
        raise TierError(
            f"tier '{config.name}': its prompt has the question before the candidate; with "
            "criteria, write {{ question }} after {{ candidate }}"
        )
    lead = VERDICT_LEAD * isinstance(config.ask, JsonAsk)
    return {name: Prompt(prompt.head, prompt.tail + lead) for name, prompt in prompts.items()}


class Llama:
    """A GGUF model as a tier. The model is loaded, and the rubric evaluated, once."""

    def __init__(self, job: Job) -> None:
        config = config_of(job, LlamaTier)
        self._config = config
        self._model = Model(model_file(config.model), config)
        prompts = prompts_of(job, self._model)
        head = next(iter(prompts.values())).head
        self.head = self._model.tokenize(head, special=True, start=True)
        """The part of the prompt that is evaluated once for all candidates."""
        tails = {
            name: self._model.tokenize(prompt.tail, special=True)
            for name, prompt in prompts.items()
        }
        longest_tail = max(map(len, tails.values()))
        reply = config.max_tokens if isinstance(config.ask, JsonAsk) else 1
        shared, around = len(self.head), len(self.head) + longest_tail + reply
        self._longest = room(config, self._model.trained_context, head=shared, around=around)
        after = sum(map(len, tails.values()))
        if len(tails) > 1:  # of candidates that wait for their questions, a batch is in the cache
            after += batch_size(config)
        self._engine = Engine(self._model, config, self.head, self._longest + after)
        labels = find_labels(self._model, DIGITS if config.ask == "score" else YES_NO)
        self._tail = tails[""] if "" in tails else np.zeros(0, np.int32)
        self._judge: Scorer | Writer | Panel = (
            Writer(self._engine, labels, shared, self._model, config)
            if isinstance(config.ask, JsonAsk)
            else Panel(self._engine, labels, shared, tails, config.ask)
            if isinstance(config.ask, CriteriaAsk)
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


class Panel:
    """Asks several questions about each candidate, whose own tokens are evaluated once.

    Each question follows the candidate in a sequence of its own, so that no answer depends on
    another. Nothing is written.
    """

    def __init__(
        self, engine: Engine, labels: LabelTokens, shared: int, tails: Mapping[str, Tokens],
        ask: CriteriaAsk,
    ) -> None:  # fmt: skip
        self._engine = engine
        self._labels = labels
        self._shared = shared
        self._tails = dict(tails)
        self._ask = ask
        longest = max(map(len, self._tails.values()))
        if not engine.room(longest) or engine.free < 2:
            raise TierError(
                f"a question about a criterion takes {longest} tokens; write batch_tokens: "
                f"{max(4 * longest, 64)} or more"
            )
        self._most = max(1, min(WAITING, engine.free // 4))
        """Candidates at work, so that sequences are left for their questions."""
        self._open: dict[int, dict[str, Answer]] = {}
        """The answers so far, by the sequence of each candidate at work."""

    def judge(self, prepared: Iterable[Prepared | Judgement]) -> Iterator[Judgement]:
        """Judgements as their last question is answered."""
        source = iter(prepared)
        waiting: deque[tuple[Prepared, str]] = deque()
        current: Prepared | None = None
        while True:
            asked = self._ask_waiting(waiting)
            read: list[Prepared] = []
            while not self._engine.full and len(self._open) < self._most:
                if current is None:
                    item = next(source, None)
                    if isinstance(item, Judgement):
                        yield item
                        continue
                    if item is None or self._engine.crowded:
                        break
                    current = item
                    self._engine.fork(current)
                self._engine.fill(current)
                if current.sent == len(current.tokens):
                    self._open[current.sequence] = {}
                    read.append(current)
                    current = None
            if self._engine.empty:
                return
            self._engine.decode()
            yield from self._answered(asked)
            waiting.extend((candidate, name) for candidate in read for name in self._tails)

    def _ask_waiting(
        self, waiting: deque[tuple[Prepared, str]]
    ) -> list[tuple[int, Prepared, Prepared, str]]:
        """Put as many questions into the batch as fit; the row of each, whom it is about."""
        asked = []
        while waiting and not self._engine.crowded:
            candidate, name = waiting[0]
            if not self._engine.room(len(self._tails[name])):
                break
            waiting.popleft()
            branch = self._engine.branch(candidate, self._tails[name])
            row = self._engine.fill(branch)
            if row is not None:
                asked.append((row, branch, candidate, name))
        return asked

    def _answered(
        self, asked: Iterable[tuple[int, Prepared, Prepared, str]]
    ) -> Iterator[Judgement]:
        for row, branch, candidate, name in asked:
            answers = self._open[candidate.sequence]
            answers[name] = read_logits(self._engine.logits(row), self._labels)
            candidate.seconds += branch.seconds
            self._engine.drop(branch)
            if len(answers) == len(self._tails):
                del self._open[candidate.sequence]
                self._engine.drop(candidate)
                yield self._judgement(candidate, answers)

    def _judgement(self, candidate: Prepared, answers: Mapping[str, Answer]) -> Judgement:
        chances = {name: one.score for name, one in answers.items() if one.score is not None}
        mass = min((one.mass or 0.0) for one in answers.values())
        tokens = sum(map(len, self._tails.values()))
        if len(chances) < len(self._tails):
            unread = ", ".join(name for name in self._tails if name not in chances)
            error, answer = f"{NO_NUMBER} ({unread})", Answer(mass=mass)
        else:
            score, failed = self._ask.total(chances)
            shown = {name: round(chance, 4) for name, chance in chances.items()}
            error, answer = None, Answer(score, orjson.dumps(shown).decode(), mass)
            if failed is not None:
                candidate.note = "; ".join(filter(None, (candidate.note, failed)))
        made = _judgement(candidate, self._shared, answer, error)
        return made._replace(prompt_tokens=made.prompt_tokens + tokens)


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
