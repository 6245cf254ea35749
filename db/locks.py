"""One row a run keeps two flows from working on it at once; it expires if its holder dies."""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, or_, update

from db import runs
from db.errors import RunHeld, StoreError
from db.models import RunRow


def lock(connection: Connection, run_id: int, owner: str, seconds: float) -> None:
    """Take the lock, if it is free or this owner's.

    Raises:
        RunHeld: somebody else holds it.
    """
    now = runs.now()
    free = or_(RunRow.lock_owner.is_(None), RunRow.lock_owner == owner, RunRow.lock_until <= now)
    if _hold(connection, run_id, owner, now + timedelta(seconds=seconds), free):
        return
    holder = runs.get(connection, run_id)
    raise RunHeld(
        f"run '{holder['key']}' is being worked on by {_process(holder['lock_owner'])} until "
        f"{holder['lock_until']:%Y-%m-%d %H:%M:%S} UTC at least; wait for it, or end that "
        "process and try again after that time"
    )


def renew(connection: Connection, run_id: int, owner: str, seconds: float) -> None:
    """Hold it for longer.

    Raises:
        StoreError: somebody else took it meanwhile.
    """
    until = runs.now() + timedelta(seconds=seconds)
    if not _hold(connection, run_id, owner, until, RunRow.lock_owner == owner):
        raise StoreError(
            f"{owner} lost its lock on run {run_id}, because it did not renew it in time "
            "and another process took the run over; leave the run to that one"
        )


def unlock(connection: Connection, run_id: int, owner: str) -> None:
    """Give it back."""
    connection.execute(
        update(RunRow)
        .where(RunRow.id == run_id, RunRow.lock_owner == owner)
        .values(lock_owner=None, lock_until=None)
    )


def _process(owner: str) -> str:
    """An owner as people name a process: its first words are host and process id."""
    host, _, rest = owner.partition(" ")
    return f"process {rest.split(' ')[0]} on {host}" if rest else host


def _hold(connection: Connection, run_id: int, owner: str, until: datetime, condition: Any) -> bool:
    held = connection.execute(
        update(RunRow)
        .where(RunRow.id == run_id, condition)
        .values(lock_owner=owner, lock_until=until)
    )
    return held.rowcount == 1
