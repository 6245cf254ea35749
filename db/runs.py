"""Runs: opened, found, held by one process at a time, and how they stand."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    Select,
    func,
    insert,
    or_,
    select,
    true,
    update,
)

from db.bulk import Noun, database_now, now, storable, upsert
from db.errors import RunHeld, StoreError
from db.models import BadRowRow, PolicyRow, RunRow, RunState, RunTierRow, TierState, VerdictRow
from db.policies import columns_of
from tiers.policy import Policy
from tiers.types import Outcome

_RUNS: Select[Any] = select(*RunRow.__table__.columns)
_SCREENS = _RUNS.where(RunRow.kind == "screen")
"""Without pilots."""


@dataclass(frozen=True)
class Run:
    """One execution of a screen."""

    id: int
    key: str
    screen: str
    state: RunState
    config: dict[str, Any]
    config_hash: str
    created: datetime
    attempt: int | None = None
    """Ours at it, where this process holds it."""


@dataclass(frozen=True)
class Account:
    """Where the candidates of a run are. Rows that could not be read count as failed."""

    candidates: int
    accepted: int
    rejected: int
    review: int
    failed: int
    pending: int
    bad_rows: int
    """Of the failed: rows of input that could not become candidates."""


@dataclass(frozen=True)
class RunStatus:
    """A run and how it stands."""

    run: Run
    reason: str | None
    started: datetime | None
    finished: datetime | None
    seconds: float
    """Working time over all resumes."""
    rows_read: int
    rows_duplicate: int
    account: Account
    lock_owner: str | None
    locked: bool
    """Whether the lock has not expired."""
    attempt: int
    """How often the lock was taken."""


class Runs(Noun):
    """All runs of one database."""

    def open(
        self,
        screen: str,
        config: dict[str, Any],
        config_hash: str,
        tiers: Sequence[tuple[str, Policy]],
        key: str | None = None,
        kind: Literal["screen", "pilot"] = "screen",
    ) -> Run:
        """Find the run to work on, or add it; one that was there stays as it is until `resume`.

        Args:
            screen: name of the screen.
            config: the whole screen, for the record.
            config_hash: tells whether two runs compute the same.
            tiers: names and policies of the cascade, in order.
            key: the run of this key; None for the newest unfinished run of this screen and
                configuration, and a new key where there is none.
            kind: a pilot is no run of the screen's candidates: no list has it, and each is new.
        """
        with self._writing() as connection:
            found = None if kind == "pilot" else _to_resume(connection, screen, config_hash, key)
            if found is None:
                run_id = _add(connection, screen, config, config_hash, key, kind)
                _add_tiers(connection, run_id, tiers)
            else:
                run_id = found["id"]
            return _as_run(get(connection, run_id))

    def to_resume(self, screen: str, config_hash: str, key: str | None = None) -> Run | None:
        """The run that `open` would find; None where it would begin one."""
        with self._reading() as connection:
            found = _to_resume(connection, screen, config_hash, key)
            return None if found is None else _as_run(found)

    # Who gives the number of an attempt writes nothing once another attempt has begun.

    def resume(self, run_id: int, config: dict[str, Any], *, attempt: int | None = None) -> None:
        """Say that the run is worked on again, and by which settings; its lock is held.

        A grown input may give even a run that was done something to do, and budgets and other
        settings that move no score may have changed.
        """
        with self._writing() as connection:
            _stand(connection, run_id, RunState.RUNNING, None, None, config, attempt)

    def put_back(self, before: RunStatus, *, attempt: int | None = None) -> None:
        """Have a run stand as it stood before it was resumed."""
        run, reason, finished = before.run, before.reason, before.finished
        with self._writing() as connection:
            _stand(connection, run.id, run.state, reason, finished, run.config, attempt)

    def find(self, key: str | None = None) -> Run:
        """The run of this key; None for the newest.

        Raises:
            StoreError: there is none.
        """
        query = _SCREENS.order_by(RunRow.id.desc()).limit(1)
        if key is not None:
            query = query.where(RunRow.key == key)
        with self._reading() as connection:
            row = connection.execute(query).mappings().one_or_none()
            if row is not None:
                return _as_run(row)
            newest = _SCREENS.with_only_columns(RunRow.key).order_by(RunRow.id.desc()).limit(10)
            known = connection.scalars(newest).all()
        if not known:
            raise StoreError("the database holds no run yet; start one with: tamis run SCREEN.yaml")
        raise StoreError(f"no run '{key}'; write one of the newest runs: {', '.join(known)}")

    def before(self, run: Run) -> Run:
        """The run of the same screen that was begun before this one.

        Raises:
            StoreError: there is none.
        """
        query = _SCREENS.where(RunRow.screen == run.screen, RunRow.id < run.id)
        query = query.order_by(RunRow.id.desc()).limit(1)
        with self._reading() as connection:
            row = connection.execute(query).mappings().one_or_none()
        if row is None:
            raise StoreError(
                f"run '{run.key}' is the first of screen '{run.screen}'; "
                "name the run to compare with"
            )
        return _as_run(row)

    def newest(self, limit: int = 20) -> list[RunStatus]:
        """The newest runs first, and how they stand."""
        with self._reading() as connection:
            rows = connection.execute(_SCREENS.order_by(RunRow.id.desc()).limit(limit)).mappings()
            return [_as_status(connection, row) for row in rows.all()]

    def running(self) -> list[RunStatus]:
        """Runs that say that they are worked on, and how they stand; the newest first."""
        query = _RUNS.where(RunRow.state == RunState.RUNNING).order_by(RunRow.id.desc())
        with self._reading() as connection:
            rows = connection.execute(query).mappings()
            return [_as_status(connection, row) for row in rows.all()]

    def interrupt(self, run_id: int, reason: str, *, attempt: int) -> bool:
        """Say that the process of this attempt is gone, and free its lock; whether that was so.

        The number of the attempt moves on, so that a process that was not gone writes nothing.
        """
        with self._writing() as connection:
            changed = connection.execute(
                update(RunRow)
                .where(RunRow.id == run_id, RunRow.state == RunState.RUNNING, is_current(attempt))
                .values(
                    state=RunState.INTERRUPTED,
                    reason=reason,
                    finished_at=now(),
                    lock_owner=None,
                    lock_until=None,
                    attempt=RunRow.attempt + 1,
                )
            )
            return changed.rowcount == 1

    def note(self, run_id: int, reason: str) -> None:
        """Say why a run that is over is not all that was wanted."""
        with self._writing() as connection:
            connection.execute(update(RunRow).where(RunRow.id == run_id).values(reason=reason))

    def set_config(self, run_id: int, config: dict[str, Any]) -> None:
        """Keep other settings of the run, for the next attempt at it."""
        with self._writing() as connection:
            connection.execute(
                update(RunRow).where(RunRow.id == run_id).values(config=_as_json(config))
            )

    def config(self, run_id: int) -> dict[str, Any]:
        """The settings of the run as they are stored now."""
        query = select(RunRow.config).where(RunRow.id == run_id)
        with self._reading() as connection:
            return dict(json.loads(connection.execute(query).scalar_one()))

    def shards(self, key: str) -> list[RunStatus]:
        """The parts of a run that was split by `--shard`, in order; empty where it was not."""
        parts = _RUNS.where(RunRow.key.like(f"{key}-%of%")).order_by(RunRow.id)
        with self._reading() as connection:
            rows = [
                row
                for row in connection.execute(parts).mappings()
                if re.fullmatch(rf"{re.escape(key)}-[0-9]+of[0-9]+", row["key"])
            ]
            rows.sort(key=lambda row: int(row["key"].rpartition("-")[2].partition("of")[0]))
            return [_as_status(connection, row) for row in rows]

    def status(self, run_id: int) -> RunStatus:
        """One run and how it stands."""
        with self._reading() as connection:
            return _as_status(connection, get(connection, run_id))

    def standing(self, run_id: int) -> tuple[RunState, str | None, bool]:
        """State, holder, and whether it holds the run: without counting candidates."""
        query = select(RunRow.state, RunRow.lock_owner, RunRow.lock_until)
        with self._reading() as connection:
            state, holder, until = connection.execute(query.where(RunRow.id == run_id)).one()
            return state, holder, until is not None and until > database_now(connection)

    def account(self, run_id: int) -> Account:
        """Where the run's candidates are.

        Raises:
            StoreError: they do not add up; then the database was changed by hand.
        """
        with self._reading() as connection:
            return _account(connection, run_id)

    def finish(
        self,
        run_id: int,
        state: RunState,
        reason: str | None = None,
        seconds: float = 0.0,
        *,
        attempt: int | None = None,
    ) -> None:
        """Close an attempt at the run; `seconds` is what this attempt worked."""
        with self._writing() as connection:
            connection.execute(
                update(RunRow)
                .where(RunRow.id == run_id, is_current(attempt))
                .values(
                    state=RunState(state),
                    reason=storable(reason),
                    finished_at=now(),
                    seconds=RunRow.seconds + seconds,
                )
            )

    def lock(self, run_id: int, owner: str, seconds: float = 120) -> int:
        """Keep other processes off this run until `seconds` from now; `renew` in time.

        Returns:
            The number of this attempt, for every write of the run's state.

        Raises:
            RunHeld: somebody else holds it.
        """
        lock, until = RunRow.lock_owner, RunRow.lock_until
        with self._writing() as connection:
            at = database_now(connection)
            attempt = connection.scalar(
                update(RunRow)
                .where(RunRow.id == run_id, or_(lock.is_(None), lock == owner, until <= at))
                .values(
                    lock_owner=owner,
                    lock_until=at + timedelta(seconds=seconds),
                    attempt=RunRow.attempt + 1,
                )
                .returning(RunRow.attempt)
            )
            if attempt is not None:
                return attempt
            holder = get(connection, run_id)
        raise RunHeld(
            f"run '{holder['key']}' is being worked on by {_process(holder['lock_owner'])} until "
            f"{holder['lock_until']:%Y-%m-%d %H:%M:%S} UTC at least; wait for it, or end it "
            f"with: tamis pause {holder['key']}; if its machine is gone, try again after that time"
        )

    def renew(
        self, run_id: int, owner: str, seconds: float = 120, *, attempt: int | None = None
    ) -> None:
        """Hold the lock for longer.

        Raises:
            RunHeld: somebody else took it meanwhile.
        """
        with self._writing() as connection:
            held = connection.execute(
                update(RunRow)
                .where(RunRow.id == run_id, RunRow.lock_owner == owner, is_current(attempt))
                .values(lock_until=database_now(connection) + timedelta(seconds=seconds))
            )
        if not held.rowcount:
            raise RunHeld(
                f"{_process(owner)} lost its lock on run {run_id}, because it did not renew it in "
                "time and another process took the run over; leave the run to that one"
            )

    def pause(self, run_id: int) -> int:
        """Ask who works on the run to end, with what was judged; the number of that attempt.

        Raises:
            StoreError: nobody works on it.
        """
        with self._writing() as connection:
            attempt = connection.scalar(
                update(RunRow)
                .where(RunRow.id == run_id, RunRow.lock_until > database_now(connection))
                .values(pause_attempt=RunRow.attempt)
                .returning(RunRow.attempt)
            )
            run = get(connection, run_id)
        if attempt is None:
            raise StoreError(
                f"run '{run['key']}' is {run['state']}, and nobody works on it, so there is "
                f"nothing to pause; see: tamis status {run['key']}"
            )
        return attempt

    def pause_asked(self, run_id: int, attempt: int) -> bool:
        """Whether this attempt at the run is asked to end as paused."""
        query = select(RunRow.pause_attempt).where(RunRow.id == run_id)
        with self._reading() as connection:
            return connection.scalar(query) == attempt

    def unlock(self, run_id: int, owner: str) -> None:
        """Give the lock back."""
        with self._writing() as connection:
            connection.execute(
                update(RunRow)
                .where(RunRow.id == run_id, RunRow.lock_owner == owner)
                .values(lock_owner=None, lock_until=None)
            )


def is_current(attempt: int | None) -> ColumnElement[bool]:
    """Whether a run's row is at this attempt; None for any."""
    return true() if attempt is None else RunRow.attempt == attempt


