"""Holding a run: its lock kept fresh, given up in time, and a wish to pause heard."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from db.errors import RunHeld
from db.store import DatabaseError, Run, Store, StoreError
from flows import recorder
from flows.owner import is_dead, owner

LOCK_SECONDS = 300.0
"""Renewed at a third of them; at two thirds without, the holder ends; then others may take over."""
LOOK_SECONDS = 1.0
"""How often a holder looks at its lock, and whether it is asked to pause."""
PAUSE_SECONDS = 10.0
"""For answers that are under way; what then is not in is left, as by Ctrl-C."""


class Paused(Exception):
    """A person asked that the run be paused; what was judged is kept."""


class Hold:
    """A run that this process holds: which attempt at it this is, and whether it has to end."""

    def __init__(self, run: Run, attempt: int) -> None:
        self.run = run
        self.attempt = attempt
        self.renewed = time.monotonic()
        """When the lock was last seen to be ours: taken before the database was asked."""
        self.lost: StoreError | None = None
        """Why the run is no longer ours, or may not be."""
        self.pausing = threading.Event()
        """A person asked for a pause: no new candidate is begun."""
        self.pause_forced = False
        """What was under way took too long, so that the main thread was interrupted."""
        self.over = threading.Event()
        """The work has ended: nothing interrupts the main thread any more."""


@contextmanager
def held(store: Store, run: Run) -> Iterator[Hold]:
    """Keep every other process off the run.

    The main thread is interrupted as by Ctrl-C when the lock could not be renewed in time
    (`Hold.lost`), and when a pause takes too long (`Hold.pause_forced`).

    Raises:
        RunHeld: another process holds it.
    """
    holder = store.runs.status(run.id).lock_owner
    if holder is not None and is_dead(holder):
        store.runs.unlock(run.id, holder)
    hold = Hold(run, store.runs.lock(run.id, owner(), seconds=LOCK_SECONDS))
    keeper = threading.Thread(target=_keep, args=(store, hold), daemon=True)
    watch = threading.Thread(target=_watch, args=(hold,), daemon=True)
    keeper.start()
    watch.start()
    try:
        yield hold
    finally:
        hold.over.set()
        watch.join()
        if hold.lost is None:  # else the keeper may wait for a database that is away
            keeper.join()
        store.runs.unlock(run.id, owner())


def _keep(store: Store, hold: Hold) -> None:
    """Renew the lock however long a block, a model's loading or a reading takes."""
    run_id, attempt = hold.run.id, hold.attempt
    while not hold.over.wait(_look_seconds()):
        asked = time.monotonic()
        try:
            if asked - hold.renewed >= LOCK_SECONDS / 3:
                store.runs.renew(run_id, owner(), seconds=LOCK_SECONDS, attempt=attempt)
                hold.renewed = asked
            if store.runs.pause_asked(run_id, attempt):
                hold.pausing.set()
        except DatabaseError:
            continue  # the main thread meets the same trouble, and tells it
        except StoreError as taken:
            _give_up(hold, taken)
            return


def _watch(hold: Hold) -> None:
    """End the work in time, also where the keeper waits for a database that does not answer."""
    asked: float | None = None
    while not hold.over.wait(_look_seconds()):
        now = time.monotonic()
        if now - hold.renewed >= LOCK_SECONDS * 2 / 3:
            seconds = now - hold.renewed
            lost = RunHeld(
                f"run '{hold.run.key}': its lock could not be renewed for {seconds:,.0f} s (the "
                "database did not answer, or this process stood still), and another process may "
                "take the run over; what was judged is kept, go on with the same command"
            )
            _give_up(hold, lost)
            return
        if hold.pausing.is_set():
            asked = asked or now
            if now - asked >= PAUSE_SECONDS and not hold.pause_forced:
                hold.pause_forced = True
                recorder.stop_main()


def _look_seconds() -> float:
    return min(LOOK_SECONDS, LOCK_SECONDS / 30)


def _give_up(hold: Hold, lost: StoreError) -> None:
    if hold.lost is None:
        hold.lost = lost
        recorder.stop_main()
