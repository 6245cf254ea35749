"""How a tier does on this machine: a small sample through the backend that a run would use.

Our request shape: a shared prefix, and one position read of each candidate (or the reply of a
`json` tier). Nothing is stored here, and nothing is decided.
"""

import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import psutil

from tiers.placing import open_tier
from tiers.planning.machine import cards
from tiers.policy import Policy, outcomes
from tiers.prices import price_of
from tiers.screenfile.ask import JsonAsk
from tiers.screenfile.tiers import AnyTier, HttpTier, LlamaTier, OpenAIBatchTier
from tiers.tier import Job, Tier
from tiers.types import Candidate, Judgement, Price, TierError

ALONE = 4
"""Candidates that are asked one by one after opening; the first of them warms up."""
SAMPLE_SECONDS = 0.05
NEAR = 0.05
"""A score so close to a threshold is near it."""
LEAST_SECONDS, MOST_PASSES = 1.0, 20
"""An engine of ours is given the sample again until a second is over; a server only once."""
KNEE = 0.9
"""The smallest setting with such a share of the best throughput is the one to take."""


@dataclass(frozen=True)
class Measured:
    """One setting; the fields are those of `db.benchmarks.Benchmark`."""

    model: str
    batch_size: int | None
    concurrency: int | None
    candidates: int = 0
    rate: float | None = None
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    first_token: float | None = None
    prefill_rate: float | None = None
    decode_rate: float | None = None
    peak_memory: int | None = None
    gpu_memory: int | None = None
    gpu_utilisation: float | None = None
    per_dollar: float | None = None
    agreement: float | None = None
    flips: int | None = None
    flips_near: int | None = None
    suggested: bool = False
    problem: str | None = None


class Plan(NamedTuple):
    """What is measured of one tier."""

    job: Job
    policy: Policy
    last: bool
    texts: Sequence[tuple[str, str]]
    """Keys and texts."""
    batch_sizes: Sequence[int]
    concurrencies: Sequence[int | None]
    models: Sequence[str | None]
    """The tier's own as None, then other files."""

    @property
    def repeats(self) -> bool:
        """Whether the sample is given again and again: nobody pays for that, nor caches it."""
        return isinstance(self.job.config, LlamaTier)

    @property
    def judgements(self) -> int:
        """How many answers it asks for, in one pass."""
        if isinstance(self.job.config, OpenAIBatchTier):
            return 0
        openings, count = len(self.concurrencies) * len(self.models), len(self.texts)
        return openings * (len(self.batch_sizes) * count + min(ALONE, count))


def plan_of(
    job: Job,
    policy: Policy,
    *,
    last: bool,
    texts: Sequence[tuple[str, str]],
    batch_sizes: Sequence[int],
    concurrencies: Sequence[int],
    files: Sequence[str],
) -> Plan:
    """The settings that make a difference to this tier, of those asked for."""
    config = job.config
    writes = isinstance(config, LlamaTier) and isinstance(config.ask, JsonAsk)
    many: Sequence[int | None] = (None,)
    if isinstance(config, HttpTier):
        many = concurrencies or (config.concurrency,)
    elif writes and isinstance(config, LlamaTier):
        many = [n for n in concurrencies if n <= 64] or (config.active,)
    models = (None, *files) if isinstance(config, LlamaTier) else (None,)
    return Plan(job, policy, last, texts, batch_sizes, many, models)


def measure(plan: Plan) -> Iterator[Measured]:
    """Measure setting after setting; one that cannot be measured says why."""
    found: list[Measured] = []
    reference: list[float | None] = []
    for model in plan.models:
        of_model: list[Measured] = []
        for concurrency in plan.concurrencies:
            job = plan.job._replace(config=_at(plan.job.config, model, concurrency))
            name = str(model or getattr(job.config, "model", getattr(job.config, "path", "")))
            try:
                for one, scores in _opened(plan, job, name, concurrency):
                    reference = reference or scores
                    compared = one if model is None else _compared(one, scores, reference, plan)
                    of_model.append(compared)
            except (TierError, RuntimeError) as error:
                of_model.append(Measured(name, None, concurrency, problem=str(error)))
        found += _with_knee(of_model)
    yield from found


def _at(config: AnyTier, model: str | None, concurrency: int | None) -> AnyTier:
    changes: dict[str, Any] = {} if model is None else {"model": model}
    if concurrency is not None:
        changes["concurrency" if isinstance(config, HttpTier) else "active"] = concurrency
    return config.model_copy(update=changes)


def _opened(
    plan: Plan, job: Job, name: str, concurrency: int | None
) -> Iterator[tuple[Measured, list[float | None]]]:
    """Open a tier once and measure all batch sizes in it; each with the scores.

    Raises:
        TierError: the tier cannot be opened, or answers tomorrow.
    """
    if isinstance(job.config, OpenAIBatchTier):
        raise TierError("a batch is answered within a day, so that there is nothing to time")
    writes = isinstance(getattr(job.config, "ask", None), JsonAsk)
    tier = open_tier(job)
    try:
        alone = [
            seconds
            for _, text in plan.texts[:ALONE]
            for _, seconds in _handed(tier, [Candidate(0, text)])
        ]
        first = None if writes else statistics.median(alone[1:] or alone)
        for size in plan.batch_sizes:
            with _watched(getattr(tier, "pid", None)) as seen:
                one, scores = _measured(plan, tier, size, price_of(job.config))
            yield (
                replace(one, model=name, concurrency=concurrency, first_token=first, **seen),
                scores,
            )
    finally:
        tier.close()


