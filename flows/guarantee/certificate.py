"""A certificate: what a run's thresholds promise, and all that somebody needs to check it."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from db.store import Run, Store
from tiers.calibration import RecallEvidence, Status, Thresholds, bound_of_moved
from tiers.screenfile.limits import GuaranteeSection


class Promise(NamedTuple):
    """What is promised; two certificates promise the same where all four are equal."""

    kind: str
    target: float
    confidence: float
    against: str

    def __str__(self) -> str:
        return (
            f"{self.kind} >= {self.target:g} with confidence {self.confidence:g} "
            f"against {self.against}"
        )


def promise_of(section: GuaranteeSection) -> Promise:
    """What a screen promises."""
    return Promise(section.kind, section.target, section.confidence, section.against)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class TierThresholds(_Part):
    """The thresholds of one tier, with its name."""

    tier: str
    reject_below: float | None
    accept_above: float | None

    @property
    def values(self) -> tuple[float | None, float | None]:
        """`reject_below` and `accept_above`."""
        return self.reject_below, self.accept_above


class Approved(_Part):
    """Who has approved of the thresholds, and why."""

    approved: bool
    by: str | None
    reason: str


class Certificate(_Part):
    """What a calibration came to. docs/guarantees.md says what each field means.

    Stored as JSON and read again years later: a field that came with a later version is None in a
    certificate of before.
    """

    run: str
    screen: str
    made: str
    """Date and time in UTC, ISO 8601."""
    author: str
    status: str
    """A value of `tiers.calibration.Status`."""
    kind: str
    target: float
    confidence: float
    against: str
    reviewer: str
    judges: list[int | None]
    """Who judges at each tier: ids of table `judge`."""
    seed: int
    budget: int
    """How many candidates might have been labelled."""
    costs: list[int | float] | None
    candidates: int
    unscored: int
    thresholds: list[TierThresholds]
    """One a tier below the last."""
    last_tier: TierThresholds | None = None
    certified_bound: float
    threshold_bound: float
    source_bound: float | None = None
    labels_used: int
    positives_found: int
    unlabelled: list[str]
    """Keys of the candidates whose labels were asked for and not given."""
    left_to_last_tier: int
    evidence: dict[str, Any]
    """`tiers.calibration.RecallEvidence` by name; empty under another promise."""
    drawn_positives: list[str]
    trained_on: int | None = None
    """Candidates whose labels trained a classifier: the promise is about the others."""
    classifiers: dict[str, str] | None = None
    """The version of each classifier, by the tier's name."""
    candidates_digest: str | None = None
    labels_digest: str
    message: str
    approval: Approved | None = None

    @property
    def promise(self) -> Promise:
        """What it says word by word."""
        return Promise(self.kind, self.target, self.confidence, self.against)

    def as_json(self) -> dict[str, Any]:
        """As it is stored: without the fields that it never had."""
        return self.model_dump(exclude_unset=True)

    def digest(self) -> str:
        """SHA-256 of what is promised and why, however often and by whom it is made."""
        said = self.model_dump(
            exclude_unset=True, exclude={"made", "message", "author", "approval"}
        )
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def certificate_in_use(store: Store, run: Run) -> Certificate | None:
    """The newest certificate in use in a run, or made for it; None where there is none."""
    stored = store.policies.certificate(run.id)
    return None if stored is None else Certificate.model_validate(stored)


def markdown(certificate: Certificate) -> str:
    """The certificate as a page for people."""
    facts = [
        ("run", certificate.run),
        ("made", f"{certificate.made} by {certificate.author}"),
        ("promise", f"{certificate.kind} >= {certificate.target:g}"),
        ("confidence", f"{certificate.confidence:g}"),
        ("against", f"{certificate.against} ({certificate.reviewer})"),
        ("candidates", f"{certificate.candidates:,}"),
        ("of them without a score at some tier", f"{certificate.unscored:,}"),
        ("labels", f"{certificate.labels_used:,} of {certificate.budget:,} allowed"),
        ("positives among them", f"{certificate.positives_found:,}"),
        ("without a label, all promoted", f"{len(certificate.unlabelled):,}"),
        ("certified bound", f"{certificate.certified_bound:.4f}"),
        ("bound of the thresholds alone", f"{certificate.threshold_bound:.4f}"),
        *(
            [("bound for new candidates of the source", f"{certificate.source_bound:.4f}")]
            if certificate.source_bound is not None
            else []
        ),
        *(
            [("candidates that a classifier was trained on", f"{certificate.trained_on:,}")]
            if certificate.trained_on is not None
            else []
        ),
        ("left to the last tier", f"{certificate.left_to_last_tier:,}"),
        ("seed of the draw", certificate.seed),
        *((name, f"{value:g}") for name, value in sorted(certificate.evidence.items())),
        ("SHA-256 of the candidates", certificate.candidates_digest or "not told"),
        ("SHA-256 of the labels", certificate.labels_digest),
    ]
    if approval := certificate.approval:
        because = f": {approval.reason}" if approval.reason else ""
        facts.insert(2, ("approved by", f"{approval.by or 'a person'}{because}"))
    last = certificate.last_tier
    thresholds = [
        f"| {one.tier} | {_cell(one.reject_below)} | {_cell(one.accept_above)} |"
        for one in [*certificate.thresholds, *([last] if last else [])]
    ]
    return "\n".join(
        [
            f"# Certificate of run {certificate.run}",
            "",
            certificate.message,
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
            f"{certificate.run} --check",
        ]
    )


def bound_of(
    certificate: Certificate, scores: np.ndarray[Any, Any], thresholds: Sequence[Thresholds]
) -> float | None:
    """Certified recall of other thresholds; None where the certificate cannot tell.

    Args:
        certificate: of a calibration.
        scores: (x, tiers) of its drawn positives.
        thresholds: one a tier below the last.
    """
    if certificate.kind != "recall" or certificate.status != Status.CERTIFIED:
        return None
    return bound_of_moved(
        scores,
        list(thresholds),
        certified=[Thresholds(*one.values) for one in certificate.thresholds],
        bound=certificate.certified_bound,
        evidence=RecallEvidence(**certificate.evidence),
    )


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"
