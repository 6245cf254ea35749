"""From a workload to candidates, tokens, seconds and dollars a tier. Pure arithmetic.

Each figure is worked out in four scenes. With a pilot, they are the same bootstrap draws, of which
the 10th and the 90th percentile are told. Where something was not measured, `low` and `high` are
what it can be at least and at most, `expected` is not a number, and `likely`, which only ranks
alternatives, is the best guess.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tiers.planning.measured import ENOUGH, Floats, Range
from tiers.policy import Policy
from tiers.types import Outcome, Price

SCENES = ("low", "expected", "high", "likely")
DRAWS = 400
WAVE_SECONDS = 24 * 3600.0
"""A server answers a batch within a day; how much sooner, it does not say."""
BYTES_PER_TOKEN = 4
UNKNOWN = np.full(1, np.nan)
NOT_KNOWN = "speed not known"

Scenes = Mapping[str, Floats]


class Tokens(NamedTuple):
    """Of each candidate: (n,) of a pilot's sample, or (1,) where one stands for all."""

    prompt: Floats
    cached: Floats
    completion: Floats


@dataclass(frozen=True)
class Batches:
    """What a server takes at once by its Batch API."""

    lines: int = 50_000
    bytes: int = 200_000_000
    enqueued_tokens: int = 2_000_000
    reply_tokens: int = 1
    """Counted against the account for each line, whatever is written."""

    def files(self, candidates: Floats, prompt: Floats) -> Floats:
        """How many files so many candidates fill."""
        by_size = _whole(prompt * BYTES_PER_TOKEN / self.bytes)
        return np.maximum(_whole(candidates / self.lines), by_size)

    def waves(self, candidates: Floats, prompt: Floats) -> Floats:
        """How often the account is filled, each time for up to a day."""
        tokens = prompt + candidates * self.reply_tokens
        return _whole(tokens / self.enqueued_tokens)


@dataclass(frozen=True)
class Pace:
    """How fast a tier is, by scene: seconds a candidate, a token read and a token written."""

    candidate: Mapping[str, float]
    read: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(SCENES, 0.0))
    written: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(SCENES, 0.0))
    load: float = 0.0
    """Seconds until the model is there."""
    spread: float = 0.0
    """Standard deviation of the logarithm of the rate between pilot and run."""
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    batches: Batches | None = None
    basis: str = "measured"
    """`measured`, `data sheet`, `limits` or `unknown`."""


def steady(value: float) -> Mapping[str, float]:
    """The same in each scene."""
    return dict.fromkeys(SCENES, value)


NO_PACE = Pace(steady(float("nan")), basis="unknown")


@dataclass(frozen=True)
class Stage:
    """A tier of an alternative."""

    name: str
    policy: Policy
    tokens: Mapping[str, Tokens]
    """By scene."""
    price: Price | None
    pace: Pace
    scores: Floats | None = None
    """(n,) of the pilot; NaN where unreadable. None where nobody knows how it scores."""
    model: str = ""
    local: bool = False
    """Whether a model has to be loaded for it."""
    todo: float = 1.0
    """Share of those who reach it that has no answer yet."""


@dataclass(frozen=True)
class TierEstimate:
    """What one tier is expected to do."""

    tier: str
    candidates: Range
    promoted: Range
    prompt_tokens: Range
    completion_tokens: Range
    seconds: Range
    usd: Range
    waves: Range | None
    """Of batches; None for a tier that answers at once."""
    limit: str
    """What binds."""


@dataclass(frozen=True)
class Estimate:
    """What an alternative is expected to take, its tiers one after the other."""

    tiers: list[TierEstimate]
    seconds: Range
    usd: Range
    loads: int
    """Models loaded."""
    likely_seconds: float
    """To rank by; infinite where nothing is known."""
    likely_usd: float
    limit: str
    agreement: float | None = None
    """Share of the pilot's candidates on which it says what the last tier says."""
    recall: float | None = None
    """Share of those whom the last tier accepts that it does not reject."""


