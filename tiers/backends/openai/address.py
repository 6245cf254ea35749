"""One address of a server: a request to it, and what its reply or its silence means."""

import logging
import time
from typing import Any, NoReturn

import orjson

from tiers.backends.openai.account import shown
from tiers.backends.openai.client import Ended, Reply, unpacked
from tiers.backends.openai.errors import Failure, Unfit, error_of, retry_after
from tiers.backends.openai.pacing import Rate, Window, backoff
from tiers.screenfile.ask import JsonAsk
from tiers.screenfile.tiers import HttpTier
from tiers.types import AddressState, Health, TierError

log = logging.getLogger(__name__)

SET_ASIDE = 8
"""Failures in a row after which an address is left alone for a while."""
LONG_PAUSE = 10.0
"""Pauses of at least so many seconds are logged."""
REPLY_BYTES = 4 << 20
REPLY_BYTES_PER_TOKEN = 8 << 10
"""Twenty likeliest tokens, each with its bytes as numbers, take some 2 kB."""
ERROR_BYTES = 64 << 10


class Address:
    """One server that serves the tier's model."""

    def __init__(self, url: str, config: HttpTier, key: str | None) -> None:
        self.url = url
        self.most_bytes = most_bytes(config)
        self.target = f"{url}/{'chat/completions' if config.api == 'chat' else 'completions'}"
        self.in_flight = 0
        self.served: str | None = None
        """The name under which the server first answered."""
        self.window = Window(config.concurrency)
        self.failures = 0
        """In a row, without busy answers."""
        self.latency = 0.0
        """Running mean in seconds; a failure doubles it."""
        self.unfit = False
        """Whether it gives less than the others, so that it is not asked any more."""
        self.good = 0
        """Replies with an answer."""
        self._busy = 0
        """Busy answers in a row. Of requests sent before the last one, the answers count once."""
        self._busy_at = 0.0
        self._config = config
        self._key = key
        self._requests = Rate(config.requests_per_minute)
        self._tokens = Rate(config.tokens_per_minute)
        self._closed_until = 0.0
        self.removed = False
        """Whether a person took it out of the list: what is under way is waited for."""
        self.error: str | None = None
        """What went wrong last."""
        self._state: AddressState = "untried"
        self._since = time.time()

    @property
    def health(self) -> Health:
        state = self._told_state()
        if state != self._state:
            self._state, self._since = state, time.time()
        return Health(self.url, state, self._since, self.in_flight, self.error)

    def _told_state(self) -> AddressState:
        if self.removed:
            return "removed"
        if self.unfit:
            return "set aside"
        if not self.healthy:
            return "away"
        return "answering" if self.good else "untried"

    @property
    def healthy(self) -> bool:
        return self.failures < SET_ASIDE

    def free(self, now: float) -> bool:
        """Whether a request may begin now."""
        if self.unfit or self.removed:
            return False
        most = self.window.size if self.healthy else 1.0
        return self.in_flight < most and self.wait(now) <= 0

    def closed(self, now: float) -> bool:
        """Whether requests pause here, after a failure or at the server's own wish."""
        return self._closed_until > now

    def wait(self, now: float) -> float:
        """Seconds until the address may be asked, apart from what is under way there."""
        closed = self._closed_until - now
        return max(closed, self._requests.wait(now), self._tokens.wait(now), 0.0)

    def begin(self, tokens: float, now: float) -> None:
        """A request of about so many tokens begins."""
        self.in_flight += 1
        self._requests.spend(1, now)
        self._tokens.spend(tokens, now)

    def end(self, began: float, failure: Failure | None) -> None:
        """A request that began then is over."""
        now = time.monotonic()
        self.in_flight -= 1
        if failure is None:
            if not self.healthy:
                log.warning("%s answers again", self.url)
            self.failures = self._busy = 0
            self.latency += ((now - began) - self.latency) * (0.1 if self.latency else 1.0)
            self.window.answered(began, now)
            return
        self._failed(failure, began, now)

    def _failed(self, failure: Failure, began: float, now: float) -> None:
        self.error = str(failure)
        # Else one that fails at once would look like the fastest.
        self.latency = min(2 * max(self.latency, now - began, 0.05), self._config.timeout_seconds)
        pause = failure.after or 0.0
        if failure.slow:
            if began >= self._busy_at:
                self._busy, self._busy_at = self._busy + 1, now
            self.window.refused(began, now)
            if failure.after is None:
                pause = backoff(self._busy)
        if failure.counts or not failure.slow:
            self.failures += 1
            if self.failures == SET_ASIDE:
                log.warning("%s is set aside and tried again now and then: %s", self.url, failure)
        if not self.healthy:
            pause = max(pause, backoff(self.failures - SET_ASIDE + 1, first=0.5))
        if pause >= LONG_PAUSE > self._closed_until - now:
            log.warning("%s is left alone for %.0f s: %s", self.url, pause, failure)
        if pause:
            self._closed_until = max(self._closed_until, now + pause)

    def read(self, ended: Ended) -> dict[str, Any]:
        """The object of a reply, which holds at least one choice.

        Raises:
            Failure: it may go well the next time.
            Refusal: the server will not take this request.
            Unfit: the reply has no end, or the server cannot be trusted.
            TierError: the server will take none: wrong key, model or address.
        """
        if not isinstance(ended, Reply):
            raise ended
        # A redirect is never followed: it would carry the key to another host.
        if ended.status != 200:
            self._refuse(ended)
        try:
            reply = orjson.loads(ended.raw)
        except orjson.JSONDecodeError:
            reply = self._unpacked(ended)
        choices = reply.get("choices") if isinstance(reply, dict) else None
        if isinstance(choices, list) and choices and all(isinstance(one, dict) for one in choices):
            return reply  # type: ignore[no-any-return]
        raise Failure(f"the reply holds no choices: {self._words(ended.raw)}", lasting=True)

    def _unpacked(self, reply: Reply) -> Any:
        """The object of a reply that is not JSON as it came."""
        raw = unpacked(reply, self.most_bytes)
        if reply.too_long or len(raw) > self.most_bytes:
            raise Unfit(f"its reply is longer than {self.most_bytes:,} bytes")
        try:
            return orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise Failure(f"the reply is broken JSON: {self._words(raw)}", lasting=True) from error

    def _refuse(self, reply: Reply) -> NoReturn:
        words = self._words(unpacked(reply, ERROR_BYTES)[:ERROR_BYTES])
        where = f"tier '{self._config.name}': {self.target}"
        said = f"{reply.status}: {words}"
        if reply.status == 402 or (reply.status == 429 and "insufficient_quota" in words):
            raise TierError(f"{where}: the account has no money left ({said})")
        if reply.status == 404:
            raise TierError(
                f"{where} answers {said}; is the model '{self._config.model}' served there, and "
                "does base_url end as the server's own (often in /v1)?"
            )
        to = self._shown(reply.header("Location") or "another address")
        after = retry_after(reply.header("retry-after-ms"), reply.header("Retry-After"))
        raise error_of(reply.status, said, self._config, where=where, to=to, after=after)

    def _words(self, raw: bytes) -> str:
        """What the server said, in short and without the key."""
        text = raw.decode("utf-8", "replace")
        try:
            error = orjson.loads(raw).get("error")
            if isinstance(error, dict):
                text = " ".join(str(error[k]) for k in ("code", "message") if error.get(k))
            elif isinstance(error, str):
                text = error
        except (orjson.JSONDecodeError, AttributeError):
            pass
        return self._shown(text) or "no words"

    def _shown(self, text: str) -> str:
        return shown(text, self._key)


def most_bytes(config: HttpTier) -> int:
    """An upper bound on a reply, far above any real one."""
    replies = config.prompts_per_request if config.api == "completions" else 1
    tokens = config.max_tokens if isinstance(config.ask, JsonAsk) else 1
    return REPLY_BYTES + REPLY_BYTES_PER_TOKEN * tokens * replies
