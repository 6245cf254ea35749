"""How far scores are probabilities: figures for people, and curves for planning.

No guarantee depends on anything here.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tiers.calibration.draws import Floats
from tiers.calibration.guarantee import Mask


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability table."""

    low: float
    high: float
    """Scores in [low, high); the last bin holds 1 as well."""
    count: int
    mean_score: float | None
    """None for an empty bin."""
    positive_share: float | None


def reliability_table(scores: Floats, positive: Mask, bins: int = 10) -> list[Bin]:
    """Mean score and share of positives, in bins of equal width.

    DeGroot and Fienberg 1983, doi:10.2307/2987588.

    Args:
        scores: (n,) in [0, 1], of a labelled random sample, without NaN.
        positive: (n,) its labels.
        bins: number of bins, at least 1.
    """
    place = _places(scores, bins)
    rows = []
    for row in range(bins):
        inside = place == row
        count = int(inside.sum())
        score = float(scores[inside].mean()) if count else None
        share = float(positive[inside].mean()) if count else None
        rows.append(Bin(row / bins, (row + 1) / bins, count, score, share))
    return rows


def brier(scores: Floats, positive: Mask) -> float:
    """Mean squared distance between score and label, in [0, 1]: 0 is perfect.

    Brier 1950, doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2.

    Raises:
        ValueError: there is no score.
    """
    _some(scores)
    return float(np.mean((scores - positive) ** 2))


def expected_calibration_error(scores: Floats, positive: Mask, bins: int = 10) -> float:
    """Mean distance between score and share of positives over bins, weighted by count, in [0, 1].

    Naeini, Cooper and Hauskrecht 2015, doi:10.1609/aaai.v29i1.9602. Depends on the bins, and is
    biased upwards in small samples.

    Raises:
        ValueError: there is no score.
    """
    _some(scores)
    place = _places(scores, bins)
    gaps = np.bincount(place, weights=scores - positive, minlength=bins)
    return float(np.abs(gaps).sum() / len(scores))


def isotonic(scores: Floats, positive: Mask, at: Floats) -> Floats:
    """(n,) chance of a positive at the scores `at`, by the best rising step curve.

    Zadrozny and Elkan 2002, doi:10.1145/775047.775151.

    Args:
        scores: (m,) of labelled candidates, at least one.
        positive: (m,) their labels.
        at: (n,) scores to read the curve at; beyond the labelled ones it is flat.
    """
    from sklearn.isotonic import IsotonicRegression  # it takes a second

    curve = IsotonicRegression(out_of_bounds="clip", y_min=0, y_max=1)
    curve.fit(scores, positive.astype(float))
    return np.asarray(curve.predict(at), np.float64)


def platt(scores: Floats, labelled: Mask, positive: Mask) -> Floats:
    """(n,) chance of a positive by a rising logistic curve in the score's logit; NaN for NaN.

    Platt 1999, "Probabilistic outputs for support vector machines". The curve is the share of
    positives, flat, where the labels hold one class only or fall with the score.

    Args:
        scores: (n,) in [0, 1].
        labelled: (n,) which have a label.
        positive: (n,) which of those are positive.
    """
    from sklearn.linear_model import LogisticRegression  # it takes a second

    usable = labelled & ~np.isnan(scores)
    inside = np.clip(scores, 1e-6, 1 - 1e-6)
    logits = np.log(inside / (1 - inside))
    base = float(positive[usable].mean()) if usable.any() else 0.5
    flat = np.where(np.isnan(scores), np.nan, base)
    if not usable.any() or base in (0.0, 1.0):
        return flat
    curve = LogisticRegression(C=100.0).fit(logits[usable, None], positive[usable])
    slope, start = float(curve.coef_[0, 0]), float(curve.intercept_[0])
    if slope <= 0:
        return flat
    return np.asarray(1 / (1 + np.exp(-(start + slope * logits))), np.float64)


def cross_fitted(scores: Floats, positive: Mask) -> dict[str, Floats]:
    """(n,) what `platt` and `isotonic` make of the scores; each half by the other half's curve.

    By the labels that it was fitted to, a curve would look better than it is. Empty for fewer than
    two scores.

    Args:
        scores: (n,) in [0, 1], without NaN.
        positive: (n,) their labels.
    """
    if len(scores) < 2:
        return {}
    even = np.arange(len(scores)) % 2 == 0
    by_even, by_odd = platt(scores, even, positive), platt(scores, ~even, positive)
    steps = np.empty(len(scores))
    for half in (even, ~even):
        steps[half] = isotonic(scores[~half], positive[~half], scores[half])
    return {"platt": np.where(even, by_odd, by_even), "isotonic": steps}


def cohen_kappa(first: Mask, second: Mask) -> float:
    """Agreement of two reviewers beyond chance, in [-1, 1]: 1 is perfect, 0 is chance.

    Cohen 1960, doi:10.1177/001316446002000104. It is 1 where both give the same answer about all
    candidates, although chance would agree as well.

    Args:
        first: (n,) one reviewer's answers.
        second: (n,) the other's, about the same candidates in the same order.

    Raises:
        ValueError: the reviewers have no candidate in common, or different numbers of answers.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"{first.size} answers beside {second.size}; give those about the same candidates"
        )
    _some(first)
    agreed = float(np.mean(first == second))
    yes, other = float(first.mean()), float(second.mean())
    chance = yes * other + (1 - yes) * (1 - other)
    return 1.0 if chance == 1 else (agreed - chance) / (1 - chance)


def _places(scores: Floats, bins: int) -> NDArray[np.int64]:
    return np.minimum((scores * bins).astype(np.int64), bins - 1)


def _some(values: NDArray[np.generic]) -> None:
    if not values.size:
        raise ValueError("there are no labelled candidates; label some first")
