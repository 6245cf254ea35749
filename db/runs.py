"""Runs and their tiers: rows to values, and the steps of opening a run."""

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, func, insert, select, text, update
from sqlalchemy.dialects import postgresql, sqlite

from db.bulk import storable
from db.errors import StoreError
from db.models import (
    BadRowRow,
    JudgeRow,
    PolicyRow,
    RunRow,
    RunState,
    RunTierRow,
    TierState,
    VerdictRow,
)
from db.values import Account, Run, RunStatus, TierPlan
from tiers.types import Outcome

RUNS: Select[Any] = select(*RunRow.__table__.columns)

# A tier whose judge changed after it decided would mix the scores of two judges.
_DECIDED = text("""
    SELECT COUNT(*)
    FROM verdict
    JOIN candidate ON candidate.id = verdict.candidate_id
    WHERE verdict.run_id = :run_id
      AND candidate.problem IS NULL
      AND (verdict.position > :position
        OR (verdict.position = :position AND verdict.outcome IN ('accept', 'reject', 'review')))
""")


def now() -> datetime:
    """The clock of this machine; locks trust that the clocks of two machines agree."""
    return datetime.now(UTC)


def upsert(connection: Connection, table: Any) -> Any:
    """An INSERT that knows ON CONFLICT, in the dialect of this database."""
    return (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(table)


def get(connection: Connection, run_id: int) -> RowMapping:
    """The run of this id.

    Raises:
        StoreError: there is none.
    """
    row = connection.execute(RUNS.where(RunRow.id == run_id)).mappings().one_or_none()
    if row is None:
        raise StoreError(f"no run with id {run_id}")
    return row


def find(connection: Connection, key: str | None) -> RowMapping:
    """The run of this key, or the newest."""
    query = RUNS.order_by(RunRow.id.desc()).limit(1)
    if key is not None:
        query = query.where(RunRow.key == key)
    row = connection.execute(query).mappings().one_or_none()
    if row is not None:
        return row
    known = connection.scalars(select(RunRow.key).order_by(RunRow.id.desc()).limit(10)).all()
    if not known:
        raise StoreError("the database holds no run yet; start one with: tamis run SCREEN.yaml")
    raise StoreError(f"no run '{key}'; write one of the newest runs: {', '.join(known)}")


def before(connection: Connection, run: Run) -> RowMapping:
    """The run of the same screen that was begun before this one.

    Raises:
        StoreError: there is none.
    """
    query = RUNS.where(RunRow.screen == run.screen, RunRow.id < run.id)
    row = connection.execute(query.order_by(RunRow.id.desc()).limit(1)).mappings().one_or_none()
    if row is None:
        raise StoreError(
            f"run '{run.key}' is the first of screen '{run.screen}'; name the run to compare with"
        )
    return row


def to_resume(
    connection: Connection, screen: str, config_hash: str, key: str | None
) -> RowMapping | None:
    """The run of this key, or the newest unfinished one of this screen and configuration."""
    if key is None:
        return (
            connection.execute(
                RUNS.where(
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
    row = connection.execute(RUNS.where(RunRow.key == key)).mappings().one_or_none()
    if row is not None and (row["screen"], row["config_hash"]) != (screen, config_hash):
        raise StoreError(
            f"run '{key}' belongs to screen '{row['screen']}' with configuration "
            f"{row['config_hash'][:12]}, but this is screen '{screen}' with configuration "
            f"{config_hash[:12]}; give another key, or undo the change to the screen"
        )
    return row


def add(
    connection: Connection, screen: str, config: dict[str, Any], config_hash: str, key: str | None
) -> int:
    """Insert a run; without a key, it gets the screen's name and the next free number."""
    number = connection.scalar(select(func.count()).where(RunRow.screen == screen)) or 0
    values = {
        "screen": screen,
        "config": json.dumps(config, sort_keys=True, ensure_ascii=False),
        "config_hash": config_hash,
        "state": RunState.RUNNING,
        "created_at": now(),
        "started_at": now(),
    }
    while True:
        number += 1
        run_id = connection.scalar(
            upsert(connection, RunRow)
            .values(key=key or f"{screen}-{number}", **values)
            .on_conflict_do_nothing(index_elements=["key"])
            .returning(RunRow.id)
        )
        if run_id is not None:
            return int(run_id)
        if key is not None:
            raise StoreError(f"run '{key}' was begun by another process just now; run again")


def add_tiers(connection: Connection, run_id: int, tiers: Sequence[TierPlan]) -> None:
    """Insert the run's tiers, each with a version of its policy."""
    for position, tier in enumerate(tiers):
        numbers = tier._asdict()
        name = numbers.pop("name")
        policy_id = connection.scalar(
            insert(PolicyRow)
            .values(**numbers, run_id=run_id, position=position, created_at=now())
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


def count_tiers(connection: Connection, run_id: int) -> int:
    """How many tiers the run has."""
    query = select(func.count()).where(RunTierRow.run_id == run_id)
    return connection.scalar(query.select_from(RunTierRow)) or 0


def set_tier_state(
    connection: Connection,
    run_id: int,
    position: int,
    state: TierState,
    reason: str | None,
    seconds: float,
    measured: dict[str, float | None],
) -> None:
    """Say how a tier stands; seconds are added, None leaves a measurement as it was."""
    over = TierState(state) in {TierState.DONE, TierState.STOPPED}
    values: dict[str, Any] = {
        "state": TierState(state),
        "reason": storable(reason),
        "seconds": RunTierRow.seconds + seconds,
        "finished_at": now() if over else None,
        **{name: value for name, value in measured.items() if value is not None},
    }
    if state == TierState.RUNNING:
        values["started_at"] = func.coalesce(RunTierRow.started_at, now())
    connection.execute(
        update(RunTierRow)
        .where(RunTierRow.run_id == run_id, RunTierRow.position == position)
        .values(values)
    )


def tier_reasons(connection: Connection, run_id: int) -> list[str]:
    """Why tiers of the run stopped, in the order of the tiers."""
    query = (
        select(RunTierRow.reason)
        .where(RunTierRow.run_id == run_id, RunTierRow.state == TierState.STOPPED)
        .order_by(RunTierRow.position)
    )
    return [reason for reason in connection.scalars(query) if reason]


def reopen(connection: Connection, run_id: int, config: dict[str, Any]) -> None:
    """The run runs again; a grown input may give even one that was done something to do.

    Budgets and other settings that move no score may have changed since.
    """
    connection.execute(
        update(RunRow)
        .where(RunRow.id == run_id)
        .values(
            state=RunState.RUNNING,
            reason=None,
            finished_at=None,
            config=json.dumps(config, sort_keys=True, ensure_ascii=False),
        )
    )


def put_back(connection: Connection, before: RunStatus) -> None:
    """Undo `reopen`."""
    connection.execute(
        update(RunRow)
        .where(RunRow.id == before.run.id)
        .values(
            state=before.run.state,
            reason=before.reason,
            finished_at=before.finished,
            config=json.dumps(before.run.config, sort_keys=True, ensure_ascii=False),
        )
    )


def set_judge(
    connection: Connection, run_id: int, position: int, description: dict[str, Any]
) -> int:
    """Say who judges at a tier; the same description gives the same id, in every run."""
    canonical = json.dumps(description, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    connection.execute(
        upsert(connection, JudgeRow)
        .values(digest=digest, description=canonical)
        .on_conflict_do_nothing(index_elements=["digest"])
    )
    judge_id = connection.scalars(select(JudgeRow.id).where(JudgeRow.digest == digest)).one()
    check_same_judge(connection, run_id, position, judge_id)
    connection.execute(
        update(RunTierRow)
        .where(RunTierRow.run_id == run_id, RunTierRow.position == position)
        .values(judge_id=judge_id)
    )
    return judge_id


def check_same_judge(connection: Connection, run_id: int, position: int, judge_id: int) -> None:
    """Refuse another judge than the one by whose scores this tier has decided already.

    Raises:
        StoreError: candidates of this run went past the tier under another judge.
    """
    earlier, name = connection.execute(
        select(RunTierRow.judge_id, RunTierRow.name).where(
            RunTierRow.run_id == run_id, RunTierRow.position == position
        )
    ).one()
    if earlier in (None, judge_id):
        return
    decided = connection.scalar(_DECIDED, {"run_id": run_id, "position": position})
    if decided:
        raise StoreError(
            f"tier '{name}' has decided {decided:,} candidates by another judge (model, rubric, "
            "engine or settings differ: see table judge); start a new run, or go back to that one"
        )


def as_run(row: RowMapping) -> Run:
    """A row of `RUNS` as a value."""
    return Run(
        id=row["id"],
        key=row["key"],
        screen=row["screen"],
        state=row["state"],
        config=json.loads(row["config"]),
        config_hash=row["config_hash"],
        created=row["created_at"],
    )


def as_status(row: RowMapping, account: Account) -> RunStatus:
    """A row of `RUNS`, and how the run stands."""
    return RunStatus(
        run=as_run(row),
        reason=row["reason"],
        started=row["started_at"],
        finished=row["finished_at"],
        seconds=row["seconds"],
        rows_read=row["rows_read"],
        rows_duplicate=row["rows_duplicate"],
        account=account,
        lock_owner=row["lock_owner"],
        locked=row["lock_until"] is not None and row["lock_until"] > now(),
    )


def account(connection: Connection, run_id: int) -> Account:
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
