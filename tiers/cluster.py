"""A tier on a Ray cluster: engines on several machines, fed by this process, which records.

A worker is an actor that holds a `HostedTier` on its machine. This process sends it blocks of
candidates, takes judgements as they come, and is the only one that writes to the database. What a
dead, silent or unreachable worker still owed is asked of another one.

Ray restarts no actor here: one that is gone is replaced by a new one, which waits for a machine
with room. So a machine that joins later is used, and one rule covers death, silence and a machine
that is taken away.
"""

import importlib.metadata
import logging
import os
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from tiers.host import HostedTier
from tiers.opening import identity
from tiers.screenfile.tiers import PythonTier, WorkersSection
from tiers.tier import Job
from tiers.types import Candidate, Judgement, MissingExtra, TierError

FIRST_BLOCK = 16
BLOCK_SECONDS = 10.0
LAST_SECONDS = 1.0
"""Towards the end blocks shrink to this, so that all workers end at about the same time."""
BLOCK_MOST = 20_000
AHEAD = 2
"""Blocks that a worker has at a time: the second is there when the first is done."""
SEND_SECONDS = 0.2
"""How long a worker keeps judgements back; what its death costs."""
LOOK_SECONDS = 1.0
FAULTS_IN_A_ROW = 3
"""After so many workers in one place that end before they have done a block, nobody comes there."""


class Worker:
    """The actor: an engine on a machine of the cluster."""

    def __init__(self, job: Job, expected: dict[str, Any]) -> None:
        found = described(job)
        if differing := sorted(name for name in expected if found.get(name) != expected[name]):
            name = differing[0]
            raise TierError(
                f"{socket.gethostname()} has another {name}: {found.get(name)!r}, and not "
                f"{expected[name]!r}; install the same version and the same model file there"
            )
        self._tier = HostedTier(job)

    def opened(self) -> tuple[str, dict[str, float]]:
        """The machine's name and what the engine measured of itself."""
        return socket.gethostname(), dict(self._tier.rates)

    def judge(self, candidates: list[Candidate]) -> Iterator[list[Judgement]]:
        """Judgements of a block, in groups as they come."""
        ready: list[Judgement] = []
        sent = time.monotonic()
        for judgement in self._tier.judge(candidates):
            ready.append(judgement)
            if time.monotonic() - sent > SEND_SECONDS:
                yield ready
                ready, sent = [], time.monotonic()
        yield ready


def described(job: Job) -> dict[str, Any]:
    """What has to be the same on all machines: our version, and what a judgement depends on."""
    return {"version of tamis": importlib.metadata.version("tamis")} | identity(job)


@dataclass(eq=False)
class _Block:
    """Candidates that a worker has, and has not answered yet."""

    owed: dict[int, Candidate]
    size: int


@dataclass(eq=False)
class _Seat:
    """A place for a worker: its actor, and what it has been sent."""

    actor: Any
    opening: Any
    """Ends when the engine is open; None from then on."""
    heard: float = field(default_factory=time.monotonic)
    """When it last gave a sign of life, or was last sent something while it had nothing to do."""
    host: str = ""
    rates: Mapping[str, float] = field(default_factory=dict)
    blocks: deque[Any] = field(default_factory=deque)
    """Streams of the blocks it has, in order."""
    rate: float = FIRST_BLOCK / BLOCK_SECONDS
    """Candidates a second."""
    begun: float = 0.0
    """When it began with the first of its blocks."""
    faults: int = 0
    """How many before it in this place ended before they had done a block."""


