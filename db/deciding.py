"""Scores to outcomes in one statement: the same answer as `tiers.policy.outcomes`, in SQL."""

import json
import math
from fractions import Fraction
from typing import Any, NamedTuple

from sqlalchemy import Connection, select, text

from db.errors import StoreError
from db.labels import PEOPLE, rubric_digest
from db.models import LabelSource, PolicyRow, RunRow, RunTierRow
from tiers.types import Outcome

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
# Labels of the reviewer whom the policy follows; among several people the majority counts.
_LABELS = """FROM label
        WHERE label.rubric = :rubric
          AND label.text_id = candidate.text_id
          AND label.source = :source
          AND (label.reviewer = :reviewer OR :source = 'person')"""
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


class _Tier(NamedTuple):
    judge_id: int | None
    last: bool
    reject_below: float | None
    accept_above: float | None
    top_count: int | None
    top_share: float | None
    budget: bool
    affordable: int | None
    follows: str | None


def decide(connection: Connection, run_id: int, position: int) -> dict[Outcome, int]:
    """Apply the tier's policy to every candidate that is pending there and has a judgement."""
    if connection.dialect.name == "postgresql":
        # Without fresh statistics, Postgres takes these tables for empty and loops over them.
        connection.execute(text("ANALYZE verdict, candidate, judgement"))
    return apply(connection, run_id, position)


def has_judge(connection: Connection, run_id: int, position: int) -> bool:
    """Whether the tier has ever been asked."""
    return _tier(connection, run_id, position).judge_id is not None


def apply(connection: Connection, run_id: int, position: int) -> dict[Outcome, int]:
    """As `decide`, where the database knows its statistics."""
    tier = _tier(connection, run_id, position)
    if tier.judge_id is None:
        raise StoreError(f"tier at position {position} has no judge yet; call set_judge before")
    parameters: dict[str, Any] = {
        "run_id": run_id,
        "position": position,
        "judge_id": tier.judge_id,
        "reject_below": 0.0 if tier.reject_below is None else tier.reject_below,
        "accept_above": 1.0 if tier.accept_above is None else tier.accept_above,
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
            "between": _between(tier),
        },
    )
    after = connection.execute(_TALLY, parameters).one()
    return {Outcome(name): after[i] - before[i] for i, name in enumerate(after._fields)}


def _tier(connection: Connection, run_id: int, position: int) -> _Tier:
    row = connection.execute(
        select(
            RunTierRow.judge_id,
            RunTierRow.last,
            PolicyRow.reject_below,
            PolicyRow.accept_above,
            PolicyRow.top_count,
            PolicyRow.top_share,
            PolicyRow.budget,
            RunTierRow.affordable,
            PolicyRow.follows,
        )
        .join(PolicyRow, PolicyRow.id == RunTierRow.policy_id)
        .where(RunTierRow.run_id == run_id, RunTierRow.position == position)
    ).one()
    return _Tier(*row)


def _statement(dialect: str, tier: _Tier) -> str:
    """The tier's sentence, in two forms.

    SQLite changes rows where they lie, at two thirds of the cost, if nothing but SET looks
    elsewhere; Postgres joins four times faster than it looks up.
    """
    outcome = _OUTCOME
    if tier.follows is not None and not tier.last:
        outcome = _FOLLOWED
    elif tier.follows == PEOPLE:
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
    if tier.follows is None:
        return {}
    config = connection.scalar(select(RunRow.config).where(RunRow.id == run_id))
    source = LabelSource.PERSON if tier.follows == PEOPLE else LabelSource.TIER
    return {
        "rubric": rubric_digest(json.loads(str(config))["rubric"]),
        "source": str(source),
        "reviewer": tier.follows,
    }


def _between(tier: _Tier) -> Outcome:
    """As `tiers.policy.Policy.between`: what becomes of a score between the thresholds."""
    if not tier.last:
        return Outcome.PROMOTE
    if tier.top_count is not None or tier.top_share is not None or tier.budget:
        return Outcome.ACCEPT
    match tier.reject_below, tier.accept_above:
        case None, _:
            return Outcome.REJECT
        case _, None:
            return Outcome.ACCEPT
        case _:
            return Outcome.REVIEW


def _last_place(
    connection: Connection, tier: _Tier, parameters: dict[str, Any]
) -> tuple[float, str]:
    """Score and key of the last candidate that `top` lets through; a score below all for no limit.

    Keys are unique within a run, so score and key order all candidates.
    """
    quota = tier.affordable if tier.budget else tier.top_count
    if tier.top_share is not None:
        quota = math.ceil(
            Fraction(str(tier.top_share)) * (connection.scalar(_COUNT_SCORED, parameters) or 0)
        )
    if quota is None:
        return -1.0, ""
    if quota == 0:
        return 2.0, ""
    row = connection.execute(_LAST_PLACE, {**parameters, "above": quota - 1}).one_or_none()
    return (-1.0, "") if row is None else (row.score, row.key)
