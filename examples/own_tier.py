"""A tier of one's own: any class with `judge`, here one that counts the rubric's words.

Name it in a screen file as `{name: words, backend: python, path: "own_tier:Words"}`.
It runs in a child process, so it may use any library and even crash.
"""

import re
from collections.abc import Iterable, Iterator

from tiers import Candidate, Judgement


class Words:
    """Scores a text by the share of the rubric's words that it contains."""

    version = "1"  # change it when the scores change, and texts are judged anew

    def __init__(self, rubric: str, shortest: int = 4) -> None:
        self._wanted = {word for word in _words(rubric) if len(word) >= shortest}

    def judge(self, candidates: Iterable[Candidate]) -> Iterator[Judgement]:
        """Yield one judgement for each candidate, in any order."""
        for candidate in candidates:
            found = self._wanted & _words(candidate.text)
            score = len(found) / max(len(self._wanted), 1)
            yield Judgement(candidate.id, score, reading=", ".join(sorted(found)))


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))
