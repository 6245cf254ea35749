"""Approvals: what people said of certified thresholds."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import insert, select

from db.bulk import Noun, now, storable
from db.models import ApprovalRow


@dataclass(frozen=True)
class Approval:
    """A person's word on one certificate of one run."""

    id: int
    approved: bool
    author: str
    reason: str
    created_at: datetime


class Approvals(Noun):
    """The words of all people; none is ever changed, and the newest counts."""

    def say(
        self, run_id: int, digest: str, *, approved: bool, author: str, reason: str = ""
    ) -> None:
        """Keep a person's word on the certificate of this digest."""
        with self._writing() as connection:
            connection.execute(
                insert(ApprovalRow).values(
                    run_id=run_id,
                    digest=digest,
                    approved=approved,
                    author=storable(author),
                    reason=storable(reason),
                    created_at=now(),
                )
            )

    def newest(self, run_id: int, digest: str) -> Approval | None:
        """The last word on the certificate of this digest; None where nobody said anything."""
        query = (
            select(
                ApprovalRow.id,
                ApprovalRow.approved,
                ApprovalRow.author,
                ApprovalRow.reason,
                ApprovalRow.created_at,
            )
            .where(ApprovalRow.run_id == run_id, ApprovalRow.digest == digest)
            .order_by(ApprovalRow.id.desc())
            .limit(1)
        )
        with self._reading() as connection:
            row = connection.execute(query).one_or_none()
            return None if row is None else Approval(*row)