def get(connection: Connection, run_id: int) -> RowMapping:
    """The run of this id.

    Raises:
        StoreError: there is none.
    """
    row = connection.execute(_RUNS.where(RunRow.id == run_id)).mappings().one_or_none()
    if row is None:
        raise StoreError(f"no run with id {run_id}")
    return row


def _to_resume(
    connection: Connection, screen: str, config_hash: str, key: str | None
) -> RowMapping | None:
    """The run of this key, or the newest unfinished one of this screen and configuration."""
    if key is None:
        return (
            connection.execute(
                _RUNS.where(
                    RunRow.kind == "screen",
                    RunRow.screen == screen,
                    RunRow.config_hash == config_hash,
                    RunRow.state.not_in((RunState.DONE, RunState.ALARM)),
                )
                .order_by(RunRow.id.desc())
                .limit(1)
            )
            .mappings()
            .one_or_none()
        )
    row = connection.execute(_RUNS.where(RunRow.key == key)).mappings().one_or_none()
    same = (screen, config_hash, "screen")
    if row is not None and (row["screen"], row["config_hash"], row["kind"]) != same:
        raise StoreError(
            f"run '{key}' belongs to screen '{row['screen']}' with configuration "
            f"{row['config_hash'][:12]}, but this is screen '{screen}' with configuration "
            f"{config_hash[:12]}; give another key, undo the change to the screen, or go on as the "
            f"run began with: tamis resume {key}"
        )
    return row


