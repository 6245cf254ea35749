"""From a section of the screen file to a stage: by a pilot, a price list, or a data sheet."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import yaml

from tiers.planning.estimate import NO_PACE, SCENES, Batches, Pace, Stage, Tokens, steady
from tiers.planning.measured import Range, Seen
from tiers.policy import Policy
from tiers.prices import price_of
from tiers.screenfile.ask import JsonAsk
from tiers.screenfile.tiers import (
    AnyTier,
    EngineTier,
    HttpTier,
    LlamaTier,
    ModelTierSection,
    OpenAIBatchTier,
)

LEAST_SPREAD, SHORT_SPREAD, BUSY_SPREAD = 0.08, 0.2, 0.5
"""How far a rate moves between pilot and run, in logarithms: at least; more where the pilot saw the
machine for seconds only; and where others worked on it too (bench/plan_kept)."""
SHORT_SECONDS = 10.0
ARITHMETIC = {"low": 0.5, "expected": 0.2, "high": 0.05, "likely": 0.2}
"""Share of a data sheet's arithmetic that engines reach, from the best to the worst of scenes."""
STORING = 2e-4
"""Seconds to read, store and decide a candidate, however fast it is judged."""
AT_ONCE = 8
"""Replies that are written at once."""


@dataclass(frozen=True)
class Guess:
    """Tokens of a tier's prompt that nobody has measured."""

    shared: Range
    own: Range


def stage_of(tier: AnyTier, policy: Policy, seen: Seen | None, guess: Guess | None = None) -> Stage:
    """A tier as it is configured; `guess` stands in where no pilot has seen it."""
    local = isinstance(tier, EngineTier)
    return Stage(
        tier.name,
        policy,
        _tokens(tier, seen, guess),
        price_of(tier),
        _limited(tier, NO_PACE if seen is None else _measured(tier, seen)),
        None if seen is None else np.array([np.nan if s is None else s for s in seen.scores]),
        model_of(tier),
        local,
    )


def model_of(tier: AnyTier) -> str:
    """How people name a tier's model."""
    model = getattr(tier, "model", getattr(tier, "path", ""))
    name = str(getattr(model, "hub", model)).rpartition("/")[2]
    preset = isinstance(tier, LlamaTier) and not name.endswith(".gguf")
    return f"{name}-Q4_K_M" if preset else name


def parameters(model: str) -> float | None:
    """How many a model's name says it has: 2e9 for gemma-2-2b; None where it says nothing."""
    found = re.findall(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)[bB](?![A-Za-z0-9])", model)
    return float(found[-1]) * 1e9 if found else None


def _tokens(tier: AnyTier, seen: Seen | None, guess: Guess | None) -> Mapping[str, Tokens]:
    if seen is not None:
        parts = (np.asarray(part, float) for part in (seen.prompt, seen.cached, seen.completion))
        return dict.fromkeys(SCENES, Tokens(*parts))
    unknown = Range(None, None, None)
    shared, own = (guess.shared, guess.own) if guess is not None else (unknown, unknown)
    reply = Range(0, 0, 0) if isinstance(tier, EngineTier) else Range(1, 1, 1)
    if isinstance(tier, ModelTierSection) and isinstance(tier.ask, JsonAsk):
        reply = Range(1, None, tier.max_tokens)
    told = {}
    for scene in SCENES:
        shared_tokens, own_tokens, written = (_at(part, scene) for part in (shared, own, reply))
        # Engines of ours keep the shared part; whether a server does is for its replies to say.
        kept = shared_tokens if isinstance(tier, EngineTier) else 0 * shared_tokens
        told[scene] = Tokens(*(np.array([x]) for x in (shared_tokens + own_tokens, kept, written)))
    return told


def _at(known: Range, scene: str) -> float:
    """A bound of a range; NaN where it is not known."""
    value = known.high if scene == "likely" else getattr(known, scene)
    return np.nan if value is None else float(value)


