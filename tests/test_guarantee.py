"""The promise itself: counted out for small populations, simulated for large ones."""

from itertools import combinations, permutations, product
from math import comb, floor

import numpy as np
import pytest

from tests.test_calibration import bound_of, population, recall_of
from tiers.calibration import (
    Audit,
    Status,
    Thresholds,
    audit_interval,
    calibrate,
    drift,
)
from tiers.calibration import recall as recall_calibration
from tiers.calibration.audits import audit_evidence
from tiers.calibration.draws import chance_of_at_most, most_positives
from tiers.calibration.evalues import log_evidence_of_fewer
from tiers.calibration.precision import Prefix, p_value
from tiers.calibration.recall import plan_test
from tiers.calibration.recall_test import COUNT_SHARE, allowed_misses, failure, positives_needed


def chance(hits: int, population: int, positives: int, draws: int) -> float:
    if hits > positives or draws - hits > population - positives or hits > draws:
        return 0.0
    return (
        comb(positives, hits) * comb(population - positives, draws - hits) / comb(population, draws)
    )


def test_chances_are_those_of_whole_numbers() -> None:
    for population_, positives, draws in ((9, 4, 5), (30, 11, 7), (50, 50, 3), (12, 0, 12)):
        for most in range(-1, draws + 1):
            expected = sum(chance(x, population_, positives, draws) for x in range(most + 1))
            found = chance_of_at_most(most, population_, positives, draws)
            assert found[0] == pytest.approx(expected, abs=1e-9)


def test_the_bound_on_positives_fails_as_rarely_as_it_says() -> None:
    for population_, draws, positives in product((12, 25), (3, 8), range(12)):
        wrong = sum(
            chance(found, population_, positives, draws)
            for found in range(draws + 1)
            if most_positives(population_, draws, found, 0.1) < positives
        )
        assert wrong <= 0.1


def test_the_order_statistic_test_is_exact() -> None:
    """Against all draws of x positives out of P, for every rank pattern that a score can give."""
    for positives, drawn, target in ((7, 3, 0.6), (8, 5, 0.75), (6, 6, 0.5)):
        allowed = floor((1 - target) * positives + 1e-9)
        for kth, kept in product(range(1, drawn + 1), (True, False)):
            draws = list(combinations(range(1, positives + 1), drawn))
            missed = [d[kth - 1] - (kth if kept else 1) for d in draws]
            expected = np.mean(np.array(missed) > allowed)
            found = failure(kth, drawn, np.array([positives]), target, kept=kept)
            assert found[0] == pytest.approx(expected, abs=1e-9)


def test_allowed_misses_are_counted_in_whole_numbers() -> None:
    assert allowed_misses(np.array([10, 20, 30, 70, 100]), 0.9).tolist() == [1, 2, 3, 7, 10]
    assert allowed_misses(np.array([20, 40, 100]), 0.95).tolist() == [1, 2, 5]
    many = allowed_misses(np.array([10**6]), 0.9**0.5)  # no 64-bit overflow, and no more than true
    assert 51_315 <= many[0] <= 51_316


@pytest.mark.parametrize("target", [0.6, 0.8, 0.9])
@pytest.mark.parametrize("delta", [0.1, 0.3])
def test_failure_is_at_most_delta_for_every_number_of_positives(
    target: float, delta: float
) -> None:
    """All counts that a draw of fixed size can give, weighted by their chance: no simulation."""
    for items, draws in ((20, 8), (40, 25), (60, 58)):
        for positives in range(1, items + 1):
            total = 0.0
            for found in range(draws + 1):
                weight = chance(found, items, positives, draws)
                if weight == 0:
                    continue
                most = most_positives(items, draws, found, COUNT_SHARE * delta)
                test = plan_test(found, most, 0, target, delta)
                spare = found - test.drawn
                rest = np.array([positives - spare])
                if test.kth:
                    total += weight * failure(test.kth, test.drawn, rest, target, known=spare)[0]
            assert total <= delta