@dataclass(frozen=True)
class Workload:
    """How many candidates, and the draws by which a pilot's sample stands for them."""

    candidates: int
    sample: int
    """Size of the pilot; 0 for none."""
    part: bool = True
    """Whether the sample is one of these candidates, and not of others."""
    seed: int = 0

    def weights(self) -> Floats:
        """(draws, n) shares of the candidates, which a bootstrap gives to each of the sample.

        Bayesian, and narrower where the sample is a good part of the whole.
        """
        if not self.sample:
            return np.ones((1, 1))
        drawn = np.random.default_rng(self.seed).exponential(size=(DRAWS, self.sample))
        drawn /= drawn.sum(axis=1, keepdims=True)
        unseen = np.sqrt(max(0.0, 1 - self.sample / self.candidates)) if self.part else 1.0
        even = 1 / self.sample
        return np.asarray(even + (drawn - even) * unseen)

    def noise(self, position: int) -> Floats:
        """(draws,) standard normal, the same for a tier in each alternative."""
        if not self.sample:
            return np.zeros(1)
        return np.random.default_rng([self.seed, position]).standard_normal(DRAWS)


@dataclass
class _Work:
    """What comes to a tier in one scene: numbers over the draws."""

    candidates: Floats
    prompt: Floats
    cached: Floats
    completion: Floats

    def __mul__(self, share: float) -> "_Work":
        parts = (self.candidates, self.prompt, self.cached, self.completion)
        return _Work(*(part * share for part in parts))


def estimate(stages: Sequence[Stage], load: Workload, weights: Floats) -> Estimate:
    """What the stages take for a workload; `weights` is what its method gave."""
    reach: dict[str, Floats] = dict.fromkeys(SCENES, weights)
    seconds: dict[str, list[Floats]] = {scene: [] for scene in SCENES}
    dollars: dict[str, list[Floats]] = {scene: [] for scene in SCENES}
    tiers = []
    hard = np.ones(weights.shape[1], bool)
    for position, stage in enumerate(stages):
        last = position == len(stages) - 1
        work = {scene: _work(stage, reach[scene], scene, load.candidates) for scene in SCENES}
        took, limits = {}, {}
        for scene in SCENES:
            left = work[scene] * stage.todo
            took[scene], limits[scene] = _seconds(stage, left, scene, load.noise(position))
            seconds[scene].append(took[scene])
            dollars[scene].append(_dollars(stage.price, left, took[scene]))
        measured = stage.scores is not None and hard.sum() >= ENOUGH
        reach = _passed(stage, reach, load.candidates, measured=measured, last=last)
        if stage.scores is not None:
            hard &= _shares(stage, np.ones((1, len(hard))), len(hard), last=last)["on"][0] > 0
        tiers.append(
            TierEstimate(
                stage.name,
                _range({s: work[s].candidates for s in SCENES}),
                _range({s: reach[s].sum(axis=1) * load.candidates for s in SCENES}),
                _range({s: (work[s] * stage.todo).prompt for s in SCENES}),
                _range({s: (work[s] * stage.todo).completion for s in SCENES}),
                _range(took),
                _range({s: dollars[s][-1] for s in SCENES}),
                _waves(stage, {s: work[s] * stage.todo for s in SCENES}),
                limits["high" if limits["expected"] == NOT_KNOWN else "expected"],
            )
        )
    totals = {scene: _sum(seconds[scene]) for scene in SCENES}
    money = {scene: _sum(dollars[scene]) for scene in SCENES}
    slowest = max(range(len(tiers)), key=lambda i: _likely([seconds["likely"][i]]))
    return Estimate(
        tiers,
        _range(totals),
        _range(money),
        sum(stage.local and stage.todo > 0 for stage in stages),
        _likely([totals["likely"], totals["high"]]),
        _likely([money["likely"], money["high"]]),
        f"{tiers[slowest].tier}: {tiers[slowest].limit}",
    )


