"""Classifiers that were trained on labels, and what each was trained on."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import insert, select, text, update

from db.bulk import Noun, now
from db.models import ClassifierRow, ClassifierState, ClassifierTextRow

# What a judge said, and what people did, about every text: each is a training label.
_TAUGHT = text("""
    SELECT text.id, text.body, judgement.score, NULL AS answer
    FROM judgement
    JOIN judge ON judge.id = judgement.judge_id
    JOIN text ON text.id = judgement.text_id
    WHERE judge.digest = :judge AND judgement.score IS NOT NULL AND NOT judgement.failed
      AND (CAST(:run_id AS INTEGER) IS NULL OR text.id IN (
        SELECT candidate.text_id FROM verdict
        JOIN candidate ON candidate.id = verdict.candidate_id
        WHERE verdict.run_id = :run_id))
    UNION ALL
    SELECT text.id, text.body, NULL, label.answer
    FROM label
    JOIN text ON text.id = label.text_id
    WHERE label.rubric = :rubric AND label.answer IS NOT NULL
      AND (label.source = 'active' OR (label.source = 'person' AND CAST(:people AS BOOLEAN)))
    ORDER BY 1
""")


class Taught(NamedTuple):
    """What one judge or one person said about a text; the other of the two is None."""

    text_id: int
    body: str
    score: float | None
    answer: bool | None


class Classifier(NamedTuple):
    """A version of a classifier."""

    id: int
    version: str
    state: ClassifierState
    reason: str | None
    labels: dict[str, int]
    """How many training labels came from whom, and how many of them say yes, as `positive`."""
    body: bytes
    created: datetime


class Classifiers(Noun):
    """The versions of all classifiers, by screen and tier."""

    def taught(
        self, judge: str, rubric: str, *, people: bool, run_id: int | None = None
    ) -> list[Taught]:
        """What there is to train on, by rising text.

        Args:
            judge: the digest of the judge who teaches.
            rubric: as `rubric_digest` names it.
            people: also labels that people gave in a random order, which no promise needs.
            run_id: of the judge's answers only those about candidates of this run.
        """
        values = {"judge": judge, "rubric": rubric, "people": people, "run_id": run_id}
        with self._reading() as connection:
            rows = connection.execute(_TAUGHT, values)
            return [
                Taught(row[0], row[1], row[2], None if row[3] is None else bool(row[3]))
                for row in rows
            ]

    def add(
        self,
        screen: str,
        tier: str,
        version: str,
        body: bytes,
        labels: Mapping[str, int],
        texts: Sequence[tuple[int, float, float]],
    ) -> Classifier:
        """Keep a version, on trial; one that is known is on trial again.

        Args:
            screen: name of the screen.
            tier: name of its tier.
            version: a digest of the body.
            body: the weights.
            labels: how many came from whom.
            texts: each with the share of yes that it was trained by, and its score by a model that
                did not see its label.
        """
        mine = (ClassifierRow.screen == screen) & (ClassifierRow.tier == tier)
        with self._writing() as connection:
            known = connection.scalar(
                select(ClassifierRow.id).where(mine, ClassifierRow.version == version)
            )
            if known is None:
                values = {"screen": screen, "tier": tier, "version": version, "body": body}
                added = insert(ClassifierRow).values(
                    **values, labels=json.dumps(dict(labels)), state=ClassifierState.TRIAL,
                    created_at=now(),
                )  # fmt: skip
                known = connection.execute(added.returning(ClassifierRow.id)).scalar_one()
                rows = [
                    {"classifier_id": known, "text_id": one, "share": share, "held_out": held_out}
                    for one, share, held_out in texts
                ]
                connection.execute(insert(ClassifierTextRow), rows)
            else:
                _settle(connection, known, ClassifierState.TRIAL, None)
            return _classifier(connection.execute(_QUERY.where(ClassifierRow.id == known)).one())

    def find(
        self,
        screen: str,
        tier: str,
        states: Sequence[ClassifierState] = tuple(ClassifierState),
        version: str | None = None,
    ) -> Classifier | None:
        """The newest version in one of these states, or the one of that name; None if it is gone.

        Args:
            screen: name of the screen.
            tier: name of its tier.
            states: which ones count.
            version: this one, whatever its state.
        """
        query = _QUERY.where(ClassifierRow.screen == screen, ClassifierRow.tier == tier)
        if version is not None:
            query = query.where(ClassifierRow.version == version)
        else:
            query = query.where(ClassifierRow.state.in_(states))
        with self._reading() as connection:
            row = connection.execute(query.order_by(ClassifierRow.id.desc()).limit(1)).first()
            return None if row is None else _classifier(row)

    def texts(self, id_: int) -> dict[int, tuple[float, float]]:
        """The texts that a version was trained on: its share of yes, and the held-out score."""
        query = select(
            ClassifierTextRow.text_id, ClassifierTextRow.share, ClassifierTextRow.held_out
        ).where(ClassifierTextRow.classifier_id == id_)
        with self._reading() as connection:
            return {row[0]: (row[1], row[2]) for row in connection.execute(query)}

    def settle(self, id_: int, state: ClassifierState, reason: str) -> None:
        """Say that a version on trial was admitted or refused, and why."""
        with self._writing() as connection:
            _settle(connection, id_, state, reason, only=ClassifierState.TRIAL)


_QUERY = select(
    ClassifierRow.id,
    ClassifierRow.version,
    ClassifierRow.state,
    ClassifierRow.reason,
    ClassifierRow.labels,
    ClassifierRow.body,
    ClassifierRow.created_at,
)


def _classifier(row: Any) -> Classifier:
    id_, version, state, reason, labels, body, created = row
    return Classifier(id_, version, state, reason, json.loads(labels), bytes(body), created)


def _settle(
    connection: Any,
    id_: int,
    state: ClassifierState,
    reason: str | None,
    only: ClassifierState | None = None,
) -> None:
    statement = update(ClassifierRow).where(ClassifierRow.id == id_)
    if only is not None:
        statement = statement.where(ClassifierRow.state == only)
    connection.execute(statement.values(state=state, reason=reason))
