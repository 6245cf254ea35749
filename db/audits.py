"""Audits: a random share of the rejects is sent on to the last tier all the same.

Who is drawn follows from the run's key, the seed of its screen and the candidate's key alone: not
from scores, and not from when or how often it is asked.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, insert, select, text

from db.bulk import Noun, Staging, stage
from db.models import AuditRow, RunRow
from db.run_tiers import count_tiers

_STAGED = Staging("staged_audited", {"candidate_id": "int8"})
_REJECTS = text("""
    SELECT verdict.candidate_id, candidate.key, verdict.position
    FROM verdict
    JOIN candidate ON candidate.id = verdict.candidate_id
    WHERE verdict.run_id = :run_id
      AND verdict.position < :last
      AND verdict.outcome = 'reject'
""")
# Found by an earlier run's audit, and answered by the judge that is asked in this run too.
_FOUND_BEFORE = text("""
    SELECT DISTINCT audit.candidate_id
    FROM audit
    JOIN candidate ON candidate.id = audit.candidate_id
    JOIN run_tier ON run_tier.run_id = :run_id AND run_tier.last
    JOIN judgement
      ON judgement.judge_id = run_tier.judge_id AND judgement.text_id = candidate.text_id
    WHERE audit.run_id < :run_id AND audit.found AND judgement.score IS NOT NULL
""")
_SEND_ON = text("""
    UPDATE verdict SET position = :last, outcome = NULL
    WHERE run_id = :run_id AND candidate_id IN (SELECT candidate_id FROM staged_audited)
""")
_TELL_FOUND = text("""
    UPDATE audit SET found = CASE
      WHEN verdict.outcome = 'reject' THEN false
      WHEN verdict.outcome = 'accept' THEN true
      WHEN verdict.outcome = 'review' AND verdict.why IS NULL THEN true
    END
    FROM verdict
    WHERE audit.run_id = :run_id
      AND verdict.run_id = :run_id
      AND verdict.candidate_id = audit.candidate_id
""")
_GIVE_BACK = text("""
    UPDATE verdict SET position = audit.position
    FROM audit
    WHERE verdict.run_id = :run_id
      AND verdict.outcome = 'reject'
      AND audit.run_id = :run_id
      AND audit.candidate_id = verdict.candidate_id
""")
_FORGET = (
    text("""
        UPDATE verdict SET outcome = 'reject', why = NULL
        WHERE run_id = :run_id
          AND candidate_id IN (SELECT candidate_id FROM audit WHERE run_id = :run_id)
    """),
    _GIVE_BACK,
    text("DELETE FROM audit WHERE run_id = :run_id"),
)
_COUNTS = text("""
    SELECT
      verdict.run_id,
      COALESCE(audit.position, verdict.position) AS place,
      COUNT(CASE WHEN run_tier.last AND verdict.outcome IN ('accept', 'review')
        AND (verdict.why IS NULL OR verdict.why LIKE 'suspicious: %')
        AND NOT COALESCE(audit.drawn, false) THEN 1 END) AS kept,
      COUNT(CASE WHEN NOT run_tier.last AND verdict.outcome = 'reject'
        OR audit.drawn AND audit.found THEN 1 END) AS rejects,
      COUNT(CASE WHEN audit.drawn AND audit.found IS NOT NULL THEN 1 END) AS audited,
      COUNT(CASE WHEN audit.drawn AND audit.found THEN 1 END) AS found,
      COUNT(CASE WHEN verdict.outcome IS NULL
        OR audit.drawn AND verdict.outcome = 'failed' THEN 1 END) AS waiting
    FROM verdict
    JOIN run_tier
      ON run_tier.run_id = verdict.run_id AND run_tier.position = verdict.position
    LEFT JOIN audit
      ON audit.run_id = verdict.run_id AND audit.candidate_id = verdict.candidate_id
    WHERE verdict.run_id IN :run_ids
    GROUP BY verdict.run_id, COALESCE(audit.position, verdict.position)
    ORDER BY verdict.run_id, COALESCE(audit.position, verdict.position)
