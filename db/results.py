"""What a run has to say, read back as values."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Boolean, Connection, RowMapping, TextClause, select, text

from db import runs
from db.errors import StoreError
from db.models import PolicyRow, RunTierRow, TierState, UtcDateTime
from db.values import Cost, Difference, Explanation, FunnelRow, JudgementDetail, TierPlan
from db.views import JUDGEMENT_DETAIL, RESULT
from tiers.types import Outcome

_VERDICTS = {
    "accepted": "verdict.outcome = 'accept'",
    "rejected": "verdict.outcome = 'reject'",
    "review": "verdict.outcome = 'review'",
    "failed": "verdict.outcome = 'failed'",
    "pending": "verdict.outcome IS NULL",
}
_VERDICT = (
    "CASE " + " ".join(f"WHEN {test} THEN '{name}'" for name, test in _VERDICTS.items()) + " END"
)
_FUNNEL = text("SELECT * FROM funnel WHERE run = :run ORDER BY position")
# CROSS JOIN makes SQLite begin at the few candidates of a text, not at all verdicts of the run.
_COSTS = text("""
    SELECT run_tier.name, COUNT(*), SUM(judgement.prompt_tokens), SUM(judgement.cached_tokens),
      SUM(judgement.completion_tokens), SUM(judgement.seconds)
    FROM run_tier
    JOIN judgement ON judgement.judge_id = run_tier.judge_id
    WHERE run_tier.run_id = :run_id
      AND EXISTS (
        SELECT 1
        FROM candidate CROSS JOIN verdict
        WHERE candidate.text_id = judgement.text_id
          AND verdict.candidate_id = candidate.id
          AND verdict.run_id = :run_id
          AND verdict.position >= run_tier.position
      )
    GROUP BY run_tier.position, run_tier.name
    ORDER BY run_tier.position
""")
_DIFFERENCES = text(f"""
    WITH before AS (
      SELECT candidate.key, COALESCE(candidate.text_id, 0) AS text_id, {_VERDICT} AS verdict
      FROM verdict JOIN candidate ON candidate.id = verdict.candidate_id
      WHERE verdict.run_id = :before
    ), after AS (
      SELECT candidate.key, COALESCE(candidate.text_id, 0) AS text_id, {_VERDICT} AS verdict
      FROM verdict JOIN candidate ON candidate.id = verdict.candidate_id
      WHERE verdict.run_id = :after
    )
    SELECT after.key AS key, before.verdict AS was, after.verdict AS is_now,
      CASE
        WHEN before.key IS NULL THEN 'new'
        WHEN before.text_id <> after.text_id THEN 'changed'
        ELSE 'same'
      END AS text
    FROM after LEFT JOIN before ON before.key = after.key
    WHERE before.key IS NULL
      OR before.text_id <> after.text_id
      OR before.verdict <> after.verdict
    UNION ALL
    SELECT before.key, before.verdict, NULL, 'gone'
    FROM before LEFT JOIN after ON after.key = before.key
    WHERE after.key IS NULL
    ORDER BY key
""")  # noqa: S608 - our own words
_ONE_CANDIDATE = "WHERE run.id = :run_id AND candidate.screen = :screen AND candidate.key = :key"
_ONE_RESULT = text(f"{RESULT} {_ONE_CANDIDATE}")
_ONE_DETAIL = text(f"{JUDGEMENT_DETAIL} {_ONE_CANDIDATE} ORDER BY run_tier.position").columns(
    judged_at=UtcDateTime(), reused=Boolean()
)
_FIRST_FIELDS = text("""
    SELECT fields FROM candidate_fields
    WHERE candidate_id = (SELECT MIN(candidate_id) FROM verdict WHERE run_id = :run_id)
""")
_NAMED = (
    "FROM verdict JOIN candidate_fields ON candidate_fields.candidate_id = verdict.candidate_id"
)
_FIELD_NAMES = {
    "sqlite": text(f"""
        SELECT DISTINCT field.key {_NAMED} CROSS JOIN json_each(candidate_fields.fields) AS field
        WHERE verdict.run_id = :run_id
    """),
    "postgresql": text(f"""
        SELECT DISTINCT json_object_keys(candidate_fields.fields::json) {_NAMED}
        WHERE verdict.run_id = :run_id
    """),
}
_AUDITED = text("""
    SELECT run_tier.name
    FROM audit
    JOIN candidate ON candidate.id = audit.candidate_id
    JOIN run_tier ON run_tier.run_id = audit.run_id AND run_tier.position = audit.position
    WHERE audit.run_id = :run_id AND candidate.screen = :screen AND candidate.key = :key
""")


def funnel(connection: Connection, run_id: int) -> list[FunnelRow]:
    """The view `funnel` of one run, in the order of its tiers."""
    rows = connection.execute(_FUNNEL, {"run": runs.get(connection, run_id)["key"]})
    return [FunnelRow(*row)._replace(state=TierState(row.state)) for row in rows]


def costs(connection: Connection, run_id: int) -> list[Cost]:
    """What each tier's answers took, in the order of the tiers."""
    return [Cost(*row) for row in connection.execute(_COSTS, {"run_id": run_id})]


