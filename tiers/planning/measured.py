"""What a pilot measured: a sample's answers at every tier, and what they say. Pure arithmetic."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tiers.policy import Policy, outcomes
from tiers.types import Outcome

Floats = NDArray[np.float64]
ENOUGH = 50
"""Of fewer candidates nothing is said."""
GOOD = 0.9
"""A cascade that agrees so often with its last tier is good enough."""
Z80, Z95 = 1.2816, 1.9600


class Range(NamedTuple):
    """What something is expected to be. None is unknown, which is not nothing."""

    low: float | None
    expected: float | None
    high: float | None


@dataclass(frozen=True)
class Seen:
    """One tier on the sample; lists are (n,), a value a candidate, in the order of the input."""

    name: str
    judge: str
    """Digest of all that its answers depend on."""
    scores: list[float | None]
    """In [0, 1]; None where the reply could not be read."""
    masses: list[float | None]
    prompt: list[int]
    """Tokens, those of the cache included."""
    cached: list[int]
    completion: list[int]
    seconds: float | None = None
    """Of judging the whole sample, without loading; None where no answer was new."""
    load_seconds: float = 0.0
    drift: float | None = None
    """Rate of the last tenth over that of the first; None where too few answers came apart."""
    prefill: float | None = None
    """Tokens read a second, by the engine's own clock, as the next."""
    decode: float | None = None
    busy: float = 0.0
    """Processes that wanted to run, for each processor of this machine, before the pilot."""

    @property
    def fresh(self) -> Floats:
        """(n,) tokens of prompts that no cache held."""
        fresh: Floats = np.asarray(self.prompt, float) - np.asarray(self.cached, float)
        return fresh


@dataclass(frozen=True)
class Pilot:
    """A sample that went through all tiers."""

    key: str
    screen: str
    rubric: str
    """Digest of the rubric."""
    created: str
    """In ISO 8601, UTC."""
    candidates: int
    """In the input."""
    seed: int
    tiers: list[Seen]
    seconds: float = 0.0
    usd: float | None = None

    @property
    def size(self) -> int:
        return len(self.tiers[0].scores)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def pilot_of(body: dict[str, Any]) -> Pilot:
    """A pilot as `as_json` gave it."""
    return Pilot(**{**body, "tiers": [Seen(**one) for one in body["tiers"]]})


def wilson(hits: int, of: int, z: float = Z95) -> Range:
    """A share and its interval by Wilson's score, 95 % by default; unknown where `of` is 0."""
    if not of:
        return Range(None, None, None)
    share, extra = hits / of, z * z / of
    middle = (share + extra / 2) / (1 + extra)
    half = z / (1 + extra) * np.sqrt(share * (1 - share) / of + extra / (4 * of))
    return Range(float(max(0.0, middle - half)), share, float(min(1.0, middle + half)))


def quantiles(values: Sequence[float] | Floats) -> Range:
    """Its 10th percentile, median and 90th percentile."""
    low, middle, high = np.percentile(np.asarray(values, float), [10, 50, 90])
    return Range(float(low), float(middle), float(high))


def suggested_max_tokens(completion: Sequence[int]) -> tuple[int, float]:
    """A bound on replies that cuts at most one in a hundred, and the share that it would cut."""
    top = float(np.percentile(completion, 99, method="inverted_cdf"))
    bound = int(np.ceil(top * 1.1 / 8) * 8)
    return bound, float(np.mean(np.asarray(completion) > bound))


@dataclass(frozen=True)
class TierReport:
    """What a pilot says of one tier."""

    tier: str
    candidates_per_second: float | None
    load_seconds: float
    drift: float | None
    prompt_tokens: Range
    own_tokens: Range
    completion_tokens: Range
    max_tokens: int | None
    """Suggested, for a tier that writes."""
    cut: float | None
    """Share of the replies that it would cut."""
    mass: float | None
    """Median probability of the answers asked for."""
    scores: list[int]
    """Counts in ten bins of [0, 1]."""
    unreadable: int
    agreement: Range
    """With the last tier's verdicts, on all of the sample."""
    reached: int
    """Of the sample, as the screen is configured."""
    passed: dict[str, int] | None
    """What became of those; None, not measured, where they are too few."""
    pass_first: Range
    """Share promoted or accepted of the first tenth of the input, and of the last."""
    pass_last: Range


@dataclass(frozen=True)
class Decision:
    """Whether the cascade is good enough, with its reason."""

    good: bool | None
    """None where the sample is too small to say."""
    reason: str


