"""The HTTP tier: any OpenAI-compatible server, at one address or several at once.

`judge` is a plain loop: begin what may begin, wait, read what has come. It works only while a
judgement is waited for. What has to wait for another attempt waits in a heap.
"""

import heapq
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import orjson

from tiers.backends.openai.account import hide, key_of, prepare
from tiers.backends.openai.address import ERROR_BYTES, Address, most_bytes
from tiers.backends.openai.chat import (
    CHARACTERS_PER_TOKEN,
    Conversation,
    Dialect,
    Unreadable,
    Usage,
    usage_of,
)
from tiers.backends.openai.client import Client, Ended, unpacked
from tiers.backends.openai.errors import Failure, Refusal, Unfit
from tiers.backends.openai.pacing import backoff
from tiers.screenfile.tiers import HttpTier
from tiers.tier import Job, config_of
from tiers.types import Answer, Candidate, Health, Judgement, TierError

LOOK_SECONDS = 0.05
"""How long to wait for a reply before looking whether somebody ended the work."""
UNREADABLE_ATTEMPTS = 3
"""Attempts at a text whose reply holds no verdict: at temperature 0 a reply seldom changes."""
REFUSED_IN_A_ROW = 20
"""After this many refusals without an answer between them, the fault is not the candidates'."""
UNREADABLE_AT_FIRST = 20
"""After this many first replies without a verdict, the fault is the model's or the question's."""
FIRST_ANSWER_SECONDS = 10.0
"""How long to wait for a server that has never answered."""
NAME_SHOWN = 100

NOTHING = Usage()
NO_ANSWER = Answer()


@dataclass(slots=True)
class Sent:
    """One text of a request."""

    id: int
    text: str
    note: str | None
    usage: Usage = NOTHING
    unreadable: int = 0
    untold: str | None = None
    """Why its tokens are not counted: a part of them would look like all."""

    def judged(
        self,
        answer: Answer = NO_ANSWER,
        *,
        seconds: float = 0.0,
        error: str | None = None,
        failed: bool = False,
        address: Address | None = None,
    ) -> Judgement:
        usage = NOTHING if self.untold else self.usage
        notes = (self.note, answer.note, self.untold)
        return Judgement(
            self.id,
            score=answer.score,
            reading=answer.reading,
            mass=answer.mass,
            prompt_tokens=usage.prompt,
            cached_tokens=usage.cached,
            completion_tokens=usage.completion,
            reasoning_tokens=usage.reasoning,
            seconds=seconds,
            error=error,
            failed=failed,
            note="; ".join(filter(None, notes)) if any(notes) else None,
            address=None if address is None else address.url,
        )


@dataclass(slots=True)
class Request:
    """A request and what became of the attempts at it."""

    texts: list[Sent]
    attempts: int = 0
    failed_at: Address | None = None
    """The address of the last failure; the next attempt prefers another one."""

    @property
    def tokens(self) -> int:
        """About how many tokens its texts have."""
        return sum(len(each.text) for each in self.texts) // CHARACTERS_PER_TOKEN


class Attempt(NamedTuple):
    """One attempt at a request, while it is under way."""

    request: Request
    address: Address
    began: float


