"""The OpenAI protocol: a candidate to a request's body, a reply to a score. No network in here."""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from operator import mul
from typing import Any, NamedTuple

import orjson

from tiers.prompt import (
    DIGITS,
    MARK,
    VERDICT_LEAD,
    YES_NO,
    AnswerSet,
    Prompt,
    compose,
    question_for,
    reply_schema,
    scored_reply,
)
from tiers.screenfile.ask import JsonAsk
from tiers.screenfile.tiers import HttpTier, OpenAIBatchTier, RemoteTier
from tiers.tier import Job
from tiers.types import Answer

CHARACTERS_PER_TOKEN = 4
"""A guess for texts whose tokenizer is the server's: only for lengths, limits and reserves."""
UNSURE = 0.05
"""A score that labels outside the list could move by more is recorded with its range."""
MOST_TOKENS = 10_000_000
"""Of one request, more than any model reads; sums over many attempts stay below 2 ** 31."""
UNTOLD = "its tokens are not counted: the server tells a number that cannot be"
MOST_PROBABILITY = 1.01
"""What rounding may make of a list that adds up to 1."""
NO_PROBABILITY = -9998.0
"""What vLLM gives instead of minus infinity."""

_CONTROL = re.compile(
    r"<(?=\|)|<(?=/?(?:s|bos|eos|pad|unk|think|tool_call|tool_response|start_of_turn|end_of_turn)>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS)\])",
    re.IGNORECASE,
)
_VERDICT_AT = re.compile(r'"verdict"\s*:\s*"?')
_WORD = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
_FENCE = re.compile(r"^\s*```(?:json)?\s*|\s*```\s*$")

AnyRemote = HttpTier | OpenAIBatchTier
Json = dict[str, Any]


def remote_config(job: Job) -> AnyRemote:
    """The tier's section of the screen file."""
    if not isinstance(job.config, HttpTier | OpenAIBatchTier):
        raise TypeError(f"no remote tier: {job.config!r}")
    return job.config


class Unreadable(ValueError):
    """A reply in which no answer can be read; the message says what it holds."""


class Dialect(NamedTuple):
    """What of the protocol a server takes. Begins with the best and is cut down by its replies."""

    top_logprobs: int
    schema: str | None = "json_schema"
    limit: str = "max_tokens"
    named: tuple[int, ...] = ()
    """Tokens whose probabilities are asked for by number, wherever they rank."""
    plain: frozenset[str] = frozenset()
    """Settings that are left out because the server refuses them."""
    other_limit: bool = False
    """Whether `limit` was changed: some refusals name both, and neither helps then."""

    @classmethod
    def of(cls, config: RemoteTier) -> "Dialect":
        return cls(config.known.top_logprobs, limit=config.known.limit)

    def without(self, complaint: str) -> "Dialect | None":
        """The dialect that avoids what a server's refusal names; None if it names nothing of ours.

        Args:
            complaint: the text of the refusal, of status 400 or 422.
        """
        said = complaint.lower()
        if "logprob_token_ids" in said and self.named:
            return self._replace(named=())
        if "logprobs" in said and self.top_logprobs:
            return self._replace(top_logprobs=5 if self.top_logprobs > 5 else 0)
        if not self.other_limit:
            if "max_completion_tokens" in said and self.limit == "max_tokens":
                return self._replace(limit="max_completion_tokens", other_limit=True)
            if "max_tokens" in said and self.limit != "max_tokens" and "context" not in said:
                return self._replace(limit="max_tokens", other_limit=True)
        if ("response_format" in said or "schema" in said) and self.schema:
            return self._replace(schema="json_object" if self.schema == "json_schema" else None)
        for setting in ("temperature", "prompt_cache_key", "seed"):
            if setting in said and setting not in self.plain:
                return self._replace(plain=self.plain | {setting})
        return None


