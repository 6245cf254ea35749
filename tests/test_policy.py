"""Policies: what holds for every set of scores."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tiers.policy import Policy, outcomes
from tiers.types import Outcome

SCORES = st.lists(
    st.one_of(st.none(), st.just(math.nan), st.sampled_from([0.0, 0.2, 0.5, 1.0]), st.floats(0, 1)),
    max_size=40,
)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    numbers = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]) | st.floats(0, 1)
    low, high = sorted((draw(numbers), draw(numbers)))
    top = draw(st.none() | st.integers(1, 8) | st.integers(1, 50) | st.floats(0.01, 0.99))
    bounds = st.sampled_from([(low, None), (None, high), (low, high), (None, None)])
    reject_below, accept_above = draw(bounds)
    if top is reject_below is accept_above:  # None, all three: a policy has to set something
        reject_below = low
    return Policy(reject_below=reject_below, accept_above=accept_above, top=top)


def keys(scores: list[float | None]) -> list[str]:
    return [f"k{i:03}" for i in range(len(scores))]


@given(SCORES, policies(), st.booleans())
def test_no_answer_is_a_review_and_nothing_else_is_lost(
    scores: list[float | None], policy: Policy, last: bool
) -> None:
    decided = outcomes(scores, keys(scores), policy, last=last)
    assert len(decided) == len(scores)
    for score, outcome in zip(scores, decided, strict=True):
        if score is None or math.isnan(score):
            assert outcome is Outcome.REVIEW
    if last:
        assert Outcome.PROMOTE not in decided


@given(SCORES, policies(), st.booleans(), st.randoms())
def test_order_does_not_matter(
    scores: list[float | None], policy: Policy, last: bool, random: object
) -> None:
    named = list(zip(keys(scores), scores, strict=True))
    straight = dict(
        zip(keys(scores), outcomes(scores, keys(scores), policy, last=last), strict=True)
    )
    random.shuffle(named)  # type: ignore[attr-defined]
    shuffled = outcomes([s for _, s in named], [k for k, _ in named], policy, last=last)
    assert straight == dict(zip([k for k, _ in named], shuffled, strict=True))


@given(SCORES, policies(), st.booleans())
def test_a_better_score_never_has_a_worse_outcome(
    scores: list[float | None], policy: Policy, last: bool
) -> None:
    rank = {Outcome.REJECT: 0, Outcome.REVIEW: 1, Outcome.PROMOTE: 1, Outcome.ACCEPT: 2}
    decided = outcomes(scores, keys(scores), policy, last=last)
    known = [
        (score, rank[outcome])
        for score, outcome in zip(scores, decided, strict=True)
        if score is not None and not math.isnan(score)
    ]
    for score, outcome in known:
        assert all(other <= outcome for lower, other in known if lower < score)


@given(SCORES, st.integers(1, 50))
def test_top_lets_through_as_many_as_it_says_and_the_best(
    scores: list[float | None], k: int
) -> None:
    decided = outcomes(scores, keys(scores), Policy(top=k), last=False)
    readable = [s for s in scores if s is not None and not math.isnan(s)]
    assert decided.count(Outcome.PROMOTE) == min(k, len(readable))


def test_ties_go_to_the_lower_key() -> None:
    decided = outcomes([0.5, 0.5, 0.5], ["c", "a", "b"], Policy(top=2), last=False)
    assert decided == [Outcome.REJECT, Outcome.PROMOTE, Outcome.PROMOTE]


def test_thresholds_are_strict() -> None:
    policy = Policy(reject_below=0.2, accept_above=0.8)
    decided = outcomes([0.1, 0.2, 0.8, 0.9], list("abcd"), policy, last=False)
    assert decided == [Outcome.REJECT, Outcome.PROMOTE, Outcome.PROMOTE, Outcome.ACCEPT]


@pytest.mark.parametrize(
    ("policy", "between"),
    [
        (Policy(accept_above=0.8), Outcome.REJECT),
        (Policy(reject_below=0.2), Outcome.ACCEPT),
        (Policy(reject_below=0.2, accept_above=0.8), Outcome.REVIEW),
        (Policy(top=5), Outcome.ACCEPT),
    ],
)
def test_the_last_tier_promotes_nobody(policy: Policy, between: Outcome) -> None:
    assert outcomes([0.5], ["a"], policy, last=True) == [between]


def test_a_share_is_of_all_that_were_scored() -> None:
    decided = outcomes([0.1, 0.2, 0.3, None], list("abcd"), Policy(top=0.34), last=False)
    assert decided.count(Outcome.PROMOTE) == 2


@pytest.mark.parametrize(("share", "count"), [(0.07, 7), (0.55, 55), (0.071, 8)])
def test_a_share_is_what_it_says_in_decimals(share: float, count: int) -> None:
    assert Policy(top=share).quota(100) == count


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"reject_below": 0.9, "accept_above": 0.1}, "lower number in reject_below"),
        ({"top": 1.5}, "neither a count nor a share"),
        ({"top": 0}, "greater than 0"),
        ({}, "sets nothing"),
        ({"reject_below": True}, "valid number"),
        ({"top": True}, "valid integer"),
        ({"reject_below": 2}, "less than or equal to 1"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, float], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Policy(**values)


def test_a_budget_lets_through_as_many_as_it_pays_for_best_first() -> None:
    policy = Policy(budget=True)
    decided = outcomes([0.0, 0.9, 0.5, None], list("abcd"), policy, last=False, affordable=2)
    reject, promote, review = Outcome.REJECT, Outcome.PROMOTE, Outcome.REVIEW
    assert decided == [reject, promote, promote, review]
    assert policy.ranks


def test_the_last_tier_accepts_its_best_and_those_above_beside_them() -> None:
    policy = Policy(accept_above=0.8, top=1)
    decided = outcomes([0.9, 0.8, 0.7, 0.95], list("abcd"), policy, last=True)
    accept, reject = Outcome.ACCEPT, Outcome.REJECT
    assert decided == [accept, accept, reject, accept]
