"""Samples: what a run used of its machine, and how far its tiers were, while it worked."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import func, select

from db.bulk import Noun, upsert
from db.models import RunTierRow, SampleRow, TierState

NOBODY = -1
"""The position of a sample that was taken while no tier worked."""
_KEY = ("run_id", "attempt", "number", "position")


@dataclass(frozen=True)
class Sample:
    """One look at one tier; the fields are those of the table."""

    attempt: int
    number: int
    position: int
    at: datetime
    cpu: float | None = None
    memory: int | None = None
    gpu: float | None = None
    gpu_memory: int | None = None
    judged: int = 0
    expected: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    loading: float = 0.0
    reading: float = 0.0
    judging: float = 0.0
    storing: float = 0.0


class TierNow(NamedTuple):
    """How a tier stands, by what is cheap to ask."""

    position: int
    tier: str
    state: TierState
    sample: Sample | None
    """The newest of the run's newest attempt; None where the tier has not worked in it."""
    before: Sample | None
    """The one before it, to tell a rate."""


_COLUMNS = [getattr(SampleRow, field.name) for field in fields(Sample)]


class Samples(Noun):
    """The samples of all runs."""

    def record(self, run_id: int, samples: Iterable[Sample]) -> None:
        """Keep samples; one of the same number and tier is replaced."""
        rows = [{"run_id": run_id, **asdict(one)} for one in samples]
        if not rows:
            return
        with self._writing() as connection:
            statement = upsert(connection, SampleRow)
            news = {
                field.name: statement.excluded[field.name]
                for field in fields(Sample)
                if field.name not in _KEY
            }
            connection.execute(
                statement.on_conflict_do_update(index_elements=_KEY, set_=news), rows
            )

    def all(self, run_id: int) -> list[Sample]:
        """The samples of a run in the order in which they were taken; some thousands at most."""
        query = select(*_COLUMNS).where(SampleRow.run_id == run_id)
        query = query.order_by(SampleRow.attempt, SampleRow.number, SampleRow.position)
        with self._reading() as connection:
            return [Sample(*row) for row in connection.execute(query)]

    def now(self, run_id: int) -> list[TierNow]:
        """How the run's tiers stand, without counting candidates: for those who ask often."""
        mine = SampleRow.run_id == run_id
        newest = select(func.max(SampleRow.attempt)).where(mine).scalar_subquery()
        tiers = select(RunTierRow.position, RunTierRow.name, RunTierRow.state).where(
            RunTierRow.run_id == run_id
        )
        with self._reading() as connection:
            found = []
            for position, name, state in connection.execute(tiers.order_by(RunTierRow.position)):
                last = select(*_COLUMNS).where(
                    mine, SampleRow.attempt == newest, SampleRow.position == position
                )
                last = last.order_by(SampleRow.number.desc()).limit(2)
                two = [Sample(*row) for row in connection.execute(last)]
                found.append(TierNow(position, name, state, *[*two, None, None][:2]))
            return found