class Usage(NamedTuple):
    """Tokens that a server charged, summed over the attempts at one candidate."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0

    def __add__(self, other: object) -> "Usage":
        if not isinstance(other, Usage):
            return NotImplemented
        return Usage(*(mine + its for mine, its in zip(self, other, strict=True)))


class Conversation:
    """Turns candidates into bodies and replies into answers, for one tier and one dialect."""

    def __init__(self, job: Job, dialect: Dialect) -> None:
        self.dialect = dialect
        self._config = config = remote_config(job)
        self._completes = config.api == "completions"
        self.answers = DIGITS if config.ask == "score" else YES_NO
        self._spelled = {
            spelling: number
            for number, name in enumerate(self.answers.names)
            for spelling in self.answers.spellings(name)
        }
        self.prompt = self._prompt(job.rubric)
        digest = hashlib.sha256(job.rubric.encode()).hexdigest()[:32]
        self._before, self._between, self._after = self._envelope(f"tamis-{digest}")

    @property
    def by_probability(self) -> bool:
        """Whether scores are read from probabilities, and not from what the model writes."""
        return self.dialect.top_logprobs > 0

    @property
    def spellings(self) -> list[str]:
        """All spellings of all answers."""
        return list(self._spelled)

    @property
    def writes(self) -> bool:
        """Whether the reply is an object in JSON."""
        return isinstance(self._config.ask, JsonAsk) or not self.by_probability

    @property
    def most_tokens(self) -> int:
        """The longest reply."""
        return self._config.max_tokens if self.writes else 1

    def body(self, texts: Sequence[str]) -> bytes:
        """The request for these texts; more than one only with `api: completions`."""
        inside = [orjson.dumps(text)[1:-1] for text in texts]
        return self._before + self._between.join(inside) + self._after

    def read(self, choice: Mapping[str, Any]) -> Answer:
        """Read one choice of a reply.

        Raises:
            Unreadable: it holds no verdict, or the probabilities are no numbers.
        """
        message = choice if self._completes else choice.get("message") or {}
        content = message.get("text" if self._completes else "content")
        lists = self._lists(choice)
        if self.by_probability and not lists:
            raise Unreadable("the reply holds no probabilities")
        if not self.writes:
            return self._from_probabilities(lists[0][1])
        return self._from_text(content, lists, choice.get("finish_reason"))

    def has_probabilities(self, choice: Mapping[str, Any]) -> bool:
        """Whether the server gave the probabilities that were asked for."""
        try:
            return bool(self._lists(choice))
        except (KeyError, TypeError, AttributeError):
            return False

    def _lists(self, choice: Mapping[str, Any]) -> "Lists":
        return _completion_lists(choice) if self._completes else _chat_lists(choice)

    def _prompt(self, rubric: str) -> Prompt:
        ask = self._config.ask
        self._fields = dict(ask.fields) if isinstance(ask, JsonAsk) else {}
        meaning = ""
        if not self.by_probability:
            self._fields |= {"score": "int"} if ask == "score" else {}
            self._fields |= {"confidence": "float"}
            meaning = ' "confidence" is the probability, from 0 to 1, that the verdict is right.'
            if ask == "score":
                meaning += ' "score" is a whole number from 0 (does not meet it) to 9 (fully).'
        question = question_for(self._fields if self.writes else str(ask)) + meaning
        prompt = compose(rubric, question, self._config.prompt)
        if self.writes and self._completes:
            return Prompt(prompt.head, prompt.tail + VERDICT_LEAD)
        return prompt

    def _envelope(self, cache_key: str) -> tuple[bytes, bytes, bytes]:
        """The body's bytes before, between and after the candidates' texts."""
        config, dialect = self._config, self.dialect
        settings: Json = {"model": config.model}
        if self._completes:
            settings |= {"prompt": [MARK], "logprobs": dialect.top_logprobs or None}
        else:
            settings["messages"] = [{"role": "user", "content": MARK}]
            if self.by_probability:
                settings |= {"logprobs": True, "top_logprobs": dialect.top_logprobs}
            if self.writes and dialect.schema:
                settings["response_format"] = self._format(dialect.schema)
        if dialect.named and not self.writes:
            settings["logprob_token_ids"] = dialect.named
        limit = "max_tokens" if self._completes else dialect.limit
        settings |= {limit: self.most_tokens, "temperature": 0}
        if config.known.cache_key:
            settings["prompt_cache_key"] = cache_key
        settings |= config.extra
        kept = {k: v for k, v in settings.items() if k not in dialect.plain and v is not None}
        whole = orjson.dumps(kept)
        before, after = whole.split(MARK.encode())
        head, tail = (orjson.dumps(part)[1:-1] for part in self.prompt[:2])
        return before + head, tail + b'","' + head, tail + after

    def _format(self, schema: str) -> Json:
        if schema == "json_object":
            return {"type": "json_object"}
        shape = {"name": "verdict", "strict": True, "schema": reply_schema(self._fields)}
        return {"type": "json_schema", "json_schema": shape}

    def _from_probabilities(self, listed: Iterable[tuple[str, float]]) -> Answer:
        answer = read_listed(listed, self._spelled, self.answers)
        if answer.score is None:
            names = " nor ".join((self.answers.names[0], self.answers.names[-1]))
            why = f"neither {names} is among the likeliest tokens of the reply"
            raise Unreadable(answer.note or why)
        return answer

    def _from_text(self, content: Any, lists: "Lists", finish: Any) -> Answer:
        if not isinstance(content, str) or not content.strip():
            raise Unreadable("the reply is empty")
        text = VERDICT_LEAD + content if self._completes else _FENCE.sub("", content)
        said = _object(text)
        if said is None:
            word = None if self._completes else _WORD.match(text)
            if isinstance(self._config.ask, JsonAsk) or word is None:
                cut = f"; it was cut at {self.most_tokens:,} tokens, raise max_tokens"
                raise Unreadable(f"the reply is not the JSON asked for{cut * (finish == 'length')}")
            said = {"verdict": word[1].lower()}
        verdict = str(said.get("verdict", "")).strip().lower()
        if verdict not in YES_NO.names:
            raise Unreadable(f"the reply's verdict is {said.get('verdict')!r}, not yes or no")
        said["verdict"] = verdict
        if self.by_probability:
            return self._with_probability(said, lists)
        return self._as_written(said)

    def _with_probability(self, said: Json, lists: "Lists") -> Answer:
        """The score is the probability of the verdict's own token, wherever it stands."""
        listed = lists[0][1] if self._completes else _verdict_list(lists)
        answer = read_listed(_begun(listed or ()), {"yes": 0, "no": 1}, YES_NO)
        if answer.score is None:
            why = "the verdict's own probability is not among those of the reply"
            raise Unreadable(answer.note or why)
        return answer._replace(reading=scored_reply(said, answer.score))

    def _as_written(self, said: Json) -> Answer:
        """The score of a server without probabilities: what the model wrote of itself."""
        reading = orjson.dumps(said).decode()
        note = "no probabilities from the server: the score is what the model wrote"
        score = said.get("score")
        if self._config.ask == "score" and isinstance(score, int | float) and 0 <= score <= 9:
            return Answer(score / 9, reading, note=note)
        sure = said.get("confidence")
        known = isinstance(sure, int | float) and not isinstance(sure, bool) and 0 <= sure <= 1
        confidence = max(float(sure), 0.5) if known and sure is not None else 1.0
        return Answer(
            confidence if said["verdict"] == "yes" else 1 - confidence, reading, note=note
        )


