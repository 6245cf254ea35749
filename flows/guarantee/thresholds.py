"""Thresholds moved by hand: what that would do, and doing it."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from db.store import Change, Run, Spent, Step, Store, StoreError, Version, what_if
from flows.guarantee.certificate import Certificate, bound_of, certificate_in_use
from flows.guarantee.state import not_covered
from tiers.calibration import Thresholds


def change_of(
    store: Store, run: Run, tier: str, reject_below: float | None, accept_above: float | None
) -> tuple[int, Change]:
    """A tier's position and its thresholds with those that are given.

    Raises:
        StoreError: there is no such tier, nothing is given, or the two do not fit.
    """
    current = _in_use(store, run)
    names = [version.tier for version in current]
    if tier not in names:
        raise StoreError(f"run '{run.key}' has no tier '{tier}'; write one of: {', '.join(names)}")
    if reject_below is accept_above is None:
        raise StoreError("no threshold is given; write --reject-below 0.2 or --accept-above 0.9")
    version = current[names.index(tier)]
    low, high = version.thresholds
    low = low if reject_below is None else reject_below
    high = high if accept_above is None else accept_above
    if low is not None and high is not None and low > high:
        raise StoreError(
            f"reject_below {low:g} lies above accept_above {high:g}; write both, the lower number "
            "in --reject-below"
        )
    return version.position, Change(low, high)


@dataclass(frozen=True)
class TierConsequences:
    """What other thresholds would do at one tier."""

    tier: str
    before: dict[str, Any]
    """Candidates by what became of them: `db.what_if.Step`."""
    after: dict[str, Any]
    to_judge: int
    more_to_judge: int
    """Than wait there anyway."""
    usd: float | None
    """What judging them would cost; None where nothing is known of that."""


@dataclass(frozen=True)
class RunConsequences:
    """What other thresholds of one tier would do to a run: the JSON of `tamis what-if`."""

    run: str
    tier: str
    reject_below: float | None
    accept_above: float | None
    tiers: list[TierConsequences]
    certified_recall: float | None
    """What the certificate's labels say of the new thresholds; None where it says nothing."""
    not_covered: str | None
    """Why the certificate is about other candidates."""
    flips: dict[str, int]
    """Verdicts that change, counted by kind."""
    candidates: list[dict[str, Any]]
    """Those that change: `db.what_if.Flip`."""


def consequences(store: Store, run: Run, position: int, change: Change) -> RunConsequences:
    """What other thresholds would do to a run, from stored scores."""
    found = what_if(store.engine, run.id, {position: change})
    tiers = [
        _at_tier(before, after, paid)
        for before, after, paid in zip(
            found.before, found.after, store.tiers.spent(run.id), strict=True
        )
    ]
    certificate = certificate_in_use(store, run)
    return RunConsequences(
        run=run.key,
        tier=found.before[position].tier,
        reject_below=change.reject_below,
        accept_above=change.accept_above,
        tiers=tiers,
        certified_recall=_bound(store, run, {position: change}),
        not_covered=None if certificate is None else not_covered(store, run, certificate),
        flips=dict(Counter(f"{one.was} -> {one.would_be}" for one in found.flips)),
        candidates=[one._asdict() for one in found.flips],
    )


def _at_tier(before: Step, after: Step, paid: Spent) -> TierConsequences:
    each = None if paid.usd is None or not paid.judged else paid.usd / paid.judged
    return TierConsequences(
        before.tier,
        before._asdict(),
        after._asdict(),
        to_judge=after.pending,
        more_to_judge=max(after.pending - before.pending, 0),
        usd=None if each is None else round(each * after.pending, 6),
    )


def certified_now(store: Store, run: Run) -> float | None:
    """Certified recall of the thresholds in use; None where nothing certifies it."""
    return _bound(store, run, {})


def as_certified(store: Store, run: Run, certificate: Certificate) -> bool:
    """Whether the thresholds in use are those of a certificate, the last tier's included."""
    current = _in_use(store, run)
    certified = {version.tier: version.thresholds for version in current if version.certified}
    return _last_as_certified(current[-1], certificate) and all(
        certified.get(one.tier) == one.values for one in certificate.thresholds
    )


def standing(store: Store, run: Run) -> list[str]:
    """What is to be said of a run's promise: other candidates, or other thresholds."""
    certificate = certificate_in_use(store, run)
    if certificate is None:
        return []
    told = []
    if certificate.run != run.key:
        told.append(
            f"run {run.key} took its thresholds over from run {certificate.run}; the promise is "
            "about that run's candidates"
        )
    if certificate.candidates_digest is None:
        told.append(
            "the certificate is of an earlier version of Tamis and does not tell who was "
            "calibrated, only how many; calibrate again to have that checked"
        )
    if (beyond := not_covered(store, run, certificate)) is not None:
        told.append(beyond)
    if not as_certified(store, run, certificate):
        bound = certified_now(store, run)
        stands = "nothing" if bound is None else f"recall >= {bound:.4f}"
        told.append(
            "thresholds were changed since they were certified; by the same labels those in use "
            f"are certified for {stands}"
        )
    return told


def _bound(store: Store, run: Run, changes: dict[int, Change]) -> float | None:
    certificate = certificate_in_use(store, run)
    if certificate is None or certificate.run != run.key:
        return None
    if not_covered(store, run, certificate) is not None:
        return None
    current = _in_use(store, run)
    below = current[:-1]
    if not _last_as_certified(current[-1], certificate):
        return None
    if any(version.policy.top is not None for version in below):
        return None
    if len(below) in changes or (below and not all(version.labels_from for version in below)):
        return None  # the last tier's own bar, or labels that count nowhere: another promise
    thresholds = [
        Thresholds(*changes.get(version.position, version.thresholds)) for version in below
    ]
    drawn = store.labels.scored(run.id, len(below), certificate.drawn_positives)
    scores = np.array([one.scores for one in drawn], np.float64).reshape(len(drawn), len(below))
    return bound_of(certificate, scores, thresholds)


def _last_as_certified(version: Version, certificate: Certificate) -> bool:
    """Whether the last tier decides as it did when the certificate was made."""
    last = certificate.last_tier
    if last is None or version.policy.top is not None:
        return version.certified
    return version.thresholds == last.values


def _in_use(store: Store, run: Run) -> list[Version]:
    return [version for version in store.policies.versions(run.id) if version.in_use]
