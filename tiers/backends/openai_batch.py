"""The Batch API: files of requests, answered by tomorrow at half the price.

Submitting, looking and collecting are separate steps: what is where is the caller's to remember.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import orjson

from tiers.base import Job
from tiers.chat import CHARACTERS_PER_TOKEN, Conversation, Dialect, Unreadable, Usage, usage_of
from tiers.remote import config_of, conversation, hide, identity, key_of, prepare
from tiers.sections import OpenAIBatchTier
from tiers.types import Candidate, Judgement, TierError

ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
TOO_MUCH = "token_limit_exceeded"
"""The code of a batch that was refused because the account has too many tokens waiting."""
LISTED = 500
"""How many of the account's newest batches are looked through for one of ours."""
SHOWN = 300


@dataclass(frozen=True)
class RemoteBatch:
    """What the server says of a batch."""

    id: str
    state: str
    """validating, in_progress, finalizing, completed, failed, expired, cancelling or cancelled."""
    output_file: str | None
    error_file: str | None
    reason: str | None

    @property
    def ended(self) -> bool:
        return self.state in ENDED


class TryLater(Exception):
    """The server does not answer well at the moment."""


class BatchServer:
    """An account at a server with Files and Batches."""

    def __init__(self, job: Job) -> None:
        config = config_of(job)
        if not isinstance(config, OpenAIBatchTier):
            raise TypeError(f"not a batch tier: {config!r}")
        self._job = job
        self._config = config
        self._key = key_of(config)
        self.url = config.urls[0]
        self.fingerprint = hashlib.sha256((self._key or "").encode()).hexdigest()[:16]
        self._client = openai.OpenAI(api_key=self._key, base_url=self.url, max_retries=5)
        canonical = json.dumps(identity(job), sort_keys=True)
        self._identity = hashlib.sha256(canonical.encode()).hexdigest()[:16]
        self._endpoint = "chat/completions" if config.api == "chat" else "completions"
        self._probable = conversation(job, Dialect.of(config))
        self._written = conversation(job, Dialect.of(config)._replace(top_logprobs=0))
        self._talk = self._probable

    def close(self) -> None:
        self._client.close()

    def probe(self, text: str) -> str | None:
        """Ask one text at once, to see what the server gives before all are sent.

        Returns:
            What a person should know of how the tier reads.

        Raises:
            TierError: the key or the model is wrong, or the request is refused.
        """
        dialect = self._talk.dialect
        while True:
            self._talk = conversation(self._job, dialect)
            try:
                with self._trouble():
                    reply = self._client.post(
                        f"/{self._endpoint}",
                        body=orjson.loads(self._talk.body([text])),
                        cast_to=dict[str, Any],
                    )
            except TryLater:
                return None  # a server for batches alone: its answers will show
            except openai.BadRequestError as error:
                other = dialect.without(str(error))
                if other is None:
                    raise TierError(
                        f"tier '{self._config.name}': {self.url} refuses the request: "
                        f"{hide(str(error), self._key)[:SHOWN]}"
                    ) from error
                dialect = other
                continue
            choices = reply.get("choices") or [{}]
            if self._talk.by_probability and not self._talk.has_probabilities(choices[0]):
                self._talk = conversation(self._job, dialect._replace(top_logprobs=0))
                return "the server gives no probabilities: the model writes its verdict instead"
            return None

    def line(self, candidate: Candidate) -> "tuple[bytes, int] | Judgement":
        """A candidate as a line of a file and about how many tokens it takes, or its judgement."""
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
        """Send a file of lines; its id there."""
        with self._trouble(), path.open("rb") as file:
            return self._client.files.create(file=file, purpose="batch").id

    def create(self, input_file: str, mark: str) -> RemoteBatch:
        """Have a file worked on."""
        endpoint: Any = f"/v1/{self._endpoint}"
        with self._trouble():
            return _remote(
                self._client.batches.create(
                    input_file_id=input_file,
                    endpoint=endpoint,
                    completion_window="24h",
                    metadata={"tamis": mark},
                )
            )

    def find(self, mark: str) -> RemoteBatch | None:
        """The batch of this mark, if the server has it."""
        with self._trouble():
            for number, batch in enumerate(self._client.batches.list(limit=100)):
                if (batch.metadata or {}).get("tamis") == mark:
                    return _remote(batch)
                if number >= LISTED:
                    break
        return None

    def look(self, remote_id: str) -> RemoteBatch:
        """How a batch stands."""
        with self._trouble():
            return _remote(self._client.batches.retrieve(remote_id))

    def cancel(self, remote_id: str) -> RemoteBatch:
        """Have a batch stopped; what it has answered is kept and can be collected."""
        with self._trouble():
            return _remote(self._client.batches.cancel(remote_id))

    def delete(self, file_id: str) -> None:
        """Delete a file, so that none fill the account's quota; one that is gone is deleted."""
        with suppress(openai.NotFoundError), self._trouble():
            self._client.files.delete(file_id)

    def collect(self, file_id: str) -> Iterator[Judgement]:
        """The judgements of an output or error file; lines to be sent again are left out."""
        with (
            self._trouble(),
            self._client.files.with_streaming_response.content(file_id) as content,
        ):
            for raw in content.iter_lines():
                if raw.strip() and (judgement := self._judgement(raw)) is not None:
                    yield judgement

    def _judgement(self, raw: str) -> Judgement | None:
        try:
            line = orjson.loads(raw)
            whose, _, number = str(line["custom_id"]).rpartition("-")
            response = line.get("response") or {}
            body, status = response.get("body") or {}, response.get("status_code")
        except (orjson.JSONDecodeError, KeyError, AttributeError, TypeError):
            return None
        if whose != self._identity or not number.isdigit():
            return None
        if status == 200 and body.get("choices"):
            return self._read(int(number), body)
        if status in (400, 413, 422):
            said = hide(str((body.get("error") or {}).get("message", body)), self._key)[:SHOWN]
            return Judgement(int(number), None, error=f"the server refused: {said}")
        return None

    def _read(self, number: int, body: Mapping[str, Any]) -> Judgement:
        choice = body["choices"][0]
        talk: Conversation = (
            self._probable if self._probable.has_probabilities(choice) else self._written
        )
        usage = usage_of(body) or Usage()
        charged = (usage.prompt, usage.cached, usage.completion, usage.reasoning)
        try:
            score, reading, mass, note = talk.read(choice)
        except (Unreadable, KeyError, TypeError) as error:
            return Judgement(number, None, None, None, *charged, error=str(error))
        return Judgement(number, score, reading, mass, *charged, note=note)

    def _trouble(self) -> "_Trouble":
        return _Trouble(self._config, self.url, self._key)


class _Trouble:
    """Turns the openai package's errors into ours, without the key that servers repeat in them."""

    def __init__(self, config: OpenAIBatchTier, url: str, key: str | None) -> None:
        self._config, self._url, self._key = config, url, key

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, openai.OpenAIError):
            return
        said = hide(str(error), self._key)[:SHOWN]
        where = f"tier '{self._config.name}': {self._url}"
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            name = self._config.key_name
            raise TierError(f"{where} refuses the key ({said}); check {name}") from None
        if isinstance(error, openai.BadRequestError):
            return
        if isinstance(error, openai.NotFoundError) and "model" in said:
            raise TierError(f"{where}: {said}") from None
        raise TryLater(f"{where}: {said}") from None


def _remote(batch: Any) -> RemoteBatch:
    faults = batch.errors.data if batch.errors is not None and batch.errors.data else []
    reason = "; ".join(f"{one.code}: {one.message}" for one in faults[:3]) or None
    return RemoteBatch(batch.id, batch.status, batch.output_file_id, batch.error_file_id, reason)
