"""Judgements: texts out to a judge, what the judge said in."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import bindparam, select, text

from db.bulk import Noun, Staging, in_order, now, stage, storable
from db.models import JudgementRow, UtcDateTime
from tiers.types import Candidate, Judgement

NOWHERE: Mapping[str, int] = {}
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
        "address_id": "int8",
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

# Through the texts in order, so that a page costs a page.
_UNJUDGED = in_order("""
    SELECT text.id, text.body
    FROM (
      SELECT DISTINCT candidate.text_id AS id
      FROM candidate
      CROSS JOIN verdict
        ON verdict.run_id = :run_id
        AND verdict.candidate_id = candidate.id
        AND verdict.position = :position
        AND verdict.outcome IS NULL
      LEFT JOIN judgement
        ON judgement.judge_id = :judge_id AND judgement.text_id = candidate.text_id
      WHERE candidate.text_id > :after
        AND (judgement.text_id IS NULL OR judgement.failed)
      ORDER BY candidate.text_id
      LIMIT :limit
    ) AS waiting
    CROSS JOIN text ON text.id = waiting.id
    ORDER BY text.id
""")
_COUNT_UNJUDGED = text("""
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
_LOW_MASS = text("""
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


class Judgements(Noun):
    """What judges have said about texts, whichever run asked."""

    def unjudged(
        self, run_id: int, position: int, judge_id: int, after: int, limit: int
    ) -> list[Candidate]:
        """The next texts that wait at this tier without an answer; a broken answer is none.

        Args:
            run_id: the run.
            position: the tier.
            judge_id: who judges there.
            after: the last text id of the page before; 0 for the first page.
            limit: texts of a page.

        Returns:
            Texts by rising id, each once, under the ids that `record` expects: `Candidate.id` is
            the id of the text, because candidates with the same text share one judgement.
        """
        parameters = {
            "run_id": run_id, "position": position, "judge_id": judge_id,
            "after": after, "limit": limit,
        }  # fmt: skip
        with self._reading() as connection:
            statement = _UNJUDGED[connection.dialect.name]
            return [Candidate(*row) for row in connection.execute(statement, parameters)]

    def count_unjudged(self, run_id: int, position: int, judge_id: int) -> int:
        """How many texts `unjudged` would give in all."""
        with self._reading() as connection:
            parameters = {"run_id": run_id, "position": position, "judge_id": judge_id}
            return int(connection.scalar(_COUNT_UNJUDGED, parameters) or 0)

    def any(self, run_id: int) -> bool:
        """Whether the run has paid for an answer."""
        query = select(JudgementRow.text_id).where(JudgementRow.run_id == run_id).limit(1)
        with self._reading() as connection:
            return connection.scalar(query) is not None

    def record(
        self,
        run_id: int,
        judge_id: int,
        judgements: Sequence[Judgement],
        price_id: int | None = None,
        addresses: Mapping[str, int] = NOWHERE,
    ) -> None:
        """Keep what the judge said, all or nothing; an answer that is there is kept as it was.

        Only a judgement that had failed is replaced. NaN becomes null, with an error. `price_id` is
        what `set_price` gave; None where the price is not known. `addresses` is what
        `addresses.ids` gave.
        """
        # Postgres upserts no row twice in one statement: of two answers, the later counts.
        latest = {judgement.id: _staged(judgement, price_id, addresses) for judgement in judgements}
        with self._writing() as connection:
            stage(connection, _STAGED, list(latest.values()))
            parameters = {"judge_id": judge_id, "run_id": run_id, "judged_at": now()}
            connection.execute(_RECORD, parameters)

    def low_mass(
        self, judge_id: int, run_id: int, position: int, below: float = 0.5, sample: int = 256
    ) -> tuple[int, int, int]:
        """Of the tier's first texts: low `mass`, any mass, and not judged yet.

        Args:
            judge_id: who judges.
            run_id: the run.
            position: of the tier.
            below: a judgement with less mass is low.
            sample: how many texts are looked at.
        """
        parameters = {
            "judge_id": judge_id, "run_id": run_id, "position": position,
            "below": below, "sample": sample,
        }  # fmt: skip
        with self._reading() as connection:
            low, known, waiting = connection.execute(_LOW_MASS, parameters).one()
            return int(low), int(known), int(waiting)


def _staged(
    judgement: Judgement, price_id: int | None, addresses: Mapping[str, int]
) -> tuple[Any, ...]:
    (
        text_id, score, reading, mass, prompt, cached, completion, reasoning, seconds, error,
        failed, note, address,
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
        None if address is None else addresses.get(address),
    )
