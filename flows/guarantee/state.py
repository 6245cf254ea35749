"""A calibration as it stands: the stored scores and labels of a run, and what is still wanted."""

from collections.abc import Mapping

import numpy as np

from db.store import PEOPLE, Label, LabelSource, Run, Store, StoreError, rubric_digest
from flows.guarantee.certificate import Certificate, certificate_in_use, promise_of
from flows.guarantee.classifiers import Foreseen, costs_of, foreseen, versions_of
from tiers.calibration import Calibrator, Plan, Result, plan_calibration
from tiers.policy import outcomes
from tiers.screenfile.file import Screen
from tiers.screenfile.limits import GuaranteeSection
from tiers.types import Outcome, TierError

TRUSTED = 20
"""Stored labels that say more about the prevalence than a guess."""


class NotYet(Exception):
    """The calibration waits for something; the message says for what, and what to do."""


def guarantee_of(definition: Screen) -> GuaranteeSection:
    """What the screen promises.

    Raises:
        StoreError: it promises nothing.
    """
    if definition.guarantee is None:
        last = definition.tiers[-1].name
        raise StoreError(
            f"screen '{definition.screen}' promises nothing; write guarantee: {{recall: 0.95, "
            f"confidence: 0.9, against: {last}, labels: 1000}}, or against: people"
        )
    return definition.guarantee


class Calibration:
    """The candidates of a run, their scores below the last tier, and the labels told so far.

    Nothing of it is stored: the same scores, labels and seed lead to the same place.
    """

    def __init__(self, store: Store, run: Run, definition: Screen) -> None:
        self.store, self.run, self.definition = store, run, definition
        self.section = guarantee_of(definition)
        self.below = len(definition.tiers) - 1
        self.judges = store.tiers.judges(run.id)
        everybody = store.labels.scored(run.id, self.below)
        self.versions = versions_of(store, definition)
        self._taught = {at: store.classifiers.texts(one.id) for at, one in self.versions}
        self.trained = {text_id for taught in self._taught.values() for text_id in taught}
        """Texts whose labels a classifier was trained on: no sample of this promise has them."""
        self._trained_on = [one for one in everybody if one.text_id in self.trained]
        scored = [one for one in everybody if one.text_id not in self.trained]
        self.keys = [one.key for one in scored]
        self.text_ids = np.array([one.text_id for one in scored], np.int64)
        table = np.array([one.scores for one in scored], np.float64)
        self.scores = table.reshape(len(scored), self.below)
        self.rubric = rubric_digest(definition.rubric)
        self.source = LabelSource.PERSON if self.section.by_people else LabelSource.TIER
        self.reviewer = PEOPLE if self.section.by_people else self._tier_as_reviewer()
        self._calibrator = self._new()

    def missing(self) -> list[int]:
        """Texts whose labels are wanted next, in the order of the draw; empty at the end."""
        return self._walk(self._calibrator, self.labels())

    def disputed(self) -> int:
        """How many texts people disagree about without a majority."""
        return len(disputes(self._people())) if self.section.by_people else 0

    def ahead(self, count: int) -> list[int]:
        """Up to `count` texts in the order of the draw, as if the next were all negative."""
        calibrator, labels = self._new(), self.labels()
        found: dict[int, None] = {}
        while len(found) < count and (texts := self._walk(calibrator, labels)):
            found.update(dict.fromkeys(texts))
            labels |= dict.fromkeys(texts, False)
        return list(found)[:count]

    def labels(self) -> dict[int, bool | None]:
        """The truth by text, as far as it has been told and is not in dispute."""
        if self.section.by_people:
            return truth(self._people())
        told = self.store.labels.all(self.rubric, self.source, self.reviewer)
        return {label.text_id: label.answer for label in told}

    def tell_scores(self, scores: Mapping[int, float | None]) -> None:
        """Keep what the last tier's scores say as its labels."""
        policy = self.definition.policy(self.below)
        answers = {
            text_id: None
            if score is None
            else outcomes([score], [""], policy, last=True)[0] is not Outcome.REJECT
            for text_id, score in scores.items()
        }
        self.store.labels.record(self.rubric, self.source, self.reviewer, answers)

    def result(self) -> Result:
        """What the labels allow; only when nothing is missing."""
        return self._calibrator.result()

    @property
    def excluded(self) -> int:
        """Candidates of the run that a classifier was trained on."""
        return len(self._trained_on)

    def foreseen(self) -> Foreseen:
        """What the classifiers are expected to save, by their training labels alone."""
        rows = {}
        for one in self._trained_on:
            shares = [
                taught[one.text_id] for taught in self._taught.values() if one.text_id in taught
            ]
            if shares[0][0] > 0.5:
                row = list(one.scores)
                for at, taught in self._taught.items():
                    row[at] = taught[one.text_id][1] if one.text_id in taught else row[at]
                rows[one.text_id] = row
        positives = np.array(list(rows.values()), np.float64).reshape(len(rows), self.below)
        needed = self.plan().labels_needed or self.section.labels
        return foreseen(self.definition, self.scores, positives, needed)

    def plan(self) -> Plan:
        """What the promise needs, before anything is spent."""
        answers = [answer for answer in self.labels().values() if answer is not None]
        share = self.section.prevalence
        if len(answers) >= TRUSTED and any(answers):
            share = sum(answers) / len(answers)
        return self.plan_at(share)

    def plan_at(self, prevalence: float | None) -> Plan:
        """The plan at this share of positives."""
        return plan_calibration(
            len(self.keys),
            target=self.section.target,
            delta=self.section.delta,
            kind=self.section.kind,
            prevalence_hint=prevalence,
            budget=self.section.labels,
            tiers=self.below,
        )

    def _walk(self, calibrator: Calibrator, labels: Mapping[int, bool | None]) -> list[int]:
        """Tell all that is known; the texts of the first question that is not answered."""
        while (rows := calibrator.ask(self.scores)).size:
            known = [row for row in rows if int(self.text_ids[row]) in labels]
            if not known:
                return list(dict.fromkeys(self.text_ids[rows].tolist()))
            calibrator.tell(known, [labels[int(self.text_ids[row])] for row in known])
        return []

    def _people(self) -> list[Label]:
        return self.store.labels.all(self.rubric, LabelSource.PERSON)

    def _new(self) -> Calibrator:
        section = self.section
        return Calibrator(
            section.kind,
            target=section.target,
            delta=section.delta,
            budget=section.labels,
            seed=section.seed,
            costs=costs_of(self.definition),
            # The last tier is asked about all that tier 0 keeps: to draw longer is worth more.
            cleaning=not self.versions,
        )

    def _tier_as_reviewer(self) -> str:
        """Names the last tier with its judge and policy: another of either has other labels."""
        policy = self.definition.policy(self.below)
        said = policy.model_dump(exclude_none=True, exclude_defaults=True)
        rule = ", ".join(f"{name} {value:g}" for name, value in said.items())
        return f"{self.section.against}: judge {self.judges[-1]}, {rule}"


