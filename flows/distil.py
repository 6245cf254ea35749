"""A classifier trains itself: labels of a dearer tier and of people, then the test of a promise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from db.run_tiers import judge_digest
from db.store import Row, Store, rubric_digest
from flows.calibrate import calibrate
from flows.files.sampling import sampled
from flows.guarantee.classifiers import classifiers_of
from flows.guarantee.state import guarantee_of
from flows.pilot import at_once
from flows.progress import Display, say
from flows.run.judging import TierRun, TierWork
from flows.run.screening import tier_works
from flows.run.session import opened
from tiers.opening import identity
from tiers.screenfile.file import Screen
from tiers.screenfile.tiers import ClassifierTier
from tiers.tier import job_of
from tiers.types import TierError

POOL = 5_000
"""Candidates among which training texts are chosen, and which say how rare words are."""
PEOPLE = "people"
GROWN = 1.25
"""A scheduled run trains anew where there are so many times the labels of the newest version."""


@dataclass(frozen=True)
class Trained:
    """What a version was trained on."""

    tier: str
    version: str
    labels: dict[str, int]
    """Training labels by who gave them, and how many of them say yes, as `positive`."""
    asked: int
    """Texts that the teacher was asked about for it now."""

    def __str__(self) -> str:
        who = " and ".join(
            f"{count:,} from {name}" for name, count in self.labels.items() if name != "positive"
        )
        return (
            f"version {self.version} of tier '{self.tier}' is trained on {who}; "
            f"{self.labels['positive']:,} of them positive, {self.asked:,} asked for now"
        )


def distil(
    definition: Screen,
    *,
    labels: int = 200,
    teacher: str | None = None,
    run_key: str | None = None,
    anyway: bool = False,
    author: str | None = None,
) -> dict[str, Any]:
    """Train a version of a screen's classifier, then calibrate with it: it is admitted or refused.

    Args:
        definition: the screen; its first classifier is trained.
        labels: of the teacher, at least; those that are stored count.
        teacher: a tier's name, by default the last; or `people`, and no model is asked.
        run_key: of the teacher's stored answers only those about this run's candidates.
        anyway: calibrate even where the plan or the expected cost says not to.
        author: who has the certificate made.

    Returns:
        What `flows.calibrate` returns, and `trained`: a `Trained` by name.

    Raises:
        StoreError: the screen promises nothing, or there is no such run.
        TierError: there is no classifier, or its labels teach nothing.
    """
    guarantee_of(definition)
    trained = train(definition, labels=labels, teacher=teacher, run_key=run_key)
    tiers = tuple(
        tier.model_copy(update={"version": trained.version}) if tier.name == trained.tier else tier
        for tier in definition.tiers
    )
    tested = definition.model_copy(update={"tiers": tiers})
    made = calibrate.fn(tested, anyway=anyway, author=author)
    return {**made, "trained": {**trained.__dict__, "said": str(trained)}}


def train(
    definition: Screen, *, labels: int = 200, teacher: str | None = None, run_key: str | None = None
) -> Trained:
    """Ask the teacher for the labels that are missing, train, and keep the version, on trial.

    Raises:
        StoreError: there is no such run.
        TierError: there is no classifier or no such teacher, or the labels teach nothing.
    """
    from tiers.backends.classifier.fit import fit  # scikit-learn takes seconds

    tier, at = _classifier(definition), _teacher(definition, teacher)
    teaching = _teaching(definition, at)
    pool = sampled(definition.candidates, POOL, 0).rows
    with opened(teaching, None, "training, ", kind="pilot") as (store, run, judges, shown, hold):
        store.plans.clear(run.screen)  # those whose process died
        try:
            taught = _Taught(store, definition, store.tiers.digests(run.id)[0], run_key)
            if teacher != PEOPLE and (rows := _chosen(pool, taught, definition.rubric, labels)):
                store.candidates.begin(run.id)
                store.candidates.add(run.id, rows, source="distil")
                _judge(tier_works(teaching, store, run, judges, hold)[0], shown)
            asked = store.tiers.spent(run.id)[0].judged
            ids, texts, shares, counts = taught.examples(at, run.id, by_tier=teacher != PEOPLE)
        finally:
            store.plans.clear(run.screen, run.id)
        made = fit(texts, shares, [row.text for row in pool])
        rows_of = list(zip(ids, shares, made.held_out.tolist(), strict=True))
        store.classifiers.add(
            definition.screen, tier.name, made.version, made.body, counts, rows_of
        )
        trained = Trained(tier.name, made.version, counts, asked)
        say(str(trained), shown)
        return trained
    raise TierError("paused, as asked for; distil again to go on")


def due(definition: Screen, store: Store) -> bool:
    """Whether a scheduled run is to train: by its section, and where labels have grown."""
    for _, tier in classifiers_of(definition):
        if tier.distil == "auto":
            newest = store.classifiers.find(definition.screen, tier.name)
            at = len(definition.tiers) - 1
            known = store.plans.answered(judge_digest(identity(job_of(definition, at))))
            return newest is None or known >= GROWN * newest.labels.get(
                definition.tiers[at].name, 0
            )
    return False


def _classifier(definition: Screen) -> ClassifierTier:
    found = classifiers_of(definition)
    if not found:
        raise TierError(
            f"screen '{definition.screen}' has no tier to train; write one before the others: "
            "{name: zero, backend: classifier}"
        )
    return found[0][1]


def _teacher(definition: Screen, name: str | None) -> int:
    """The position of the tier that teaches; the last, where people do."""
    last = len(definition.tiers) - 1
    if name in (None, PEOPLE):
        return last
    names = [tier.name for tier in definition.tiers if not isinstance(tier, ClassifierTier)]
    if name not in names:
        raise TierError(
            f"--from '{name}' is no tier that teaches; write one of: {', '.join([*names, PEOPLE])}"
        )
    return [tier.name for tier in definition.tiers].index(name)


def _teaching(definition: Screen, at: int) -> Screen:
    """The screen of the teacher alone: it is the same judge, so that nothing is paid twice."""
    gone = {"after": None, "guarantee": None, "traces": "none"}
    tiers = (at_once(definition.tiers[at]),)
    return definition.model_copy(update={"tiers": tiers, **gone})


def _chosen(pool: Sequence[Row], taught: "_Taught", rubric: str, labels: int) -> list[Row]:
    """Candidates to have labelled, so that there are so many labels of the teacher."""
    from tiers.backends.classifier.fit import choose

    known = taught.bodies()
    left = list({row.text: row for row in pool if row.text not in known}.values())
    missing = labels - len(known)
    if missing <= 0 or not left:
        return []
    return [left[place] for place in choose([row.text for row in left], rubric, missing, 0)]


def _judge(work: TierWork, shown: Display) -> None:
    tier = TierRun(work, shown)
    try:
        tier.judge_waiting()
        tier.finish()
    finally:
        tier.close()


class _Taught:
    """What the teacher and people said so far."""

    def __init__(self, store: Store, definition: Screen, judge: str, run_key: str | None) -> None:
        self._store, self._definition, self._judge = store, definition, judge
        self._run = None if run_key is None else store.runs.find(run_key).id
        self._rubric = rubric_digest(definition.rubric)

    def bodies(self) -> set[str]:
        """Texts that the teacher has answered."""
        told = self._store.classifiers.taught(self._judge, "", people=False, run_id=self._run)
        return {one.body for one in told}

    def examples(
        self, at: int, asked: int, *, by_tier: bool
    ) -> tuple[list[int], list[str], list[float], dict[str, int]]:
        """Ids, texts and shares of yes to train on, and how many came from whom.

        People know better than a tier. Where the promise is against people, the labels that they
        gave in a random order are left to certify.

        Args:
            at: the teacher's position.
            asked: the run in which it was asked.
            by_tier: whether its answers count.
        """
        people = not guarantee_of(self._definition).by_people
        find, judge = self._store.classifiers.taught, self._judge if by_tier else ""
        told = find(judge, self._rubric, people=people, run_id=self._run)
        if self._run is not None:
            told += find(judge, "", people=False, run_id=asked)
        bodies = {one.text_id: one.body for one in told}
        by_score = {
            one.text_id: _share(one.score, self._cut(at)) for one in told if one.score is not None
        }
        votes: dict[int, list[bool]] = {}
        for one in told:
            if one.answer is not None:
                votes.setdefault(one.text_id, []).append(one.answer)
        by_vote = {text_id: sum(said) / len(said) for text_id, said in votes.items()}
        shares = by_score | by_vote
        counts = {
            PEOPLE: len(by_vote),
            self._definition.tiers[at].name: len(shares) - len(by_vote),
            "positive": sum(share > 0.5 for share in shares.values()),
        }
        ids = sorted(shares)
        return ids, [bodies[one] for one in ids], [shares[one] for one in ids], counts

    def _cut(self, at: int) -> float:
        """The score from which on the teacher says yes."""
        policy = self._definition.policy(at)
        last = at == len(self._definition.tiers) - 1
        cut = policy.reject_below or policy.accept_above if last else None
        return 0.5 if cut is None else min(max(cut, 0.01), 0.99)


def _share(score: float, cut: float) -> float:
    """A score as a share of yes that is one half at the cut."""
    inside = min(max(score, 1e-4), 1 - 1e-4)
    odds = math.log(inside / (1 - inside)) - math.log(cut / (1 - cut))
    return 1 / (1 + math.exp(-odds))
