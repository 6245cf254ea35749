"""Reliability: numbers that can be checked by hand, and curves that rise."""

import numpy as np
import pytest

from tiers.calibration.reliability import (
    brier,
    cohen_kappa,
    cross_fitted,
    expected_calibration_error,
    isotonic,
    platt,
    reliability_table,
)

SCORES = np.array([0.05, 0.15, 0.25, 0.75, 0.85, 1.0])
POSITIVE = np.array([False, False, True, True, True, False])


def test_the_table_counts_every_score_once() -> None:
    rows = reliability_table(SCORES, POSITIVE, bins=4)
    assert [row.count for row in rows] == [2, 1, 0, 3]
    assert rows[0].mean_score == pytest.approx(0.1)
    assert rows[0].positive_share == 0.0
    assert rows[2].mean_score is None
    assert rows[3].positive_share == pytest.approx(2 / 3)


def test_brier_and_calibration_error_by_hand() -> None:
    assert brier(np.array([1.0, 0.0, 0.5]), np.array([True, False, True])) == pytest.approx(
        0.25 / 3
    )
    found = expected_calibration_error(
        np.array([0.2, 0.2, 0.8, 0.8]), np.array([0, 0, 1, 1], bool), 2
    )
    assert found == pytest.approx(0.2)
    with pytest.raises(ValueError, match="no labelled"):
        brier(np.zeros(0), np.zeros(0, bool))


def test_calibrated_scores_have_little_error_and_squeezed_ones_much() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(20_000)
    positive = rng.random(20_000) < scores
    assert expected_calibration_error(scores, positive) < 0.02
    assert expected_calibration_error(scores**3, positive) > 0.2
    mapped = isotonic(scores**3, positive, scores**3)
    assert expected_calibration_error(mapped, positive) < 0.02


def test_curves_rise_and_know_when_they_know_nothing() -> None:
    rng = np.random.default_rng(1)
    scores = np.sort(rng.random(300))
    positive = rng.random(300) < scores
    scores[7] = np.nan
    chances = platt(scores, np.ones(300, bool), positive)
    assert np.isnan(chances[7])
    assert (np.diff(np.delete(chances, 7)) >= 0).all()
    assert (np.diff(isotonic(scores[8:], positive[8:], scores[8:])) >= 0).all()
    backwards = platt(scores, np.ones(300, bool), ~positive)
    assert len(np.unique(np.delete(backwards, 7))) == 1


def test_kappa_by_hand() -> None:
    first = np.repeat([True, True, False, False], [20, 5, 10, 15])
    second = np.repeat([True, False, True, False], [20, 5, 10, 15])
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    assert cohen_kappa(first, first) == 1.0
    assert cohen_kappa(np.ones(3, bool), np.ones(3, bool)) == 1.0
    with pytest.raises(ValueError, match="50 answers beside 3"):
        cohen_kappa(first, np.ones(3, bool))


def test_curves_are_judged_by_labels_that_they_have_not_seen() -> None:
    rng = np.random.default_rng(2)
    scores = rng.random(4_000)
    positive = rng.random(4_000) < scores
    squeezed = cross_fitted(scores**3, positive)
    assert set(squeezed) == {"platt", "isotonic"}
    for mapped in squeezed.values():
        assert expected_calibration_error(mapped, positive) < 0.06
    # Scores without meaning: a curve fitted to its own labels would claim to know them.
    errors = []
    for _ in range(20):
        meaningless, noise = rng.random(60), rng.random(60) < 0.5
        errors.append(brier(cross_fitted(meaningless, noise)["isotonic"], noise))
    assert np.mean(errors) > 0.25
    assert cross_fitted(np.array([0.5]), np.array([True])) == {}
