"""Recall by evidence at any time, and recall by belief in a curve."""

import math
from collections.abc import Generator

import numpy as np

from tiers.calibration.draws import Floats, Ids
from tiers.calibration.evalues import stream_threshold
from tiers.calibration.guarantee import Guarantee, Labels, Result, Sample, Status
from tiers.calibration.path import learn_path
from tiers.calibration.recall_steps import build_result, clean, pilot
from tiers.calibration.reliability import platt

Steps = Generator[Ids, Labels, Result]


def anytime(scores: Floats, guarantee: Guarantee, sample: Sample) -> Steps:
    """Drawn with replacement, as a stream is; a repeated item costs no label."""
    rng = np.random.default_rng(guarantee.seed)
    order = rng.permutation(len(scores))
    path, rest = yield from pilot(scores, order, guarantee, sample)
    levels = path.level_of(scores)
    arrived: list[Floats] = []
    lowest, finite = -math.inf, np.nan_to_num(levels, posinf=np.finfo(float).max)
    grain = max(guarantee.budget // 20, 1)
    while rest.size and sample.left > 0 and not sample.asked.all():
        ids = rest[rng.integers(len(rest), size=grain)]
        ids = ids[: _affordable(ids, sample)]
        labels = yield from sample.ask(np.unique(ids))
        labels = sample.labels[ids]
        arrived.append(finite[ids[labels == 1]])
        lowest = stream_threshold(np.concatenate(arrived), guarantee.target, guarantee.delta)
        if math.isfinite(lowest) and ((levels >= lowest) & ~sample.asked).sum() <= sample.left:
            break
    certified = math.isfinite(lowest)
    thresholds = path.thresholds(scores, lowest)
    yield from clean(scores, path, thresholds, None, sample)
    return build_result(
        scores,
        guarantee,
        sample,
        thresholds,
        status=Status.CERTIFIED if certified else Status.INFEASIBLE_BUDGET,
        bound=guarantee.target if certified else 1.0,
        alone=guarantee.target if certified else 1.0,
        evidence={"positives_tested": sum(map(len, arrived))},
    )


def _affordable(ids: Ids, sample: Sample) -> int:
    """How many of these ids, in their order, can be asked without passing the budget."""
    firsts = np.zeros(len(ids), np.bool_)
    firsts[np.unique(ids, return_index=True)[1]] = True
    spent = np.cumsum(firsts & ~sample.asked[ids])
    return int(np.searchsorted(spent, sample.left, side="right"))


def model(scores: Floats, guarantee: Guarantee, sample: Sample) -> Steps:
    """Believe a logistic curve, fitted to a random sample: no guarantee."""
    order = np.random.default_rng(guarantee.seed).permutation(len(scores))
    yield from sample.ask(order[: guarantee.budget * 2 // 3])
    miss = 0.6 * (1 - guarantee.target)
    prices = guarantee.prices(scores.shape[1])
    path = learn_path(scores, sample.positive, prices=prices, miss=miss)
    levels = np.nan_to_num(path.level_of(scores), posinf=np.finfo(float).max)
    labelled = sample.positive | sample.negative
    chances = platt(_standard(levels), labelled, sample.positive)
    rising = np.argsort(levels, kind="stable")
    lost = np.cumsum(np.where(labelled, 0.0, chances)[rising])
    total = float(np.where(labelled, sample.positive, chances).sum())
    place = int(np.searchsorted(lost, (1 - guarantee.target) * total, side="right"))
    level_found = levels[rising[min(place, len(levels) - 1)]] if len(levels) else 0.0
    thresholds = path.thresholds(scores, float(level_found))
    yield from clean(scores, path, thresholds, None, sample)
    return build_result(
        scores,
        guarantee,
        sample,
        thresholds,
        status=Status.ASSUMPTION_BASED,
        bound=guarantee.target,
        alone=guarantee.target,
        evidence={"positives_expected": total},
    )


def _standard(levels: Floats) -> Floats:
    """Ranks in (0, 1): a logistic curve in their logits fits any monotone change of scores."""
    ranks = np.empty(len(levels))
    unique, inverse, counts = np.unique(levels, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - counts / 2)[inverse] / max(len(levels), 1)
    return ranks.astype(np.float64) if unique.size else ranks
