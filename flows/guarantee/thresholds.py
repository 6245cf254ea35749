"""Thresholds moved by hand: what that would do, and doing it."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from db.store import Change, Run, Store, StoreError, Version
from flows.guarantee.certificate import bound_of
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
    low = version.reject_below if reject_below is None else reject_below
    high = version.accept_above if accept_above is None else accept_above
    if low is not None and high is not None and low > high:
        raise StoreError(
            f"reject_below {low:g} lies above accept_above {high:g}; write both, the lower number "
            "in --reject-below"
        )
    return version.position, Change(low, high)


def consequences(store: Store, run: Run, position: int, change: Change) -> dict[str, Any]:
    """What other thresholds would do to a run, from stored scores."""
    found = store.what_if(run.id, {position: change})
    spent = store.spent(run.id)
    tiers = []
    for before, after, paid in zip(found.before, found.after, spent, strict=True):
        more = max(after.pending - before.pending, 0)
        each = None if paid.usd is None or not paid.judged else paid.usd / paid.judged
        tiers.append(
            {
                "tier": before.tier,
                "before": before._asdict(),
                "after": after._asdict(),
                "to_judge": after.pending,
                "more_to_judge": more,
                "usd": None if each is None else round(each * after.pending, 6),
            }
        )
    certificate = store.policies.certificate(run.id)
    return {
        "run": run.key,
        "tier": found.before[position].tier,
        **change._asdict(),
        "tiers": tiers,
        "certified_recall": _bound(store, run, {position: change}),
        "not_covered": None if certificate is None else not_covered(store, run, certificate),
        "flips": Counter(f"{one.was} -> {one.would_be}" for one in found.flips),
        "candidates": [one._asdict() for one in found.flips],
    }


def certified_now(store: Store, run: Run) -> float | None:
    """Certified recall of the thresholds in use; None where nothing certifies it."""
    return _bound(store, run, {})


def as_certified(store: Store, run: Run, certificate: Mapping[str, Any]) -> bool:
    """Whether the thresholds in use are those of a certificate, the last tier's included."""
    current = _in_use(store, run)
    certified = {
        version.tier: (version.reject_below, version.accept_above)
        for version in current
        if version.certified
    }
    return _last_as_certified(current[-1], certificate) and all(
        certified.get(one["tier"]) == (one["reject_below"], one["accept_above"])
        for one in certificate["thresholds"]
    )


def standing(store: Store, run: Run) -> list[str]:
    """What is to be said of a run's promise: other candidates, or other thresholds."""
    certificate = store.policies.certificate(run.id)
    if certificate is None:
        return []
    told = []
    if certificate["run"] != run.key:
        told.append(
            f"run {run.key} took its thresholds over from run {certificate['run']}; the promise is "
            "about that run's candidates"
        )
    if "candidates_digest" not in certificate:
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
    certificate = store.policies.certificate(run.id)
    if certificate is None or certificate["run"] != run.key:
        return None
    if not_covered(store, run, certificate) is not None:
        return None
    current = _in_use(store, run)
    below = current[:-1]
    if not _last_as_certified(current[-1], certificate):
        return None
    if any(version.top_count or version.top_share for version in below):
        return None
    if len(below) in changes or (below and not all(version.follows for version in below)):
        return None  # the last tier's own bar, or labels that nobody follows: another promise
    thresholds = [
        Thresholds(*changes.get(version.position, (version.reject_below, version.accept_above)))
        for version in below
    ]
    drawn = store.labels.scored(run.id, len(below), certificate["drawn_positives"])
    scores = np.array([one.scores for one in drawn], np.float64).reshape(len(drawn), len(below))
    return bound_of(certificate, scores, thresholds)


def _last_as_certified(version: Version, certificate: Mapping[str, Any]) -> bool:
    """Whether the last tier decides as it did when the certificate was made."""
    last = certificate.get("last_tier")
    if last is None or version.top_count or version.top_share:
        return version.certified
    return (version.reject_below, version.accept_above) == (
        last["reject_below"],
        last["accept_above"],
    )


def _in_use(store: Store, run: Run) -> list[Version]:
    return [version for version in store.policies.versions(run.id) if version.in_use]
