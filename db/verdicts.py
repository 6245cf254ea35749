"""Verdicts: scores to outcomes, the same answer as `tiers.policy.outcomes`, in SQL.

Verdicts follow from scores and policies alone, so they can be taken back and decided anew.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import Connection, or_, select, text, update

from db import audits
from db.bulk import Noun, fresh_statistics
from db.errors import StoreError
from db.labels import PEOPLE, rubric_digest
from db.models import (
    CandidateRow,
    LabelSource,
    PolicyRow,
    RunRow,
    RunTierRow,
    TextRow,
    VerdictRow,
)
from db.policies import COLUMNS, policy_of
from db.run_tiers import count_tiers
from tiers.policy import Policy
from tiers.types import Outcome

SUSPICIOUS = "suspicious: "
"""So begins the reason of a candidate whom a judge accepts and whose text speaks to the judge."""

# Every candidate that the tier scored, those already decided included. A failed judgement has no
# score.
_SCORED = """
    FROM verdict
    JOIN candidate ON candidate.id = verdict.candidate_id
    JOIN judgement
      ON judgement.judge_id = :judge_id AND judgement.text_id = candidate.text_id
    WHERE verdict.run_id = :run_id
      AND verdict.position >= :position
      AND judgement.score IS NOT NULL
"""
_COUNT_SCORED = text(f"SELECT COUNT(*) {_SCORED}")
_LAST_PLACE = text(f"""
    SELECT judgement.score, candidate.key {_SCORED}
      AND judgement.score BETWEEN :reject_below AND :accept_above
    ORDER BY judgement.score DESC, candidate.key
    LIMIT 1 OFFSET :above
""")
_OUTCOME = """
      CASE
        WHEN judgement.score < :reject_below THEN 'reject'
        WHEN judgement.score > :accept_above THEN 'accept'
        WHEN judgement.score < :last_score THEN 'reject'
        WHEN judgement.score = :last_score AND candidate.key > :last_key THEN 'reject'
        WHEN judgement.score IS NOT NULL THEN :between
        WHEN judgement.failed THEN 'failed'
        WHEN judgement.text_id IS NOT NULL THEN 'review'
      END"""
_PENDING = """verdict.run_id = :run_id
      AND verdict.position = :position
      AND verdict.outcome IS NULL"""
# Labels of the reviewer whose labels the policy takes; among several people the majority counts.
_LABELS = """FROM label
        WHERE label.rubric = :rubric
          AND label.text_id = candidate.text_id
          AND (label.source = :source AND (label.reviewer = :reviewer OR :source = 'person')
            OR label.source = 'active' AND :source = 'person')"""
_FOLLOWED = f"""
      CASE
        WHEN judgement.score IS NOT NULL AND EXISTS (SELECT 1 {_LABELS})
        THEN 'promote'
        ELSE {_OUTCOME}
      END"""
_VOTES = f"""(SELECT SUM(CASE WHEN label.answer THEN 1 WHEN NOT label.answer THEN -1 ELSE 0 END)
        {_LABELS})"""
_VOTED = f"""
      CASE
        WHEN judgement.score IS NOT NULL AND {_VOTES} > 0 THEN 'accept'
        WHEN judgement.score IS NOT NULL AND {_VOTES} < 0 THEN 'reject'
        ELSE {_OUTCOME}
      END"""
_TALLY = text("""
    SELECT
      COUNT(CASE WHEN position = :position AND outcome = 'accept' THEN 1 END) AS accept,
      COUNT(CASE WHEN position = :position AND outcome = 'reject' THEN 1 END) AS reject,
      COUNT(CASE WHEN position > :position THEN 1 END) AS promote,
      COUNT(CASE WHEN position = :position AND outcome = 'review' THEN 1 END) AS review,
      COUNT(CASE WHEN position = :position AND outcome = 'failed' THEN 1 END) AS failed
    FROM verdict
    WHERE run_id = :run_id AND (position > :position OR outcome IS NOT NULL)