def _measured(
    plan: Plan, tier: Tier, size: int, price: Price | None
) -> tuple[Measured, list[float | None]]:
    """Hand the sample over in groups of `size`."""
    answers: list[tuple[Judgement, float]] = []
    candidates = [Candidate(number, text) for number, (_, text) in enumerate(plan.texts)]
    began, seconds, passes = time.perf_counter(), 0.0, 0
    while not passes or (plan.repeats and seconds < LEAST_SECONDS and passes < MOST_PASSES):
        for start in range(0, len(candidates), size):
            answers += _handed(tier, candidates[start : start + size])
        seconds, passes = time.perf_counter() - began, passes + 1
    judged = [one for one, _ in answers]
    if all(one.failed for one in judged):
        raise TierError(judged[0].error or "no answer")
    waits = sorted(wait for one, wait in answers if not one.failed)
    fresh = sum(one.prompt_tokens - one.cached_tokens for one in judged)
    written = sum(one.completion_tokens for one in judged)
    scores: list[float | None] = [None] * len(plan.texts)
    for one in judged:
        scores[one.id] = one.score
    return Measured(
        "", size, None,
        candidates=len(judged),
        rate=len(judged) / seconds,
        p50=_percentile(waits, 50), p95=_percentile(waits, 95), p99=_percentile(waits, 99),
        prefill_rate=fresh / seconds if fresh else None,
        decode_rate=written / seconds if written else tier.rates.get("decode"),
        per_dollar=_per_dollar(price, judged, seconds),
    ), scores  # fmt: skip


def _handed(tier: Tier, group: list[Candidate]) -> list[tuple[Judgement, float]]:
    """The judgements of a group, each with the seconds that passed since it was handed over."""
    began = time.perf_counter()
    return [(one, time.perf_counter() - began) for one in tier.judge(group)]


def _percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that so many per cent do not exceed; `values` are sorted."""
    return values[max(0, -(-percent * len(values) // 100) - 1)]


def _per_dollar(price: Price | None, judged: Sequence[Judgement], seconds: float) -> float | None:
    if price is None:
        return None
    paid = price.hour * seconds / 3600 + sum(
        price.of(one.prompt_tokens, one.cached_tokens, one.completion_tokens) for one in judged
    )
    return len(judged) / paid if paid else None


def _compared(
    one: Measured, scores: list[float | None], reference: list[float | None], plan: Plan
) -> Measured:
    """With how many outcomes are those of the tier's own model."""
    if not reference:
        return one
    keys = [key for key, _ in plan.texts]
    ours = outcomes(scores, keys, plan.policy, last=plan.last)
    theirs = outcomes(reference, keys, plan.policy, last=plan.last)
    other = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a is not b]
    bounds = [x for x in (plan.policy.reject_below, plan.policy.accept_above) if x is not None]
    near = sum(any(abs((reference[i] or 0.0) - bound) <= NEAR for bound in bounds) for i in other)
    return replace(one, agreement=1 - len(other) / len(keys), flips=len(other), flips_near=near)


def _with_knee(found: list[Measured]) -> list[Measured]:
    """Mark the smallest setting whose throughput is nearly the best."""
    best = max((one.rate or 0.0 for one in found), default=0.0)
    enough = [one for one in found if best and (one.rate or 0.0) >= KNEE * best]
    knee = min(
        enough, key=lambda one: ((one.batch_size or 0), (one.concurrency or 0)), default=None
    )
    return [replace(one, suggested=one is knee) for one in found]


@contextmanager
def _watched(pid: int | None) -> Iterator[dict[str, Any]]:
    """Look at an engine's process and at the cards meanwhile; filled in at the end.

    Without a process of ours, or NVIDIA's library, the fields stay None: not measured.
    """
    seen: dict[str, Any] = {}
    peaks: list[int] = []
    busy: list[tuple[int, float]] = []
    stop = threading.Event()

    def look() -> None:
        process = None if pid is None else psutil.Process(pid)
        while True:
            if process is not None:
                with suppress(psutil.Error):  # it died, and the tier has begun another
                    peaks.append(process.memory_info().rss)
            if (card := cards()) is not None:
                busy.append(card)
            if stop.wait(SAMPLE_SECONDS):
                return

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        stop.set()
        watcher.join()
        if peaks:
            seen["peak_memory"] = max(peaks)
        if busy:
            seen["gpu_memory"] = max(memory for memory, _ in busy)
            seen["gpu_utilisation"] = statistics.fmean(share for _, share in busy)
