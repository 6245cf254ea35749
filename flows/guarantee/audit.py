"""What audits say: the recall of a run, and whether the promise still holds over runs."""

import math
from dataclasses import dataclass

from db.store import Audited, Run, Store
from tiers.calibration import Audit, audit_interval, drift
from tiers.screenfile.limits import GuaranteeSection

PROOF = 1e300
"""Stands for endless evidence, which JSON has no word for."""


@dataclass(frozen=True)
class TierAudit:
    """What an audit found among one tier's rejects."""

    tier: str
    rejects: int
    audited: int
    found: int


@dataclass(frozen=True)
class RunAudit:
    """What an audit found in one run."""

    share: float
    """Of the rejects that the last tier is asked about all the same."""
    confidence: float
    target: float
    kept: int
    rejects: int
    audited: int
    found: int
    waiting: int
    recall: tuple[float, float] | None
    """Lowest and highest at the promise's confidence; None until all have answered."""
    runs: int
    """By the same certificate, this one included."""
    evidence: float | None
    """Against the promise; None where thresholds are not certified, or until all have answered."""
    alarm_at: float
    alarm: bool
    tiers: list[TierAudit]


@dataclass(frozen=True)
class PromiseAudit:
    """One of the audits of a promise, run by run."""

    run: str
    rejects: int
    audited: int
    found: int
    recall: tuple[float, float]
    evidence: float
    """Against the promise by this run and those before it."""


def audit_of(store: Store, run: Run) -> RunAudit | None:
    """What the run's audit found; None where its screen has none, or the run has nobody."""
    section = _audited(run)
    if section is None:
        return None
    mine = store.audits.counts([run.id])[run.id]
    if not mine:
        return None
    names = [tier["name"] for tier in run.config["tiers"]]
    series = audits_of_promise(store, run)
    audit = _whole(mine)
    return RunAudit(
        share=float(section.audit or 0.0),
        confidence=section.confidence,
        target=section.target,
        kept=sum(row.kept for row in mine),
        rejects=sum(row.rejects for row in mine),
        audited=sum(row.audited for row in mine),
        found=sum(row.found for row in mine),
        waiting=sum(row.waiting for row in mine),
        recall=None if audit is None else audit_interval(audit, section.delta),
        runs=len(series),
        evidence=series[-1].evidence if series and audit is not None else None,
        alarm_at=1 / section.delta,
        alarm=any(one.evidence >= 1 / section.delta for one in series),
        tiers=[
            TierAudit(names[row.position], row.rejects, row.audited, row.found)
            for row in mine
            if row.position < len(names) - 1
        ],
    )


def audits_of_promise(store: Store, run: Run) -> list[PromiseAudit]:
    """The audits of this run and of those before it by the same certificate, oldest first."""
    section = _audited(run)
    if section is None:
        return []
    known = store.audits.same_promise(run.id)
    counts = store.audits.counts([run_id for run_id, _ in known])
    # Whether anybody is drawn does not depend on what the run lost.
    whole = [
        (key, audit)
        for run_id, key in known
        if (audit := _whole(counts[run_id])) is not None and audit.audited
    ]
    reached = drift([audit for _, audit in whole], section.target)
    return [
        PromiseAudit(
            key,
            audit.rejects,
            audit.audited,
            audit.lost_positives,
            audit_interval(audit, section.delta),
            min(float(evidence), PROOF),
        )
        for (key, audit), evidence in zip(whole, reached, strict=True)
    ]


def alarm_of(store: Store, run: Run) -> str | None:
    """Why the promise is in doubt and what to do; None while it is not."""
    found = audit_of(store, run)
    if found is None or not found.alarm:
        return None
    evidence = max(one.evidence for one in audits_of_promise(store, run))
    return (
        f"recall >= {found.target:g} is in doubt: the audits of {found.runs:,} runs weigh "
        f"{_weight(evidence)} against it, and {found.alarm_at:g} is the alarm; either "
        "candidates are no longer like those that were calibrated on, or the calibration was one "
        f"of those that miss its target without any change (up to {1 / found.alarm_at:.2g} of "
        "them do): calibrate again: tamis calibrate FILE"
    )


def alarm_page(store: Store, run: Run, alarm: str) -> str:
    """The alarm in markdown, with the audits that it rests on."""
    return "\n".join(
        [f"# Alarm: run {run.key}", "", alarm, "", *series_table(audits_of_promise(store, run))]
    )


def in_words(found: RunAudit) -> str:
    """An audit in one sentence."""
    if found.recall is None:
        return f"audit: {found.waiting:,} answers are awaited"
    if not found.rejects:
        return "audit: nobody was rejected, so nobody was asked about"
    asked = (
        f"audit: {found.audited:,} of {found.rejects:,} rejects were asked about all the "
        f"same, {found.found:,} found"
    )
    low, high = found.recall
    return f"{asked}; recall {low:.4f} to {high:.4f} with confidence {found.confidence:g}"


def table_of(found: RunAudit) -> list[str]:
    """An audit tier by tier, in markdown."""
    return [
        "| tier | rejects | audited | found |",
        "|---|---:|---:|---:|",
        *(
            f"| {one.tier} | {one.rejects:,} | {one.audited:,} | {one.found:,} |"
            for one in found.tiers
        ),
    ]


def series_table(series: list[PromiseAudit]) -> list[str]:
    """The audits of one promise, in markdown."""
    return [
        "| run | rejects | audited | found | recall | evidence against the promise |",
        "|---|---:|---:|---:|---|---:|",
        *(
            f"| {one.run} | {one.rejects:,} | {one.audited:,} | {one.found:,} | "
            f"{one.recall[0]:.4f} to {one.recall[1]:.4f} | {_weight(one.evidence)} |"
            for one in series
        ),
    ]


def _audited(run: Run) -> GuaranteeSection | None:
    if not run.config.get("guarantee"):
        return None
    section = GuaranteeSection.model_validate(run.config["guarantee"])
    return section if section.audit is not None else None


def _whole(rows: list[Audited]) -> Audit | None:
    """All tiers together; None while somebody has no outcome."""
    if any(row.waiting for row in rows):
        return None
    return Audit(
        kept_positives=sum(row.kept for row in rows),
        rejects=sum(row.rejects for row in rows),
        audited=sum(row.audited for row in rows),
        lost_positives=sum(row.found for row in rows),
    )


def _weight(evidence: float) -> str:
    return "proof" if evidence >= PROOF or math.isinf(evidence) else f"{evidence:.3g}"
