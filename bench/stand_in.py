"""A tier that costs next to nothing, so that what is left is the pipeline's own cost."""

from collections.abc import Iterable, Iterator

from tiers.types import Candidate, Judgement


class StandIn:
    """Scores by the text's length."""

    def __init__(self, rubric: str) -> None:
        pass

    def judge(self, candidates: Iterable[Candidate]) -> Iterator[Judgement]:
        for candidate in candidates:
            yield Judgement(candidate.id, len(candidate.text) % 100 / 100, "yes", 1.0, 600, 400, 1)