class Http:
    """A model behind one or several addresses."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._config = config = config_of(job, HttpTier)
        self.rates: Mapping[str, float] = {}
        self._remarks: list[str] = []
        self._key = key = key_of(config)
        self._addresses = [Address(url, config, key) for url in config.urls]
        self._removed: list[Address] = []
        self._wanted = config
        """With the addresses that were asked for last, in another thread perhaps."""
        self._talk = Conversation(job, Dialect.of(config))
        self._shared_tokens = len("".join(self._talk.prompt)) // CHARACTERS_PER_TOKEN
        self._dialect_known = False
        """Whether a reply has shown that the server speaks the dialect."""
        self._group = config.prompts_per_request if config.api == "completions" else 1
        self._grouped = False
        """Whether a request with several texts has gone well."""
        self._client = Client(
            key, most_bytes=most_bytes(config), timeout_seconds=config.timeout_seconds
        )
        self._source: Iterator[Request] = iter(())
        self._exhausted = True
        self._again: list[tuple[float, int, Request]] = []
        self._numbers = count()
        self._ready: list[Judgement] = []
        self._refusals: list[Judgement] = []
        """Refusals since the last good reply. The next good reply shows that the server works."""
        self._readable = self._unreadable = 0
        self._interrupted = False
        self._fatal: BaseException | None = None
        self._last_failure: Failure | None = None
        self._answered = False
        self._good_at = self._left_at = 0.0
        """When the last good answer came, and when the loop last stood still."""
        self._labels_named = False

    @property
    def remarks(self) -> Sequence[str]:
        """In the order in which they showed."""
        return self._remarks

    def judge(self, candidates: Iterable[Candidate]) -> Iterator[Judgement]:
        """Judgements in the order in which the server gives them.

        Raises:
            TierError: the key, the model or the address is wrong, or no server answers.
        """
        self._source, self._exhausted = self._prepared(candidates), False
        self._good_at = self._left_at = time.monotonic()
        try:
            while self._fatal is None and not self._interrupted and not self._over:
                try:
                    self._turn()
                except BaseException as error:  # noqa: BLE001 - raised below, after what is ready
                    self._fatal = error
                ready, self._ready = self._ready, []
                yield from ready
            if self._fatal is not None:
                raise self._fatal
            yield from self._final_refusals()
        finally:
            self._client.drop()
            self._again.clear()

    @property
    def healths(self) -> Sequence[Health]:
        """How the addresses are, those that were removed included."""
        return [address.health for address in (*self._removed, *self._addresses)]

    def move(self, urls: Sequence[str]) -> None:
        """Ask at these addresses from now on; what is under way at others is waited for.

        Raises:
            TierError: the key may not be sent there; the addresses stay as they are.
        """
        wanted = self._config.model_copy(update={"base_url": tuple(urls)})
        key_of(wanted)
        self._wanted = wanted

    def _move(self, wanted: HttpTier, now: float) -> None:
        before = {address.url: address for address in self._addresses}
        self._config = wanted
        self._addresses = [
            before[url] if url in before else Address(url, wanted, self._key) for url in wanted.urls
        ]
        gone = [address for url, address in before.items() if url not in wanted.urls]
        for address in gone:
            address.removed = True
        self._removed = [each for each in self._removed if each.url not in wanted.urls] + gone
        self._remarks.append(f"asks from now on at {', '.join(wanted.urls)}")
        self._good_at = now

    def interrupt(self) -> None:
        """End `judge` in another thread, without the answers that are under way."""
        self._interrupted = True

    def close(self) -> None:
        self._client.close()

    def _prepared(self, candidates: Iterable[Candidate]) -> Iterator[Request]:
        """Requests; what cannot be sent is judged at once."""
        texts: list[Sent] = []
        for candidate in candidates:
            prepared = prepare(candidate, self._config)
            if isinstance(prepared, Judgement):
                self._ready.append(prepared)
                continue
            texts.append(Sent(candidate.id, *prepared))
            if len(texts) >= (self._group if self._dialect_known else 1):
                yield Request(texts)
                texts = []
        if texts:
            yield Request(texts)

    def _turn(self) -> None:
        """Begin what may begin, wait for replies, and read those that have come."""
        if not self._labels_named:
            self._name_labels()
        now = time.monotonic()
        self._good_at += now - self._left_at  # while the loop stood still, nobody could answer
        if (wanted := self._wanted) is not self._config:
            self._move(wanted, now)
        self._start(now)
        self._check_patience(now)
        if self._fatal is None and not self._over:
            for attempt, ended in self._client.wait(self._pause(now)):
                self._end(attempt, ended)
        self._left_at = time.monotonic()

    @property
    def _over(self) -> bool:
        return self._exhausted and not self._client.under_way and not self._again

    def _name_labels(self) -> None:
        """Where a server gives the probability of any token, name the tokens of the answers."""
        self._labels_named = True
        if not self._config.known.named_logprobs or self._talk.writes:
            return
        url = self._config.urls[0].removesuffix("/v1") + "/tokenize"
        single = []
        for spelling in self._talk.spellings:
            body = {"model": self._config.model, "prompt": spelling, "add_special_tokens": False}
            try:
                reply = unpacked(self._client.ask(url, orjson.dumps(body)), ERROR_BYTES)
                tokens = orjson.loads(reply)["tokens"]
            except (Failure, Unfit, KeyError, TypeError, ValueError):
                return  # then the likeliest tokens have to do
            if len(tokens) == 1:
                single.append(int(tokens[0]))
        self._speak(self._talk.dialect._replace(named=tuple(dict.fromkeys(single))))

    def _start(self, now: float) -> None:
        """Start what may start."""
        while free := self._free(now):
            if self._again and self._again[0][0] <= now:
                request = heapq.heappop(self._again)[2]
            elif (new := next(self._source, None)) is not None:
                request = new
            else:
                self._exhausted = True
                return
            address = self._best(free, request.failed_at)
            address.begin(request.tokens + self._shared_tokens * len(request.texts), now)
            body = self._talk.body([sent.text for sent in request.texts])
            self._client.begin(address.target, body, Attempt(request, address, now))

    def _free(self, now: float) -> list[Address]:
        """The addresses that may be asked: one request in all until the dialect is known."""
        if not self._dialect_known and self._client.under_way:
            return []
        return [address for address in self._addresses if address.free(now)]

    @staticmethod
    def _best(free: list[Address], avoid: Address | None) -> Address:
        """The address that would answer first, except the one where the request failed."""
        if len(free) == 1:
            return free[0]
        others = [address for address in free if address is not avoid]
        return min(others, key=lambda each: (each.in_flight + 1) * each.latency)

    def _pause(self, now: float) -> float:
        """Seconds until something has to be done even if no reply comes."""
        if self._ready:
            return 0.0
        waits = [LOOK_SECONDS, *(wait for each in self._addresses if (wait := each.wait(now)) > 0)]
        if self._again:
            waits.append(max(self._again[0][0] - now, 0.001))
        return min(waits)

    def _end(self, attempt: Attempt, ended: Ended) -> None:
        """After one attempt: its judgements are ready, or it is put back to be asked again."""
        request, address, began = attempt
        try:
            reply = address.read(ended)
            shares, untold = _shares(reply, request)
            for sent, usage in zip(request.texts, shares, strict=True):
                sent.usage = usage if sent.usage is NOTHING else sent.usage + usage
                sent.untold = sent.untold or untold
            self._check_model(reply, address)
        except Failure as failure:
            address.end(began, failure)
            self._failed(request, failure, address)
        except Refusal as error:
            address.end(began, None)
            self._refused(request, str(error), address)
        except Unfit as error:
            address.in_flight -= 1
            self._set_aside(request, str(error), address)
        except Exception as error:  # noqa: BLE001 - judge raises it, after what is ready
            address.in_flight -= 1
            if not isinstance(error, TierError):
                error = TierError(f"tier '{self._config.name}': {type(error).__name__}: {error}")
            self._fatal = self._fatal or error
        else:
            address.end(began, None)
            self._good_at, self._answered = time.monotonic(), True
            address.good += 1
            self._ready += self._final_refusals()
            self._read(request, reply, self._good_at - began, address)

    def _check_model(self, reply: Mapping[str, Any], address: Address) -> None:
        """Refuse a reply of another model than the first one's; remark on an unknown name."""
        told, asked = reply.get("model"), self._config.model
        if not isinstance(told, str) or told == address.served:
            return
        told = hide(told, key_of(self._config))[:NAME_SHOWN]
        if address.served is None:
            address.served = told
            if asked not in told and told not in asked:
                self._remarks.append(f"{address.url} calls the model '{told}', not '{asked}'")
            other = next((one for one in self._addresses if one.served not in (None, told)), None)
            if other is not None:
                self._remarks.append(
                    f"{address.url} calls the model '{told}' and {other.url} '{other.served}': "
                    "scores of different models do not compare"
                )
        elif told != address.served:
            raise Failure(f"the reply is of the model '{told}', not of '{address.served}'")

    def _read(
        self, request: Request, reply: dict[str, Any], seconds: float, address: Address
    ) -> None:
        given = reply["choices"]
        if len(request.texts) == 1:
            choices = {0: given[0]}  # whatever number it has
        else:
            choices = {_place(choice, i): choice for i, choice in enumerate(given)}
        if not self._dialect_known and not self._learn_dialect(request, given[0]):
            return
        if address.good == 1 and self._gives_less(address, given[0]):
            self._put_back(request)
            return
        if len(choices) < len(request.texts):
            self._one_by_one(request)
            return
        self._grouped |= len(request.texts) > 1
        for i, sent in enumerate(request.texts):
            try:
                answer = self._talk.read(choices[i])
            except Unreadable as error:
                self._no_verdict(sent, str(error), seconds, address)
            except (KeyError, TypeError, AttributeError, ValueError):
                said = "the reply is not shaped as the protocol says"
                self._no_verdict(sent, said, seconds, address)
            else:
                self._readable += 1
                self._ready.append(sent.judged(answer, seconds=seconds, address=address))

    def _learn_dialect(self, request: Request, choice: Mapping[str, Any]) -> bool:
        """Whether the first reply gives what was asked for; else change the dialect, ask again."""
        if self._talk.by_probability and not self._talk.has_probabilities(choice):
            self._speak(self._talk.dialect._replace(top_logprobs=0))
            self._put_back(request)
            return False
        self._dialect_known = True
        if not self._talk.by_probability:
            self._remarks.append(
                "the server gives no probabilities: the model writes its verdict and how sure it "
                "is, which is dearer and coarser"
            )
        return True

    def _speak(self, dialect: Dialect) -> None:
        self._talk = Conversation(self._job, dialect)

    def _gives_less(self, address: Address, choice: Mapping[str, Any]) -> bool:
        """Whether an address gives no probabilities where another does; it is then left out."""
        less = self._talk.by_probability and not self._talk.has_probabilities(choice)
        if less and any(other.good for other in self._addresses if other is not address):
            self._leave_out(address, "it gives no probabilities")
            return True
        return False

    def _leave_out(self, address: Address, why: str) -> None:
        self._exclude(address, f"left out, as other addresses give more: {why}")

    def _exclude(self, address: Address, words: str) -> None:
        if not address.unfit:
            self._remarks.append(f"{address.url} is {words}")
        address.unfit, address.error = True, words

    def _set_aside(self, request: Request, why: str, address: Address) -> None:
        """Ask no more at an address that misbehaves; the others go on, if there are any."""
        self._exclude(address, f"set aside: {why}")
        if all(each.unfit for each in self._addresses):
            self._fatal = self._fatal or TierError(
                f"tier '{self._config.name}': {address.url} is set aside, and no other address is "
                f"left: {why}. Correct the server or base_url, then run again: what was judged is "
                "kept"
            )
        self._put_back(request)

    def _final_refusals(self) -> list[Judgement]:
        """Hand out the refusals that waited for a good reply to follow them."""
        refusals, self._refusals = self._refusals, []
        return refusals

    def _refused(self, request: Request, said: str, address: Address) -> None:
        """After a refusal: another dialect, each text alone, or review by a person."""
        other = self._talk.dialect.without(said)
        too_long = "context" in said.lower() or "too long" in said.lower()
        refusal = request.texts[0].judged(error=f"the server refused: {said}", address=address)
        if not self._dialect_known and other is not None:
            self._speak(other)
            self._put_back(request)
        elif len(request.texts) > 1:
            self._one_by_one(request)
        elif other is not None and not address.good and self._answered:
            self._leave_out(address, said)
            self._put_back(request)
        elif too_long:
            self._ready.append(refusal)
        elif self._dialect_known and len(self._refusals) < REFUSED_IN_A_ROW:
            self._refusals.append(refusal)
        else:
            self._fatal = TierError(
                f"tier '{self._config.name}': {address.url} refuses the request: {said}"
            )

    def _one_by_one(self, request: Request) -> None:
        """Ask each text of a group alone; form no more groups if none has gone well yet."""
        if not self._grouped:
            self._group = 1
        for sent in request.texts:
            self._put_back(Request([sent]))

    def _failed(self, request: Request, failure: Failure, address: Address) -> None:
        """Ask again later; a request that fails where others go well is given up in the end."""
        self._last_failure = failure
        request.failed_at = address
        if failure.counts and len(request.texts) > 1:
            self._one_by_one(request)  # some servers break on what they should refuse
            return
        if failure.counts and address.healthy:
            request.attempts += 1
        if request.attempts <= self._config.retries:
            self._put_back(request, max(failure.after or 0.0, backoff(max(request.attempts, 1))))
            return
        for sent in request.texts:
            error = f"gave up after {request.attempts} attempts: {failure}"
            self._ready.append(sent.judged(error=error, failed=True))

    def _no_verdict(self, sent: Sent, said: str, seconds: float, address: Address) -> None:
        sent.unreadable += 1
        self._unreadable += 1
        if not self._readable and self._unreadable >= UNREADABLE_AT_FIRST:
            self._fatal = TierError(
                f"tier '{self._config.name}' stopped: none of the first {self._unreadable} replies "
                f"can be read ({said}); see the prompt with 'tamis check', then change ask, prompt "
                "or model"
            )
        elif sent.unreadable < UNREADABLE_ATTEMPTS:
            self._put_back(Request([sent]))
        else:
            self._ready.append(sent.judged(seconds=seconds, error=said, address=address))

    def _put_back(self, request: Request, seconds: float = 0.0) -> None:
        heapq.heappush(self._again, (time.monotonic() + seconds, next(self._numbers), request))

    def _check_patience(self, now: float) -> None:
        """Stop the tier after too long a time without a good reply to requests that were sent."""
        closed = any(address.closed(now) for address in self._addresses)
        if self._last_failure is None or not (self._again or self._client.under_way or closed):
            return
        patience = max(self._config.patience_seconds, self._config.timeout_seconds)
        last = self._last_failure
        if not self._answered and not last.slow and (last.lasting or not last.counts):
            patience = min(self._config.patience_seconds, FIRST_ANSWER_SECONDS)
        if now - self._good_at > patience:
            self._fatal = TierError(
                f"tier '{self._config.name}': no good answer for {patience:g} s; the last was: "
                f"{last}. Start the server or correct base_url, then run again: "
                "what was judged is kept"
            )


def _place(choice: Mapping[str, Any], place: int) -> int:
    """The number of the prompt that a choice answers: its place, unless it tells another."""
    told = choice.get("index")
    return told if isinstance(told, int) else place


def _shares(reply: Mapping[str, Any], request: Request) -> tuple[list[Usage], str | None]:
    """Each text's share of the tokens that a request charged, which add up to it; and a note."""
    (whole, untold), texts = usage_of(reply), request.texts
    if len(texts) == 1:
        return [whole], untold
    lengths = [len(sent.text) + 1 for sent in texts]
    shares, given, before = [], NOTHING, 0
    for length in lengths:
        before += length
        until = Usage(*(total * before // sum(lengths) for total in whole))
        shares.append(Usage(*(a - b for a, b in zip(until, given, strict=True))))
        given = until
    return shares, untold
