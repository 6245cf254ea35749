"""The classifiers of a screen: their weights taken from the database, their cost foreseen."""

from typing import Any, NamedTuple

import numpy as np

from db.store import Classifier, ClassifierState, Store, StoreError, opened_store
from tiers.calibration import expected_cost
from tiers.screenfile.file import Screen
from tiers.screenfile.tiers import AnyTier, ClassifierTier
from tiers.types import TierError

NEARLY_FREE = 0.001
"""What a classifier costs a candidate, where the tier after it costs 1."""
MISS = 0.6
"""Of the positives that a promise may lose, the share that a calibration is expected to lose."""


def classifiers_of(definition: Screen) -> list[tuple[int, ClassifierTier]]:
    """The classifiers of a screen, with their positions."""
    return [
        (position, tier)
        for position, tier in enumerate(definition.tiers)
        if isinstance(tier, ClassifierTier)
    ]


def fitted(
    definition: Screen, url: str, *, key: str | None = None, on_trial: bool = False
) -> Screen:
    """The screen with its classifiers' weights, and without those of which none was admitted.

    Args:
        definition: the screen; one whose classifiers have their weights is returned as it is.
        url: the database.
        key: of the run that will be worked on: one that is there keeps its versions.
        on_trial: a version that nothing is certified of will do, too.

    Raises:
        TierError: a classifier was never trained, or without it the promise has no meaning.
        StoreError: the version that the screen names is gone.
    """
    if all(tier.body is not None for _, tier in classifiers_of(definition)):
        return definition
    with opened_store(url) as store:
        pinned = _pinned(store, definition, key)
        tiers = [_fitted(store, definition, tier, pinned, on_trial) for tier in definition.tiers]
    left = tuple(tier for tier in tiers if tier is not None)
    guarantee = definition.guarantee
    if len(left) == 1 and guarantee is not None:
        if guarantee.by_people:
            raise TierError(
                f"screen '{definition.screen}': no version of its classifier was admitted, and the "
                "other tier alone promises nothing against people; label more, and tamis distil"
            )
        guarantee = None  # the only tier is asked about everybody: nothing can be lost
    elif guarantee is not None and guarantee.costs is not None:
        costs = zip(guarantee.costs, tiers, strict=True)
        kept = tuple(cost for cost, tier in costs if tier is not None)
        guarantee = guarantee.model_copy(update={"costs": kept})
    return definition.model_copy(update={"tiers": left, "guarantee": guarantee})


def left_out(asked: Screen, definition: Screen) -> list[str]:
    """A line for each classifier that does not take part."""
    there = {tier.name for tier in definition.tiers}
    return [
        f"tier '{tier.name}' is left out: no version of it was admitted; see tamis distil --history"
        for _, tier in classifiers_of(asked)
        if tier.name not in there
    ]


def versions_of(store: Store, definition: Screen) -> list[tuple[int, Classifier]]:
    """The versions that a screen's classifiers have, with their positions.

    Raises:
        StoreError: one is gone.
    """
    return [
        (position, _version(store, definition, tier, tier.version))
        for position, tier in classifiers_of(definition)
        if tier.version is not None
    ]


def settle(store: Store, definition: Screen, state: ClassifierState, reason: str) -> None:
    """Admit or refuse those versions of a screen that are on trial."""
    for _, version in versions_of(store, definition):
        store.classifiers.settle(version.id, state, reason)


def costs_of(definition: Screen) -> tuple[float, ...] | None:
    """What `tiers.calibration` takes for costs: a classifier is nearly free."""
    section = definition.guarantee
    if section is None or section.costs is not None or not classifiers_of(definition):
        return None if section is None else section.costs
    cheap = {position for position, _ in classifiers_of(definition)}
    return tuple(
        NEARLY_FREE if position in cheap else 4.0**position
        for position in range(len(definition.tiers))
    )


class Foreseen(NamedTuple):
    """What a cascade is expected to cost, in answers of the last tier for each candidate."""

    with_it: float
    without: float
    chance: float
    """The share that a tier without any knowledge may seem to save."""

    @property
    def pays(self) -> bool:
        """Whether the cascade is cheaper with its classifiers, by more than chance."""
        return self.with_it < (1 - self.chance) * self.without

    def __str__(self) -> str:
        less = 1 - self.with_it / self.without
        how = f"{abs(less):.0%} {'less' if less > 0 else 'more'}"
        if 0 < less <= self.chance:
            how += f", and chance alone may seem to save {self.chance:.0%}"
        return (
            f"with it a candidate is expected to cost {self.with_it:.3f} answers of the last tier, "
            f"without it {self.without:.3f}: {how}"
        )


def foreseen(
    definition: Screen, scores: np.ndarray[Any, Any], taught: np.ndarray[Any, Any], labels: int
) -> Foreseen:
    """The cost with and without the classifiers, by training labels alone.

    No label that certifies is looked at, so that the choice leaves the promise as it is.

    Args:
        definition: the screen.
        scores: (n, tiers below the last) of the candidates of the promise.
        taught: (m, tiers below the last) of the training positives, at a classifier by a model
            that did not see their labels.
        labels: how many will be drawn to certify.
    """
    section, costs = definition.guarantee, costs_of(definition)
    if section is None or costs is None:
        raise ValueError(f"screen '{definition.screen}' has no classifier, or promises nothing")
    miss = MISS * (1 - section.target)
    cheap = {position for position, _ in classifiers_of(definition)}
    rest = [position for position in range(scores.shape[1]) if position not in cheap]
    without = [costs[position] for position in (*rest, -1)]
    return Foreseen(
        expected_cost(scores, taught, costs, miss, labels),
        expected_cost(scores[:, rest], taught[:, rest], tuple(without), miss, labels),
        2 * miss,
    )


def _pinned(store: Store, definition: Screen, key: str | None) -> dict[str, str | None] | None:
    """The versions of the run of this key; None where there is no such run yet."""
    found = next((one.run for one in store.runs.newest(1000) if one.run.key == key), None)
    if key is None or found is None or found.screen != definition.screen:
        return None
    return {tier["name"]: tier.get("version") for tier in found.config["tiers"]}


def _fitted(
    store: Store,
    definition: Screen,
    tier: AnyTier,
    pinned: dict[str, str | None] | None,
    on_trial: bool,
) -> AnyTier | None:
    if not isinstance(tier, ClassifierTier):
        return tier
    if pinned is not None and tier.name not in pinned:
        return None
    name = tier.version or (pinned or {}).get(tier.name)
    if name is not None:
        found = _version(store, definition, tier, name)
        return tier.fitted(found.version, found.body)
    states = [ClassifierState.ADMITTED] + [ClassifierState.TRIAL] * on_trial
    newest = store.classifiers.find(definition.screen, tier.name, states)
    if newest is not None:
        return tier.fitted(newest.version, newest.body)
    if store.classifiers.find(definition.screen, tier.name) is None:
        raise TierError(
            f"tier '{tier.name}' is a classifier that was never trained; run tamis distil with the "
            "screen file, or leave the tier out"
        )
    return None


def _version(store: Store, definition: Screen, tier: ClassifierTier, version: str) -> Classifier:
    found = store.classifiers.find(definition.screen, tier.name, version=version)
    if found is None:
        raise StoreError(
            f"tier '{tier.name}': version {version} of it is not in this database; leave version "
            "out of the screen to have the newest, or train one: tamis distil"
        )
    return found
