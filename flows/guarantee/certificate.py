"""What a calibration came to: the certificate as JSON, in words, and made anew to check it."""

import hashlib
import json
import math
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np

from db.store import Change
from flows.guarantee.state import Calibration
from tiers.calibration import Kind, RecallEvidence, Result, Status, Thresholds, bound_of_moved


def certificate_of(calibration: Calibration, result: Result, author: str) -> dict[str, Any]:
    """All that somebody needs to check the promise without us."""
    section, keys = calibration.section, calibration.keys
    tiers = calibration.definition.tiers
    return {
        "run": calibration.run.key,
        "screen": calibration.run.screen,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "author": author,
        "status": str(result.status),
        "kind": section.kind,
        "target": section.target,
        "confidence": section.confidence,
        "against": section.against,
        "reviewer": calibration.reviewer,
        "judges": calibration.judges,
        "seed": section.seed,
        "budget": section.labels,
        "costs": section.costs,
        "candidates": len(keys),
        "unscored": int(np.isnan(calibration.scores).any(axis=1).sum()),
        "thresholds": [
            {"tier": tier.name, **asdict(one)}
            for tier, one in zip(tiers, result.thresholds, strict=False)
        ],
        "last_tier": {"tier": tiers[-1].name, **last_tier(calibration)._asdict()},
        "certified_bound": result.certified_bound,
        "threshold_bound": result.threshold_bound,
        "labels_used": result.labels_used,
        "positives_found": result.positives_found,
        "unlabelled": [keys[row] for row in result.unlabelled],
        "left_to_last_tier": int(result.promoted.sum()),
        "evidence": {} if result.evidence is None else asdict(result.evidence),
        "drawn_positives": [keys[row] for row in result.drawn_positives],
        "candidates_digest": calibration.store.policies.candidates_digest(calibration.run.id),
        "labels_digest": _digest(calibration),
        "message": message(calibration, result),
    }


def digest_of(certificate: dict[str, Any]) -> str:
    """SHA-256 of what a certificate promises and why, however often and by whom it is made."""
    passing = {"made", "message", "author", "approval"}
    said = {name: value for name, value in certificate.items() if name not in passing}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


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


def markdown(certificate: dict[str, Any]) -> str:
    """The certificate as a page for people."""
    facts = [
        ("run", certificate["run"]),
        ("made", f"{certificate['made']} by {certificate['author']}"),
        ("promise", f"{certificate['kind']} >= {certificate['target']:g}"),
        ("confidence", f"{certificate['confidence']:g}"),
        ("against", f"{certificate['against']} ({certificate['reviewer']})"),
        ("candidates", f"{certificate['candidates']:,}"),
        ("of them without a score at some tier", f"{certificate['unscored']:,}"),
        ("labels", f"{certificate['labels_used']:,} of {certificate['budget']:,} allowed"),
        ("positives among them", f"{certificate['positives_found']:,}"),
        ("without a label, all promoted", f"{len(certificate['unlabelled']):,}"),
        ("certified bound", f"{certificate['certified_bound']:.4f}"),
        ("bound of the thresholds alone", f"{certificate['threshold_bound']:.4f}"),
        ("left to the last tier", f"{certificate['left_to_last_tier']:,}"),
        ("seed of the draw", certificate["seed"]),
        *((name, f"{value:g}") for name, value in sorted(certificate["evidence"].items())),
        ("SHA-256 of the candidates", certificate.get("candidates_digest", "not told")),
        ("SHA-256 of the labels", certificate["labels_digest"]),
    ]
    if approval := certificate.get("approval"):
        because = f": {approval['reason']}" if approval["reason"] else ""
        facts.insert(2, ("approved by", f"{approval['by'] or 'a person'}{because}"))
    last = certificate.get("last_tier")
    thresholds = [
        f"| {one['tier']} | {_cell(one['reject_below'])} | {_cell(one['accept_above'])} |"
        for one in [*certificate["thresholds"], *([last] if last else [])]
    ]
    return "\n".join(
        [
            f"# Certificate of run {certificate['run']}",
            "",
            certificate["message"],
            "",
            "| tier | reject below | accept above |",
            "|---|---:|---:|",
            *thresholds,
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in facts),
            "",
            "What the words mean, and how to check the numbers by hand: docs/guarantees.md. To "
            f"have them computed anew from stored scores and labels: tamis certificate "
            f"{certificate['run']} --check",
        ]
    )


def differences(calibration: Calibration, certificate: dict[str, Any]) -> list[str]:
    """What comes out otherwise when the certificate is made anew from what is stored."""
    missing = calibration.missing()
    if missing:
        return [
            f"{len(missing):,} labels that the draw asks for are not stored: candidates came in "
            "or labels were changed since"
        ]
    anew = certificate_of(calibration, calibration.result(), certificate["author"])
    passing = {"made", "message", "run"}
    return [
        f"{name}: {certificate[name]!r} in the certificate, {value!r} now"
        for name, value in anew.items()
        if name in certificate  # one of an earlier version tells less
        and name not in passing
        and _plain(certificate[name]) != _plain(value)
    ]


def bound_of(
    certificate: dict[str, Any], scores: np.ndarray[Any, Any], thresholds: list[Thresholds]
) -> float | None:
    """Certified recall of other thresholds; None where the certificate cannot tell.

    Args:
        certificate: of a calibration.
        scores: (x, tiers) of its drawn positives.
        thresholds: one a tier below the last.
    """
    if certificate["kind"] != "recall" or certificate["status"] != Status.CERTIFIED:
        return None
    return bound_of_moved(
        scores,
        thresholds,
        certified=[
            Thresholds(one["reject_below"], one["accept_above"])
            for one in certificate["thresholds"]
        ],
        bound=certificate["certified_bound"],
        evidence=RecallEvidence(**certificate["evidence"]),
    )


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


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"