""").bindparams(bindparam("run_ids", expanding=True))
# Who went back to an old version has a copy of it.
_SAME_PROMISE = text("""
    SELECT other.run_id, run.key
    FROM run_tier AS mine
    JOIN policy ON policy.id = mine.policy_id AND policy.certificate IS NOT NULL
    JOIN run_tier AS other ON other.position = mine.position
    JOIN policy AS theirs
      ON theirs.id = other.policy_id
      AND (
        theirs.id = policy.id
        OR theirs.certificate = policy.certificate
        AND COALESCE(theirs.reject_below, -1) = COALESCE(policy.reject_below, -1)
        AND COALESCE(theirs.accept_above, -1) = COALESCE(policy.accept_above, -1)
      )
    JOIN run ON run.id = other.run_id
    WHERE mine.run_id = :run_id AND other.run_id <= :run_id
    GROUP BY other.run_id, run.key
    HAVING COUNT(*) = (SELECT COUNT(*) FROM run_tier WHERE run_id = :run_id)
      AND COUNT(DISTINCT policy.certificate) = 1
    ORDER BY other.run_id
""")


class Audited(NamedTuple):
    """What an audit found about one tier's rejects."""

    position: int
    kept: int
    """Candidates that the last tier did not reject; counted in the row of the last tier."""
    rejects: int
    audited: int
    """Of the rejects, drawn and answered."""
    found: int
    """Of the audited, not rejected by the last tier."""
    waiting: int
    """Without an outcome, audited or not: until nobody is, an audit says nothing."""


class Audits(Noun):
    """The audits of all runs."""

    def draw(self, run_id: int) -> int:
        """Draw among the rejects and send the drawn to the last tier; return how many.

        Once all tiers but the last have decided; `undecide` takes it back.
        """
        with self._writing() as connection:
            return draw(connection, run_id)

    def record_answers(self, run_id: int) -> None:
        """Write down what the last tier said; what it rejects too goes back to the tier before."""
        with self._writing() as connection:
            record_answers(connection, run_id)

    def counts(self, run_ids: Iterable[int]) -> dict[int, list[Audited]]:
        """By run: a row for each tier that anybody ended at."""
        ids = list(run_ids)
        found: dict[int, list[Audited]] = {run_id: [] for run_id in ids}
        with self._reading() as connection:
            for row in connection.execute(_COUNTS, {"run_ids": ids}):
                found[row[0]].append(Audited(*row[1:]))
        return found

    def same_promise(self, run_id: int) -> list[tuple[int, str]]:
        """This run and those before it, by id and key, that use the same certified thresholds.

        Empty where a threshold of this run is not certified.
        """
        with self._reading() as connection:
            rows = connection.execute(_SAME_PROMISE, {"run_id": run_id})
            return [(row[0], row[1]) for row in rows]


def draw(connection: Connection, run_id: int) -> int:
    """As `Audits.draw`."""
    setting = _setting(connection, run_id)
    if setting is None:
        return 0
    share, salt = setting
    last = count_tiers(connection, run_id) - 1
    rejects = connection.execute(_REJECTS, {"run_id": run_id, "last": last}).all()
    known = set(connection.scalars(_FOUND_BEFORE, {"run_id": run_id}))
    chosen = [
        {
            "run_id": run_id,
            "candidate_id": row.candidate_id,
            "position": row.position,
            "drawn": row.candidate_id not in known,
        }
        for row in rejects
        if row.candidate_id in known or uniform(salt, row.key) < share
    ]
    if chosen:
        connection.execute(insert(AuditRow), chosen)
        stage(connection, _STAGED, [(row["candidate_id"],) for row in chosen])
        connection.execute(_SEND_ON, {"run_id": run_id, "last": last})
    return len(chosen)


def record_answers(connection: Connection, run_id: int) -> None:
    """As `Audits.record_answers`."""
    connection.execute(_TELL_FOUND, {"run_id": run_id})
    connection.execute(_GIVE_BACK, {"run_id": run_id})


def forget(connection: Connection, run_id: int) -> None:
    """Make the audited what they were before: rejects of the tier that rejected them."""
    for statement in _FORGET:
        connection.execute(statement, {"run_id": run_id})


def uniform(salt: bytes, key: str) -> float:
    """A candidate's number in [0, 1), uniform and independent of all else."""
    digest = hashlib.blake2b(key.encode(), key=salt, digest_size=8).digest()
    return int.from_bytes(digest[:7]) / 2**56


def _setting(connection: Connection, run_id: int) -> tuple[float, bytes] | None:
    """The share to draw, and what makes this run's draw another than others'."""
    key, config = connection.execute(
        select(RunRow.key, RunRow.config).where(RunRow.id == run_id)
    ).one()
    guarantee = json.loads(config).get("guarantee") or {}
    if not guarantee.get("audit"):
        return None
    salt = hashlib.blake2b(f"audit {guarantee.get('seed', 0)} {key}".encode(), digest_size=32)
    return float(guarantee["audit"]), salt.digest()