def _add(
    connection: Connection,
    screen: str,
    config: dict[str, Any],
    config_hash: str,
    key: str | None,
    kind: str,
) -> int:
    """Insert a run; without a key, it gets the screen's name and the next free number."""
    same = (RunRow.screen == screen, RunRow.kind == kind)
    number = connection.scalar(select(func.count()).where(*same)) or 0
    stem = screen if kind == "screen" else f"{screen}-{kind}"
    values = {
        "screen": screen,
        "kind": kind,
        "config": _as_json(config),
        "config_hash": config_hash,
        "state": RunState.RUNNING,
        "created_at": now(),
        "started_at": now(),
    }
    while True:
        number += 1
        run_id = connection.scalar(
            upsert(connection, RunRow)
            .values(key=key or f"{stem}-{number}", **values)
            .on_conflict_do_nothing(index_elements=["key"])
            .returning(RunRow.id)
        )
        if run_id is not None:
            return int(run_id)
        if key is not None:
            raise StoreError(f"run '{key}' was begun by another process just now; run again")


def _add_tiers(connection: Connection, run_id: int, tiers: Sequence[tuple[str, Policy]]) -> None:
    """Insert the run's tiers, each with a version of its policy."""
    for position, (name, policy) in enumerate(tiers):
        policy_id = connection.scalar(
            insert(PolicyRow)
            .values(**columns_of(policy), run_id=run_id, position=position, created_at=now())
            .returning(PolicyRow.id)
        )
        connection.execute(
            insert(RunTierRow).values(
                run_id=run_id,
                position=position,
                name=name,
                policy_id=policy_id,
                last=position == len(tiers) - 1,
                state=TierState.WAITING,
            )
        )