@pytest.mark.parametrize(("target", "delta"), [(0.8, 0.55)])
def test_every_labelling_of_a_small_population_keeps_its_promise(
    target: float, delta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole procedure, for all labellings and all orders of drawing.

    At these numbers the worst labelling fails in 0.5 of the orders: near delta, so that
    a threshold too high by one positive shows.
    """
    items, budget = 6, 3
    scores = np.arange(items) / items

    class Given:
        def __init__(self, order: list[int]) -> None:
            self.order = order

        def permutation(self, _: int) -> np.ndarray:
            return np.array(self.order)

    certified = 0
    orders = [
        [*first, *sorted(set(range(items)) - set(first))]
        for first in permutations(range(items), budget)
    ]
    for bits in product((False, True), repeat=items):
        positive, failed = np.array(bits), 0
        for order in orders:
            monkeypatch.setattr(
                recall_calibration.np.random, "default_rng", lambda _, order=order: Given(order)
            )
            result = calibrate(
                scores, lambda ids: positive[ids], kind="recall", target=target, delta=delta,  # noqa: B023
                budget=budget, seed=0,
            )  # fmt: skip
            failed += recall_of(result, positive) < target - 1e-9
            certified += result.status is Status.CERTIFIED
        assert failed <= delta * len(orders)
    assert certified > 0


def test_precision_p_values_keep_their_level_for_every_number_of_errors() -> None:
    for unlabelled, drawn, known, target in product((12, 30), (5, 11), (0, 6), (0.6, 0.9)):
        prefix = Prefix(unlabelled, known)
        for errors in range(unlabelled + 1):
            wrong = 0.0
            for found in range(min(drawn, errors) + 1):
                members = known + unlabelled - found
                broken = (errors - found) > (1 - target) * members + 1e-9
                if broken and p_value(prefix, drawn, found, target) <= 0.1:
                    wrong += chance(found, unlabelled, errors, drawn)
            assert wrong <= 0.1


def test_evidence_of_fewer_errors_is_reached_wrongly_as_rarely_as_it_says() -> None:
    """The chance that it ever passes 1/delta, by recursion over all ways to draw."""
    for region, claimed, delta in ((20, 6, 0.1), (30, 3, 0.2), (25, 20, 0.1)):
        for errors in range(claimed, region + 1):
            alive, passed = {0: 1.0}, 0.0
            for drawn in range(1, region + 1):
                after: dict[int, float] = {}
                for found, weight in alive.items():
                    share = (errors - found) / (region - drawn + 1)
                    for step, part in ((1, share), (0, 1 - share)):
                        if part > 0:
                            after[found + step] = after.get(found + step, 0.0) + weight * part
                alive = {}
                for found, weight in after.items():
                    evidence = log_evidence_of_fewer(found, region, claimed, drawn)
                    if evidence[0] >= -np.log(delta):
                        passed += weight
                    else:
                        alive[found] = weight
            assert passed <= delta + 1e-9


def test_drift_raises_no_false_alarm_and_finds_a_break() -> None:
    rng = np.random.default_rng(1)

    def audit(recall: float) -> Audit:
        rejects, audited, positives = 4000, 200, 300
        lost = positives - round(recall * positives)
        return Audit(
            positives - lost,
            rejects,
            audited,
            int(rng.hypergeometric(lost, rejects - lost, audited)),
        )

    alarms = [drift([audit(0.9) for _ in range(30)], 0.9).max() >= 10 for _ in range(120)]
    assert np.mean(alarms) <= 0.1
    late = [drift([audit(r) for r in [0.95] * 10 + [0.6] * 20], 0.9).max() >= 10 for _ in range(50)]
    assert np.mean(late) >= 0.9


def test_drift_evidence_is_one_on_average_at_the_edge_of_the_promise() -> None:
    kept, rejects, audited = 90, 60, 12
    for lost in range(11):  # 10 of 100 may be lost
        mean = sum(
            chance(found, rejects, lost, audited)
            * audit_evidence(Audit(kept, rejects, audited, found), 0.9)
            for found in range(min(lost, audited) + 1)
        )
        assert mean <= 1 + 1e-9
    assert audit_evidence(Audit(90, 60, 60, 11), 0.9) == np.inf
    with pytest.raises(ValueError, match="audit found 3"):
        Audit(1, 5, 2, 3)


def test_the_interval_of_an_audit_covers() -> None:
    kept, rejects, audited, delta = 50, 40, 15, 0.2
    for lost in range(rejects + 1):
        missed = 0.0
        for found in range(min(lost, audited) + 1):
            low, high = audit_interval(Audit(kept, rejects, audited, found), delta)
            missed += (not low <= kept / (kept + lost) <= high) * chance(
                found, rejects, lost, audited
            )
        assert missed <= delta
    assert audit_interval(Audit(0, 0, 0, 0), 0.1) == (1.0, 1.0)


# bench.quality makes 1,500 runs, and the enumerations above leave nothing to chance: these runs see
# that nothing is lost between the tests and a whole calibration.
COVERAGE = [
    # kind, tiers, prevalence, budget, runs
    ("recall", 1, 0.05, 1200, 30),
    ("recall", 3, 0.2, 600, 12),
    ("precision", 1, 0.1, 300, 15),
    ("accuracy", 1, 0.5, 600, 12),
]


@pytest.mark.parametrize(("kind", "tiers", "prevalence", "budget", "runs"), COVERAGE)
def test_generated_populations_keep_the_promise_as_often_as_it_says(
    kind: str, tiers: int, prevalence: float, budget: int, runs: int
) -> None:
    target, delta, kept = 0.8, 0.2, []
    for seed in range(runs):
        scores, positive = population(4000, prevalence, tiers, seed=seed)
        result = calibrate(
            scores, lambda ids: positive[ids], kind=kind, target=target, delta=delta,  # noqa: B023
            budget=budget, seed=1000 + seed,
        )  # fmt: skip
        assert result.labels_used <= budget
        kept.append(reached(kind, result, scores, positive) >= target - 1e-12)
    assert np.mean(kept) >= 1 - delta - 3 * (delta * (1 - delta) / runs) ** 0.5


def reached(kind: str, result, scores: np.ndarray, positive: np.ndarray) -> float:
    if kind == "recall":
        return recall_of(result, positive)
    if kind == "precision":
        return positive[result.accepted].mean() if result.accepted.any() else 1.0
    return float(np.mean((result.accepted == positive) | ~result.by_proxy))


def test_bounds_of_moved_thresholds_hold_for_all_of_them_at_once() -> None:
    broken, runs = 0, 20
    for seed in range(runs):
        scores, positive = population(2000, 0.2, seed=seed)
        result = calibrate(
            scores, lambda ids: positive[ids], kind="recall", target=0.9, delta=0.2,  # noqa: B023
            budget=400, seed=seed,
        )  # fmt: skip
        for low in np.linspace(0.05, 0.9, 12):
            bound = bound_of(result, scores, [Thresholds(reject_below=low)])
            if (
                positive[scores >= low].sum() + positive[(scores < low) & ~result.by_proxy].sum()
                < bound * positive.sum()
            ):
                broken += 1
                break
    assert broken <= runs * 0.2 + 3 * (runs * 0.2 * 0.8) ** 0.5


def test_the_floor_is_the_smallest_sample_that_passes() -> None:
    assert [positives_needed(t, 0.1) for t in (0.8, 0.9, 0.95, 0.99)] == [11, 22, 45, 230]
    for target in (0.8, 0.9, 0.95):
        needed = positives_needed(target, 0.1)
        assert target**needed <= 0.1 < target ** (needed - 1)
