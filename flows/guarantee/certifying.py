"""A certificate from a calibration that has all its labels; and made anew, to check one."""

import hashlib
import math
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np

from db.store import Change
from flows.guarantee.certificate import Certificate, TierThresholds
from flows.guarantee.state import Calibration
from tiers.calibration import Kind, Result, Status, worth_of_tiers


def certificate_of(calibration: Calibration, result: Result, author: str) -> Certificate:
    """All that somebody needs to check the promise without us."""
    section, keys = calibration.section, calibration.keys
    tiers = calibration.definition.tiers
    low, high = last_tier(calibration)
    return Certificate(
        run=calibration.run.key,
        screen=calibration.run.screen,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        author=author,
        status=str(result.status),
        kind=section.kind,
        target=section.target,
        confidence=section.confidence,
        against=section.against,
        reviewer=calibration.reviewer,
        judges=calibration.judges,
        seed=section.seed,
        budget=section.labels,
        costs=None if section.costs is None else list(section.costs),
        candidates=len(keys),
        unscored=int(np.isnan(calibration.scores).any(axis=1).sum()),
        thresholds=[
            TierThresholds(tier=tier.name, **asdict(one))
            for tier, one in zip(tiers, result.thresholds, strict=False)
        ],
        last_tier=TierThresholds(tier=tiers[-1].name, reject_below=low, accept_above=high),
        certified_bound=result.certified_bound,
        threshold_bound=result.threshold_bound,
        source_bound=result.source_bound,
        labels_used=result.labels_used,
        positives_found=result.positives_found,
        unlabelled=[keys[row] for row in result.unlabelled],
        left_to_last_tier=int(result.promoted.sum()),
        evidence={} if result.evidence is None else asdict(result.evidence),
        drawn_positives=[keys[row] for row in result.drawn_positives],
        candidates_digest=calibration.store.policies.candidates_digest(calibration.run.id),
        labels_digest=_digest(calibration),
        message=message(calibration, result),
        **_classifiers(calibration),
    )


def _classifiers(calibration: Calibration) -> dict[str, Any]:
    """What a certificate says where a classifier takes part, and nothing where none does."""
    if not calibration.versions:
        return {}
    tiers = calibration.definition.tiers
    names = {tiers[position].name: one.version for position, one in calibration.versions}
    return {"trained_on": calibration.excluded, "classifiers": names}


def last_tier(calibration: Calibration) -> Change:
    """The last tier's thresholds. Against people it rejects nothing."""
    policy = calibration.definition.policy(calibration.below)
    low, high = policy.reject_below, policy.accept_above
    if calibration.section.by_people and calibration.section.kind != Kind.RECALL:
        # Nobody has promised anything of the last tier's own answers: a person decides.
        low, high = 0.0, 1.0
    elif calibration.section.by_people:
        if high is None and low is not None:
            high = max(math.nextafter(low, 0.0), 0.0)
        low = 0.0
    return Change(low, high)


def message(calibration: Calibration, result: Result) -> str:
    """The outcome in one sentence, in numbers."""
    section = calibration.section
    promise = f"{section.kind} >= {section.target:g} against {section.against}"
    if result.status is Status.CERTIFIED:
        return (
            f"certified: {promise} with confidence {section.confidence:g}, by "
            f"{result.labels_used:,} labels, {result.positives_found:,} of them positive; the last "
            f"tier is left {int(result.promoted.sum()):,} of {len(calibration.keys):,} candidates"
        )
    if not result.positives_found:
        return (
            f"infeasible: none of {result.labels_used:,} labels is positive, so {promise} cannot "
            "be certified; raise labels, or look whether the rubric asks for what you look for"
        )
    if section.kind != Kind.RECALL:
        return (
            f"infeasible: by {result.labels_used:,} labels no threshold of a cheaper tier keeps "
            f"{promise}; raise labels, lower {section.kind}, or take a better tier"
        )
    share = result.positives_found / max(result.labels_used, 1)
    plan = calibration.plan_at(share)
    best = 0.0 if result.evidence is None else result.evidence.best_bound
    return (
        f"infeasible: {plan.labels_needed or 0:,} labels needed at {100 * share:.2g} % positives, "
        f"budget {section.labels:,}: with these labels the best certificate is {section.kind} >= "
        f"{math.floor(100 * best) / 100:.2f}; raise labels, or lower {section.kind}"
    )


def worth(calibration: Calibration, result: Result) -> list[str]:
    """A line for each cheap tier that earns nothing, with the cost with it and without it."""
    tiers = calibration.definition.tiers
    return [
        f"tier '{tiers[one.tier].name}' earns nothing: with it the cascade costs as much as "
        f"{one.cost:.3f} of the last tier's answers for each candidate, without it about "
        f"{one.without:.3f} (an estimate by the drawn positives, and no part of the promise); "
        "leave it out of the screen, and calibrate again"
        for one in worth_of_tiers(calibration.scores, result)
        if one.earns_nothing
    ]


def differences(calibration: Calibration, certificate: Certificate) -> list[str]:
    """What comes out otherwise when the certificate is made anew from what is stored."""
    missing = calibration.missing()
    if missing:
        return [
            f"{len(missing):,} labels that the draw asks for are not stored: candidates came in "
            "or labels were changed since"
        ]
    anew = certificate_of(calibration, calibration.result(), certificate.author).as_json()
    was = certificate.as_json()  # one of an earlier version has fewer fields
    return [
        f"{name}: {was[name]!r} in the certificate, {anew[name]!r} now"
        for name in anew
        if name in was and name not in ("made", "message", "run") and was[name] != anew[name]
    ]


def _digest(calibration: Calibration) -> str:
    """Of the labels by key; whoever has them can compute it."""
    labels = calibration.labels()
    words = {True: "yes", False: "no", None: "unknown"}
    lines = sorted(
        f"{key}\t{words[labels[int(text_id)]]}\n"
        for key, text_id in zip(calibration.keys, calibration.text_ids, strict=True)
        if int(text_id) in labels
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()
