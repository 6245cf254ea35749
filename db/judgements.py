"""Texts out to a judge, judgements in."""

import math
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, text

from db.bulk import Staging, stage, storable
from db.models import UtcDateTime
from db.runs import now
from tiers.types import Judgement

_STAGED = Staging(
    "staged_judgement",
    {
        "text_id": "int8",
        "score": "float8",
        "reading": "text",
        "mass": "float8",
        "prompt_tokens": "int8",
        "cached_tokens": "int8",
        "completion_tokens": "int8",
        "seconds": "float8",
        "error": "text",
        "failed": "bool",
        "note": "text",
        "reasoning_tokens": "int8",
        "price_id": "int8",
    },
)
_COLUMNS = ", ".join(_STAGED.columns)
# The tokens of an attempt that failed were paid too.
_ADDED = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")
_CHANGES = ", ".join(
    f"{name} = excluded.{name}" + f" + judgement.{name}" * (name in _ADDED)
    for name in list(_STAGED.columns)[1:]
)
_RECORD = text(f"""
    INSERT INTO judgement (judge_id, run_id, judged_at, {_COLUMNS})
    SELECT :judge_id, :run_id, :judged_at, {_COLUMNS} FROM staged_judgement WHERE true
    ON CONFLICT (judge_id, text_id) DO UPDATE
    SET run_id = excluded.run_id, judged_at = excluded.judged_at, {_CHANGES}
    WHERE judgement.failed
""").bindparams(  # noqa: S608 - column names from above
    bindparam("judged_at", type_=UtcDateTime())
)

# CROSS JOIN makes SQLite walk the texts in order, so that a page costs a page.
UNJUDGED = text("""
    SELECT text.id, text.body
    FROM (
      SELECT DISTINCT candidate.text_id AS id
      FROM candidate
      CROSS JOIN verdict
      LEFT JOIN judgement
        ON judgement.judge_id = :judge_id AND judgement.text_id = candidate.text_id
      WHERE candidate.text_id > :after
        AND verdict.run_id = :run_id
        AND verdict.candidate_id = candidate.id
        AND verdict.position = :position
        AND verdict.outcome IS NULL
        AND (judgement.text_id IS NULL OR judgement.failed)
      ORDER BY candidate.text_id
      LIMIT :limit
    ) AS waiting
    JOIN text ON text.id = waiting.id
    ORDER BY text.id
""")
COUNT_UNJUDGED = text("""
    SELECT COUNT(DISTINCT candidate.text_id)
    FROM verdict
    JOIN candidate ON candidate.id = verdict.candidate_id
    LEFT JOIN judgement
      ON judgement.judge_id = :judge_id AND judgement.text_id = candidate.text_id
    WHERE verdict.run_id = :run_id
      AND verdict.position = :position
      AND verdict.outcome IS NULL
      AND (judgement.text_id IS NULL OR judgement.failed)
""")
# The same texts however often the run was resumed: the first of those that reached the tier.
LOW_MASS = text("""
    SELECT
      COUNT(CASE WHEN judgement.mass < :below THEN 1 END),
      COUNT(judgement.mass),
      COUNT(CASE WHEN judgement.text_id IS NULL THEN 1 END)
    FROM (
      SELECT DISTINCT candidate.text_id AS text_id
      FROM verdict
      JOIN candidate ON candidate.id = verdict.candidate_id
      WHERE verdict.run_id = :run_id
        AND verdict.position >= :position
        AND candidate.text_id IS NOT NULL
      ORDER BY candidate.text_id
      LIMIT :sample
    ) AS first_texts
    LEFT JOIN judgement
      ON judgement.judge_id = :judge_id AND judgement.text_id = first_texts.text_id
""")


def record(
    connection: Connection,
    run_id: int,
    judge_id: int,
    judgements: Sequence[Judgement],
    price_id: int | None,
) -> None:
    """Keep judgements; one that is there stays as it was, unless it had failed."""
    # Postgres refuses to upsert one row twice in one statement: of two answers, the later counts.
    latest = {judgement.id: _staged(judgement, price_id) for judgement in judgements}
    stage(connection, _STAGED, list(latest.values()))
    connection.execute(_RECORD, {"judge_id": judge_id, "run_id": run_id, "judged_at": now()})


def _staged(judgement: Judgement, price_id: int | None) -> tuple[Any, ...]:
    (
        text_id, score, reading, mass, prompt, cached, completion, reasoning, seconds, error,
        failed, note,
    ) = judgement  # fmt: skip
    if score is not None and math.isnan(score):
        score, error = None, error or "score is not a number"
    if failed:
        score = None
    if mass is not None and math.isnan(mass):
        mass = None
    return (
        text_id,
        score,
        storable(reading),
        mass,
        prompt,
        cached,
        completion,
        seconds,
        storable(error),
        failed,
        storable(note),
        reasoning,
        price_id,
    )
