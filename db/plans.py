"""Pilots, which a sample measured, and the plans that runs began with."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import delete, func, insert, or_, select, text

from db.bulk import Noun, database_now, now, upsert
from db.models import (
    CandidateRow,
    JudgementRow,
    JudgeRow,
    PilotRow,
    PlanRow,
    RunRow,
    RunTierRow,
    TextRow,
    VerdictRow,
)

_PASS_ON = text("""
    UPDATE verdict SET position = position + 1
    WHERE run_id = :run_id AND position = :position AND outcome IS NULL
""")
_ANSWERS = text("""
    SELECT DISTINCT candidate.text_id, judgement.judge_id, judgement.score, judgement.mass,
      judgement.prompt_tokens, judgement.cached_tokens, judgement.completion_tokens,
      judgement.judged_at, judgement.run_id
    FROM verdict
    JOIN candidate ON candidate.id = verdict.candidate_id
    JOIN run_tier ON run_tier.run_id = verdict.run_id
    JOIN judgement
      ON judgement.judge_id = run_tier.judge_id AND judgement.text_id = candidate.text_id
    WHERE verdict.run_id = :run_id AND NOT judgement.failed
    ORDER BY candidate.text_id
""").columns(judged_at=PilotRow.__table__.c.created_at.type)
_PACE = text("""
    SELECT run_tier.position, run_tier.seconds, run_tier.load_seconds,
      run_tier.prompt_rate, run_tier.decode_rate
    FROM run_tier WHERE run_tier.run_id = :run_id ORDER BY run_tier.position
""")


class Answered(NamedTuple):
    """A judge's answer about a text of a pilot's sample, paid for by the run `run_id`."""

    text_id: int
    judge_id: int
    score: float | None
    mass: float | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    judged_at: datetime
    run_id: int


class Worked(NamedTuple):
    """How long a tier of a run worked, and what its engine said of itself."""

    position: int
    seconds: float
    load_seconds: float | None
    prompt_rate: float | None
    decode_rate: float | None


class Kept(NamedTuple):
    """The plan that a run began with."""

    run: str
    run_id: int
    body: dict[str, Any]
    created: datetime


class Plans(Noun):
    """What was measured before runs, and expected of them."""

    def pass_on(self, run_id: int, position: int) -> None:
        """Have all that wait at a tier of a pilot wait at the next one, whatever it said."""
        with self._writing() as connection:
            connection.execute(_PASS_ON, {"run_id": run_id, "position": position})

    def answers(self, run_id: int) -> list[Answered]:
        """What the judges of a pilot said of its sample, by rising text."""
        with self._reading() as connection:
            return [Answered(*row) for row in connection.execute(_ANSWERS, {"run_id": run_id})]

    def worked(self, run_id: int) -> list[Worked]:
        """How long each tier of a pilot worked."""
        with self._reading() as connection:
            return [Worked(*row) for row in connection.execute(_PACE, {"run_id": run_id})]

    def clear(self, screen: str, run_id: int | None = None) -> None:
        """Take samples and tiers out of a screen's pilots; the judgements stay, for every run.

        Args:
            screen: the screen.
            run_id: the pilot; None for all that nobody works on, whose process may have died.
        """
        with self._writing() as connection:
            free = or_(RunRow.lock_until.is_(None), RunRow.lock_until < database_now(connection))
            which = RunRow.id == run_id if run_id is not None else free
            ids = select(RunRow.id).where(RunRow.kind == "pilot", RunRow.screen == screen, which)
            for table in (VerdictRow, RunTierRow):
                connection.execute(delete(table).where(table.run_id.in_(ids)))

    def add_pilot(self, run_id: int, screen: str, body: dict[str, Any]) -> None:
        """Keep what a pilot measured."""
        values = {"run_id": run_id, "screen": screen, "body": json.dumps(body), "created_at": now()}
        with self._writing() as connection:
            connection.execute(insert(PilotRow).values(values))

    def pilots(self, screen: str) -> list[tuple[int, dict[str, Any]]]:
        """Ids and bodies of a screen's ten newest pilots, newest first."""
        query = select(PilotRow.run_id, PilotRow.body).where(PilotRow.screen == screen)
        with self._reading() as connection:
            rows = connection.execute(query.order_by(PilotRow.run_id.desc()).limit(10))
            return [(row.run_id, json.loads(row.body)) for row in rows]

    def keep(self, run_id: int, body: dict[str, Any], pilot_id: int | None) -> None:
        """Keep the plan that a run begins with; the first one stays."""
        values = {"run_id": run_id, "pilot_id": pilot_id, "body": json.dumps(body)}
        with self._writing() as connection:
            connection.execute(
                upsert(connection, PlanRow)
                .values(**values, created_at=now())
                .on_conflict_do_nothing(index_elements=["run_id"])
            )

    def answered(self, judge: str) -> int:
        """How many texts a judge, named by its digest, has answered in all runs."""
        query = (
            select(func.count())
            .select_from(JudgementRow)
            .join(JudgeRow, JudgeRow.id == JudgementRow.judge_id)
            .where(JudgeRow.digest == judge)
        )
        with self._reading() as connection:
            return connection.scalar(query) or 0

    def scores(
        self, judges: Sequence[str], texts: Sequence[bytes]
    ) -> dict[str, dict[bytes, float | None]]:
        """What judges have said of texts in all runs: by the judge's digest and the text's."""
        query = (
            select(JudgeRow.digest, TextRow.digest, JudgementRow.score)
            .join(JudgementRow, JudgementRow.judge_id == JudgeRow.id)
            .join(TextRow, TextRow.id == JudgementRow.text_id)
            .where(
                JudgeRow.digest.in_(judges),
                TextRow.digest.in_(texts),
                JudgementRow.failed.is_(False),
            )
        )
        found: dict[str, dict[bytes, float | None]] = {judge: {} for judge in judges}
        with self._reading() as connection:
            for judge, text_, score in connection.execute(query):
                found[judge][text_] = score
        return found

    def some_texts(self, run_id: int, most: int) -> list[bytes]:
        """The digests of some texts of a run."""
        query = (
            select(TextRow.digest)
            .join(CandidateRow, CandidateRow.text_id == TextRow.id)
            .join(VerdictRow, VerdictRow.candidate_id == CandidateRow.id)
            .where(VerdictRow.run_id == run_id)
            .limit(most)
        )
        with self._reading() as connection:
            return list(connection.execute(query).scalars())

    def of(self, run_id: int) -> dict[str, Any] | None:
        """The plan that a run began with; None where none was kept."""
        query = select(PlanRow.body).where(PlanRow.run_id == run_id)
        with self._reading() as connection:
            body = connection.scalar(query)
        return None if body is None else dict(json.loads(body))

    def all(self, states: Sequence[str]) -> list[Kept]:
        """The plans of all runs in these states, oldest first."""
        query = (
            select(RunRow.key, RunRow.id, PlanRow.body, PlanRow.created_at)
            .join(PlanRow, PlanRow.run_id == RunRow.id)
            .where(RunRow.state.in_(states))
        )
        with self._reading() as connection:
            rows = connection.execute(query.order_by(RunRow.id))
            return [Kept(row[0], row[1], json.loads(row[2]), row[3]) for row in rows]