""")


class Verdicts(Noun):
    """Where the candidates of all runs are."""

    def decide(self, run_id: int, position: int) -> dict[Outcome, int]:
        """Apply the tier's policy to the candidates that wait there and have a judgement.

        A candidate that was decided before keeps its outcome, and its place in the ranking of
        `top`.

        Returns:
            How many candidates this call gave each outcome.
        """
        with self._writing() as connection:
            return decide(connection, run_id, position)

    def undecide(self, run_id: int, position: int = 0) -> None:
        """Take all that came to a tier back to it, to decide anew from the stored scores.

        `top` has to rank again when candidates have come in or failed ones are judged after all.
        """
        with self._writing() as connection:
            undecide(connection, run_id, position)

    def redecide(self, run_id: int, position: int = 0) -> None:
        """Decide anew from a tier on, as far as there are judgements."""
        with self._writing() as connection:
            undecide(connection, run_id, position)
            decide_from(connection, run_id, position)

    def accepted(self, run_id: int, after: int, limit: int) -> list[tuple[int, str]]:
        """Numbers and texts of the next candidates who are accepted, by rising number."""
        query = (
            select(VerdictRow.candidate_id, TextRow.body)
            .join(CandidateRow, CandidateRow.id == VerdictRow.candidate_id)
            .join(TextRow, TextRow.id == CandidateRow.text_id)
            .where(
                VerdictRow.run_id == run_id,
                VerdictRow.outcome == Outcome.ACCEPT,
                VerdictRow.candidate_id > after,
            )
            .order_by(VerdictRow.candidate_id)
            .limit(limit)
        )
        with self._reading() as connection:
            return [(row[0], row[1]) for row in connection.execute(query)]

    def mark(self, run_id: int, reasons: Mapping[int, str], outcome: Outcome) -> None:
        """Write down why accepted candidates are suspicious; `outcome` is accept or review."""
        with self._writing() as connection:
            for candidate_id, why in reasons.items():
                connection.execute(
                    update(VerdictRow)
                    .where(VerdictRow.run_id == run_id, VerdictRow.candidate_id == candidate_id)
                    .values(outcome=outcome, why=f"{SUSPICIOUS}{why}")
                )


class _Tier(NamedTuple):
    """What decides at a tier."""

    judge_id: int | None
    last: bool
    affordable: int | None
    labels_from: str | None
    """Whose labels go before the score."""
    policy: Policy


def undecide(connection: Connection, run_id: int, position: int = 0) -> None:
    """Take all that came to a tier back to it, undecided, and what was audited with it."""
    audits.forget(connection, run_id)
    unreadable = select(CandidateRow.id).where(CandidateRow.problem.is_not(None))
    connection.execute(
        update(VerdictRow)
        .where(
            VerdictRow.run_id == run_id,
            or_(
                VerdictRow.position > position,
                (VerdictRow.position == position) & VerdictRow.outcome.is_not(None),
            ),
            VerdictRow.candidate_id.not_in(unreadable),
        )
        .values(position=position, outcome=None, why=None)
    )


def decide_from(
    connection: Connection, run_id: int, position: int, *, statistics: bool = True
) -> None:
    """Decide at all tiers from one on, as far as there are judgements; the audit included.

    Args:
        connection: in a transaction.
        run_id: the run.
        position: the first tier.
        statistics: whether Postgres is to look at the tables first; it knows temporary ones.
    """
    last = count_tiers(connection, run_id) - 1
    for tier in range(position, last + 1):
        if tier == last:
            audits.draw(connection, run_id)
        if _tier(connection, run_id, tier).judge_id is not None:
            decide(connection, run_id, tier, statistics=statistics)
    audits.record_answers(connection, run_id)


def decide(
    connection: Connection, run_id: int, position: int, *, statistics: bool = True
) -> dict[Outcome, int]:
    """As `Verdicts.decide`; `statistics` as in `decide_from`."""
    tier = _tier(connection, run_id, position)
    if tier.judge_id is None:
        raise StoreError(f"tier at position {position} has no judge yet; call set_judge before")
    if statistics:
        fresh_statistics(connection, "verdict", "candidate", "judgement")
    policy = tier.policy
    parameters: dict[str, Any] = {
        "run_id": run_id,
        "position": position,
        "judge_id": tier.judge_id,
        "reject_below": 0.0 if policy.reject_below is None else policy.reject_below,
        "accept_above": 1.0 if policy.accept_above is None else policy.accept_above,
    }
    last_score, last_key = _last_place(connection, tier, parameters)
    before = connection.execute(_TALLY, parameters).one()
    connection.execute(
        text(_statement(connection.dialect.name, tier)),
        {
            **parameters,
            **_followed(connection, run_id, tier),
            "last_score": last_score,
            "last_key": last_key,
            "between": policy.between(last=tier.last),
        },
    )
    after = connection.execute(_TALLY, parameters).one()
    return {Outcome(name): after[i] - before[i] for i, name in enumerate(after._fields)}


def _tier(connection: Connection, run_id: int, position: int) -> _Tier:
    row = connection.execute(
        select(
            RunTierRow.judge_id, RunTierRow.last, RunTierRow.affordable, PolicyRow.follows, *COLUMNS
        )
        .join(PolicyRow, PolicyRow.id == RunTierRow.policy_id)
        .where(RunTierRow.run_id == run_id, RunTierRow.position == position)
    ).one()
    return _Tier(row.judge_id, row.last, row.affordable, row.follows, policy_of(row))


def _statement(dialect: str, tier: _Tier) -> str:
    """The statement that decides, in two forms.

    SQLite changes rows in place, at two thirds of the cost, if nothing but SET looks
    elsewhere; Postgres joins four times faster than it looks up.
    """
    outcome = _OUTCOME
    if tier.labels_from is not None and not tier.last:
        outcome = _FOLLOWED
    elif tier.labels_from == PEOPLE:
        outcome = _VOTED
    changes = f"""
      verdict.position + CASE WHEN {outcome} = 'promote' THEN 1 ELSE 0 END,
      NULLIF({outcome}, 'promote'),
      CASE WHEN judgement.score IS NULL THEN judgement.error END"""
    if dialect == "sqlite":
        return f"""
    UPDATE verdict SET (position, outcome, why) = (
      SELECT {changes}
      FROM candidate
      LEFT JOIN judgement
        ON judgement.judge_id = :judge_id AND judgement.text_id = candidate.text_id
      WHERE candidate.id = verdict.candidate_id
    )
    WHERE {_PENDING}
    """  # noqa: S608 - constants of this file
    return f"""
    UPDATE verdict SET (position, outcome, why) = ROW ({changes})
    FROM candidate
    JOIN judgement
      ON judgement.judge_id = :judge_id AND judgement.text_id = candidate.text_id
    WHERE candidate.id = verdict.candidate_id AND {_PENDING}
    """  # noqa: S608


def _followed(connection: Connection, run_id: int, tier: _Tier) -> dict[str, str]:
    """Parameters that find the labels which go before the score."""
    if tier.labels_from is None:
        return {}
    config = connection.scalar(select(RunRow.config).where(RunRow.id == run_id))
    source = LabelSource.PERSON if tier.labels_from == PEOPLE else LabelSource.TIER
    return {
        "rubric": rubric_digest(json.loads(str(config))["rubric"]),
        "source": str(source),
        "reviewer": tier.labels_from,
    }


def _last_place(
    connection: Connection, tier: _Tier, parameters: dict[str, Any]
) -> tuple[float, str]:
    """Score and key of the last candidate that `top` lets through; a score below all for no limit.

    Keys are unique within a run, so score and key order all candidates.
    """
    policy = tier.policy
    by_share = isinstance(policy.top, float)
    scored = connection.scalar(_COUNT_SCORED, parameters) or 0 if by_share else 0
    quota = tier.affordable if policy.budget else policy.quota(scored)
    if quota is None:
        return -1.0, ""
    if quota == 0:
        return 2.0, ""
    row = connection.execute(_LAST_PLACE, {**parameters, "above": quota - 1}).one_or_none()
    return (-1.0, "") if row is None else (row.score, row.key)