def results(
    connection: Connection, run_id: int, verdict: str | None, limit: int | None, *, fields: bool
) -> Iterator[dict[str, Any]]:
    """One dictionary a candidate, by rising key, fetched a thousand at a time."""
    if verdict is not None and verdict not in _VERDICTS:
        raise StoreError(f"no verdict '{verdict}'; write one of: {', '.join(_VERDICTS)}")
    tiers = connection.execute(
        select(RunTierRow.name, RunTierRow.judge_id)
        .where(RunTierRow.run_id == run_id)
        .order_by(RunTierRow.position)
    ).all()
    names = [f"{tier}_{column}" for tier, _ in tiers for column in ("score", "reading")]
    streaming = connection.execution_options(stream_results=True, yield_per=1000)
    query = _results_query([judge for _, judge in tiers], verdict, limit, fields=fields)
    # A caller may stop half-way: the server's cursor must be closed before its transaction.
    with streaming.execute(query, {"run_id": run_id}) as rows:
        for key, outcome, position, why, record, *answers in rows:
            yield {
                "key": key,
                "verdict": outcome,
                "tier": tiers[position].name,
                "score": answers[2 * position],
                "why": why,
                **dict(zip(names, answers, strict=True)),
                **({"fields": json.loads(record)} if fields else {}),
            }


def field_names(connection: Connection, run_id: int) -> list[str]:
    """The columns of the run's input: the first candidate's in their order, then all others."""
    parameters = {"run_id": run_id}
    first = json.loads(connection.scalar(_FIRST_FIELDS, parameters) or "{}")
    query = _FIELD_NAMES[connection.dialect.name]
    return list(dict.fromkeys([*first, *sorted(connection.execute(query, parameters).scalars())]))


def differences(connection: Connection, before: int, after: int) -> Iterator[Difference]:
    """Candidates that two runs do not agree about, by rising key, fetched a thousand at a time."""
    streaming = connection.execution_options(stream_results=True, yield_per=1000)
    with streaming.execute(_DIFFERENCES, {"before": before, "after": after}) as rows:
        for row in rows:
            yield Difference(*row)


def explain(connection: Connection, run_id: int, key: str) -> Explanation:
    """All that the run remembers about one candidate."""
    run = runs.get(connection, run_id)
    parameters = {"run_id": run_id, "screen": run["screen"], "key": key}
    result = connection.execute(_ONE_RESULT, parameters).mappings().one_or_none()
    if result is None:
        raise StoreError(
            f"run '{run['key']}' has no candidate '{key}'; "
            "rows that could not be read are in the table bad_row"
        )
    details = connection.execute(_ONE_DETAIL, parameters).mappings()
    policies = _policies(connection, run_id)
    return Explanation(
        key=key,
        fields=json.loads(result["fields"]),
        text=result["text"],
        verdict=result["verdict"],
        tier=result["tier"],
        why=result["why"],
        judgements=[_detail(row, policies[row["position"]]) for row in details],
        audited=connection.scalar(_AUDITED, parameters),
    )


def _results_query(
    judges: Sequence[int | None], verdict: str | None, limit: int | None, *, fields: bool
) -> TextClause:
    """Key, verdict, position, why, fields; score and reading of each tier that was reached."""
    columns = "".join(f", judgement_{i}.score, judgement_{i}.reading" for i in range(len(judges)))
    joins = "".join(
        f"""
        LEFT JOIN judgement AS judgement_{i}
          ON judgement_{i}.judge_id = {judge_id or 0}
          AND judgement_{i}.text_id = candidate.text_id
          AND verdict.position >= {i}"""
        for i, judge_id in enumerate(judges)
    )
    record = "candidate_fields.fields" if fields else "NULL"
    if fields:
        joins += "\n LEFT JOIN candidate_fields ON candidate_fields.candidate_id = candidate.id"
    # CROSS JOIN makes SQLite walk the index on keys: sorting would hold all rows in memory.
    return text(f"""
        SELECT candidate.key, {_VERDICT}, verdict.position, verdict.why, {record}{columns}
        FROM candidate
        CROSS JOIN verdict{joins}
        WHERE candidate.screen = (SELECT screen FROM run WHERE id = :run_id)
          AND verdict.run_id = :run_id
          AND verdict.candidate_id = candidate.id
          AND {_VERDICTS[verdict] if verdict else "true"}
        ORDER BY candidate.key
        {"" if limit is None else f"LIMIT {limit:d}"}
    """)  # noqa: S608 - judge ids and our own words


def _policies(connection: Connection, run_id: int) -> dict[int, TierPlan]:
    rows = connection.execute(
        select(
            RunTierRow.position,
            RunTierRow.name,
            PolicyRow.reject_below,
            PolicyRow.accept_above,
            PolicyRow.top_count,
            PolicyRow.top_share,
            PolicyRow.budget,
        )
        .join(PolicyRow, PolicyRow.id == RunTierRow.policy_id)
        .where(RunTierRow.run_id == run_id)
    )
    return {row.position: TierPlan(*row[1:]) for row in rows}


def _detail(row: RowMapping, policy: TierPlan) -> JudgementDetail:
    return JudgementDetail(
        position=row["position"],
        tier=row["tier"],
        outcome=None if row["outcome"] == "pending" else Outcome(row["outcome"]),
        score=row["score"],
        reading=row["reading"],
        mass=row["mass"],
        error=row["error"],
        note=row["note"],
        prompt_tokens=row["prompt_tokens"],
        cached_tokens=row["cached_tokens"],
        completion_tokens=row["completion_tokens"],
        seconds=row["seconds"],
        reused=row["reused"],
        judged=row["judged_at"],
        judge=json.loads(row["judge"]),
        policy=policy,
        reasoning_tokens=row["reasoning_tokens"],
        usd=row["usd"],
    )
