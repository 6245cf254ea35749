"""What runs have come to: funnels, verdicts with scores, one candidate explained, two compared."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Boolean, Connection, CursorResult, RowMapping, TextClause, select, text

from db.bulk import Noun
from db.errors import StoreError
from db.models import PolicyRow, RunTierRow, TierState, UtcDateTime
from db.policies import COLUMNS, policy_of
from db.runs import get
from tiers.policy import Policy
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
_SAME_KEY = """(
        SELECT other.id
        FROM run
        JOIN candidate AS other ON other.screen = run.screen AND other.key = candidate.key
        JOIN verdict AS met ON met.run_id = run.id AND met.candidate_id = other.id
        WHERE run.id = :{run}
        LIMIT 1
      )"""
_FUNNEL = text("SELECT * FROM funnel WHERE run = :run ORDER BY position").columns(
    newest=UtcDateTime()
)
# A lookup by key for each candidate: joined by key alone, SQLite would compare all with all.
_DIFFERENCES = text(f"""
    SELECT key, was, is_now, text FROM (
      SELECT candidate.key AS key, {_VERDICT} AS is_now,
        CASE WHEN past.run_id IS NOT NULL
          THEN {_VERDICT.replace("verdict.", "past.")} END AS was,
        CASE
          WHEN past.run_id IS NULL THEN 'new'
          WHEN COALESCE(old.text_id, 0) <> COALESCE(candidate.text_id, 0) THEN 'changed'
          ELSE 'same'
        END AS text
      FROM verdict
      JOIN candidate ON candidate.id = verdict.candidate_id
      LEFT JOIN verdict AS past
        ON past.run_id = :before AND past.candidate_id = {_SAME_KEY.format(run="before")}
      LEFT JOIN candidate AS old ON old.id = past.candidate_id
      WHERE verdict.run_id = :after
    ) AS pairs
    WHERE text <> 'same' OR was <> is_now
    UNION ALL
    SELECT candidate.key, {_VERDICT}, NULL, 'gone'
    FROM verdict
    JOIN candidate ON candidate.id = verdict.candidate_id
    WHERE verdict.run_id = :before AND {_SAME_KEY.format(run="after")} IS NULL
    ORDER BY key
""")  # noqa: S608 - our own words
_ONE_CANDIDATE = "WHERE run = :run AND screen = :screen AND key = :key"
_ONE_RESULT = text(f"SELECT * FROM result {_ONE_CANDIDATE}")  # noqa: S608 - our own words
_ONE_DETAIL = text(
    f"SELECT * FROM judgement_detail {_ONE_CANDIDATE} ORDER BY position"  # noqa: S608
).columns(judged_at=UtcDateTime(), reused=Boolean())
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
_RECORD = """(
    SELECT candidate_record.fields FROM candidate_record
    WHERE candidate_record.candidate_id = candidate.id
)"""
_EVIDENCE = text(f"""
    SELECT tier, field, quote, start, stop FROM evidence {_ONE_CANDIDATE}
    ORDER BY position, number, occurrence
""")  # noqa: S608 - our own words
_AUDITED = text("""
    SELECT run_tier.name
    FROM audit
    JOIN candidate ON candidate.id = audit.candidate_id
    JOIN run_tier ON run_tier.run_id = audit.run_id AND run_tier.position = audit.position
    WHERE audit.run_id = :run_id AND candidate.screen = :screen AND candidate.key = :key
""")


class Difference(NamedTuple):
    """A candidate that two runs do not agree about; `was` is in the first, `is_now` in the second.

    Verdicts are named as in the view `result`; None where the run does not have the candidate.
    """

    key: str
    was: str | None
    is_now: str | None
    text: str
    """Which the second run has: new, gone, changed or same."""


class FunnelRow(NamedTuple):
    """One tier of a run: the view `funnel`."""

    run: str
    position: int
    tier: str
    reached: int
    judged: int
    """Paid by this run."""
    reused: int
    """Answered without paying: by another run, or for a candidate with the same text."""
    promoted: int
    accepted: int
    rejected: int
    review: int
    failed: int
    pending: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    seconds: float
    state: TierState
    reasoning_tokens: int
    """Of the completion's."""
    usd: float | None
    """None where a price is not known; never 0 for that."""
    newest: datetime | None
    """When the newest answer that this run paid for was stored."""


class JudgementDetail(NamedTuple):
    """What one tier said about one candidate, and the policy that decided by it."""

    position: int
    tier: str
    outcome: Outcome | None
    """None while pending."""
    score: float | None
    reading: str | None
    mass: float | None
    error: str | None
    note: str | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    seconds: float
    reused: bool
    judged: datetime
    judge: dict[str, Any]
    policy: Policy
    reasoning_tokens: int
    usd: float | None
    """Of the tokens; None where the price is not known or goes by the hour."""


