"""Policies as versions: who changed a tier's thresholds, when, why, and what that promises."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Boolean, Connection, Row, insert, select, text, update

from db.bulk import Noun, now, storable
from db.errors import StoreError
from db.models import PolicyRow, RunRow, RunTierRow, UtcDateTime
from tiers.policy import Policy

COLUMNS = (
    PolicyRow.reject_below,
    PolicyRow.accept_above,
    PolicyRow.top_count,
    PolicyRow.top_share,
    PolicyRow.budget,
)
"""Where a policy is kept, for `columns_of` and `policy_of`."""
_VERSIONS = text("""
    SELECT policy.id, run_tier.name, run_tier.position, policy.follows, policy.author,
      policy.reason, policy.created_at, policy.certificate IS NOT NULL AS certified,
      policy.id = run_tier.policy_id AS in_use,
      policy.reject_below, policy.accept_above, policy.top_count, policy.top_share, policy.budget
    FROM run_tier
    JOIN policy
      ON policy.id = run_tier.policy_id
      OR (policy.run_id = run_tier.run_id AND policy.position = run_tier.position)
    WHERE run_tier.run_id = :run_id
    ORDER BY run_tier.position, policy.id
""").columns(created_at=UtcDateTime(), certified=Boolean(), in_use=Boolean(), budget=Boolean())
_CERTIFICATE = text("""
    SELECT policy.certificate
    FROM policy
    LEFT JOIN run_tier ON run_tier.policy_id = policy.id AND run_tier.run_id = :run_id
    WHERE policy.certificate IS NOT NULL
      AND (run_tier.run_id IS NOT NULL OR policy.run_id = :run_id)
    ORDER BY CASE WHEN run_tier.run_id IS NULL THEN 1 ELSE 0 END, policy.id DESC
    LIMIT 1
""")
_TEXTS = text("""
    SELECT candidate.key, text.digest
    FROM verdict
    JOIN candidate ON candidate.id = verdict.candidate_id
    JOIN text ON text.id = candidate.text_id
    WHERE verdict.run_id = :run_id
    ORDER BY candidate.key
""")
_KEEP_CALIBRATED = text("""
    INSERT INTO calibrated (digest, candidate_id)
    SELECT :digest, candidate.id
    FROM verdict
    JOIN candidate ON candidate.id = verdict.candidate_id
    WHERE verdict.run_id = :run_id
      AND candidate.text_id IS NOT NULL
      AND NOT EXISTS (SELECT 1 FROM calibrated AS kept WHERE kept.digest = :digest)
""")
# The same candidate, or one with the same key and text whose other fields changed.
_CAME = text("""
    SELECT COUNT(*)
    FROM verdict
    JOIN candidate ON candidate.id = verdict.candidate_id
    WHERE verdict.run_id = :run_id
      AND candidate.text_id IS NOT NULL
      AND NOT EXISTS (
        SELECT 1 FROM calibrated
        WHERE calibrated.digest = :digest AND calibrated.candidate_id = candidate.id
      )
      AND NOT EXISTS (
        SELECT 1 FROM candidate AS same CROSS JOIN calibrated
        WHERE same.screen = candidate.screen
          AND same.key = candidate.key
          AND same.text_id = candidate.text_id
          AND calibrated.digest = :digest
          AND calibrated.candidate_id = same.id
      )
""")
_WENT = text("""
    SELECT COUNT(*)
    FROM calibrated
    JOIN candidate ON candidate.id = calibrated.candidate_id
    WHERE calibrated.digest = :digest
      AND NOT EXISTS (
        SELECT 1 FROM verdict
        WHERE verdict.run_id = :run_id AND verdict.candidate_id = candidate.id
      )
      AND NOT EXISTS (
        SELECT 1 FROM candidate AS same CROSS JOIN verdict
        WHERE same.screen = candidate.screen
          AND same.key = candidate.key
          AND same.text_id = candidate.text_id
          AND verdict.run_id = :run_id
          AND verdict.candidate_id = same.id
      )
""")
# The newest run of the same definition whose thresholds were calibrated.
_CALIBRATED = text("""
    SELECT run.id
    FROM run
    JOIN run_tier ON run_tier.run_id = run.id
    JOIN policy ON policy.id = run_tier.policy_id
    WHERE run.screen = :screen AND run.config_hash = :config_hash AND run.id <> :run_id
      AND policy.certificate IS NOT NULL
    ORDER BY run.id DESC
    LIMIT 1