def quality(
    stages: Sequence[Stage], truth: Sequence[Outcome], candidates: int
) -> tuple[float | None, float | None]:
    """How the stages agree with the last tier's own verdicts on the sample, and their recall.

    None where it was not measured: a stage has no scores, or the sample is too small.
    """
    true = np.array([one == Outcome.ACCEPT for one in truth])
    told = np.array([one in (Outcome.ACCEPT, Outcome.REJECT) for one in truth])
    if told.sum() < ENOUGH or any(stage.scores is None for stage in stages):
        return None, None
    n = len(true)
    reach = np.full((1, n), 1 / n)
    accepted, rejected = np.zeros(n), np.zeros(n)
    for position, stage in enumerate(stages):
        share = _shares(stage, reach, candidates, last=position == len(stages) - 1)
        accepted += share["accept"][0] * n
        rejected += share["reject"][0] * n
        reach = share["on"]
    right = np.where(true, accepted, rejected)[told]
    missed = rejected[told & true]
    return float(right.mean()), float(1 - missed.mean()) if len(missed) else None


def best_cut(scores: Floats, truth: Sequence[Outcome]) -> Policy:
    """The one threshold by which a tier alone says most often what the last tier says."""
    true = np.array([one == Outcome.ACCEPT for one in truth])
    known = ~np.isnan(scores)
    if not known.any():
        return Policy(reject_below=0.5)
    order = np.argsort(scores[known])
    sorted_scores, positive = scores[known][order], true[known][order]
    # Below the cut all are rejected: right are the negatives before it and the positives after it.
    below = np.concatenate([[0], np.cumsum(~positive)])
    above = positive.sum() - np.concatenate([[0], np.cumsum(positive)])
    right = below + above
    # Between equal scores there is no cut.
    inner = np.concatenate([[True], sorted_scores[1:] > sorted_scores[:-1], [True]])
    best = int(np.argmax(np.where(inner, right, -1)))
    edges = np.concatenate([[0.0], (sorted_scores[1:] + sorted_scores[:-1]) / 2, [1.0]])
    return Policy(reject_below=float(round(edges[best], 6)))


def _work(stage: Stage, reach: Floats, scene: str, candidates: int) -> _Work:
    tokens = stage.tokens[scene]
    sums = (reach @ part if len(part) == reach.shape[1] else reach.sum(1) * part for part in tokens)
    return _Work(reach.sum(axis=1) * candidates, *(part * candidates for part in sums))


def _seconds(stage: Stage, work: _Work, scene: str, noise: Floats) -> tuple[Floats, str]:
    """Seconds over the draws, and what binds."""
    pace = stage.pace
    if pace.batches is not None:
        waves = pace.batches.waves(work.candidates, work.prompt)
        share = {"low": 0.0, "expected": np.nan}.get(scene, WAVE_SECONDS)
        count = _number(np.mean(waves))
        return waves * share, f"batch: {count or 0:,.0f} waves of up to 24 h"
    reading = pace.read[scene] * (work.prompt - work.cached)
    writing = pace.written[scene] * work.completion
    asking = pace.candidate[scene] * work.candidates
    own = (reading + writing + asking) * np.exp(pace.spread * noise)
    took, binds = own, _most(reading=reading, writing=writing, asking=asking)
    for name, per_minute, units in (
        ("requests", pace.requests_per_minute, work.candidates),
        ("tokens", pace.tokens_per_minute, work.prompt + work.completion),
    ):
        if per_minute is not None:
            at_least = units / per_minute * 60
            if np.isnan(took).all() or np.mean(at_least) > np.nanmean(took):
                binds = f"rate limit: {per_minute:,.0f} {name} a minute"
            took = np.fmax(took, at_least)
    if not stage.todo:
        return np.zeros_like(took), "all answers are kept"
    if stage.local and np.mean(took) < pace.load:
        binds = "loading the model"
    return took + pace.load, binds


def _most(**parts: Floats) -> str:
    """Which part takes longest."""
    means = {name: float(np.mean(part)) for name, part in parts.items()}
    if any(np.isnan(mean) for mean in means.values()):
        return NOT_KNOWN
    return max(means, key=lambda name: means[name])


def _dollars(price: Price | None, work: _Work, seconds: Floats) -> Floats:
    if price is None:
        return UNKNOWN
    fresh = work.prompt - work.cached
    tokens = fresh * price.input + work.cached * price.cached_input + work.completion * price.output
    by_tokens = tokens / 1e6 if max(price[:3]) > 0 else np.zeros(1)
    return np.asarray(by_tokens + (seconds * price.hour / 3600 if price.hour else 0.0))


