"""A user's own tier: a class of theirs, run in the child process like every engine."""

import importlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tiers.base import Inspection, Job
from tiers.config import PythonTier
from tiers.types import Candidate, Judgement, TierError


def identity(job: Job) -> dict[str, Any]:
    """The class, its options, the rubric, and the `version` that the class may state."""
    config = _config(job)
    return {
        "backend": "python",
        "path": config.path,
        "version": str(getattr(_load(config), "version", "1")),
        "options": config.options,
        "rubric": job.rubric,
    }


def inspect(job: Job) -> Inspection:
    """Import the class and say which it is."""
    config = _config(job)
    _load(config)
    return Inspection(f"{config.path} from {config.folder}")


class Python:
    """Adapter from the user's class to the tier protocol; refuses what is no judgement."""

    def __init__(self, job: Job) -> None:
        config = _config(job)
        self._name = config.path
        self._tier = _load(config)(job.rubric, **config.options)
        self.rates: Mapping[str, float] = {}

    def judge(self, candidates: Iterable[Candidate]) -> Iterator[Judgement]:
        for judgement in self._tier.judge(candidates):
            if not isinstance(judgement, Judgement):
                raise TierError(
                    f"{self._name}.judge gave {type(judgement).__name__}; "
                    "yield tiers.types.Judgement(candidate.id, score)"
                )
            score = judgement.score
            # NaN passes: the store keeps it as a review.
            if score is not None and (score < 0 or score > 1):
                judgement = judgement._replace(score=None, error=f"score {score} is outside 0 to 1")
            yield judgement

    def close(self) -> None:
        if close := getattr(self._tier, "close", None):
            close()


def _config(job: Job) -> PythonTier:
    if not isinstance(job.config, PythonTier):
        raise TypeError(f"not a python tier: {job.config!r}")
    return job.config


def _load(config: PythonTier) -> Any:
    module, _, name = config.path.partition(":")
    if config.folder not in sys.path:
        sys.path.insert(0, config.folder)
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise TierError(
            f"tier '{config.name}': cannot import {config.path} from {config.folder}: {error}; "
            "write path: package.module:Class, seen from the screen file's folder"
        ) from error
