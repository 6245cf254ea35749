"""The ways to screen: subsets of the tiers, other questions, other machines, other providers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np

from tiers.planning.estimate import (
    SCENES,
    Estimate,
    Pace,
    Stage,
    Tokens,
    Workload,
    best_cut,
    estimate,
    quality,
)
from tiers.planning.measured import Pilot, verdicts
from tiers.planning.stages import (
    Guess,
    cloud_tier,
    gpu_pace,
    hardware,
    stage_of,
    weights_gb,
)
from tiers.policy import Policy
from tiers.screenfile.ask import JsonAsk
from tiers.screenfile.file import Screen
from tiers.screenfile.tiers import AnyTier, EngineTier, ModelTierSection
from tiers.types import Outcome, Price

MOST_SUBSETS = 5
"""Of more tiers, subsets leave out one at a time."""


@dataclass(frozen=True)
class Alternative:
    """One way to screen, and what it is expected to take."""

    name: str
    stages: tuple[Stage, ...]
    basis: str
    """`measured`, `data sheet` (of a GPU), `limits` (of an account) or `no pilot`."""
    estimate: Estimate
    drops: tuple[str, ...] = ()
    """Tiers of the screen that it does without."""
    cut: Policy | None = None
    """Of the tier that has the last word now, where that is not the screen's last."""
    asks: Mapping[str, Any] = field(default_factory=dict)
    """Other questions, by tier."""
    infeasible: str | None = None
    """The limit that binds."""
    pareto: bool = False

    @property
    def ours(self) -> bool:
        """Whether it is a matter of the screen file alone, and was measured."""
        return self.basis == "measured"


