"""Batches of requests that a server answers by tomorrow: what is where, and what is still out."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import RowMapping, Select, func, insert, select, text, update

from db.bulk import Noun, now, storable
from db.models import BatchLineRow, BatchRow, BatchState, RunRow, RunTierRow
from tiers.types import Price

OPEN = (BatchState.PREPARED, BatchState.SUBMITTED, BatchState.ENDED)
BY_HAND = "by hand"
"""Ends the reason of a batch that a person stopped: that is no round of its lines."""
_ROUNDS = text("""
    SELECT batch_line.text_id, COUNT(*)
    FROM batch_line
    JOIN batch ON batch.id = batch_line.batch_id
    LEFT JOIN judgement
      ON judgement.judge_id = batch.judge_id AND judgement.text_id = batch_line.text_id
    WHERE batch.run_id = :run_id
      AND batch.position = :position
      AND batch.state = 'collected'
      AND (batch.reason IS NULL OR (
        batch.reason NOT LIKE '%token_limit%' AND batch.reason NOT LIKE :by_hand))
      AND (judgement.text_id IS NULL
        OR (judgement.failed AND judgement.judged_at < batch.created_at))
    GROUP BY batch_line.text_id
""")


_OUT = text("""
    SELECT batch_line.text_id, LENGTH(text.body) AS characters,
      price.input, price.cached_input, price.output, price.hour, price.source
    FROM batch
    JOIN batch_line ON batch_line.batch_id = batch.id
    JOIN text ON text.id = batch_line.text_id
    LEFT JOIN price ON price.id = batch.price_id
    WHERE batch.run_id = :run_id
      AND batch.position = :position
      AND batch.state IN ('prepared', 'submitted', 'ended')
""")


class Out(NamedTuple):
    """A text whose answer is still to come, and the price at which it was sent."""

    text_id: int
    characters: int
    price: Price | None
    """None where it was not known."""


@dataclass(frozen=True)
class Batch:
    """One file of requests."""

    id: int
    run: str
    run_id: int
    tier: str
    position: int
    judge_id: int
    price_id: int | None
    mark: str
    server: str
    key_fingerprint: str
    remote_id: str | None
    input_file: str | None
    output_file: str | None
    error_file: str | None
    state: BatchState
    remote_state: str | None
    reason: str | None
    lines: int
    tokens: int
    answered: int
    unanswered: int
    created_at: datetime
    submitted_at: datetime | None
    ended_at: datetime | None
    collected_at: datetime | None


class Batches(Noun):
    """The batches of all runs."""

    def prepare(
        self,
        run_id: int,
        position: int,
        judge_id: int,
        text_ids: Sequence[int],
        *,
        server: str,
        key_fingerprint: str,
        tokens: int,
        price_id: int | None,
    ) -> Batch:
        """Write a batch down before anything of it is sent."""
        with self._writing() as connection:
            batch_id = connection.scalar(
                insert(BatchRow)
                .values(
                    run_id=run_id,
                    position=position,
                    judge_id=judge_id,
                    price_id=price_id,
                    mark=f"tamis-{uuid.uuid4().hex}",
                    server=server,
                    key_fingerprint=key_fingerprint,
                    state=BatchState.PREPARED,
                    lines=len(text_ids),
                    tokens=tokens,
                    created_at=now(),
                )
                .returning(BatchRow.id)
            )
            connection.execute(
                insert(BatchLineRow), [{"batch_id": batch_id, "text_id": each} for each in text_ids]
            )
            return _batch(
                connection.execute(_batches().where(BatchRow.id == batch_id)).mappings().one()
            )

    def change(self, batch_id: int, **values: Any) -> Batch:
        """Note what the server said of a batch; the keywords are columns."""
        if "state" in values:
            moment = {
                BatchState.SUBMITTED: "submitted_at",
                BatchState.ENDED: "ended_at",
                BatchState.COLLECTED: "collected_at",
            }.get(values["state"])
            if moment is not None:
                values[moment] = now()
        if "reason" in values:
            values["reason"] = storable(values["reason"])
        with self._writing() as connection:
            connection.execute(update(BatchRow).where(BatchRow.id == batch_id).values(values))
            return _batch(
                connection.execute(_batches().where(BatchRow.id == batch_id)).mappings().one()
            )

    def drop(self, batch_id: int) -> None:
        """Forget a batch of which the server knows nothing."""
        with self._writing() as connection:
            for table, column in ((BatchLineRow, BatchLineRow.batch_id), (BatchRow, BatchRow.id)):
                connection.execute(table.__table__.delete().where(column == batch_id))  # type: ignore[attr-defined]

    def all(
        self, run_id: int | None = None, position: int | None = None, *, open_only: bool = False
    ) -> list[Batch]:
        """Batches in the order in which they were made."""
        query = _batches().order_by(BatchRow.id)
        if run_id is not None:
            query = query.where(BatchRow.run_id == run_id)
        if position is not None:
            query = query.where(BatchRow.position == position)
        if open_only:
            query = query.where(BatchRow.state.in_(OPEN))
        with self._reading() as connection:
            return [_batch(row) for row in connection.execute(query).mappings()]

    def texts(self, batch_id: int) -> list[int]:
        """The texts of a batch, by rising id."""
        query = select(BatchLineRow.text_id).where(BatchLineRow.batch_id == batch_id)
        with self._reading() as connection:
            return list(connection.scalars(query.order_by(BatchLineRow.text_id)))

    def out(self, run_id: int, position: int) -> set[int]:
        """The texts of a tier that are in an open batch."""
        query = (
            select(BatchLineRow.text_id)
            .join(BatchRow, BatchRow.id == BatchLineRow.batch_id)
            .where(
                BatchRow.run_id == run_id,
                BatchRow.position == position,
                BatchRow.state.in_(OPEN),
            )
        )
        with self._reading() as connection:
            return set(connection.scalars(query))

    def outstanding(self, run_id: int, position: int) -> list[Out]:
        """As `out`, with what the answers may cost."""
        parameters = {"run_id": run_id, "position": position}
        with self._reading() as connection:
            return [
                Out(row[0], row[1], None if row[2] is None else Price(*row[2:]))
                for row in connection.execute(_OUT, parameters)
            ]

    def rounds(self, run_id: int, position: int) -> dict[int, int]:
        """Texts that were sent and have no answer yet: how many collected batches they were in."""
        parameters = {"run_id": run_id, "position": position, "by_hand": f"%{BY_HAND}"}
        with self._reading() as connection:
            return {row[0]: row[1] for row in connection.execute(_ROUNDS, parameters)}

    def waiting_runs(self) -> list[str]:
        """Keys of the runs that have an open batch."""
        query = (
            select(RunRow.key)
            .join(BatchRow, BatchRow.run_id == RunRow.id)
            .where(BatchRow.state.in_(OPEN))
            .group_by(RunRow.key, RunRow.id)
            .order_by(func.min(BatchRow.id))
        )
        with self._reading() as connection:
            return list(connection.scalars(query))


def _batches() -> Select[Any]:
    return (
        select(BatchRow.__table__, RunRow.key.label("run"), RunTierRow.name.label("tier"))
        .join(RunRow, RunRow.id == BatchRow.run_id)
        .join(
            RunTierRow,
            (RunTierRow.run_id == BatchRow.run_id) & (RunTierRow.position == BatchRow.position),
        )
    )


def _batch(row: RowMapping) -> Batch:
    return Batch(**row)
