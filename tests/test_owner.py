"""Who holds a run's lock, and when it may be taken from them."""

import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, text

from db.store import RunState, Store, StoreError
from flows.owner import is_dead, owner, state_of
from flows.run.hold import held

from .test_store import new_run


def parts() -> list[str]:
    return owner().split(" ")


def test_this_process_lives_and_one_that_ended_is_dead() -> None:
    assert not is_dead(owner())
    ended = subprocess.run(
        [sys.executable, "-c", "from flows.owner import owner; print(owner())"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    assert ended != owner()
    assert is_dead(ended)


def test_another_process_under_the_same_number_is_not_the_holder() -> None:
    host, pid, started, *rest = parts()
    assert is_dead(" ".join((host, pid, f"{float(started) - 100:.2f}", *rest)))


@pytest.mark.parametrize("place", [0, 3, 4])
def test_a_process_that_cannot_be_seen_from_here_is_not_called_dead(place: int) -> None:
    """Another host, another boot of this machine, or a container with processes of its own."""
    holder = parts()
    holder[1] = "999999999"
    assert is_dead(" ".join(holder))
    holder[place] = "elsewhere"
    assert not is_dead(" ".join(holder))
    assert " ".join(holder) != owner()


def test_an_owner_of_the_version_before_waits_for_its_expiry() -> None:
    assert not is_dead(f"{socket.gethostname()}:999999999")


def test_a_living_holder_keeps_others_off_and_a_dead_one_does_not(store: Store) -> None:
    run = new_run(store)
    host, _, *rest = parts()
    store.runs.lock(
        run.id, " ".join((host, "1", *rest[:-1], "pid:[1]"))
    )  # process 1 of a container
    said = f"is being worked on by process 1 on {host}"
    with pytest.raises(StoreError, match=said), held(store, run):
        pass
    assert state_of(store.runs.status(run.id)) is RunState.RUNNING
    store.runs.unlock(run.id, " ".join((host, "1", *rest[:-1], "pid:[1]")))
    store.runs.lock(run.id, " ".join((host, "999999999", *rest)))
    assert state_of(store.runs.status(run.id)) is RunState.INTERRUPTED
    with held(store, run):
        assert state_of(store.runs.status(run.id)) is RunState.RUNNING


def test_a_run_whose_lock_has_expired_is_interrupted(store: Store, engine: Engine) -> None:
    run = new_run(store)
    store.runs.lock(run.id, "elsewhere 1 0 boot space")
    assert state_of(store.runs.status(run.id)) is RunState.RUNNING
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE run SET lock_until = :past"),
            {"past": datetime.now(UTC) - timedelta(seconds=1)},
        )
    assert state_of(store.runs.status(run.id)) is RunState.INTERRUPTED
