"""From a section of the screen file to its backend: a module of three functions.

A backend is imported when it is asked for, because each needs a library that may not be installed.
"""

from typing import Any, Protocol

from tiers.screenfile.tiers import (
    AnyTier,
    ClassifierTier,
    HttpTier,
    LlamaTier,
    OpenAIBatchTier,
    VllmTier,
)
from tiers.tier import BatchTier, Inspection, Job, Tier


class Backend(Protocol):
    """What a module offers that implements a backend."""

    def identity(self, job: Job) -> dict[str, Any]: ...

    def inspect(self, job: Job, text: str) -> Inspection: ...

    def open_here(self, job: Job) -> Tier: ...


def identity(job: Job) -> dict[str, Any]:
    """What a judgement of this tier depends on beside the text. No model is loaded for it.

    Raises:
        TierError: the model's file is not there.
        MissingExtra: the engine is not installed.
    """
    return _backend(job.config).identity(job)


def inspect(job: Job, text: str) -> Inspection:
    """The prompt for one text and its length, without loading a model's weights.

    Raises:
        TierError: the model's file is not there or cannot be read.
    """
    return _backend(job.config).inspect(job, text)


def open_backend(job: Job) -> Tier:
    """Open the engine itself, in this process. For `tiers.host`, tests and benches.

    Raises:
        TierError: the engine or its model cannot be opened.
    """
    return _backend(job.config).open_here(job)


def open_batch(job: Job) -> BatchTier:
    """Open a tier that is sent files of requests; no server is asked yet.

    Raises:
        TierError: the key is not set, or may not be sent to that host.
    """
    from tiers.backends.openai.batch import BatchServer

    return BatchServer(job)


def _backend(config: AnyTier) -> Backend:
    match config:
        case LlamaTier():
            import tiers.backends.llama.tier as backend
        case VllmTier():
            import tiers.backends.vllm.tier as backend  # type: ignore[no-redef]
        case HttpTier() | OpenAIBatchTier():
            import tiers.backends.openai.tier as backend  # type: ignore[no-redef]
        case ClassifierTier():
            import tiers.backends.classifier.tier as backend  # type: ignore[no-redef]
        case _:
            import tiers.backends.python as backend  # type: ignore[no-redef]
    return backend
