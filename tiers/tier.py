"""The seam between flow and engines: one verb, `judge`, and `close`. Knows no backend."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

from tiers.screenfile.file import Screen
from tiers.screenfile.tiers import AnyTier, TierSection
from tiers.types import Candidate, Judgement

Config = TypeVar("Config", bound=TierSection)


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


def config_of(job: Job, kind: type[Config]) -> Config:
    """The tier's section of the screen file, as the kind that a backend is for.

    Raises:
        TypeError: it is of another kind.
    """
    if not isinstance(job.config, kind):
        raise TypeError(f"no {kind.__name__}: {job.config!r}")
    return job.config


def job_of(screen: Screen, position: int) -> Job:
    """The job of the tier at a position of the cascade."""
    return Job(screen.rubric, screen.tiers[position])