Lists = list[tuple[str, list[tuple[str, float]]]]
"""For each token of a reply: the token, and the likeliest ones with their log-probabilities."""


def read_listed(
    listed: Iterable[tuple[str, float]], spelled: Mapping[str, int], answers: AnswerSet
) -> Answer:
    """Score the answers by the likeliest tokens alone.

    A spelling outside the list is at most as likely as the least likely in it, and all together
    are at most what the list leaves: an answer that is missing is given half of that bound, and the
    score's range is told where it matters.

    Args:
        listed: tokens and their log-probabilities, most of a position's likeliest.
        spelled: the position in `answers` of the answer that each spelling stands for.
        answers: the answers asked for.
    """
    share = [0.0] * len(answers.names)
    probabilities, found = [], False
    for token, logprob in listed:
        number = spelled.get(token)
        if not logprob > NO_PROBABILITY:  # NaN too
            if number is not None:
                return Answer()
            continue
        probability = math.exp(logprob) if logprob < 1.0 else math.e
        probabilities.append(probability)
        if number is not None:
            share[number] += probability
            found = True
    total, least = sum(probabilities), min(probabilities, default=1.0)
    if total > MOST_PROBABILITY:
        return Answer(note="its probabilities add up to more than 1")
    if not found:
        return Answer()
    mass = min(sum(share), 1.0)
    reading = answers.names[max(range(len(share)), key=share.__getitem__)]
    known = sum(map(mul, share, answers.values))
    if all(share):
        return Answer(min(known / mass, 1.0), reading, mass)
    missing = [value for value, each in zip(answers.values, share, strict=True) if not each]
    rest = min(least * len(missing), max(1.0 - total, 0.0))
    ends = [(known + rest * value) / (mass + rest) for value in (min(missing), max(missing))]
    low, high = min(*ends, known / mass), min(max(*ends, known / mass), 1.0)
    note = (
        f"labels outside the list: score {low:.3f} to {high:.3f}" if high - low > UNSURE else None
    )
    return Answer((low + high) / 2, reading, mass, note)


