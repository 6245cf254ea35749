"""One address of a server: a request to it, and what its reply or its silence means."""

import logging
import time
import zlib
from collections.abc import Mapping
from typing import Any, NoReturn

import aiohttp
import orjson
from yarl import URL

from tiers.backends.openai.account import shown
from tiers.backends.openai.errors import Failure, Unfit, error_of, retry_after
from tiers.backends.openai.pacing import Rate, Window, backoff
from tiers.screenfile.ask import JsonAsk
from tiers.screenfile.tiers import HttpTier
from tiers.types import TierError

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
        self.most_bytes = _most_bytes(config)
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
        # Parsed once: aiohttp would do it for every request.
        self._target = URL(f"{url}/{'chat/completions' if config.api == 'chat' else 'completions'}")
        self._requests = Rate(config.requests_per_minute)
        self._tokens = Rate(config.tokens_per_minute)
        self._closed_until = 0.0

    @property
    def healthy(self) -> bool:
        return self.failures < SET_ASIDE

    def free(self, now: float) -> bool:
        """Whether a request may begin now."""
        if self.unfit:
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

    async def post(self, session: aiohttp.ClientSession, body: bytes) -> dict[str, Any]:
        """Send one request and return the reply's object, which holds at least one choice.

        The session's headers carry the key.

        Raises:
            Failure: it may go well the next time.
            Refusal: the server will not take this request.
            Unfit: the reply has no end, or is far longer than what was asked for.
            TierError: the server will take none: wrong key, model or address.
        """
        try:
            # A redirect is never followed: it would carry the key to another host.
            async with session.post(self._target, data=body, allow_redirects=False) as response:
                status, headers = response.status, response.headers
                most = self.most_bytes if status == 200 else ERROR_BYTES
                raw = await read_bounded(response, most)
        except TimeoutError as error:
            seconds = self._config.timeout_seconds
            raise Failure(f"no answer within {seconds:g} s", slow=True) from error
        except aiohttp.ClientConnectorError as error:
            raise Failure(
                f"{self.url} cannot be reached: {error.strerror}", counts=False
            ) from error
        except aiohttp.ClientError as error:
            said = self._shown(str(error)) or type(error).__name__
            raise Failure(f"the connection broke: {said}") from error
        if status != 200:
            self._refuse(status, headers, raw)
        if len(raw) > self.most_bytes:
            raise Unfit(f"its reply is longer than {self.most_bytes:,} bytes")
        return self._choices(raw)

    def _choices(self, raw: bytes) -> dict[str, Any]:
        try:
            reply = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise Failure(f"the reply is broken JSON: {self._words(raw)}", lasting=True) from error
        choices = reply.get("choices") if isinstance(reply, dict) else None
        if not isinstance(choices, list) or not all(isinstance(one, dict) for one in choices):
            choices = None
        if not choices:
            raise Failure(f"the reply holds no choices: {self._words(raw)}", lasting=True)
        return dict(reply)

    def _refuse(self, status: int, headers: Mapping[str, str], raw: bytes) -> NoReturn:
        words, where = self._words(raw), f"tier '{self._config.name}': {self._target}"
        said = f"{status}: {words}"
        if status == 402 or (status == 429 and "insufficient_quota" in words):
            raise TierError(f"{where}: the account has no money left ({said})")
        if status == 404:
            raise TierError(
                f"{where} answers {said}; is the model '{self._config.model}' served there, and "
                "does base_url end as the server's own (often in /v1)?"
            )
        to = self._shown(headers.get("Location", "another address"))
        raise error_of(status, said, self._config, where=where, to=to, after=retry_after(headers))

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


def _most_bytes(config: HttpTier) -> int:
    """An upper bound on a reply, far above any real one."""
    replies = config.prompts_per_request if config.api == "completions" else 1
    tokens = config.max_tokens if isinstance(config.ask, JsonAsk) else 1
    return REPLY_BYTES + REPLY_BYTES_PER_TOKEN * tokens * replies


async def read_bounded(response: aiohttp.ClientResponse, most: int) -> bytes:
    """The body, unpacked; of one that is longer than `most` bytes, some bytes more than these.

    The session must not unpack by itself: a few kB can become gigabytes.
    """
    pieces, size = [], 0
    while size <= most and (piece := await response.content.readany()):
        pieces.append(piece)
        size += len(piece)
    raw = b"".join(pieces)
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding in ("gzip", "x-gzip", "deflate"):
        return _unpacked(raw, most)
    if encoding not in ("", "identity"):
        raise Failure(
            f"the reply is packed as '{encoding[:40]}', which nobody asked for", lasting=True
        )
    return raw


def _unpacked(raw: bytes, most: int) -> bytes:
    """Of gzip, or of deflate with its header or without, as servers do it; no more than needed."""
    for window in (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS):
        try:
            return zlib.decompressobj(window).decompress(raw, most + 1)
        except zlib.error as error:
            fault = error
    raise Failure(f"the reply cannot be unpacked: {fault}")