class Evidence(NamedTuple):
    """A passage that a tier's reply quotes, at one of the places where it stands."""

    tier: str
    field: str
    quote: str
    start: int | None
    """In characters of the text; None where the text does not hold the quote."""
    stop: int | None


@dataclass(frozen=True)
class Explanation:
    """Everything that a run remembers about one candidate."""

    key: str
    fields: dict[str, Any]
    text: str | None
    """None where the row had no text to judge; `why` then says so."""
    verdict: str
    """As in the view `result`."""
    tier: str
    why: str | None
    judgements: list[JudgementDetail]
    """In the order of the tiers, those that the candidate reached and that answered."""
    audited: str | None = None
    """The tier that had rejected it, where an audit asked the last tier all the same."""
    evidence: Sequence[Evidence] = ()


class Results(Noun):
    """What runs have come to."""

    def funnel(self, run_id: int) -> list[FunnelRow]:
        """The view `funnel` of one run, in the order of its tiers."""
        with self._reading() as connection:
            rows = connection.execute(_FUNNEL, {"run": get(connection, run_id)["key"]})
            return [FunnelRow(*row)._replace(state=TierState(row.state)) for row in rows]

    def all(
        self,
        run_id: int,
        verdict: str | None = None,
        *,
        limit: int | None = None,
        fields: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """Every candidate by rising key, read as it is used, a thousand at a time.

        Args:
            run_id: the run.
            verdict: accepted, rejected, review, failed or pending; None for all.
            limit: only so many.
            fields: with the record as it was read.

        Yields:
            key, verdict, tier, score, why, `<tier>_score` and `<tier>_reading` of each tier, and
            `fields` where they are asked for.
        """
        if verdict is not None and verdict not in _VERDICTS:
            raise StoreError(f"no verdict '{verdict}'; write one of: {', '.join(_VERDICTS)}")
        with self._reading() as connection:
            tiers = connection.execute(
                select(RunTierRow.name, RunTierRow.judge_id)
                .where(RunTierRow.run_id == run_id)
                .order_by(RunTierRow.position)
            ).all()
            names = [f"{tier}_{column}" for tier, _ in tiers for column in ("score", "reading")]
            query = _results_query([judge for _, judge in tiers], verdict, limit, fields=fields)
            # A caller may stop half-way: the server's cursor closes before its transaction.
            with _streaming(connection, query, {"run_id": run_id}) as rows:
                for key, outcome, position, why, record, *answers in rows:
                    yield {
                        "key": key,
                        "verdict": outcome,
                        "tier": tiers[position].name,
                        "score": answers[2 * position],
                        "why": why,
                        **dict(zip(names, answers, strict=True)),
                        **({"fields": orjson.loads(record)} if fields else {}),
                    }

    def field_names(self, run_id: int) -> list[str]:
        """The columns of the run's input: the first candidate's in their order, then all others."""
        parameters = {"run_id": run_id}
        with self._reading() as connection:
            first = json.loads(connection.scalar(_FIRST_FIELDS, parameters) or "{}")
            query = _FIELD_NAMES[connection.dialect.name]
            others = sorted(connection.execute(query, parameters).scalars())
            return list(dict.fromkeys([*first, *others]))

    def differences(self, before: int, after: int) -> Iterator[Difference]:
        """Candidates that two runs do not agree about, by rising key, read as they are used."""
        parameters = {"before": before, "after": after}
        with (
            self._reading() as connection,
            _streaming(connection, _DIFFERENCES, parameters) as rows,
        ):
            for row in rows:
                yield Difference(*row)

    def explain(self, run_id: int, key: str) -> Explanation:
        """Everything about one candidate of the run.

        Raises:
            StoreError: the run has no such candidate.
        """
        with self._reading() as connection:
            run = get(connection, run_id)
            parameters = {"run": run["key"], "screen": run["screen"], "key": key}
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
                audited=connection.scalar(_AUDITED, {**parameters, "run_id": run_id}),
                evidence=[Evidence(*row) for row in connection.execute(_EVIDENCE, parameters)],
            )


def _streaming(
    connection: Connection, query: TextClause, parameters: dict[str, Any]
) -> CursorResult[Any]:
    return connection.execution_options(stream_results=True, yield_per=1000).execute(
        query, parameters
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
    record = _RECORD if fields else "NULL"
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


def _policies(connection: Connection, run_id: int) -> dict[int, Policy]:
    rows = connection.execute(
        select(RunTierRow.position, *COLUMNS)
        .join(PolicyRow, PolicyRow.id == RunTierRow.policy_id)
        .where(RunTierRow.run_id == run_id)
    )
    return {row.position: policy_of(row) for row in rows}


def _detail(row: RowMapping, policy: Policy) -> JudgementDetail:
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
