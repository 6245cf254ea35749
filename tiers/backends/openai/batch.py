"""The Batch API: files of requests, answered within 24 hours at half the price.

Submitting, looking and collecting are separate steps: what is where is the caller's to remember.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import openai
import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tiers.backends.openai.account import key_of, prepare, shown
from tiers.backends.openai.chat import (
    CHARACTERS_PER_TOKEN,
    Conversation,
    Dialect,
    Unreadable,
    usage_of,
)
from tiers.backends.openai.errors import Failure, error_of
from tiers.backends.openai.tier import identity
from tiers.screenfile.tiers import OpenAIBatchTier
from tiers.tier import Job, RemoteBatch, config_of
from tiers.types import Answer, Candidate, Judgement, Refused, TierError, TryLater

ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
LISTED = 500
"""How many of the account's newest batches are looked through for one of ours."""
NO_BATCHES = frozenset({404, 405, 501})
"""What a server answers that has no Files and Batches."""
TRANSPORT = frozenset({"httpx", "httpx2"})
"""The packages that openai sends by: their errors come through while an answer is read."""
NOT_FOUND = 404
REPLY_BYTES = 16 << 20
"""Of a reply or of a line of a file, far more than any needs."""
REPLY_SECONDS = 600.0
FILE_LINES = 100_000
"""Twice as many as a batch may have."""
FILE_SECONDS = 3600.0


class _Shape(BaseModel):
    """What an answer must hold. What it may hold is of any shape, and all else is left out."""

    model_config = ConfigDict(strict=True)


class _Reply(_Shape):
    choices: list[dict[str, Any]] = Field(min_length=1)


class _File(_Shape):
    id: str


class _Batch(_Shape):
    id: str
    status: str
    output_file_id: Any = None
    error_file_id: Any = None
    errors: Any = None


class _Page(_Shape):
    data: list[dict[str, Any]]
    has_more: Any = False


Shape = TypeVar("Shape", bound=_Shape)


class _Endless(openai.OpenAIError):
    """A reply that is longer, or takes longer, than any that was asked for. Never retried."""


