"""Who holds a run's lock: one process, named so that a dead one can be told from every other."""

import os
import socket
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil

from db.store import RunState, RunStatus

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PROCESSES = Path("/proc/self/ns/pid")


@cache
def owner() -> str:
    """This process: `host pid start boot namespace`.

    Host name and process id alone do not tell two containers apart: both may be process 1, and
    containers on the host's network share its name.
    """
    started = f"{psutil.Process().create_time():.2f}"
    return " ".join((socket.gethostname(), str(os.getpid()), started, *_visible()))


def is_dead(holder: str) -> bool:
    """Whether a lock's holder was a process that would be seen from here, and is gone.

    False where it cannot be known: the lock's expiry then decides.
    """
    parts = holder.split(" ")
    if len(parts) != 5 or (parts[0], *parts[3:]) != (socket.gethostname(), *_visible()):
        return False
    try:
        process = psutil.Process(int(parts[1]))
        same = f"{process.create_time():.2f}" == parts[2]
        return not same or process.status() == psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ValueError):
        return True
    except psutil.AccessDenied:
        return False


def state_of(status: RunStatus) -> RunState:
    """A run's state; one that says `running` and has no living holder is `interrupted`."""
    return state_by(status.run.state, status.lock_owner, locked=status.locked)


def state_by(state: RunState, holder: str | None, *, locked: bool) -> RunState:
    """The same by what is cheap to ask: the state as stored, and the lock."""
    if state is not RunState.RUNNING:
        return state
    living = locked and not (holder and is_dead(holder))
    return RunState.RUNNING if living else RunState.INTERRUPTED


@cache
def _visible() -> tuple[str, str]:
    """The boot of this machine, and the set of processes that this one sees of it."""
    boot, processes = f"{psutil.boot_time():.0f}", ""
    with suppress(OSError):
        boot = BOOT_ID.read_text("ascii").strip()
    with suppress(OSError):
        processes = os.readlink(PROCESSES)  # noqa: PTH115 - pathlib would follow it
    return boot, processes or "-"