""")


class Change(NamedTuple):
    """What a new version of a tier's policy says."""

    reject_below: float | None
    accept_above: float | None


@dataclass(frozen=True)
class Version:
    """One version of a tier's policy."""

    id: int
    tier: str
    position: int
    labels_from: str | None
    """Whose labels go before the score; None for nobody's."""
    author: str | None
    reason: str | None
    created_at: datetime
    certified: bool
    """Whether a certificate belongs to it."""
    in_use: bool
    policy: Policy

    @property
    def thresholds(self) -> Change:
        return Change(self.policy.reject_below, self.policy.accept_above)


class Policies(Noun):
    """The policies of all runs, version by version."""

    def versions(self, run_id: int) -> list[Version]:
        """All versions that were made for a run or that it uses, by tier and age."""
        with self._reading() as connection:
            rows = connection.execute(_VERSIONS, {"run_id": run_id})
            return [_version(row) for row in rows]

    def certify(
        self,
        run_id: int,
        changes: Mapping[int, Change],
        *,
        labels_from: str,
        certificate: Mapping[str, Any],
        author: str,
        reason: str,
    ) -> list[int]:
        """Set certified thresholds, nothing else, at several tiers together; return the versions.

        Args:
            run_id: the run.
            changes: by position.
            labels_from: whose labels go before the score; `people`, or the tier as reviewer.
            certificate: what is promised.
            author: who had it made.
            reason: why.
        """
        said = {
            "follows": labels_from,
            "certificate": json.dumps(certificate, sort_keys=True, ensure_ascii=False),
            "author": author,
            "reason": reason,
        }
        with self._writing() as connection:
            if digest := certificate.get("candidates_digest"):
                calibrated = {"run_id": run_id, "digest": bytes.fromhex(digest)}
                connection.execute(_KEEP_CALIBRATED, calibrated)
            return [
                _add(connection, run_id, position, {**change._asdict(), **said})
                for position, change in sorted(changes.items())
            ]

    def move(self, run_id: int, position: int, change: Change, *, author: str, reason: str) -> int:
        """Set other thresholds at one tier by hand; the rest of its policy stays."""
        with self._writing() as connection:
            values = {**_current(connection, run_id, position), **change._asdict()}
            return _add(
                connection, run_id, position, {**values, "author": author, "reason": reason}
            )

    def use(self, run_id: int, policy_id: int, *, author: str, reason: str) -> int:
        """Go back to a version of this run, as a new one that is its copy, certificate included.

        Returns:
            Its tier's position.

        Raises:
            StoreError: the run has no such version.
        """
        with self._writing() as connection:
            versions = connection.execute(_VERSIONS, {"run_id": run_id}).all()
            position = next((each.position for each in versions if each.id == policy_id), None)
            if position is None:
                known = ", ".join(str(each.id) for each in versions)
                raise StoreError(f"the run has no policy {policy_id}; write one of: {known}")
            values = {**_values(connection, policy_id), "author": author, "reason": reason}
            _add(connection, run_id, position, values)
            return int(position)

    def certificate(self, run_id: int) -> dict[str, Any] | None:
        """The newest certificate in use in a run, or made for it; None where there is none."""
        with self._reading() as connection:
            found = connection.scalar(_CERTIFICATE, {"run_id": run_id})
            return None if found is None else dict(json.loads(found))

    def candidates_digest(self, run_id: int) -> str:
        """SHA-256 of who is calibrated: a line a candidate by rising key, its key and its text's.

        A text is named by its BLAKE2b of 16 bytes, hexadecimal, after a tab.
        """
        found = hashlib.sha256()
        with self._reading() as connection:
            streaming = connection.execution_options(stream_results=True, yield_per=1000)
            with streaming.execute(_TEXTS, {"run_id": run_id}) as rows:
                for key, digest in rows:
                    found.update(f"{key}\t{bytes(digest).hex()}\n".encode())
        return found.hexdigest()

    def came_and_went(self, run_id: int, digest: str) -> tuple[int, int]:
        """How many of a run's candidates are not among those of a certificate, and the reverse.

        Who has the same key and text is the same; another text is one that came and one that went.
        """
        parameters = {"run_id": run_id, "digest": bytes.fromhex(digest)}
        with self._reading() as connection:
            came, went = (connection.scalar(query, parameters) or 0 for query in (_CAME, _WENT))
            return came, went

    def may_inherit(self, screen: str, config_hash: str, promise: Mapping[str, Any]) -> bool:
        """Whether a new run of this definition finds a certificate that says so."""
        with self._reading() as connection:
            return _calibrated(connection, screen, config_hash, promise) is not None

    def inherit(self, run_id: int, promise: Mapping[str, Any]) -> bool:
        """Take over the thresholds of the newest calibrated run of this definition and its judges.

        Args:
            run_id: the run that has none yet.
            promise: what its certificate has to say, by name.

        Returns:
            Whether there is one, its certificate says so, and the judges are the same.
        """
        with self._writing() as connection:
            run = connection.execute(
                select(RunRow.screen, RunRow.config_hash).where(RunRow.id == run_id)
            ).one()
            other = _calibrated(connection, run.screen, run.config_hash, promise, run_id)
            if other is None:
                return False
            theirs, ours = _tiers(connection, other), _tiers(connection, run_id)
            if [tier.judge_id for tier in theirs] != [tier.judge_id for tier in ours]:
                return False
            for tier in theirs:
                _set(connection, run_id, tier.position, tier.policy_id)
            return True