def report(pilot: Pilot, policies: Sequence[Policy]) -> list[TierReport]:
    """What the pilot says of each tier under these policies."""
    truth = verdicts(pilot.tiers[-1].scores, policies[-1], last=True)
    reached = np.ones(pilot.size, bool)
    told = []
    for position, (seen, policy) in enumerate(zip(pilot.tiers, policies, strict=True)):
        last = position == len(policies) - 1
        here = np.array(verdicts(seen.scores, policy, last=last), dtype=object)
        counts = {str(one): int(np.sum(here[reached] == one)) for one in Outcome}
        told.append(_of_tier(seen, truth, here, int(reached.sum()), counts))
        reached &= here == Outcome.PROMOTE
    return told


def verdicts(scores: Sequence[float | None], policy: Policy, *, last: bool) -> list[Outcome]:
    """Outcomes of the sample alone; a count in `top` cannot be meant for it, and is left out."""
    keys = [f"{i:09d}" for i in range(len(scores))]
    if isinstance(policy.top, int) or policy.budget:
        policy = policy.model_copy(update={"top": None, "budget": False})
    return outcomes(list(scores), keys, policy, last=last)


def _of_tier(
    seen: Seen, truth: list[Outcome], here: Any, reached: int, counts: dict[str, int]
) -> TierReport:
    scores = np.array([np.nan if one is None else one for one in seen.scores])
    decided = [_side(a) == _side(b) for a, b in zip(here, truth, strict=True) if _side(a)]
    writes = max(seen.completion, default=0) > 1
    bound, cut = suggested_max_tokens(seen.completion) if writes else (None, None)
    masses = [mass for mass in seen.masses if mass is not None]
    kept = np.array([one in (Outcome.PROMOTE, Outcome.ACCEPT) for one in here])
    tenth = max(len(kept) // 10, 1)
    enough = reached >= ENOUGH
    return TierReport(
        seen.name,
        None if not seen.seconds else len(scores) / seen.seconds,
        seen.load_seconds,
        seen.drift,
        quantiles(seen.prompt),
        quantiles(seen.fresh),
        quantiles(seen.completion),
        bound,
        cut,
        float(np.median(masses)) if masses else None,
        [int(n) for n in np.histogram(scores[~np.isnan(scores)], 10, (0.0, 1.0))[0]],
        int(np.isnan(scores).sum()),
        wilson(sum(decided), len(decided)) if len(decided) >= ENOUGH else Range(None, None, None),
        reached,
        {name: n for name, n in counts.items() if n} if enough else None,
        wilson(int(kept[:tenth].sum()), tenth),
        wilson(int(kept[-tenth:].sum()), tenth),
    )


def _side(outcome: Outcome) -> str | None:
    """The side that a verdict is on; None where it has none, because others look."""
    return str(outcome) if outcome in (Outcome.ACCEPT, Outcome.REJECT) else None


def decision(pilot: Pilot, policies: Sequence[Policy]) -> Decision:
    """Whether the cascade under these policies says what its last tier says."""
    end = len(policies) - 1
    truth = verdicts(pilot.tiers[-1].scores, policies[-1], last=True)
    final = verdicts(pilot.tiers[0].scores, policies[0], last=end == 0)
    for position in range(1, len(policies)):
        here = verdicts(pilot.tiers[position].scores, policies[position], last=position == end)
        final = [b if a == Outcome.PROMOTE else a for a, b in zip(final, here, strict=True)]
    known = [(a, b) for a, b in zip(final, truth, strict=True) if _side(b)]
    return decide(sum(a == b for a, b in known), len(known), pilot.tiers[-1].name)


def decide(agreed: int, of: int, last: str) -> Decision:
    """Whether a cascade that agreed so often with its last tier is good enough."""
    if of < ENOUGH:
        return Decision(None, f"not measured: {of} candidates; take a sample of {ENOUGH} or more")
    found = wilson(agreed, of)
    low, high = found.low or 0.0, found.high or 1.0
    words = f"the cascade agrees with '{last}' on {agreed} of {of} ({low:.0%} to {high:.0%}, 95 %)"
    if low >= GOOD:
        return Decision(True, f"{words}, which is {GOOD:.0%} or more")
    if high < GOOD:
        return Decision(False, f"{words}, which is less than {GOOD:.0%}")
    return Decision(None, f"{words}: that does not tell whether it is {GOOD:.0%}; sample more")
