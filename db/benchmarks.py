"""Benchmarks: how tiers did on machines and days."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import insert, select

from db.bulk import Noun, now, storable
from db.models import BenchmarkRow


@dataclass(frozen=True)
class Benchmark:
    """One setting of one tier, as measured; the fields are those of the table."""

    machine: str
    screen: str
    tier: str
    model: str
    candidates: int = 0
    batch_size: int | None = None
    concurrency: int | None = None
    rate: float | None = None
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    first_token: float | None = None
    prefill_rate: float | None = None
    decode_rate: float | None = None
    peak_memory: int | None = None
    gpu_memory: int | None = None
    gpu_utilisation: float | None = None
    per_dollar: float | None = None
    agreement: float | None = None
    flips: int | None = None
    flips_near: int | None = None
    suggested: bool = False
    problem: str | None = None
    source: str = "tamis"
    measured_at: datetime | None = None


class Benchmarks(Noun):
    """What was measured; rows are added and never changed."""

    def add(self, found: Iterable[Benchmark]) -> None:
        """Keep what was measured, as of now."""
        at = now()
        rows = [
            asdict(one) | {"measured_at": at, "problem": storable(one.problem)} for one in found
        ]
        if rows:
            with self._writing() as connection:
                connection.execute(insert(BenchmarkRow), rows)

    def of_screen(self, screen: str, tier: str | None = None, limit: int = 200) -> list[Benchmark]:
        """The newest of a screen, newest first; of one tier or of all."""
        names = Benchmark.__dataclass_fields__
        columns = [getattr(BenchmarkRow, name) for name in names]
        query = select(*columns).where(BenchmarkRow.screen == screen)
        if tier is not None:
            query = query.where(BenchmarkRow.tier == tier)
        query = query.order_by(BenchmarkRow.id.desc()).limit(limit)
        with self._reading() as connection:
            return [Benchmark(**row._mapping) for row in connection.execute(query)]
