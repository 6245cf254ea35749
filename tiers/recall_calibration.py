"""Labels to thresholds that keep recall: where to stop drawing, and what to do with the rest."""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from tiers.draws import Floats, Ids, most_positives
from tiers.evidence import stream_threshold
from tiers.guarantee import (
    UNKNOWN,
    Guarantee,
    Kind,
    Labels,
    Mask,
    Mode,
    Result,
    Sample,
    Status,
    Thresholds,
    as_table,
)
from tiers.paths import Path, Survival, learn_path
from tiers.precision_calibration import Early, accept_early
from tiers.recall import (
    COUNT_SHARE,
    best_kth,
    bound_of_kth,
    failure,
    level,
    positives_needed,
    turning_points,
)
from tiers.reliability import platt

PILOT_SHARE = 0.3
PILOT_POSITIVES = 40
"""A pilot that has found so many positives knows the tiers well enough."""
EARLY_SHARE = 0.3
"""Share of the budget that is kept back for the thresholds of early accepts."""
LOOKS = 10
"""Fixed points of the draw at which the number of positives is bounded; the best counts."""
SEPARATION = 2.0
"""How far two normal score curves are assumed apart to plan the end of the draw; nothing else."""

Steps = Generator[Ids, Labels, Result]


@dataclass(frozen=True)
class Draw:
    """A random draw so far, in its order. What may be decided from it before the test: counts."""

    population: int
    looks: tuple[int, ...]
    labels: Labels

    @property
    def drawn(self) -> int:
        """Items with a label; one for which none can be had leaves the population."""
        return int((self.labels != UNKNOWN).sum())

    @property
    def found(self) -> int:
        return int((self.labels == 1).sum())

    def most(self, risk: float) -> int:
        """Positives of the population, exceeded with probability at most `risk` in all.

        The draw stops when its counts say so, hence the bound is taken at points fixed before.
        """
        population = self.population - int((self.labels == UNKNOWN).sum())
        most = population - (self.drawn - self.found)
        for look in self.looks:
            if look <= len(self.labels):
                seen = self.labels[:look]
                drawn, found = int((seen != UNKNOWN).sum()), int((seen == 1).sum())
                most = min(most, _most(population, drawn, found, risk / len(self.looks)))
        return most


@dataclass(frozen=True)
class Test:
    """The order-statistic test as it will be made: the `kth` lowest of the first `drawn` positives.

    All positives found beyond the first `drawn` are known, which is worth more than a slightly
    larger sample. Both numbers come from counts alone.
    """

    kth: int
    drawn: int
    most: int
    known: int

    @property
    def lost_share(self) -> float:
        """Share of the positives that the threshold is expected to lose."""
        return self.kth / (self.drawn + 1)


@lru_cache(maxsize=10_000)
def _most(population: int, drawn: int, found: int, risk: float) -> int:
    return most_positives(population, drawn, found, risk)


@lru_cache(maxsize=10_000)
def plan_test(found: int, most: int, known: int, target: float, delta: float) -> Test:
    """The test with the highest threshold that `found` positives allow.

    Args:
        found: positives drawn.
        most: upper bound on the positives in the population of the draw.
        known: positives known before the draw.
        target: recall.
        delta: all that may be spent, the bound included.
    """
    risk = level(delta)
    kth = best_kth(found, most, target, risk, known=known)
    low, high = kth, found
    while low < high:
        middle = (low + high) // 2
        spare = found - middle
        rest = turning_points(middle, most - spare, target, known + spare)
        worst = failure(kth, middle, rest, target, known=known + spare).max()
        low, high = (low, middle) if worst <= risk else (middle + 1, high)
    return Test(kth, low, most - (found - low), known + found - low)


@lru_cache(maxsize=1_000)
def _needed(target: float, delta: float, kth: int) -> int:
    return positives_needed(target, delta, kth)


def calibrate_recall(scores: Floats, guarantee: Guarantee, sample: Sample) -> Steps:
    """Ask for labels, then decide. See docs/guarantees.md, section "Recall"."""
    match guarantee.mode:
        case Mode.ANYTIME:
            return (yield from _anytime(scores, guarantee, sample))
        case Mode.MODEL:
            return (yield from _model(scores, guarantee, sample))
        case Mode.EXACT:
            return (yield from _exact(scores, guarantee, sample))


