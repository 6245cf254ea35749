"""Python tiers for tests: one that answers, and some that misbehave on purpose."""

import ctypes
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tiers.types import Candidate, Judgement


class Steady:
    """A score from the text's digest, the same everywhere and always."""

    def __init__(
        self, rubric: str, seconds: float = 0.0, paid: str | None = None, salt: str = ""
    ) -> None:
        """`paid` is a file that grows by a byte for every judgement, kept or not."""
        self._seconds = seconds
        self._salt = salt
        self._paid = open(paid, "ab", buffering=0) if paid else None  # noqa: PTH123, SIM115

    def close(self) -> None:
        if self._paid:
            self._paid.close()

    def judge(self, candidates: Iterable[Candidate]) -> Iterator[Judgement]:
        for candidate in candidates:
            if self._seconds:
                time.sleep(self._seconds)
            if self._paid:
                self._paid.write(b".")
            yield Judgement(candidate.id, score_of(self._salt + candidate.text), "yes", 1.0, 10)


def score_of(text: str) -> float:
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=4).digest()
    return int.from_bytes(digest) / 2**32


class Crashing(Steady):
    """Dies natively of a text that holds `abort`, and of `segfault`; raises at `raise`."""

    def judge(self, candidates: Iterable[Candidate]) -> Iterator[Judgement]:
        for candidate in candidates:
            if "abort" in candidate.text:
                os.abort()
            if "segfault" in candidate.text:
                ctypes.string_at(0)
            if "raise" in candidate.text:
                raise ValueError("cannot read this one")
            yield Judgement(candidate.id, score_of(candidate.text))


class Odd(Steady):
    """Answers nothing on `silent`, NaN on `nan`, and 7 on `seven`."""

    def judge(self, candidates: Iterable[Candidate]) -> Iterator[Judgement]:
        for candidate in candidates:
            if "nan" in candidate.text:
                yield Judgement(candidate.id, float("nan"))
            elif "seven" in candidate.text:
                yield Judgement(candidate.id, 7.0)
            elif "silent" not in candidate.text:
                yield Judgement(candidate.id, score_of(candidate.text))


class Deaf(Steady):
    """A model that does not answer the question: hardly any probability on the labels."""

    def judge(self, candidates: Iterable[Candidate]) -> Iterator[Judgement]:
        for candidate in candidates:
            yield Judgement(candidate.id, 0.01, "no", 0.02)


class Unopenable:
    def __init__(self, rubric: str) -> None:
        raise OSError("the device is on fire")


class Knowing(Steady):
    """Scores a text that ends in `yes` higher than others, the more surely the smaller `noise`.

    One that holds the word `blind` it takes for another.
    """

    def __init__(
        self, rubric: str, noise: float, salt: str = "", paid: str | None = None, blind: str = ""
    ) -> None:
        super().__init__(rubric, paid=paid, salt=salt)
        self._noise, self._blind = noise, blind

    def judge(self, candidates: Iterable[Candidate]) -> Iterator[Judgement]:
        for judgement, candidate in _beside(super().judge, candidates):
            share = self._noise * (judgement.score or 0.0)
            seen = not self._blind or self._blind not in candidate.text
            sure = 1 - self._noise if seen and candidate.text.endswith("yes") else 0.0
            yield judgement._replace(score=sure + share)


class Listed(Steady):
    """Scores texts that stand in a file, a line each, high, and others low."""

    def __init__(self, rubric: str, wanted: str, paid: str | None = None) -> None:
        super().__init__(rubric, paid=paid)
        self._wanted = set(Path(wanted).read_text().splitlines())

    def judge(self, candidates: Iterable[Candidate]) -> Iterator[Judgement]:
        for judgement, candidate in _beside(super().judge, candidates):
            share = 0.2 * (judgement.score or 0.0)
            yield judgement._replace(score=share + 0.8 * (candidate.text in self._wanted))


def _beside(
    judge: Callable[[Iterable[Candidate]], Iterator[Judgement]], candidates: Iterable[Candidate]
) -> Iterator[tuple[Judgement, Candidate]]:
    for candidate in candidates:
        for judgement in judge([candidate]):
            yield judgement, candidate