def _stand(
    connection: Connection,
    run_id: int,
    state: RunState,
    reason: str | None,
    finished: datetime | None,
    config: dict[str, Any],
    attempt: int | None,
) -> None:
    connection.execute(
        update(RunRow)
        .where(RunRow.id == run_id, is_current(attempt))
        .values(
            state=state,
            reason=reason,
            finished_at=finished,
            config=_as_json(config),
        )
    )


def _as_json(config: dict[str, Any]) -> str:
    """The screen with its keys in their order: a model writes the fields of an answer in it."""
    return json.dumps(config, ensure_ascii=False)


def _process(owner: str) -> str:
    """An owner as people name a process: its first words are host and process id."""
    host, _, rest = owner.partition(" ")
    return f"process {rest.split(' ')[0]} on {host}" if rest else host


def _as_run(row: RowMapping) -> Run:
    """A row of `_RUNS` as a value."""
    return Run(
        id=row["id"],
        key=row["key"],
        screen=row["screen"],
        state=row["state"],
        config=json.loads(row["config"]),
        config_hash=row["config_hash"],
        created=row["created_at"],
    )


def _as_status(connection: Connection, row: RowMapping) -> RunStatus:
    """A row of `_RUNS`, and how the run stands."""
    until = row["lock_until"]
    return RunStatus(
        run=_as_run(row),
        reason=row["reason"],
        started=row["started_at"],
        finished=row["finished_at"],
        seconds=row["seconds"],
        rows_read=row["rows_read"],
        rows_duplicate=row["rows_duplicate"],
        account=_account(connection, row["id"]),
        lock_owner=row["lock_owner"],
        locked=until is not None and until > database_now(connection),
        attempt=row["attempt"],
    )


def _account(connection: Connection, run_id: int) -> Account:
    """Where the run's candidates are.

    Raises:
        StoreError: they do not add up.
    """
    query = (
        select(VerdictRow.outcome, func.count())
        .where(VerdictRow.run_id == run_id)
        .group_by(VerdictRow.outcome)
    )
    counts = {row[0]: row[1] for row in connection.execute(query)}
    bad = connection.scalar(select(func.count()).where(BadRowRow.run_id == run_id)) or 0
    found = Account(
        candidates=sum(counts.values()) + bad,
        accepted=counts.get(Outcome.ACCEPT, 0),
        rejected=counts.get(Outcome.REJECT, 0),
        review=counts.get(Outcome.REVIEW, 0),
        failed=counts.get(Outcome.FAILED, 0) + bad,
        pending=counts.get(None, 0),
        bad_rows=bad,
    )
    told = found.accepted + found.rejected + found.review + found.failed + found.pending
    if told != found.candidates:
        raise StoreError(
            f"run {run_id} holds {found.candidates:,} candidates, but its verdicts tell of "
            f"{told:,}; the table verdict was changed from outside"
        )
    return found
