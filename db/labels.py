"""Labels: the truth about texts, from people or from the last tier, and what is asked for them."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, TextClause, select, text

from db.bulk import Noun, Staging, fresh_statistics, now, stage, upsert
from db.errors import StoreError
from db.models import JudgementRow, LabelRow, LabelSource, RunTierRow, TextRow

PEOPLE = "people"
"""As the one whose labels a policy takes: all people, and the majority counts."""
_STAGED = Staging("staged_text_id", {"text_id": "int8"})
_STAGED_KEYS = Staging("staged_key", {"key": "text"})
_ADVANCE = text("""
    UPDATE verdict SET position = position + 1
    WHERE run_id = :run_id AND position = :position AND outcome IS NULL
      AND EXISTS (
        SELECT 1 FROM candidate
        JOIN judgement
          ON judgement.judge_id = :judge_id AND judgement.text_id = candidate.text_id
        WHERE candidate.id = verdict.candidate_id AND judgement.score IS NOT NULL
      )
""")
_SEND_ON = text("""
    UPDATE verdict SET position = :position
    WHERE run_id = :run_id AND position < :position AND outcome IS NULL
      AND candidate_id IN (
        SELECT candidate.id FROM staged_text_id
        JOIN candidate ON candidate.text_id = staged_text_id.text_id
      )
""")


_COUNT = text("""
    SELECT COUNT(*)
    FROM verdict
    JOIN candidate ON candidate.id = verdict.candidate_id
    WHERE verdict.run_id = :run_id AND candidate.text_id IS NOT NULL
""")


class Label(NamedTuple):
    """One reviewer's answer about one text."""

    text_id: int
    reviewer: str
    answer: bool | None
    """None where the reviewer could not tell."""
    told_at: datetime


class Scored(NamedTuple):
    """One candidate of a run and its scores."""

    key: str
    text_id: int
    scores: tuple[float | None, ...]
    """One a tier; None where it gave none."""


def rubric_digest(rubric: str) -> str:
    """Names the question that labels answer."""
    return hashlib.sha256(rubric.encode()).hexdigest()


class Labels(Noun):
    """The labels of all texts."""

    def record(
        self,
        rubric: str,
        source: LabelSource,
        reviewer: str,
        answers: Mapping[int, bool | None],
        *,
        replace: bool = False,
    ) -> int:
        """Keep answers by text; return how many are new or changed.

        Args:
            rubric: as `rubric_digest` names it.
            source: a person, or the last tier.
            reviewer: who answers.
            answers: of the texts.
            replace: whether a reviewer's earlier answer gives way to another one.

        Raises:
            StoreError: an answer differs from the reviewer's earlier one; nothing is kept.
        """
        with self._writing() as connection:
            earlier = {
                label.text_id: label.answer
                for label in _labels(connection, rubric, source, reviewer)
            }
            changed = {
                text_id: answer
                for text_id, answer in answers.items()
                if text_id not in earlier or earlier[text_id] is not answer
            }
            if not replace:
                _refuse_changes(connection, reviewer, earlier, changed)
            statement = upsert(connection, LabelRow)
            key = ["rubric", "text_id", "source", "reviewer"]
            news = {"answer": statement.excluded.answer, "told_at": statement.excluded.told_at}
            if changed:
                connection.execute(
                    statement.on_conflict_do_update(index_elements=key, set_=news),
                    [
                        {
                            "rubric": rubric,
                            "text_id": text_id,
                            "source": source,
                            "reviewer": reviewer,
                            "answer": answer,
                            "told_at": now(),
                        }
                        for text_id, answer in changed.items()
                    ],
                )
            return len(changed)

    def all(self, rubric: str, source: LabelSource, reviewer: str | None = None) -> list[Label]:
        """Labels by rising text, of one reviewer or of all."""
        with self._reading() as connection:
            return _labels(connection, rubric, source, reviewer)

    def texts(self, text_ids: Iterable[int]) -> dict[int, str]:
        """The texts of these ids."""
        found: dict[int, str] = {}
        ids = list(text_ids)
        with self._reading() as connection:
            for start in range(0, len(ids), 500):
                rows = connection.execute(
                    select(TextRow.id, TextRow.body).where(TextRow.id.in_(ids[start : start + 500]))
                )
                found.update({row.id: row.body for row in rows})
        return found

    def scored(self, run_id: int, tiers: int, keys: Sequence[str] | None = None) -> list[Scored]:
        """Candidates of a run by rising key, with their scores at the first so many tiers.

        Args:
            run_id: the run.
            tiers: how many tiers.
            keys: only these candidates; None for all that have a text.
        """
        with self._reading() as connection:
            judges = connection.scalars(
                select(RunTierRow.judge_id)
                .where(RunTierRow.run_id == run_id, RunTierRow.position < tiers)
                .order_by(RunTierRow.position)
            ).all()
            stage(connection, _STAGED_KEYS, [(key,) for key in keys or ()])
            rows = connection.execute(_scored(judges, keys is not None), {"run_id": run_id})
            return [Scored(row[0], row[1], tuple(row[2:])) for row in rows]

    def judged(self, judge_id: int, text_ids: Sequence[int]) -> dict[int, float | None]:
        """Scores that a judge gave these texts; None where it gave no readable one.

        A failed attempt is none: it is made again.
        """
        found: dict[int, float | None] = {}
        with self._reading() as connection:
            for start in range(0, len(text_ids), 500):
                rows = connection.execute(
                    select(JudgementRow.text_id, JudgementRow.score).where(
                        JudgementRow.judge_id == judge_id,
                        JudgementRow.failed.is_(False),
                        JudgementRow.text_id.in_(text_ids[start : start + 500]),
                    )
                )
                found.update({row.text_id: row.score for row in rows})
        return found

    def advance(self, run_id: int, position: int, judge_id: int) -> None:
        """Let all pass that the tier has scored, whatever the score: nothing is decided."""
        with self._writing() as connection:
            fresh_statistics(connection, "verdict", "candidate", "judgement")
            connection.execute(
                _ADVANCE, {"run_id": run_id, "position": position, "judge_id": judge_id}
            )

    def candidates(self, run_id: int) -> int:
        """How many candidates of a run have a text: a calibration is about these."""
        with self._reading() as connection:
            return int(connection.scalar(_COUNT, {"run_id": run_id}) or 0)

    def send_on(self, run_id: int, position: int, text_ids: Iterable[int]) -> None:
        """Let these texts alone pass to the tier at `position`, to be judged there."""
        with self._writing() as connection:
            stage(connection, _STAGED, [(text_id,) for text_id in text_ids])
            connection.execute(_SEND_ON, {"run_id": run_id, "position": position})


