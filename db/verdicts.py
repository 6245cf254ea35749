"""Where candidates stand: taking verdicts back, to decide anew from the stored scores."""

from sqlalchemy import Connection, or_, select, update

from db import audits as audit
from db.models import CandidateRow, VerdictRow


def undecide(connection: Connection, run_id: int, position: int = 0) -> None:
    """Take all that came to a tier back to it, undecided.

    Verdicts follow from scores and policies alone, so nothing is lost.
    """
    audit.forget(connection, run_id)
    unreadable = select(CandidateRow.id).where(CandidateRow.problem.is_not(None))
    connection.execute(
        update(VerdictRow)
        .where(
            VerdictRow.run_id == run_id,
            or_(
                VerdictRow.position > position,
                (VerdictRow.position == position) & VerdictRow.outcome.is_not(None),
            ),
            VerdictRow.candidate_id.not_in(unreadable),
        )
        .values(position=position, outcome=None, why=None)
    )
