"""Samples of a run at work, by a thread that may fail, be late or be left behind.

Nothing of it stops or slows a run: a look that fails is left out, the first one with a line in the
log, and looking may cost a 300th of the time.
"""

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import psutil

from db.bulk import now
from db.samples import NOBODY, Sample
from db.store import Run, Store
from tiers.planning.machine import cards
from tiers.types import Judgement

LOOK_SECONDS = 5.0
"""How often the newest sample is brought up to date, for those who watch."""
FIRST_SECONDS = 10.0
"""A sample stands for so long at first,"""
SHARE = 360
"""and later for a 360th of the time so far: a night leaves about 1,200, a week 1,900."""
COST = 300
_log = logging.getLogger("tiers.samples")
END_SECONDS = 2.0
"""The end of a run waits no longer for the last sample."""


@dataclass
class Meter:
    """What a tier has done in this attempt; written by its thread, read by the sampler's."""

    at_work: bool = False
    judged: int = 0
    expected: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    loading: float = 0.0
    reading: float = 0.0
    judging: float = 0.0
    storing: float = 0.0

    def add(self, judgements: Iterable[Judgement]) -> None:
        """Count answers that were stored."""
        for one in judgements:
            self.judged += 1
            self.prompt_tokens += one.prompt_tokens
            self.cached_tokens += one.cached_tokens
            self.completion_tokens += one.completion_tokens


_NOTHING = {name: count for name, count in asdict(Meter()).items() if name != "at_work"}


class _Used(NamedTuple):
    """What the run's processes have used so far."""

    at: float
    seconds: dict[int, float]
    """Of processors, by process."""
    memory: int


class Sampler:
    """Looks at a run and its processes now and then, and keeps what it sees."""

    def __init__(self, store: Store, run: Run) -> None:
        self._store, self._run = store, run
        self._meters: dict[int, Meter] = {}
        self._kept: dict[int, dict[str, Any]] = {}
        self._began = self._opened = time.monotonic()
        self._number = 0
        self._first = self._last = _used()
        self._failed = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="samples", daemon=True)
        self._thread.start()

    def meter(self, position: int) -> Meter:
        """Where a tier counts what it does."""
        return self._meters.setdefault(position, Meter())

    def close(self) -> None:
        """Take a last sample, if that does not take long."""
        self._over.set()
        self._thread.join(END_SECONDS)

    def _watch(self) -> None:
        wait = LOOK_SECONDS
        while not self._over.wait(wait):
            wait = self._look()
        self._look()

    def _look(self) -> float:
        """Bring the newest sample up to date, or begin the next one; how long to wait then."""
        began = time.thread_time()
        try:
            self._store.samples.record(self._run.id, self._samples())
        except Exception as error:  # noqa: BLE001 - whatever it is, the run goes on
            if not self._failed:
                _log.warning("samples are left out: %s: %s", type(error).__name__, error)
            self._failed = True
        return max(LOOK_SECONDS, COST * (time.thread_time() - began))

    def _samples(self) -> list[Sample]:
        at = time.monotonic()
        if at - self._opened >= stands_for(at - self._began):
            self._opened, self._number, self._first = at, self._number + 1, self._last
        self._last = _used()
        gpu_memory, gpu = cards() or (None, None)
        shared: dict[str, Any] = {
            "attempt": self._run.attempt or 0,
            "number": self._number,
            "at": now(),
            "cpu": _cores(self._first, self._last),
            "memory": self._last.memory,
            "gpu": gpu,
            "gpu_memory": gpu_memory,
        }
        counts = {position: asdict(meter) for position, meter in [*self._meters.items()]}
        news = {
            position: count
            for position, count in counts.items()
            if count.pop("at_work") | (self._kept.get(position, _NOTHING) != count)
        }
        self._kept |= news
        told = news or {NOBODY: {}}
        return [Sample(**shared, position=position, **count) for position, count in told.items()]


def stands_for(elapsed: float) -> float:
    """For how many seconds a sample stands, so many seconds after the run began."""
    return max(FIRST_SECONDS, elapsed / SHARE)


@contextmanager
def sampled(store: Store, run: Run) -> Iterator[Sampler]:
    """Take samples of a run while it works."""
    sampler = Sampler(store, run)
    try:
        yield sampler
    finally:
        sampler.close()


def _used() -> _Used:
    """This process and all that it has started."""
    seconds, memory = {}, 0
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.Error):  # it is gone by now
            times = process.cpu_times()
            memory += process.memory_info().rss
            seconds[process.pid] = times.user + times.system
    return _Used(time.monotonic(), seconds, memory)


def _cores(first: _Used, last: _Used) -> float:
    """How many cores were busy in between, as a mean."""
    spent = sum(used - first.seconds.get(pid, 0.0) for pid, used in last.seconds.items())
    return max(0.0, spent) / max(last.at - first.at, 1e-3)