def _waves(stage: Stage, work: Mapping[str, _Work]) -> Range | None:
    batches = stage.pace.batches
    if batches is None:
        return None
    return _range({s: batches.waves(work[s].candidates, work[s].prompt) for s in SCENES})


def _passed(
    stage: Stage, reach: Mapping[str, Floats], candidates: int, *, measured: bool, last: bool
) -> dict[str, Floats]:
    """Who goes on to the next tier, by scene."""
    if last:
        return dict.fromkeys(SCENES, np.zeros((1, 1)))
    if measured:
        known: dict[int, Floats] = {}  # scenes share their draws
        for draws in reach.values():
            if id(draws) not in known:
                known[id(draws)] = _shares(stage, draws, candidates, last=False)["on"]
        return {scene: known[id(reach[scene])] for scene in SCENES}
    quota = stage.policy.quota(candidates)
    if quota is not None and stage.scores is None:
        most = np.full((1, 1), quota / candidates)
        return {scene: np.fmin(reach[scene], most) for scene in SCENES}
    likely = reach["likely"]
    if stage.scores is not None:
        likely = _shares(stage, likely, candidates, last=False)["on"]
    return {
        "low": 0 * reach["high"],
        "expected": np.nan * reach["high"],
        "high": reach["high"],
        "likely": likely,
    }


def _shares(stage: Stage, reach: Floats, candidates: int, *, last: bool) -> dict[str, Floats]:
    """Shares of all candidates that are accepted, rejected and go on: (draws, n) each.

    As `tiers.policy.outcomes`, for a sample that stands for many: a quota may cut a candidate.
    """
    scores, policy = stage.scores, stage.policy
    if scores is None:
        raise ValueError(f"tier '{stage.name}' has no scores")
    low = scores < (-1.0 if policy.reject_below is None else policy.reject_below)
    high = scores > (2.0 if policy.accept_above is None else policy.accept_above)
    between = ~np.isnan(scores) & ~low & ~high
    middle = policy.between(last=last)
    accepted, rejected = reach * high, reach * low
    on = reach * between
    readable = (reach * ~np.isnan(scores)).sum(axis=1, keepdims=True) * candidates
    if policy.top is not None:
        quota = policy.top if isinstance(policy.top, int) else policy.top * readable
        order = np.argsort(-np.where(between, scores, -1.0), kind="stable")
        ranked = on[:, order]
        before = np.cumsum(ranked, axis=1) - ranked
        kept = np.clip(quota / candidates - before, 0.0, ranked)
        cut = np.empty_like(on)
        cut[:, order] = kept
        rejected = rejected + (on - cut)
        on = cut
    match middle:
        case Outcome.ACCEPT:
            accepted, on = accepted + on, 0 * on
        case Outcome.REJECT:
            rejected, on = rejected + on, 0 * on
        case Outcome.REVIEW:
            on = 0 * on
    return {"accept": accepted, "reject": rejected, "on": on}


def _sum(parts: Iterable[Floats]) -> Floats:
    total = np.zeros(1)
    for part in parts:
        total = total + part
    return total


def _range(scenes: Scenes) -> Range:
    """What is told of four scenes: percentiles where they are draws, bounds where they are not."""
    return Range(
        _number(_percentile(scenes["low"], 0.1)),
        _number(np.mean(scenes["expected"])),
        _number(_percentile(scenes["high"], 0.9)),
    )


def _percentile(values: Floats, share: float) -> np.floating:
    """As numpy's, which imports a tenth of a second's worth for it; NaN where one is."""
    ranked = np.sort(values)
    place = share * (len(ranked) - 1)
    below, above = ranked[int(place)], ranked[min(int(place) + 1, len(ranked) - 1)]
    return np.float64(below + (above - below) * (place % 1) + 0 * ranked[-1])


def _whole(parts: Floats) -> Floats:
    """Rounded up; what the draws' own rounding added does not count."""
    return np.asarray(np.ceil(np.round(parts, 6)))


def _number(value: np.floating) -> float | None:
    return None if np.isnan(value) else float(value)


def _likely(guesses: Sequence[Floats]) -> float:
    """The first guess that is known; infinite for none."""
    means = (float(np.mean(guess)) for guess in guesses)
    return next((mean for mean in means if not np.isnan(mean)), float("inf"))
