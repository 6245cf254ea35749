"""Calibration: the contract of ask, tell and result, whatever the scores and labels are."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiers.calibration import (
    Calibrator,
    Result,
    Status,
    Thresholds,
    bound_of_moved,
    calibrate,
    plan_calibration,
    worth_of_tiers,
)
from tiers.calibration.draws import Floats
from tiers.calibration.guarantee import Mask
from tiers.calibration.recall_test import bound_for_source
from tiers.policy import Policy, outcomes
from tiers.types import Outcome

KINDS = ["recall", "precision", "accuracy"]


def population(
    items: int, prevalence: float, tiers: int = 1, *, seed: int = 0
) -> tuple[Floats, Mask]:
    """Normal scores, two standard deviations apart, squeezed into (0, 1); better tier by tier."""
    rng = np.random.default_rng(seed)
    positive = rng.random(items) < prevalence
    logits = [rng.normal(positive * (1.5 + 0.5 * tier), 1) - 1 for tier in range(tiers)]
    scores = 1 / (1 + np.exp(-np.column_stack(logits)))
    return (scores[:, 0] if tiers == 1 else scores), positive


class Oracle:
    """Knows the labels, and counts what it is asked."""

    def __init__(self, labels: Mask) -> None:
        self.labels = labels
        self.asked: list[int] = []

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        self.asked += ids.tolist()
        return self.labels[ids]


def recall_of(result: Result, positive: Mask) -> float:
    return positive[result.accepted].sum() / positive.sum() if positive.any() else 1.0


def bound_of(result: Result, scores: Floats, moved: Sequence[Thresholds]) -> float:
    assert result.evidence is not None
    return bound_of_moved(
        scores[result.drawn_positives],
        moved,
        certified=result.thresholds,
        bound=result.certified_bound,
        evidence=result.evidence,
    )


def same(one: Result, other: Result) -> bool:
    masks = ("accepted", "promoted", "by_proxy")
    return (
        all(np.array_equal(getattr(one, mask), getattr(other, mask)) for mask in masks)
        and one.thresholds == other.thresholds
        and one.certified_bound == other.certified_bound
        and one.labels_used == other.labels_used
        and one.status is other.status
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", [0, 1, 7, 60, 300, 1000])
def test_never_more_than_the_budget_and_nobody_twice(kind: str, budget: int) -> None:
    scores, positive = population(300, 0.2)
    oracle = Oracle(positive)
    result = calibrate(scores, oracle, kind=kind, target=0.8, delta=0.2, budget=budget, seed=3)
    assert len(oracle.asked) == len(set(oracle.asked)) == result.labels_used <= budget
    assert not result.accepted[[i for i in oracle.asked if not positive[i]]].any()
    assert result.accepted[[i for i in oracle.asked if positive[i]]].all()
    assert not (result.rejected & (result.accepted | result.promoted)).any()


@settings(max_examples=60)
@given(
    kind=st.sampled_from(KINDS),
    tiers=st.integers(1, 4),
    scores=st.lists(
        st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0, float("nan")]), min_size=4, max_size=4),
        max_size=60,
    ),
    labels=st.sampled_from(["none", "all", "some"]),
    budget=st.integers(0, 80),
)
def test_ties_gaps_and_extremes_never_break_it(
    kind: str,
    tiers: int,
    scores: list[list[float]],
    labels: str,
    budget: int,
) -> None:
    table = np.array(scores, float).reshape(-1, 4)[:, :tiers]
    rng = np.random.default_rng(len(scores))
    positive = {"none": 0.0, "all": 1.0, "some": 0.5}[labels] > rng.random(len(table))
    result = calibrate(
        table,
        lambda ids: positive[ids],
        kind=kind,
        target=0.7,
        delta=0.3,
        budget=budget,
        seed=1,
    )
    assert result.labels_used <= budget
    assert len(result.thresholds) == tiers
    if budget >= len(table) and kind == "recall":
        assert result.status is Status.CERTIFIED
        # The draw may end before the last label: then some are rejected by their score.
        assert (result.accepted == positive)[~result.by_proxy].all()
    for threshold in result.thresholds:
        if threshold != Thresholds():
            Policy(reject_below=threshold.reject_below, accept_above=threshold.accept_above)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tiers", [1, 3])
def test_a_killed_calibration_goes_on_as_if_nothing_had_happened(kind: str, tiers: int) -> None:
    scores, positive = population(800, 0.2, tiers)

    def fresh() -> Calibrator:
        return Calibrator(kind, target=0.85, delta=0.2, budget=250, seed=5)

    whole, told, asks = fresh(), {}, 0
    while (ids := whole.ask(scores)).size:
        resumed = fresh()
        resumed.tell(told.keys(), told.values())
        assert np.array_equal(resumed.ask(scores), ids)
        half = ids[::2]
        whole.tell(half, positive[half])
        assert len(ids) == 1 or set(whole.ask()) == set(ids) - set(half)
        whole.tell(ids[::-1], positive[ids[::-1]])
        told |= dict(zip(ids.tolist(), positive[ids].tolist(), strict=True))
        asks += 1
    resumed = fresh()
    resumed.tell(list(told)[::-1], list(told.values())[::-1])
    assert asks > 2
    assert not resumed.ask(scores).size
    assert same(whole.result(), resumed.result())


def test_repeated_labels_are_ignored_and_contradictions_name_both() -> None:
    scores, positive = population(200, 0.3)
    calibrator = Calibrator(budget=50)
    ids = calibrator.ask(scores)
    calibrator.tell(ids, positive[ids])
    calibrator.tell(ids, positive[ids])
    first = int(ids[0])
    old, new = ("yes", "no") if positive[first] else ("no", "yes")
    with pytest.raises(ValueError, match=rf"candidate {first} .* {old} before and {new} now"):
        calibrator.tell([first], [not positive[first]])
    with pytest.raises(ValueError, match=r"candidate 7 .* yes before and no now"):
        Calibrator().tell([7, 7], [1, 0])


def test_what_is_asked_wrongly_is_said() -> None:
    calibrator = Calibrator(budget=10)
    with pytest.raises(ValueError, match="needs the scores"):
        calibrator.ask()
    ids = calibrator.ask(np.linspace(0, 1, 50))
    with pytest.raises(ValueError, match="labels are still missing"):
        calibrator.result()
    with pytest.raises(ValueError, match="not the scores"):
        calibrator.ask(np.linspace(0, 1, 51))
    with pytest.raises(ValueError, match="neither yes nor no"):
        calibrator.tell(ids[:1], [0.5])
    with pytest.raises(ValueError, match="no row"):
        calibrator.tell([50], [1])
    with pytest.raises(ValueError, match=r"target 1\.0"):
        Calibrator(target=1.0)
    with pytest.raises(ValueError, match="3 costs for 1 tiers"):
        Calibrator(costs=[1, 2, 3]).ask(np.zeros(5))


def test_no_label_promotes_and_is_named() -> None:
    scores, positive = population(600, 0.3)
    answers = np.where(np.arange(600) % 7 == 0, np.nan, positive)
    result = calibrate(
        scores, lambda ids: answers[ids], kind="recall", target=0.8, delta=0.1, budget=300, seed=2
    )
    assert len(result.unlabelled) > 20
    assert (result.unlabelled % 7 == 0).all()
    assert result.promoted[result.unlabelled].all()
    assert not result.rejected[result.unlabelled].any()


def test_thresholds_are_those_of_the_policy() -> None:
    """The masks are what the policies of the screen would do, one tier after the other."""
    scores, positive = population(3000, 0.2, 3)
    scores[::50, 1] = np.nan
    result = calibrate(
        scores,
        lambda ids: positive[ids],
        kind="recall",
        target=0.8,
        delta=0.2,
        budget=700,
        seed=4,
    )
    fate = np.full(len(scores), Outcome.PROMOTE, object)
    for tier, threshold in enumerate(result.thresholds):
        policy = Policy(reject_below=threshold.reject_below, accept_above=threshold.accept_above)
        here = np.flatnonzero(fate == Outcome.PROMOTE)
        keys = [str(i) for i in here]
        fate[here] = outcomes(scores[here, tier].tolist(), keys, policy, last=False)
    unseen = result.by_proxy
    assert unseen.sum() > 100
    assert not (unseen & result.accepted).any()
    assert (fate[unseen] == Outcome.REJECT).all()
    assert set(fate[result.promoted]) == {Outcome.PROMOTE, Outcome.REVIEW}


@pytest.mark.parametrize(("kind", "target"), [("precision", 0.7), ("accuracy", 0.85)])
def test_whom_a_tier_cannot_read_no_later_tier_decides(kind: str, target: float) -> None:
    scores, positive = population(3000, 0.3, 3)
    holes = np.flatnonzero(np.arange(len(scores)) % 10 == 0)
    scores[holes[::2], 0] = np.nan
    scores[holes[1::2], 1] = np.nan
    result = calibrate(
        scores,
        lambda ids: positive[ids],
        kind=kind,
        target=target,
        delta=0.2,
        budget=900,
        seed=4,
    )
    assert result.status is Status.CERTIFIED
    fate = np.full(len(scores), Outcome.PROMOTE, object)
    for tier, threshold in enumerate(result.thresholds):
        if threshold == Thresholds():
            continue
        policy = Policy(reject_below=threshold.reject_below, accept_above=threshold.accept_above)
        here = np.flatnonzero(fate == Outcome.PROMOTE)
        fate[here] = outcomes(scores[here, tier].tolist(), [""] * len(here), policy, last=False)
    unseen = result.by_proxy
    assert unseen.sum() > 100
    assert not unseen[holes[::2]].any(), "the first tier could not read them"
    assert (fate[unseen & result.accepted] == Outcome.ACCEPT).all()
    assert (fate[unseen & ~result.accepted] == Outcome.REJECT).all()


def test_a_score_that_is_missing_after_a_rejection_changes_nothing() -> None:
    scores, positive = population(4000, 0.1, 3)
    ask = {"kind": "recall", "target": 0.8, "delta": 0.2, "budget": 1500, "seed": 6}
    full = calibrate(scores, lambda ids: positive[ids], **ask)
    holes = scores.copy()
    rejected = holes[:, 0] < full.thresholds[0].reject_below
    holes[np.ix_(rejected, [1, 2])] = np.nan
    result = calibrate(holes, lambda ids: positive[ids], **ask)
    assert result.status is Status.CERTIFIED
    assert recall_of(result, positive) >= 0.8


@pytest.mark.parametrize("labels", [np.zeros(100, bool), np.ones(100, bool)])
@pytest.mark.parametrize("kind", KINDS)
def test_constant_scores_keep_the_promise(kind: str, labels: Mask) -> None:
    result = calibrate(
        np.full(100, 0.5),
        lambda ids: labels[ids],
        kind=kind,
        target=0.9,
        delta=0.1,
        budget=40,
        seed=0,
    )
    if kind == "recall":
        assert recall_of(result, labels) == 1.0
    if kind == "precision" and result.accepted.any():
        assert labels[result.accepted].mean() >= 0.9
    if kind == "accuracy":
        assert (result.by_proxy & ~labels).sum() <= 10


def test_the_plan_gives_the_floor_in_numbers() -> None:
    for prevalence, labels in ((0.05, 900), (0.02, 2250), (0.01, 4500), (0.005, 9000)):
        plan = plan_calibration(200_000, target=0.95, delta=0.1, prevalence_hint=prevalence)
        assert (plan.positives_needed, plan.labels_needed) == (45, labels)
    plan = plan_calibration(200_000, target=0.95, delta=0.1, prevalence_hint=0.01, budget=1000)
    assert plan.feasible is False
    assert plan.message == (
        "4,500 labels needed at 1 % positives, budget 1,000: "
        "with 1,000 the best certificate is recall >= 0.71"
    )
    assert plan_calibration(200_000, target=0.9, delta=0.1).positives_needed == 22
    assert plan_calibration(200_000, target=0.9, delta=0.1).feasible is None
    enough = plan_calibration(1000, target=0.9, delta=0.1, prevalence_hint=0.5, budget=400)
    assert enough.feasible
    for kind in ("precision", "accuracy"):
        plan = plan_calibration(5000, target=0.9, delta=0.1, kind=kind, budget=10)
        assert plan.feasible is False
        assert 0 < plan.best_bound < 0.9


def test_below_the_floor_nothing_is_rejected_and_the_best_bound_is_given() -> None:
    scores, positive = population(20_000, 0.01)
    result = calibrate(
        scores,
        lambda ids: positive[ids],
        kind="recall",
        target=0.95,
        delta=0.1,
        budget=1000,
        seed=1,
    )
    assert result.status is Status.INFEASIBLE_BUDGET
    assert recall_of(result, positive) == 1.0
    best = result.evidence.best_bound
    assert 0.5 < best < 0.95
    lower = calibrate(
        scores,
        lambda ids: positive[ids],
        kind="recall",
        target=best,
        delta=0.1,
        budget=1000,
        seed=1,
    )
    assert lower.status is Status.CERTIFIED


def test_moved_thresholds_get_a_bound_that_falls_as_they_rise() -> None:
    scores, positive = population(4000, 0.2, 2)
    result = calibrate(
        scores, lambda ids: positive[ids], kind="recall", target=0.9, delta=0.1, budget=1000, seed=1
    )
    assert bound_of(result, scores, result.thresholds) == result.certified_bound
    previous = 1.0
    for low in np.linspace(0.0, 0.9, 15):
        moved = (Thresholds(reject_below=low), Thresholds())
        bound = bound_of(result, scores, moved)
        assert bound <= previous
        previous = bound
    assert previous < 0.7
    with pytest.raises(ValueError, match="write one a tier"):
        bound_of(result, scores, result.thresholds[:1])


def test_labels_that_cannot_be_had_speak_for_no_answer() -> None:
    scores = np.random.default_rng(1).uniform(0, 0.4, 1_000)
    result = calibrate(
        scores,
        lambda ids: [None] * len(ids),
        kind="accuracy",
        target=0.9,
        delta=0.1,
        budget=200,
        seed=1,
    )
    # So many may be wrong, whoever they are; not one more is answered unseen.
    assert result.by_proxy.sum() <= 100


def two_tiers(separations: tuple[float, float], seed: int) -> tuple[Floats, Mask]:
    """Normal scores of two tiers, so far apart for positives and negatives."""
    draw = np.random.default_rng(seed)
    positive = draw.random(8_000) < 0.1
    logits = [draw.normal(positive * apart, 1) - 1.5 for apart in separations]
    return 1 / (1 + np.exp(-np.column_stack(logits))), positive


@pytest.mark.parametrize(
    ("separations", "idle"), [((2.0, 0.0), [1]), ((0.0, 2.5), [0]), ((1.5, 3.0), [])]
)
def test_a_tier_that_earns_nothing_is_named_with_the_cost_without_it(
    separations: tuple[float, float], idle: list[int]
) -> None:
    scores, positive = two_tiers(separations, seed=4)
    result = calibrate(
        scores,
        lambda ids: positive[ids],
        kind="recall",
        target=0.9,
        delta=0.1,
        budget=1_500,
        seed=3,
        costs=(1, 10, 60),
    )
    worth = worth_of_tiers(scores, result)
    assert [one.tier for one in worth if one.earns_nothing] == idle
    assert all(0 < one.cost < 1.2 for one in worth)


def test_new_candidates_of_the_source_have_a_bound_of_their_own() -> None:
    """As if the population were endless: by simulation, and by the least positives that do."""
    assert bound_for_source(1, 22, 0.1) >= 0.9 > bound_for_source(1, 21, 0.1)
    assert bound_for_source(0, 30, 0.1) == 1.0
    bound = bound_for_source(3, 60, 0.1)
    lowest = np.sort(np.random.default_rng(1).random((20_000, 60)), axis=1)[:, 2]
    assert 0.89 < (1 - lowest >= bound).mean() < 0.91
