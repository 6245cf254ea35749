"""Scores to outcomes: pure functions; `db.store.decide` gives the same answer in SQL."""

import math
from collections.abc import Sequence
from fractions import Fraction

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, model_validator

from tiers.types import Outcome


class Policy(BaseModel):
    """What a tier does with a score in [0, 1]: thresholds first, then the best of the rest.

    Between the thresholds, a tier promotes everybody, or the `top` best and rejects the rest.
    The last tier has nobody to promote to: see `outcomes`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    reject_below: float | None = Field(None, ge=0, le=1, strict=True)
    """Scores strictly below are rejected."""
    accept_above: float | None = Field(None, ge=0, le=1, strict=True)
    """Scores strictly above are accepted at once."""
    top: StrictInt | StrictFloat | None = Field(None, gt=0)
    """How many of those between the thresholds go on: a count (10000), or a share of all that
    the tier scored (0.25). Ties go to the lower key."""
    budget: bool = False
    """As many go on as the next tier's remaining budget pays for, best first."""

    @model_validator(mode="after")
    def _coherent(self) -> "Policy":
        low, high = self.reject_below, self.accept_above
        if low is None and high is None and self.top is None and not self.budget:
            raise ValueError(
                "sets nothing; write reject_below, accept_above, top or budget, or leave it out"
            )
        if self.budget and self.top is not None:
            raise ValueError("sets both top and budget; write one of them")
        if low is not None and high is not None and low > high:
            raise ValueError(
                f"reject_below {low} lies above accept_above {high}; "
                "write the lower number in reject_below"
            )
        if isinstance(self.top, float) and self.top >= 1:
            raise ValueError(
                f"top {self.top} is neither a count nor a share; "
                "write a whole number (10000) or a share below 1 (0.25)"
            )
        return self

    @property
    def ranks(self) -> bool:
        """Whether it needs all scores of its tier before it can decide one."""
        return self.top is not None or self.budget

    def quota(self, scored: int) -> int | None:
        """How many candidates `top` lets through of `scored` ones; None for no limit."""
        if isinstance(self.top, float):
            # As written: 0.07 of 100 are 7, which floating point makes 8.
            return math.ceil(Fraction(str(self.top)) * scored)
        return self.top

    def between(self, *, last: bool) -> Outcome:
        """The outcome of a score between the thresholds, before `top` has its say."""
        if not last:
            return Outcome.PROMOTE
        if self.ranks:
            return Outcome.ACCEPT
        match self.reject_below, self.accept_above:
            case None, _:
                return Outcome.REJECT
            case _, None:
                return Outcome.ACCEPT
            case _:
                return Outcome.REVIEW


def outcomes(
    scores: Sequence[float | None],
    keys: Sequence[str],
    policy: Policy,
    *,
    last: bool,
    affordable: int | None = None,
) -> list[Outcome]:
    """What becomes of every candidate at one tier.

    On the last tier nobody can be promoted: with `accept_above` alone the rest is rejected, with
    `reject_below` alone the rest is accepted, with both the undecided go to review; `top` accepts
    its best and rejects the others.

    Args:
        scores: (n,) in [0, 1]; None or NaN where the tier gave no readable answer.
        keys: (n,) the candidates' keys; among equal scores the lower key wins.
        policy: the tier's policy.
        last: whether this is the last tier of the screen.
        affordable: how many the next tier's budget pays for, where the policy goes by `budget`.
    """
    decided = [_by_threshold(score, policy, last=last) for score in scores]
    quota = policy.quota(sum(_readable(score) for score in scores))
    if policy.budget:
        quota = affordable
    if quota is None:
        return decided
    between = policy.between(last=last)
    ranked = sorted(
        (
            i
            for i, outcome in enumerate(decided)
            if outcome is between and not _above(scores[i], policy)
        ),
        key=lambda i: (-(scores[i] or 0.0), keys[i]),
    )
    for i in ranked[quota:]:
        decided[i] = Outcome.REJECT
    return decided


def _readable(score: float | None) -> bool:
    return score is not None and not math.isnan(score)


def _above(score: float | None, policy: Policy) -> bool:
    """Whether a candidate is accepted whatever the ranking says."""
    high = policy.accept_above
    return score is not None and high is not None and score > high


def _by_threshold(score: float | None, policy: Policy, *, last: bool) -> Outcome:
    if score is None or math.isnan(score):
        return Outcome.REVIEW
    if policy.reject_below is not None and score < policy.reject_below:
        return Outcome.REJECT
    if policy.accept_above is not None and score > policy.accept_above:
        return Outcome.ACCEPT
    return policy.between(last=last)
