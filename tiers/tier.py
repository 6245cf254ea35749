"""The seam between flow and engines: one verb, `judge`, and `close`. Knows no backend."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from tiers.screenfile.file import Screen
from tiers.screenfile.tiers import AnyTier, TierSection
from tiers.types import Candidate, Health, Judgement

Config = TypeVar("Config", bound=TierSection)


class Tier(Protocol):
    """One judge. Judgements come in any order, exactly one for each candidate."""

    @property
    def rates(self) -> Mapping[str, float]:
        """What the engine measured of itself: `prefill` and `decode`, in tokens a second."""
        ...

    @property
    def remarks(self) -> Sequence[str]:
        """What a person should know of how this tier reads."""
        ...

    def judge(self, candidates: Iterable[Candidate]) -> Iterator[Judgement]: ...

    def close(self) -> None: ...


@runtime_checkable
class Interruptible(Protocol):
    """A tier whose `judge` can be ended from another thread."""

    def interrupt(self) -> None: ...


@runtime_checkable
class Addressed(Protocol):
    """A tier that asks servers, whose addresses may change while it judges in another thread."""

    @property
    def healths(self) -> Sequence[Health]:
        """How the addresses are, those that were removed included."""
        ...

    def move(self, urls: Sequence[str]) -> None:
        """Ask at these addresses from now on; what is under way at others is waited for."""
        ...


class RemoteBatch(NamedTuple):
    """What a server says of a batch."""

    id: str
    state: str
    """The server's own word, such as in_progress; `gone` where the account has no such batch."""
    ended: bool
    output_file: str | None = None
    error_file: str | None = None
    reason: str | None = None


TOO_MANY_TOKENS = "token_limit_exceeded"
"""In the reason of a batch that was refused because too many tokens of the account are waiting."""


class BatchTier(Protocol):
    """A judge that is sent files of requests and answers within a day.

    Every step may raise `TryLater`, and `TierError` where a person has to correct something. What
    is where is the caller's to remember.
    """

    url: str
    fingerprint: str
    """Of the key, by which batches of another account are known."""

    @property
    def remarks(self) -> Sequence[str]:
        """What a person should know of the files that were collected."""
        ...

    def probe(self, text: str) -> str | None:
        """Ask one text at once, before all are sent; what a person should know, if anything."""
        ...

    def line(self, candidate: Candidate) -> tuple[bytes, int] | Judgement:
        """A candidate as a line of a file and about how many tokens it takes; or its judgement."""
        ...

    def upload(self, path: Path) -> str:
        """Send a file of lines; its id there."""
        ...

    def create(self, input_file: str, mark: str) -> RemoteBatch:
        """Have a file worked on.

        Raises:
            Refused: there is no such batch now.
            TierError: whether there is one is not known; `find` tells.
        """
        ...

    def find(self, mark: str) -> RemoteBatch | None:
        """The batch that was made with this mark, if the server has it."""
        ...

    def look(self, remote_id: str) -> RemoteBatch: ...

    def cancel(self, remote_id: str) -> RemoteBatch:
        """Have a batch stopped; what it has answered is kept and can be collected."""
        ...

    def collect(self, file_id: str) -> Iterator[Judgement]:
        """The judgements of an output or error file; lines to be sent again are left out."""
        ...

    def delete(self, file_id: str) -> None:
        """Delete a file, so that none fill the account's quota; one that is gone is deleted."""
        ...

    def close(self) -> None: ...


class Inspection(NamedTuple):
    """What a tier would do with one text. Tokens are None where no model reads them."""

    model: str
    prompt: str | None = None
    shared_tokens: int | None = None
    own_tokens: int | None = None
    key: str | None = None
    """Which variable goes to which hosts as the key, in words."""


class Job(NamedTuple):
    """All that a tier needs to know: its section of the screen file, and the rubric."""

    rubric: str
    config: AnyTier


def config_of(job: Job, kind: type[Config]) -> Config:
    """The tier's section of the screen file, as the kind that a backend is for.

    Raises:
        TypeError: it is of another kind.
    """
    if not isinstance(job.config, kind):
        raise TypeError(f"no {kind.__name__}: {job.config!r}")
    return job.config


def asked(job: Job, *more: str) -> dict[str, Any]:
    """What a judgement of every model depends on: rubric and question, and `more` settings."""
    common = {"ask", "prompt", "max_candidate_tokens", "too_long", "max_tokens"}
    settings = job.config.model_dump(mode="json", by_alias=True, include=common | set(more))
    return {"rubric": job.rubric} | settings


def job_of(screen: Screen, position: int) -> Job:
    """The job of the tier at a position of the cascade."""
    return Job(screen.rubric, screen.tiers[position])