def _labels(
    connection: Connection, rubric: str, source: LabelSource, reviewer: str | None
) -> list[Label]:
    query = (
        select(LabelRow.text_id, LabelRow.reviewer, LabelRow.answer, LabelRow.told_at)
        .where(LabelRow.rubric == rubric, LabelRow.source == source)
        .order_by(LabelRow.text_id, LabelRow.reviewer)
    )
    if reviewer is not None:
        query = query.where(LabelRow.reviewer == reviewer)
    return [Label(*row) for row in connection.execute(query)]


def _refuse_changes(
    connection: Connection,
    reviewer: str,
    earlier: Mapping[int, bool | None],
    changed: Mapping[int, bool | None],
) -> None:
    contradicted = [text_id for text_id in changed if text_id in earlier]
    if not contradicted:
        return
    first = contradicted[0]
    body = str(connection.scalar(select(TextRow.body).where(TextRow.id == first)))
    words = {True: "yes", False: "no", None: "unknown"}
    raise StoreError(
        f"{reviewer} told {len(contradicted):,} candidates otherwise before, the first "
        f"'{body[:60]}': {words[earlier[first]]} then, {words[changed[first]]} now; settle "
        "which is right and tell it with --replace. Nothing was stored"
    )


def _scored(judges: Sequence[int | None], staged: bool) -> TextClause:
    columns = "".join(f", judgement_{i}.score" for i in range(len(judges)))
    joins = "".join(
        f"""
        LEFT JOIN judgement AS judgement_{i}
          ON judgement_{i}.judge_id = {judge_id or 0}
          AND judgement_{i}.text_id = candidate.text_id"""
        for i, judge_id in enumerate(judges)
    )
    only = "AND candidate.key IN (SELECT key FROM staged_key)" if staged else ""
    return text(f"""
        SELECT candidate.key, candidate.text_id{columns}
        FROM verdict
        JOIN candidate ON candidate.id = verdict.candidate_id{joins}
        WHERE verdict.run_id = :run_id
          AND candidate.text_id IS NOT NULL
          {only}
        ORDER BY candidate.key
    """)  # noqa: S608 - judge ids and our own words