def clean(text: str) -> str:
    """The text with control strings of common models broken up, so that they stay text."""
    if "<" not in text and "[" not in text:
        return text
    return _CONTROL.sub(lambda found: f"{found[0]} ", text)


def usage_of(reply: Mapping[str, Any]) -> tuple[Usage, str | None]:
    """The tokens that a reply charges, nothing where the server does not tell; and a note.

    Numbers that no request can have count as not told: they would be paid for, or stored, as they
    are.
    """
    usage = reply.get("usage")
    if not isinstance(usage, dict) or not usage.get("prompt_tokens"):
        return Usage(), None
    try:
        told = Usage(
            _tokens(usage["prompt_tokens"]),
            _tokens((usage.get("prompt_tokens_details") or {}).get("cached_tokens")),
            _tokens(usage.get("completion_tokens")),
            _tokens((usage.get("completion_tokens_details") or {}).get("reasoning_tokens")),
        )
    except (AttributeError, ValueError):
        return Usage(), UNTOLD
    return (told, None) if told.cached <= told.prompt else (Usage(), UNTOLD)


def _tokens(told: Any) -> int:
    """A number of tokens as a server tells it; none where it says nothing.

    Raises:
        ValueError: no request has so many.
    """
    if type(told) is int and 0 <= told <= MOST_TOKENS:
        return told
    number = 0 if told is None else told
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ValueError(f"no number: {number!r}")
    if not 0 <= number <= MOST_TOKENS or number != int(number):
        raise ValueError(f"no number of tokens: {number!r}")
    return int(number)


def _object(text: str) -> Json | None:
    try:
        said = orjson.loads(text)
    except orjson.JSONDecodeError:
        end = text.rfind("}")
        try:
            said = orjson.loads(text[: end + 1])  # some models go on after the object
        except orjson.JSONDecodeError:
            return None
    return said if isinstance(said, dict) else None


def _chat_lists(choice: Mapping[str, Any]) -> Lists:
    content = (choice.get("logprobs") or {}).get("content") or []
    return [
        (each["token"], [(one["token"], one["logprob"]) for one in each["top_logprobs"]])
        for each in content
        if each.get("top_logprobs")
    ]


def _completion_lists(choice: Mapping[str, Any]) -> Lists:
    logprobs = choice.get("logprobs") or {}
    tokens, tops = logprobs.get("tokens") or [], logprobs.get("top_logprobs") or []
    return [(token, list(top.items())) for token, top in zip(tokens, tops, strict=False) if top]


def _verdict_list(lists: Lists) -> list[tuple[str, float]] | None:
    """The likeliest tokens where the verdict's value begins; the value's quote may be in them."""
    text = ""
    for token, listed in lists:
        before = len(text)
        text += token
        found = _VERDICT_AT.search(text)
        if found and len(text) > found.end():
            skipped = max(found.end() - before, 0)
            return [(each[skipped:], logprob) for each, logprob in listed]
    return None


def _begun(listed: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """Tokens as the label that they begin: y, ye and yes are one."""
    found = []
    for token, logprob in listed:
        word = re.split(r"\W", token.strip().lstrip('"').lower(), maxsplit=1)[0]
        label = next((name for name in YES_NO.names if word and name.startswith(word)), token)
        found.append((label, logprob))
    return found