class RayTier:
    """A tier whose engines live on the machines of a Ray cluster."""

    def __init__(self, job: Job, workers: WorkersSection) -> None:
        self._ray, self._ours = _connected(workers.ray, job.config.name)
        self._workers = workers
        self._name = job.config.name
        self._expected = described(job)
        if isinstance(job.config, PythonTier):
            # Described, so it may run here; what the reader of the screen said holds everywhere.
            job = job._replace(config=job.config.allowing_code())
        self._job = job
        self._blocks: dict[Any, _Block] = {}
        self._waiting: deque[Candidate] = deque()
        """Read, and with no worker."""
        self.remarks: list[str] = []
        self._seats: list[_Seat] = []
        try:
            self._seats += [self._seat() for _ in range(workers.count)]
            while not any(seat.opening is None for seat in self._seats):
                self._look(self._openings())
        except BaseException:
            self.close()
            raise
        self._announce()

    @property
    def rates(self) -> Mapping[str, float]:
        """Of all open workers together."""
        total: Counter[str] = Counter()
        for seat in self._seats:
            total.update(seat.rates)
        return total

    def judge(self, candidates: Iterable[Candidate]) -> Iterator[Judgement]:
        """Stream judgements of all candidates, whatever dies in between.

        Raises:
            TierError: no worker can be opened, or an engine says that it cannot go on.
        """
        source = iter(candidates)
        while True:
            for seat in self._seats:
                self._feed(seat, source)
            if not self._blocks and not self._waiting:
                return
            for stream in self._look([*self._blocks, *self._openings()]):
                if stream in self._blocks:
                    yield from self._taken(stream)

    def close(self) -> None:
        """End all workers; the cluster stays."""
        for seat in self._seats:
            self._ray.kill(seat.actor)
        self._seats.clear()
        self._blocks.clear()
        if self._ours:
            self._ray.shutdown()

    def _seat(self, faults: int = 0) -> _Seat:
        wants = {"num_cpus": self._workers.cpus, "num_gpus": self._workers.gpus}
        actor = self._ray.remote(Worker).options(**wants).remote(self._job, self._expected)
        return _Seat(actor, actor.opened.remote(), faults=faults)

    def _openings(self) -> list[Any]:
        return [seat.opening for seat in self._seats if seat.opening is not None]

    def _feed(self, seat: _Seat, source: Iterator[Candidate]) -> None:
        """Give a worker blocks until it has enough."""
        while seat.opening is None and len(seat.blocks) < AHEAD:
            chunk = self._chunk(seat, source)
            if not chunk:
                return
            if not seat.blocks:
                seat.heard = seat.begun = time.monotonic()
            stream = seat.actor.judge.options(num_returns="streaming").remote(chunk)
            seat.blocks.append(stream)
            self._blocks[stream] = _Block({one.id: one for one in chunk}, len(chunk))

    def _chunk(self, seat: _Seat, source: Iterator[Candidate]) -> list[Candidate]:
        """The next block of a worker: half of its share of what is left, where little is left."""
        most = min(max(1, int(seat.rate * BLOCK_SECONDS)), BLOCK_MOST)
        shares = 2 * len(self._seats)
        self._waiting.extend(islice(source, max(0, most * shares - len(self._waiting))))
        least = max(1, int(seat.rate * LAST_SECONDS))
        size = min(most, max(least, len(self._waiting) // shares), len(self._waiting))
        return [self._waiting.popleft() for _ in range(size)]

    def _look(self, waited_for: list[Any]) -> list[Any]:
        """Streams that have something; workers that are open are noted, silent ones replaced.

        Raises:
            TierError: nothing is heard of any worker.
        """
        ready, _ = self._ray.wait(waited_for, timeout=LOOK_SECONDS)
        for seat in [seat for seat in self._seats if seat.opening in ready]:
            self._open(seat)
        silent = time.monotonic() - self._workers.patience_seconds
        for seat in [seat for seat in self._seats if seat.heard < silent]:
            if seat.blocks:
                self._replace(seat, f"said nothing for {self._workers.patience_seconds:g} s")
        if all(seat.opening is not None and seat.heard < silent for seat in self._seats):
            raise TierError(
                f"tier '{self._name}': no machine of the Ray cluster has had room for a worker in "
                f"{self._workers.patience_seconds:g} s; it needs {self._workers.cpus:g} cpus and "
                f"{self._workers.gpus:g} gpus: see 'ray status', and write fewer under workers"
            )
        return [one for one in ready if one in self._blocks]

    def _open(self, seat: _Seat) -> None:
        try:
            seat.host, seat.rates = self._ray.get(seat.opening)
        except self._ray.exceptions.RayError as error:
            self._replace(seat, f"could not be opened: {_words_of(error)}")
            return
        seat.opening, seat.heard = None, time.monotonic()

    def _taken(self, stream: Any) -> Iterator[Judgement]:
        """What a stream has now; the end of it, or of its worker, is dealt with."""
        seat = next(seat for seat in self._seats if stream in seat.blocks)
        block = self._blocks[stream]
        try:
            judgements = self._ray.get(next(stream))
        except StopIteration:
            self._end(seat, stream, block)
            return
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, TierError):
                raise TierError(str(cause)) from error
            self._replace(seat, f"failed: {_words_of(error)}")
            return
        except self._ray.exceptions.RayError as error:
            self._replace(seat, f"is gone: {_words_of(error)}")
            return
        seat.heard = time.monotonic()
        for judgement in judgements:
            if block.owed.pop(judgement.id, None) is not None:
                yield judgement

    def _end(self, seat: _Seat, stream: Any, block: _Block) -> None:
        """A block is done: its speed says how large the next ones are."""
        now = time.monotonic()
        seat.rate = block.size / max(now - seat.begun, 1e-3)
        seat.heard = seat.begun = now
        seat.faults = 0
        self._forget(seat, stream)

    def _forget(self, seat: _Seat, stream: Any) -> None:
        seat.blocks.remove(stream)
        self._waiting.extendleft(self._blocks.pop(stream).owed.values())

    def _replace(self, seat: _Seat, why: str) -> None:
        """Have a new worker in place of one that is of no use; what it owed is asked again.

        Raises:
            TierError: this was the last place, and nobody has lasted there.
        """
        owed = sum(len(self._blocks[stream].owed) for stream in seat.blocks)
        for stream in list(seat.blocks):
            self._forget(seat, stream)
        with suppress(Exception):
            self._ray.kill(seat.actor)
        again = f"; {owed:,} candidates are asked again elsewhere" * bool(owed)
        said = f"the worker on {seat.host or 'a machine'} {why}{again}"
        self._seats.remove(seat)
        if seat.faults + 1 < FAULTS_IN_A_ROW:
            self._seats.append(self._seat(seat.faults + 1))
        elif not self._seats:
            raise TierError(f"tier '{self._name}': no worker is left; {said}")
        self.remarks.append(said)

    def _announce(self) -> None:
        hosts = Counter(seat.host for seat in self._seats if seat.opening is None)
        waiting = sum(seat.opening is not None for seat in self._seats)
        words = ", ".join(f"{count} on {host}" for host, count in sorted(hosts.items()))
        more = f"; {waiting} wait for a machine with room" * bool(waiting)
        self.remarks.append(f"workers: {words}{more}")


def _connected(address: str, tier: str) -> tuple[Any, bool]:
    """Ray, connected to the cluster, and whether it was not before.

    Raises:
        MissingExtra: it is not installed.
        TierError: nobody answers there.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError as error:
        said = f"tier '{tier}' has workers on a Ray cluster; run: pip install 'tamis[ray]'"
        raise MissingExtra(said) from error
    if ray.is_initialized():
        return ray, False
    require_head(address, tier)  # Ray itself tries for 80 seconds, and ends the process
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, SystemExit) as error:
        raise TierError(_nobody(address, tier)) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray has set one of its own
    return ray, True


def require_head(address: str, tier: str) -> None:
    """Refuse an address at which nothing listens; `auto` is for Ray to find.

    Raises:
        TierError: nothing does.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 5).close()
    except OSError as error:
        raise TierError(_nobody(address, tier)) from error


def _nobody(address: str, tier: str) -> str:
    return (
        f"tier '{tier}': no Ray cluster answers at '{address}'; start one with "
        "'ray start --head --disable-usage-stats', and write its address under workers: "
        "{ray: HOST:6379}, or leave workers out"
    )


def _words_of(error: Exception) -> str:
    """The last line of what Ray says, which holds the reason."""
    cause = getattr(error, "cause", None)
    said = str(cause if isinstance(cause, TierError) else error).strip().splitlines() or [""]
    return (said[-1].strip().removeprefix("tiers.types.TierError: ") or type(error).__name__)[:300]