class Maker:
    """Makes alternatives of one screen over one workload."""

    def __init__(
        self,
        definition: Screen,
        workload: Workload,
        pilot: Pilot | None,
        guesses: Sequence[Guess | None] = (),
        todo: Sequence[float] = (),
    ) -> None:
        """`todo` is the share at each tier that has no answer yet; by default nobody has one."""
        self._definition = definition
        self._workload = workload
        self._weights = workload.weights()
        self._pilot = pilot
        self._truth: list[Outcome] = []
        self._base = []
        for i, tier in enumerate(definition.tiers):
            seen = None if pilot is None else pilot.tiers[i]
            guess = guesses[i] if guesses else None
            stage = stage_of(tier, definition.policy(i), seen, guess)
            self._base.append(replace(stage, todo=todo[i] if todo else 1.0))
        if pilot is not None:
            policy = definition.policy(len(self._base) - 1)
            self._truth = verdicts(pilot.tiers[-1].scores, policy, last=True)

    def configured(self) -> Alternative:
        """The screen as it is."""
        return self._made("as configured", self._base)

    def all(self) -> list[Alternative]:
        """Every alternative, the configured one first."""
        rows = [self.configured(), *self._subsets(), *self._questions(), *self._prefix()]
        return [*rows, *self._gpus(), *self._clouds()]

    def _made(self, name: str, stages: Sequence[Stage], **more: Any) -> Alternative:
        found = estimate(stages, self._workload, self._weights)
        agreement, recall = None, None
        if self._truth:
            agreement, recall = quality(stages, self._truth, self._workload.candidates)
        found = replace(found, agreement=agreement, recall=recall)
        basis = "measured" if self._pilot is not None else "no pilot"
        bases = [stage.pace.basis for stage in stages]
        for other in ("data sheet", "limits"):
            basis = other if other in bases else basis
        return Alternative(name, tuple(stages), more.pop("basis", basis), found, **more)

    def _subsets(self) -> Iterator[Alternative]:
        count = len(self._base)
        sizes = range(1, count) if count <= MOST_SUBSETS else (1, count - 1)
        for size in reversed(sizes):
            for kept in combinations(range(count), size):
                stages, cut = [self._base[i] for i in kept], None
                end = stages[-1]
                if kept[-1] != count - 1 and end.scores is not None:
                    cut = best_cut(end.scores, self._truth)
                    stages[-1] = replace(end, policy=cut)
                drops = tuple(s.name for i, s in enumerate(self._base) if i not in kept)
                words = " + ".join(stage.name for stage in stages)
                name = f"{words} alone, on all" if size == 1 else words
                yield self._made(name, stages, drops=drops, cut=cut)

    def _questions(self) -> Iterator[Alternative]:
        """One position read against an answer written."""
        for i, tier in enumerate(self._definition.tiers):
            if not isinstance(tier, ModelTierSection):
                continue
            base, writes = self._base[i], isinstance(tier.ask, JsonAsk)
            tokens = {}
            for scene in SCENES:
                was = base.tokens[scene]
                most = np.full_like(was.completion, 1 if writes else tier.max_tokens)
                tokens[scene] = was._replace(completion=most)
            # Whoever never wrote was never timed at it.
            pace = base.pace
            if not writes and base.local and not any(pace.written.values()):
                pace = replace(pace, written=dict.fromkeys(SCENES, float("nan")))
            stage = replace(base, tokens=tokens, pace=pace, scores=None, todo=1.0)
            how = "one position" if writes else f"{tier.max_tokens} tokens written"
            asks = {tier.name: "yes_no" if writes else "json"}
            yield self._made(f"{tier.name}: {how}", self._with(i, stage), asks=asks)

    def _prefix(self) -> Iterator[Alternative]:
        """The shared part of the prompt read each time, where a cache holds it now."""
        if not any((stage.tokens["high"].cached > 0).any() for stage in self._base):
            return
        stages = []
        for stage in self._base:
            tokens = {
                scene: Tokens(was.prompt, 0 * was.cached, was.completion)
                for scene, was in stage.tokens.items()
            }
            stages.append(replace(stage, tokens=tokens))
        yield self._made("without prefix reuse", stages)

    def _gpus(self) -> Iterator[Alternative]:
        """The local tiers on other machines, by their data sheets."""
        if not any(stage.local for stage in self._base):
            return
        for name, row in hardware()["gpus"].items():
            for count in row["counts"]:
                hour = row.get("usd_per_hour")
                rent = None if hour is None else Price(0, 0, 0, hour * count, "hardware.yaml")
                stages = [
                    replace(
                        stage, pace=gpu_pace(name, count, stage.model), price=rent or stage.price
                    )
                    if stage.local
                    else stage
                    for stage in self._base
                ]
                rented = ", rented" if hour is not None else ""
                words = f"{count} x {name}{rented}"
                fits = self._unfit(row)
                yield self._made(words, stages, basis="data sheet", infeasible=fits)

    def _unfit(self, row: Mapping[str, Any]) -> str | None:
        """Which model does not fit the memory of a GPU, by its weights alone."""
        for stage in self._base:
            size = weights_gb(stage.model) if stage.local else None
            if size is not None and size > row["memory_gb"]:
                return f"{stage.model}: {size:,.0f} GB of weights in {row['memory_gb']} GB"
        return None

    def _clouds(self) -> Iterator[Alternative]:
        """Each provider alone on all, and after our own cheap tiers."""
        last = self._definition.tiers[-1]
        local = [i for i, tier in enumerate(self._definition.tiers) if isinstance(tier, EngineTier)]
        for row in hardware()["clouds"]:
            for batch in (False, True) if row.get("batch") else (False,):
                name = f"{row['profile']} {row['model'].rpartition('/')[2]}"
                name += ", batch" if batch else f", {row['plan']}" if "plan" in row else ""
                tier = cloud_tier(row, last, "cloud", batch=batch)
                stage = self._abroad(tier)
                names = [each.name for each in self._definition.tiers]
                yield self._made(name, [stage], basis="limits", drops=tuple(names))
                kept = [i for i in local if i < len(self._base) - 1]
                if kept:
                    stages = [self._base[i] for i in kept]
                    words = " + ".join(each.name for each in stages)
                    drops = tuple(each for i, each in enumerate(names) if i not in kept)
                    stages.append(stage)
                    yield self._made(f"{words} + {name}", stages, basis="limits", drops=drops)

    def _abroad(self, tier: AnyTier) -> Stage:
        """A provider's model: the prompt of the last tier, none of it cached; never measured."""
        last = self._base[-1]
        tokens = {
            scene: Tokens(was.prompt, 0 * was.cached, was.completion)
            for scene, was in last.tokens.items()
        }
        made = stage_of(tier, Policy(accept_above=0.5), None)
        pace = Pace(
            dict.fromkeys(SCENES, 0.0),
            requests_per_minute=made.pace.requests_per_minute,
            batches=made.pace.batches,
            basis="limits",
        )
        return replace(made, tokens=tokens, pace=pace)

    def _with(self, position: int, stage: Stage) -> list[Stage]:
        stages = list(self._base)
        stages[position] = stage
        return stages