class BatchServer:
    """An account at a server with Files and Batches."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._config = config = config_of(job, OpenAIBatchTier)
        self._key = key_of(config)
        self.url = config.urls[0]
        self.fingerprint = hashlib.sha256((self._key or "").encode()).hexdigest()[:16]
        self.remarks: list[str] = []
        # A redirect is never followed: it would carry the key to another host.
        self._client = openai.OpenAI(
            api_key=self._key,
            base_url=self.url,
            max_retries=5,
            default_headers={"Accept-Encoding": "identity"},  # packed, a few kB can be gigabytes
            http_client=openai.DefaultHttpxClient(
                follow_redirects=False, event_hooks={"response": [_bound]}
            ),
        )
        self._files = self._client.files.with_raw_response
        self._batches = self._client.batches.with_raw_response
        canonical = json.dumps(identity(job), sort_keys=True)
        self._identity = hashlib.sha256(canonical.encode()).hexdigest()[:16]
        self._endpoint = "chat/completions" if config.api == "chat" else "completions"
        self._probable = Conversation(job, Dialect.of(config))
        self._written = Conversation(job, Dialect.of(config)._replace(top_logprobs=0))
        self._talk = self._probable

    def close(self) -> None:
        self._client.close()

    def probe(self, text: str) -> str | None:
        tried = {self._talk.dialect}
        while True:
            try:
                with self._trouble():
                    body = orjson.loads(self._talk.body([text]))
                    said = self._client.post(f"/{self._endpoint}", body=body, cast_to=bytes)
                break
            except TryLater:
                return None  # a server for batches alone: its answers will show
            except Refused as error:
                if error.status in NO_BATCHES and "model" not in error.said:
                    return None
                other = self._talk.dialect.without(error.said)
                if other is None or other in tried:
                    raise
                tried.add(other)
                self._talk = Conversation(self._job, other)
        choice = self._shaped(_Reply, said).choices[0]
        if self._talk.by_probability and not self._talk.has_probabilities(choice):
            self._talk = Conversation(self._job, self._talk.dialect._replace(top_logprobs=0))
            return "the server gives no probabilities: the model writes its verdict instead"
        return None

    def line(self, candidate: Candidate) -> "tuple[bytes, int] | Judgement":
        prepared = prepare(candidate, self._config)
        if isinstance(prepared, Judgement):
            return prepared
        body = self._talk.body([prepared[0]])
        name = orjson.dumps(f"{self._identity}-{candidate.id}")
        target = orjson.dumps(f"/v1/{self._endpoint}")
        line = b'{"custom_id":%b,"method":"POST","url":%b,"body":%b}\n' % (name, target, body)
        characters = len("".join(self._talk.prompt)) + len(prepared[0])
        return line, characters // CHARACTERS_PER_TOKEN + self._talk.most_tokens

    def upload(self, path: Path) -> str:
        with self._trouble(), path.open("rb") as file:
            sent = self._files.create(file=file, purpose="batch")
        return self._shaped(_File, sent.content).id

    def create(self, input_file: str, mark: str) -> RemoteBatch:
        endpoint: Any = f"/v1/{self._endpoint}"
        with self._trouble():
            made = self._batches.create(
                input_file_id=input_file,
                endpoint=endpoint,
                completion_window="24h",
                metadata={"tamis": mark},
            )
        return self._remote(made.content)

    def find(self, mark: str) -> RemoteBatch | None:
        for batch in islice(self._newest(), LISTED):
            marks = batch.get("metadata")
            if isinstance(marks, dict) and marks.get("tamis") == mark:
                return self._remote(orjson.dumps(batch))
        return None

    def _newest(self) -> Iterator[Mapping[str, Any]]:
        """The account's batches, newest first."""
        after: Any = openai.omit
        while True:
            with self._trouble():
                listed = self._batches.list(limit=100, after=after)
            page = self._shaped(_Page, listed.content)
            yield from page.data
            last = page.data[-1].get("id") if page.data else after
            if last == after or not page.has_more:
                return
            after = last

    def look(self, remote_id: str) -> RemoteBatch:
        return self._found(remote_id, self._batches.retrieve)

    def cancel(self, remote_id: str) -> RemoteBatch:
        return self._found(remote_id, self._batches.cancel)

    def _found(self, remote_id: str, ask: Callable[[str], Any]) -> RemoteBatch:
        try:
            with self._trouble():
                found = ask(remote_id)
        except Refused as error:
            if error.status != NOT_FOUND:
                raise
            why = "the account has no such batch any more"
            return RemoteBatch(remote_id, "gone", ended=True, reason=why)
        return self._remote(found.content)

    def delete(self, file_id: str) -> None:
        with suppress(Refused), self._trouble():
            self._files.delete(file_id)

    def collect(self, file_id: str) -> Iterator[Judgement]:
        readable, unreadable, first = 0, 0, b""
        try:
            for raw in self._lines(file_id):
                try:
                    line = orjson.loads(raw)
                except orjson.JSONDecodeError:
                    line = None
                if not isinstance(line, dict):
                    unreadable, first = unreadable + 1, first or raw
                    continue
                readable += 1
                if (judgement := self._judgement(line)) is not None:
                    yield judgement
        except Refused as error:
            if error.status != NOT_FOUND:
                raise
            self.remarks.append(f"file {file_id} is gone, and the answers in it")
        begins = self._shown(first.decode(errors="replace"))
        if unreadable and not readable:
            raise TryLater(f"{self._where}: file {file_id} holds no answers, but '{begins}'")
        if unreadable:
            self.remarks.append(
                f"{unreadable:,} of {readable + unreadable:,} lines of file {file_id} cannot be "
                f"read; the first begins '{begins}'"
            )

    def _lines(self, file_id: str) -> Iterator[bytes]:
        """The lines of a file, cut at newlines alone: answers hold what else Python cuts at."""
        rest: list[bytes] = []
        lines = size = 0
        with (
            self._trouble(),
            self._client.files.with_streaming_response.content(file_id) as content,
        ):
            for piece in content.iter_bytes():
                *whole, last = piece.split(b"\n")
                for line in whole:
                    rest.append(line)
                    if joined := b"".join(rest).strip():
                        yield joined
                    rest, size = [], 0
                rest.append(last)
                size += len(last)
                lines += len(whole)
                if lines > FILE_LINES:
                    raise _Endless(f"file {file_id} has more than {FILE_LINES:,} lines")
                if size > REPLY_BYTES:
                    raise _Endless(f"a line of file {file_id} has more than {REPLY_BYTES:,} bytes")
        if joined := b"".join(rest).strip():
            yield joined

    def _judgement(self, line: Mapping[str, Any]) -> Judgement | None:
        match line:
            case {"custom_id": str(name), "response": {"status_code": status, **response}}:
                whose, _, number = name.rpartition("-")
            case _:
                return None
        if whose != self._identity or not (number.isascii() and number.isdigit()):
            return None
        body = response.get("body")
        if status == 200 and isinstance(body, dict) and body.get("choices"):
            return self._read(int(number), body)
        if status in (400, 413, 422):
            said = self._shown(_message(body))
            return Judgement(int(number), None, error=f"the server refused: {said}")
        return None

    def _read(self, number: int, body: Mapping[str, Any]) -> Judgement:
        usage, untold = usage_of(body)
        answer, error = Answer(), None
        try:
            choice = body["choices"][0]
            probable = self._probable.has_probabilities(choice)
            answer = (self._probable if probable else self._written).read(choice)
        except Unreadable as unreadable:
            error = self._shown(str(unreadable))
        except (AttributeError, LookupError, TypeError, ValueError):
            error = f"the reply is of another shape: {self._shown(orjson.dumps(body).decode())}"
        return Judgement(
            number,
            score=answer.score,
            reading=answer.reading,
            mass=answer.mass,
            prompt_tokens=usage.prompt,
            cached_tokens=usage.cached,
            completion_tokens=usage.completion,
            reasoning_tokens=usage.reasoning,
            error=error,
            note="; ".join(filter(None, (answer.note, untold))) or None,
        )

    def _remote(self, content: bytes) -> RemoteBatch:
        batch = self._shaped(_Batch, content)
        faults = batch.errors.get("data") if isinstance(batch.errors, dict) else batch.errors
        said = [_fault(one) for one in faults[:3]] if isinstance(faults, list) else []
        return RemoteBatch(
            batch.id,
            self._shown(batch.status),
            ended=batch.status in ENDED,
            output_file=batch.output_file_id if isinstance(batch.output_file_id, str) else None,
            error_file=batch.error_file_id if isinstance(batch.error_file_id, str) else None,
            reason=self._shown("; ".join(said)) or None,
        )

    def _shaped(self, shape: type[Shape], content: bytes) -> Shape:
        """What an answer of status 200 holds.

        Raises:
            TierError: it holds something else.
        """
        try:
            return shape.model_validate_json(content)
        except ValidationError:
            said = self._shown(content.decode(errors="replace"))
            raise TierError(
                f"{self._where} answers what is none of the Batch API's: '{said}'; check base_url"
            ) from None

    def _shown(self, text: str) -> str:
        """The first words, without the key that servers repeat in them."""
        return shown(text, self._key)

    @property
    def _where(self) -> str:
        return f"tier '{self._config.name}': {self.url}"

    @contextmanager
    def _trouble(self) -> Iterator[None]:
        """Turns the openai package's errors into ours, without the key in them."""
        try:
            yield
        except openai.APIStatusError as error:
            raise self._of_status(error) from None
        except _Endless as error:
            raise TierError(
                f"{self._where} misbehaves: {error}. Correct the server or base_url, then run "
                "again: what was judged is kept"
            ) from None
        except openai.OpenAIError as error:
            raise TryLater(f"{self._where}: {self._shown(str(error))}") from None
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in TRANSPORT:
                raise
            raise TryLater(
                f"{self._where}: the answer was cut off ({self._shown(str(error))})"
            ) from None

    def _of_status(self, error: openai.APIStatusError) -> Exception:
        said, status, where = self._shown(str(error)), error.status_code, self._where
        to = self._shown(error.response.headers.get("Location", "another address"))
        found = error_of(status, said, self._config, where=where, to=to)
        if isinstance(found, TierError):
            return found
        if status in NO_BATCHES and "model" not in said:
            message = (
                f"{where} has no Files and Batches, or not this one: {said}; ask a server without "
                "them with backend: http"
            )
        elif isinstance(found, Failure) and status not in NO_BATCHES:
            return TryLater(f"{where}: {said}")
        else:
            message = f"{where} refuses the request: {said}"
        return Refused(message, said, status)