def truth(labels: list[Label]) -> dict[int, bool | None]:
    """What most people said about each text; None where nobody could tell; ties are left out."""
    votes: dict[int, int] = {}
    told: dict[int, int] = {}
    for label in labels:
        vote = {True: 1, False: -1, None: 0}[label.answer]
        votes[label.text_id] = votes.get(label.text_id, 0) + vote
        told[label.text_id] = told.get(label.text_id, 0) + abs(vote)
    return {
        text_id: None if told[text_id] == 0 else vote > 0
        for text_id, vote in votes.items()
        if vote or not told[text_id]
    }


def disputes(labels: list[Label]) -> list[int]:
    """Texts about which as many people say yes as no."""
    settled = truth(labels)
    return sorted({label.text_id for label in labels} - set(settled))


def require_calibration(store: Store, run: Run, definition: Screen) -> None:
    """Refuse to decide by thresholds that nobody has calibrated or chosen where a promise stands.

    A new run of a calibrated screen takes its thresholds over.

    Raises:
        TierError: there is nothing to take over, or what is in use was calibrated for another
            promise.
    """
    section = definition.guarantee
    if section is None or _has_thresholds(store, run, section):
        return
    if not store.policies.inherit(run.id, promise_of(section)._asdict()):
        raise _uncalibrated(definition, section, run)


def check_calibration(store: Store, definition: Screen, key: str | None) -> None:
    """As `require_calibration`, before the run is opened: nothing is taken over yet.

    Raises:
        TierError: likewise.
    """
    section = definition.guarantee
    if section is None:
        return
    run = store.runs.to_resume(definition.screen, definition.digest, key)
    if run is not None and _has_thresholds(store, run, section):
        return
    if not store.policies.may_inherit(
        definition.screen, definition.digest, promise_of(section)._asdict()
    ):
        raise _uncalibrated(definition, section, run)


def _has_thresholds(store: Store, run: Run, section: GuaranteeSection) -> bool:
    """Whether somebody has set the run's thresholds.

    Raises:
        TierError: they were calibrated for another promise.
    """
    in_use = [version for version in store.policies.versions(run.id) if version.in_use]
    certified = any(version.certified for version in in_use)
    certificate = certificate_in_use(store, run) if certified else None
    if certificate is not None and certificate.promise != promise_of(section):
        raise TierError(
            f"run '{run.key}' is calibrated for {certificate.promise}, but the screen promises "
            f"{promise_of(section)}; run 'tamis calibrate' again, or write the promise "
            "as it was"
        )
    return any(version.author for version in in_use)


def _uncalibrated(definition: Screen, section: GuaranteeSection, run: Run | None) -> TierError:
    who, or_set = "no run of it", ""
    if run is not None:
        who, or_set = f"run '{run.key}'", f"set thresholds with 'tamis decide {run.key}', "
    is_not = "is" if run is None else "is not"
    return TierError(
        f"screen '{definition.screen}' promises {promise_of(section)}, but {who} "
        f"{is_not} calibrated for that; run 'tamis calibrate' first, {or_set}or leave guarantee out"
    )


def not_covered(store: Store, run: Run, certificate: Certificate) -> str | None:
    """Says so where a run has other candidates than were calibrated.

    A certificate of an earlier version tells only how many there were.
    """
    promise = f"the promise is about the {certificate.candidates:,} candidates that were calibrated"
    again = "calibrate again to have it for all of them"
    digest = certificate.candidates_digest
    if digest is None:
        count = store.labels.candidates(run.id)
        if count == certificate.candidates:
            return None
        return f"{promise}, and the run has {count:,}; {again}"
    came, went = store.policies.came_and_went(run.id, digest)
    if not came and not went:
        return None
    return f"{promise}: of them {went:,} went since, and {came:,} others came; {again}"
