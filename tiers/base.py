"""The seam between flow and engines: one verb, `judge`, and `close`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from tiers.screenfile.file import Screen
from tiers.screenfile.tiers import (
    AnyTier,
    HttpTier,
    LlamaTier,
    OpenAIBatchTier,
    PythonTier,
    VllmTier,
)
from tiers.types import Candidate, Judgement, TierError


class Tier(Protocol):
    """One judge. Judgements come in any order, exactly one for each candidate."""

    rates: Mapping[str, float]
    """What the engine measured of itself: `prefill` and `decode`, in tokens a second."""

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


def job_of(screen: Screen, position: int) -> Job:
    """The job of the tier at a position of the cascade."""
    return Job(screen.rubric, screen.tiers[position])


def identity(job: Job) -> dict[str, Any]:
    """What a judgement of this tier depends on beside the text. No model is loaded for it.

    Raises:
        TierError: the model's file is not there.
        MissingExtra: the engine is not installed.
    """
    match job.config:
        case LlamaTier():
            from tiers.backends.llama import tier as llama

            return llama.identity(job)
        case VllmTier():
            from tiers.backends.vllm import tier as vllm

            return vllm.identity(job)
        case HttpTier() | OpenAIBatchTier():
            from tiers.backends.openai import account as remote

            return remote.identity(job)
        case PythonTier():
            from tiers.backends import python

            return python.identity(job)


def inspect(job: Job, text: str) -> Inspection:
    """The prompt for one text and its length, without loading a model's weights.

    Raises:
        TierError: the model's file is not there or cannot be read.
    """
    match job.config:
        case LlamaTier():
            from tiers.backends.llama import tier as llama

            return llama.inspect(job, text)
        case VllmTier():
            from tiers.backends.vllm import tier as vllm

            return vllm.inspect(job, text)
        case HttpTier() | OpenAIBatchTier():
            from tiers.backends.openai import account as remote

            return remote.inspect(job, text)
        case PythonTier():
            from tiers.backends import python

            return python.inspect(job)


def open_tier(job: Job) -> Tier:
    """Open a tier for use by a flow: engines in a child process, what only waits in this one.

    Raises:
        TierError: the engine or its model cannot be opened.
    """
    if isinstance(job.config, HttpTier):
        return open_backend(job)
    from tiers.host import HostedTier

    return HostedTier(job)


def open_backend(job: Job) -> Tier:
    """Open the engine itself, in this process. For `tiers.host`, tests and benches."""
    match job.config:
        case LlamaTier():
            from tiers.backends.llama.tier import Llama

            return Llama(job)
        case VllmTier():
            from tiers.backends.vllm.tier import Vllm

            return Vllm(job)
        case HttpTier():
            from tiers.backends.openai.http import Http

            return Http(job)
        case OpenAIBatchTier():
            raise TierError(
                f"tier '{job.config.name}' answers by tomorrow and cannot be asked one by one"
            )
        case PythonTier():
            from tiers.backends.python import Python

            return Python(job)