def _bound(response: Any) -> None:
    """Have the client read no more of a response than can be meant, and not for ever.

    Called by the client before it reads the body; files are read line by line, in `_lines`.
    """
    if response.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        raise _Endless("the reply is packed, which nobody asked for")
    file = response.status_code == 200 and response.request.url.path.endswith("/content")
    seconds = FILE_SECONDS if file else REPLY_SECONDS
    read = response.iter_raw

    def bounded(*arguments: Any, **settings: Any) -> Iterator[bytes]:
        size, began = 0, time.monotonic()
        for piece in read(*arguments, **settings):
            size += len(piece)
            if size > REPLY_BYTES and not file:
                raise _Endless(f"its reply is longer than {REPLY_BYTES:,} bytes")
            if time.monotonic() - began > seconds:
                raise _Endless(f"its reply takes longer than {seconds:g} s")
            yield piece

    response.iter_raw = bounded


def _fault(fault: object) -> str:
    """A fault of a batch as `code: message`."""
    if not isinstance(fault, dict):
        return str(fault)
    return f"{fault.get('code')}: {fault.get('message')}"


def _message(body: object) -> str:
    """What a refusal says, in whatever shape."""
    error = (body.get("error") or body) if isinstance(body, dict) else body
    return str((error.get("message") or error) if isinstance(error, dict) else error)