def _measured(tier: AnyTier, seen: Seen) -> Pace:
    """The pace of the pilot, by tokens where an engine of ours reads them."""
    if not seen.seconds:
        return NO_PACE
    n, fresh, written = len(seen.scores), float(seen.fresh.sum()), float(sum(seen.completion))
    common: dict[str, Any] = {"load": seen.load_seconds, "spread": _spread(tier, seen)}
    if not isinstance(tier, EngineTier) or fresh <= 0:
        return Pace(steady(seen.seconds / n), **common)
    read, write = 1.0, 0.0
    if seen.prefill and seen.decode and written > n:
        read, write = 1 / seen.prefill, 1 / seen.decode
    scale = seen.seconds / (read * fresh + write * written)
    return Pace(steady(0.0), steady(read * scale), steady(write * scale), **common)


def _spread(tier: AnyTier, seen: Seen) -> float:
    """By the rate's drift within the pilot, and by how much a pilot can have seen."""
    if isinstance(tier, EngineTier) and seen.busy > 1:
        return BUSY_SPREAD
    drift = 0.0 if not seen.drift else abs(float(np.log(seen.drift))) / 2
    short = SHORT_SPREAD / np.sqrt(1 + (seen.seconds or 0.0) / SHORT_SECONDS)
    return float(min(max(np.hypot(LEAST_SPREAD, short), drift), BUSY_SPREAD))


def _limited(tier: AnyTier, pace: Pace) -> Pace:
    """With the limits that the screen file sets."""
    limits: dict[str, Any] = {}
    if isinstance(tier, HttpTier):
        for name in ("requests_per_minute", "tokens_per_minute"):
            value = getattr(tier, name)
            limits[name] = None if value is None else value * tier.machines
    elif isinstance(tier, OpenAIBatchTier):
        reply = tier.max_tokens if isinstance(tier.ask, JsonAsk) else 1
        limits["batches"] = Batches(
            tier.lines_per_file, tier.bytes_per_file, tier.enqueued_tokens, reply
        )
    return Pace(**{**pace.__dict__, **limits})


@cache
def hardware() -> dict[str, Any]:
    """`hardware.yaml`: GPUs, how they scale, and what providers allow."""
    table: dict[str, Any] = yaml.safe_load((files("tiers") / "hardware.yaml").read_text("utf-8"))
    return table


def gpu_pace(name: str, count: int, model: str, share: Mapping[str, float] | None = None) -> Pace:
    """The pace of a model on so many GPUs, from their data sheet.

    Reading is bound by arithmetic, 2 operations a parameter and token; writing by memory, all
    weights for each token, shared by the replies written at once.

    Args:
        name: as `hardware.yaml` has it.
        count: how many.
        model: its name, which says how many parameters it has; unknown otherwise.
        share: of the arithmetic and the bandwidth that is reached, by scene.
    """
    row, size = hardware()["gpus"][name], parameters(model)
    if size is None:
        return NO_PACE
    share = ARITHMETIC if share is None else share
    many = count * hardware()["scaling"][count]
    weights = (weights_gb(model) or 0.0) * 1e9
    return Pace(
        steady(STORING),
        {s: 2 * size / (row["tflops"] * 1e12 * many * share[s]) for s in SCENES},
        {s: weights / (row["gb_per_second"] * 1e9 * many * share[s] * AT_ONCE) for s in SCENES},
        basis="data sheet",
    )


def weights_gb(model: str) -> float | None:
    """Gigabytes of a model's weights, as its name has parameters and bits."""
    size, quantized = parameters(model), re.search(r"[qQ]([2-8])", model)
    bits = float(quantized[1]) + 0.85 if quantized else 16.0
    return None if size is None else size * bits / 8e9


def cloud_tier(
    row: Mapping[str, Any], like: AnyTier, name: str, *, batch: bool
) -> HttpTier | OpenAIBatchTier:
    """A row of `clouds` as a tier that asks what another one asks."""
    kept = {"prompt", "max_candidate_tokens", "too_long", "max_tokens"}
    asked = like.model_dump(include=kept)
    asked |= {"name": name, "profile": row["profile"], "model": row["model"]}
    made: HttpTier | OpenAIBatchTier
    if batch:
        made = OpenAIBatchTier(backend="openai_batch", **asked)
    else:
        limit = row["requests_per_minute"]
        made = HttpTier(backend="http", requests_per_minute=limit, **asked)
    return made.model_copy(update={"ask": getattr(like, "ask", "yes_no")})
