"""A user's own tier: a class of theirs, run in the child process like every engine."""

import hashlib
import importlib
import inspect as inspect_module
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tiers.screenfile.tiers import PythonTier
from tiers.screenfile.trust import advice, code_of, trusted
from tiers.tier import Inspection, Job, config_of
from tiers.types import Candidate, Judgement, TierError


def identity(job: Job) -> dict[str, Any]:
    """The class, its options, the rubric, and its `version`, or else its module's source."""
    config = config_of(job, PythonTier)
    loaded = _load(config)
    source = Path(str(inspect_module.getfile(loaded))).read_bytes()
    return {
        "backend": "python",
        "path": config.path,
        "version": str(getattr(loaded, "version", hashlib.sha256(source).hexdigest())),
        "options": config.options,
        "rubric": job.rubric,
    }


def inspect(job: Job, _text: str) -> Inspection:
    """Import the class and say which it is."""
    config = config_of(job, PythonTier)
    _load(config)
    return Inspection(f"{config.path} from {config.folder}")


class Python:
    """Adapter from the user's class to the tier protocol; refuses what is no judgement."""

    def __init__(self, job: Job) -> None:
        config = config_of(job, PythonTier)
        self._name = config.path
        self._tier = _load(config)(job.rubric, **config.options)
        self.rates: Mapping[str, float] = {}
        self.remarks: Sequence[str] = ()

    def judge(self, candidates: Iterable[Candidate]) -> Iterator[Judgement]:
        asked: set[int] = set()

        def noted() -> Iterator[Candidate]:
            for candidate in candidates:
                asked.add(candidate.id)
                yield candidate

        for judgement in self._tier.judge(noted()):
            if not isinstance(judgement, Judgement):
                raise TierError(
                    f"{self._name}.judge gave {type(judgement).__name__}; "
                    "yield tiers.Judgement(candidate.id, score)"
                )
            if judgement.id not in asked:
                raise TierError(
                    f"{self._name}.judge answered under {judgement.id!r}, which was not asked; "
                    "yield Judgement(candidate.id, score)"
                )
            asked.discard(judgement.id)
            yield judgement._replace(id=int(judgement.id), **_checked(judgement.score))

    def close(self) -> None:
        if close := getattr(self._tier, "close", None):
            close()


def _checked(score: Any) -> dict[str, Any]:
    """A plain float, which numpy's are not to a database; or what is wrong with it."""
    if score is None:
        return {}
    value = float(score)
    if value < 0 or value > 1:  # NaN passes: the store keeps it as a review
        return {"score": None, "error": f"score {value} is outside 0 to 1"}
    return {"score": value}


def _check_allowed(config: PythonTier) -> None:
    """Refuse code that its reader has not allowed, however the screen came here.

    Raises:
        TierError: with what to write.
    """
    where = code_of(config)
    if not (config.code_allowed or trusted(where)):
        raise TierError(
            f"tier '{config.name}' runs code, the class {config.path} of {where}, which "
            f"{advice(config.folder)}"
        )


def _load(config: PythonTier) -> Any:
    _check_allowed(config)
    module, _, name = config.path.partition(":")
    if config.folder in sys.path:
        sys.path.remove(config.folder)
    sys.path.insert(0, config.folder)  # before the folder of another tier with such a module
    known = sys.modules.get(module)
    if known is not None and not str(getattr(known, "__file__", "")).startswith(config.folder):
        del sys.modules[module]
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:
        raise TierError(
            f"tier '{config.name}': cannot import {config.path} from {config.folder}: {error}; "
            "write path: package.module:Class, seen from the screen file's folder"
        ) from error


open_here = Python
