"""The addresses at which a run's tiers ask servers: how each one is, and what it has judged."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import func, select, update

from db.bulk import Noun, now, storable, upsert
from db.models import AddressRow, JudgementRow, RunTierRow
from tiers.types import Health


@dataclass(frozen=True)
class AddressStatus:
    """One address of a tier, as the process that works on the run last told."""

    tier: str
    url: str
    state: str
    """As in `tiers.types.Health`."""
    since: datetime
    in_flight: int
    judged: int
    """Judgements of this run that came from there."""
    error: str | None
    """The last one."""


class Addresses(Noun):
    """The addresses of all runs, by run, position of the tier, and address."""

    def ids(self, run_id: int, position: int, urls: Iterable[str]) -> dict[str, int]:
        """The ids by which judgements name addresses; those that are new are added."""
        here = (AddressRow.run_id == run_id, AddressRow.position == position)
        rows = [
            {"run_id": run_id, "position": position, "url": url, "state": "untried",
             "since": now(), "in_flight": 0}
            for url in dict.fromkeys(urls)
        ]  # fmt: skip
        with self._writing() as connection:
            connection.execute(upsert(connection, AddressRow).on_conflict_do_nothing(), rows)
            known = select(AddressRow.url, AddressRow.id).where(*here)
            return dict(connection.execute(known).tuples().all())

    def record(self, run_id: int, position: int, healths: Iterable[Health]) -> None:
        """Say how the addresses of a tier are."""
        with self._writing() as connection:
            for health in healths:
                connection.execute(
                    update(AddressRow)
                    .where(
                        AddressRow.run_id == run_id,
                        AddressRow.position == position,
                        AddressRow.url == health.url,
                    )
                    .values(
                        state=health.state,
                        since=datetime.fromtimestamp(health.since, UTC),
                        in_flight=health.in_flight,
                        error=storable(health.error),
                    )
                )

    def all(self, run_id: int) -> list[AddressStatus]:
        """The run's addresses, tier by tier, in the order in which they were added."""
        judged = (
            select(JudgementRow.address_id, func.count().label("judged"))
            .where(JudgementRow.run_id == run_id, JudgementRow.address_id.is_not(None))
            .group_by(JudgementRow.address_id)
            .subquery()
        )
        query = (
            select(
                RunTierRow.name,
                AddressRow.url,
                AddressRow.state,
                AddressRow.since,
                AddressRow.in_flight,
                func.coalesce(judged.c.judged, 0),
                AddressRow.error,
            )
            .join(
                RunTierRow,
                (RunTierRow.run_id == AddressRow.run_id)
                & (RunTierRow.position == AddressRow.position),
            )
            .outerjoin(judged, judged.c.address_id == AddressRow.id)
            .where(AddressRow.run_id == run_id)
            .order_by(AddressRow.position, AddressRow.id)
        )
        with self._reading() as connection:
            return [AddressStatus(*row) for row in connection.execute(query)]