def _calibrated(
    connection: Connection,
    screen: str,
    config_hash: str,
    promise: Mapping[str, Any],
    run_id: int = 0,
) -> int | None:
    """The newest calibrated run of a definition, but this one; None where it promises otherwise."""
    parameters = {"screen": screen, "config_hash": config_hash, "run_id": run_id}
    found = connection.scalar(_CALIBRATED, parameters)
    certificate = json.loads(connection.scalar(_CERTIFICATE, {"run_id": found}) or "{}")
    kept = all(certificate.get(name) == value for name, value in promise.items())
    return None if found is None or not kept else int(found)


def _current(connection: Connection, run_id: int, position: int) -> dict[str, Any]:
    """What the policy in use says, and whose labels it takes; no certificate."""
    row = connection.execute(
        select(*COLUMNS, PolicyRow.follows)
        .join(RunTierRow, RunTierRow.policy_id == PolicyRow.id)
        .where(RunTierRow.run_id == run_id, RunTierRow.position == position)
    )
    return dict(row.mappings().one())


def _values(connection: Connection, policy_id: int) -> dict[str, Any]:
    """All that a version says and promises."""
    columns = (*COLUMNS, PolicyRow.follows, PolicyRow.certificate)
    row = connection.execute(select(*columns).where(PolicyRow.id == policy_id))
    return dict(row.mappings().one())


def _version(row: Row[Any]) -> Version:
    return Version(
        id=row.id,
        tier=row.name,
        position=row.position,
        labels_from=row.follows,
        author=row.author,
        reason=row.reason,
        created_at=row.created_at,
        certified=row.certified,
        in_use=row.in_use,
        policy=policy_of(row),
    )


def columns_of(policy: Policy) -> dict[str, Any]:
    """The policy as its table holds it: `top` is a count in one column, a share in another."""
    share = isinstance(policy.top, float)
    return {
        "reject_below": policy.reject_below,
        "accept_above": policy.accept_above,
        "top_count": None if share else policy.top,
        "top_share": policy.top if share else None,
        "budget": policy.budget,
    }


def policy_of(row: Row[Any]) -> Policy:
    """The policy that a row of these columns holds; it may set nothing, as no screen file may."""
    return Policy.model_construct(
        reject_below=row.reject_below,
        accept_above=row.accept_above,
        top=row.top_share if row.top_count is None else row.top_count,
        budget=bool(row.budget),
    )


def _tiers(connection: Connection, run_id: int) -> Sequence[Any]:
    query = select(RunTierRow.position, RunTierRow.policy_id, RunTierRow.judge_id)
    return connection.execute(
        query.where(RunTierRow.run_id == run_id).order_by(RunTierRow.position)
    ).all()


def _add(connection: Connection, run_id: int, position: int, values: dict[str, Any]) -> int:
    words = {name: storable(values[name]) for name in ("author", "reason")}
    policy_id = connection.scalar(
        insert(PolicyRow)
        .values(**{**values, **words}, run_id=run_id, position=position, created_at=now())
        .returning(PolicyRow.id)
    )
    if policy_id is None:
        raise StoreError("the database gave the new policy no id; run again")
    _set(connection, run_id, position, policy_id)
    return int(policy_id)


def _set(connection: Connection, run_id: int, position: int, policy_id: int | None) -> None:
    connection.execute(
        update(RunTierRow)
        .where(RunTierRow.run_id == run_id, RunTierRow.position == position)
        .values(policy_id=policy_id)
    )