def _exact(scores: Floats, guarantee: Guarantee, sample: Sample) -> Steps:
    early = guarantee.accept_precision is not None
    delta = guarantee.delta / 2 if early else guarantee.delta
    order = np.random.default_rng(guarantee.seed).permutation(len(scores))
    path, rest = yield from _pilot(scores, order, guarantee, sample)
    known = int(sample.positive.sum())
    kept_back = math.ceil(EARLY_SHARE * guarantee.budget) if early else 0
    draw, test = yield from _draw(
        rest, known, sample, replace(guarantee, delta=delta), scores.shape[1], kept_back
    )
    complete = not (~sample.asked).any()
    if complete:
        # Every label is known: the thresholds need not lean on them.
        risk = level(delta)
        kth = best_kth(test.drawn, test.most, guarantee.target, risk, known=test.known, kept=False)
        test = replace(test, kth=kth)
    thresholds = _thresholds(scores, path, rest[: len(draw.labels)], draw, test)
    accepts = None
    if early:
        accepts = yield from accept_early(scores, thresholds, guarantee, sample)
    yield from clean(scores, path, thresholds, accepts, sample)
    result = _result(scores, guarantee, sample, thresholds, accepts, test, complete, delta)
    drawn = rest[: len(draw.labels)][draw.labels == 1]
    most = draw.most(COUNT_SHARE * delta)
    evidence = result.evidence | {"drawn_most": most, "drawn_known": known, "test_delta": delta}
    return replace(result, evidence=evidence, drawn_positives=drawn)


def recall_of_thresholds(
    scores: Floats,
    thresholds: Sequence[Thresholds],
    result: Result,
    *,
    simultaneous: bool = True,
) -> float:
    """Certified recall of any thresholds, from the draw behind a result; labelled positives count.

    Of the x drawn positives some lie below. As many and one more, k, make the test of
    `tiers.recall`. Thresholds that were chosen after a look at the labels need a bound that holds
    for all of them at once: the k are then 1, 2, 4, 8 and so on, and share the risk; each tier
    gets its own share, and the misses of the tiers are added up. The certificate's own thresholds,
    and any that reject less, keep the certified bound.

    Args:
        scores: (n, tiers) or (n,) the scores of the calibration.
        thresholds: one a tier.
        result: of a recall calibration in mode exact.
        simultaneous: False for thresholds that were fixed before the labels were seen.

    Raises:
        ValueError: the result is of another kind or mode, or has other tiers.
    """
    guarantee = result.guarantee
    if guarantee.kind is not Kind.RECALL or guarantee.mode is not Mode.EXACT:
        raise ValueError(
            f"a {guarantee.kind.value} result of mode '{guarantee.mode.value}' bounds no recall "
            "of other thresholds; calibrate recall in mode 'exact'"
        )
    table = as_table(scores)
    if not table.shape[1] == len(thresholds) == len(result.thresholds):
        raise ValueError(
            f"{len(thresholds)} thresholds for {table.shape[1]} tiers that were calibrated with "
            f"{len(result.thresholds)}; write one a tier"
        )
    pairs = list(zip(thresholds, result.thresholds, strict=True))
    covered = all(_lowest(moved) <= _lowest(certified) for moved, certified in pairs)
    floor = result.certified_bound if covered else 0.0
    if not simultaneous:
        lost = ~kept_by(table, tuple(thresholds))[result.drawn_positives]
        return max(floor, _bound_of_lost(int(lost.sum()), result, 1, simultaneous=False))
    missed = 0.0
    rejecting = sum(moved.reject_below is not None for moved in thresholds)
    for tier, moved in enumerate(thresholds):
        if moved.reject_below is not None:
            lost = table[result.drawn_positives, tier] < moved.reject_below
            missed += 1 - _bound_of_lost(int(lost.sum()), result, rejecting, simultaneous=True)
    return max(floor, 1 - missed, 0.0)


def _lowest(thresholds: Thresholds) -> float:
    return -math.inf if thresholds.reject_below is None else thresholds.reject_below


def _bound_of_lost(lost: int, result: Result, shares: int, *, simultaneous: bool) -> float:
    """Certified recall where `lost` of the drawn positives lie below, at 1 / `shares` of the risk."""
    drawn = len(result.drawn_positives)
    kth, looks = lost + 1, 1
    if simultaneous:
        looks = math.ceil(math.log2(drawn + 1)) + 1  # 1, 2, 4 ... up to all of them and one
        kth = 1 << lost.bit_length()  # the lowest of those above `lost`
    if drawn == 0:
        return 0.0
    evidence = result.evidence
    delta, most = evidence["test_delta"], int(evidence["drawn_most"])
    return bound_of_kth(
        kth, drawn, most, level(delta) / (looks * shares), known=int(evidence["drawn_known"])
    )


def _pilot(
    scores: Floats, order: Ids, guarantee: Guarantee, sample: Sample
) -> Generator[Ids, Labels, tuple[Path, Ids]]:
    """With several tiers: labels to learn the path from. They leave the population of the test."""
    tiers = scores.shape[1]
    if tiers == 1:
        return Path((Survival(np.zeros(0), 1.0),), (1.0,)), order
    end, most = 0, min(int(PILOT_SHARE * guarantee.budget), len(order))
    while end < most and sample.positive.sum() < PILOT_POSITIVES:
        step = max(_missing(PILOT_POSITIVES, int(sample.positive.sum()), end), 8)
        yield from sample.ask(order[end : min(end + step, most)])
        end = min(end + step, most)
    miss = 0.6 * (1 - guarantee.target)
    prices = guarantee.prices(tiers)
    return learn_path(scores, sample.positive, prices=prices, miss=miss), order[end:]


def _missing(wanted: int, found: int, drawn: int) -> int:
    """Labels that bring half of the positives still wanted, at the prevalence seen so far."""
    return math.ceil((wanted - found) * (drawn + 1) / (2 * found + 1))


def _draw(
    rest: Ids, known: int, sample: Sample, guarantee: Guarantee, tiers: int, kept_back: int
) -> Generator[Ids, Labels, tuple[Draw, Test]]:
    """Draw until another label promises less than it costs, by counts alone."""
    budget = max(min(sample.left - kept_back, len(rest)), 0)
    looks = tuple(sorted({math.ceil(budget * look / LOOKS) for look in range(1, LOOKS + 1)} - {0}))
    risk = COUNT_SHARE * guarantee.delta
    grain = max(budget // 50, 1)
    draw = Draw(len(rest), looks, np.zeros(0, np.int8))
    while True:
        test = plan_test(
            draw.found, draw.most(risk), known, guarantee.target, guarantee.delta
        )  # fmt: skip
        left = budget - len(draw.labels)
        if left == 0:
            return draw, test
        wanted = next_stop(draw, test, budget, guarantee, clean=tiers == 1)
        if wanted <= draw.found:
            return draw, test
        step = min(max(_missing(wanted, draw.found, draw.drawn) // 2, grain), left)
        if not draw.found:
            step = min(max(step, wanted), left)
        labels = yield from sample.ask(rest[len(draw.labels) :][:step])
        draw = replace(draw, labels=np.concatenate([draw.labels, labels]))


def next_stop(draw: Draw, test: Test, budget: int, guarantee: Guarantee, *, clean: bool) -> int:
    """Positives at which to look again; those found already, if it is best to stop now.

    Args:
        draw: the draw so far.
        test: what could be tested now.
        budget: labels for the draw, and for cleaning after it.
        guarantee: the promise.
        clean: whether labels left over clean the kept set. Else all that is kept costs a label,
            and so does every item drawn.
    """
    first = _needed(guarantee.target, guarantee.delta, test.kth + 1)
    if test.kth == 0:
        return max(first, draw.found + 1)
    share = (draw.found + 0.5) / (draw.drawn + 1)
    best, wanted = _waste(draw, draw.drawn, test.lost_share, budget, share, clean), draw.found
    for kth in range(test.kth + 1, test.kth + 9):
        needed = _needed(guarantee.target, guarantee.delta, kth)
        drawn = draw.drawn + (needed - draw.found) / share
        if drawn > budget:
            break
        waste = _waste(draw, drawn, kth / (needed + 1), budget, share, clean)
        if waste < best:
            best, wanted = waste, max(needed, draw.found + 1)
    return wanted


def _waste(draw: Draw, drawn: float, lost: float, budget: int, share: float, clean: bool) -> float:
    """What a stop after `drawn` labels is expected to leave: false positives, or labels to pay."""
    normal = NormalDist()
    passed = normal.cdf(normal.inv_cdf(1 - min(lost, 0.999)) - SEPARATION)
    kept = (draw.population - drawn) * (1 - share) * passed
    if clean:
        return max(kept - (budget - drawn) * (1 - share), 0.0)
    return kept + drawn


def _thresholds(
    scores: Floats, path: Path, ids: Ids, draw: Draw, test: Test
) -> tuple[Thresholds, ...]:
    """Only here are the scores of drawn positives looked at."""
    if test.kth == 0:
        return (Thresholds(),) * scores.shape[1]
    levels = path.level_of(scores)
    evidence = ids[draw.labels == 1][: test.drawn]
    lowest = np.sort(levels[evidence])[test.kth - 1]
    return path.thresholds(scores, float(lowest))


def kept_by(scores: Floats, thresholds: tuple[Thresholds, ...]) -> Mask:
    """(n,) candidates that no tier rejects, one after the other.

    A tier without a score sends to a person, so that no later tier rejects.
    """
    rejected = np.zeros(len(scores), np.bool_)
    unread = np.zeros(len(scores), np.bool_)
    for tier, threshold in enumerate(thresholds):
        unread |= np.isnan(scores[:, tier])
        if threshold.reject_below is not None:
            rejected |= ~unread & (scores[:, tier] < threshold.reject_below)
    return ~rejected


def clean(
    scores: Floats,
    path: Path,
    thresholds: tuple[Thresholds, ...],
    accepts: Early | None,
    sample: Sample,
) -> Generator[Ids, Labels, None]:
    """Spend what is left on the kept candidates that are most likely false, the lowest first."""
    kept = kept_by(scores, thresholds) & ~sample.asked
    if accepts is not None:
        kept &= ~accepts.region
    ids = np.flatnonzero(kept)
    levels = path.level_of(scores)[ids]
    yield from sample.ask(ids[np.argsort(levels, kind="stable")])


def _result(
    scores: Floats,
    guarantee: Guarantee,
    sample: Sample,
    thresholds: tuple[Thresholds, ...],
    accepts: Early | None,
    test: Test,
    complete: bool,
    delta: float,
) -> Result:
    risk = level(delta)
    bound = bound_of_kth(test.kth, test.drawn, test.most, risk, known=test.known)
    alone = bound_of_kth(test.kth, test.drawn, test.most, risk, kept=False)
    best = bound_of_kth(1, test.drawn, test.most, risk, known=test.known) if test.drawn else 0.0
    done = complete and not sample.refused.any()
    certified = test.kth > 0 or done
    evidence = {
        "kth": test.kth,
        "positives_tested": test.drawn,
        "positives_known": test.known,
        "most_positives": test.most,
        "best_bound": best,
    }
    return build_result(
        scores,
        guarantee,
        sample,
        _with_accepts(thresholds, accepts),
        status=Status.CERTIFIED if certified else Status.INFEASIBLE_BUDGET,
        bound=1.0 if done else max(bound, guarantee.target),
        alone=alone,
        accepts=accepts,
        evidence=evidence,
    )


def _with_accepts(
    thresholds: tuple[Thresholds, ...], accepts: Early | None
) -> tuple[Thresholds, ...]:
    if accepts is None:
        return thresholds
    return tuple(
        replace(threshold, accept_above=above)
        for threshold, above in zip(thresholds, accepts.above, strict=True)
    )


def build_result(
    scores: Floats,
    guarantee: Guarantee,
    sample: Sample,
    thresholds: tuple[Thresholds, ...],
    *,
    status: Status,
    bound: float,
    alone: float,
    accepts: Early | None = None,
    evidence: dict[str, float],
) -> Result:
    """Masks of a recall result: kept, and of them what still goes on to the top tier."""
    kept = kept_by(scores, thresholds)
    early = accepts.region if accepts is not None else np.zeros(len(kept), np.bool_)
    accepted = ((kept | early) & ~sample.negative) | sample.positive | sample.refused
    return Result(
        guarantee=guarantee,
        status=status,
        thresholds=thresholds,
        accepted=accepted,
        promoted=accepted & ~sample.positive & ~early,
        by_proxy=(~kept | early) & ~sample.asked,
        certified_bound=bound,
        threshold_bound=alone,
        labels_used=sample.used,
        positives_found=int(sample.positive.sum()),
        unlabelled=np.flatnonzero(sample.refused),
        accept_bound=accepts.bound if accepts is not None else None,
        evidence=evidence,
    )


def _anytime(scores: Floats, guarantee: Guarantee, sample: Sample) -> Steps:
    """Drawn with replacement, as a stream is; a repeated item costs no label."""
    rng = np.random.default_rng(guarantee.seed)
    order = rng.permutation(len(scores))
    path, rest = yield from _pilot(scores, order, guarantee, sample)
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


def _model(scores: Floats, guarantee: Guarantee, sample: Sample) -> Steps:
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
