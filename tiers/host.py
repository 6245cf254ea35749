"""A tier in a child process of its own: `python -m tiers.host`, spoken to over a socket.

Memory comes back when the tier closes, and a crash in native code costs one candidate, not the
run: what was in flight is halved in fresh children until the one that kills the engine is alone.

The child asks for candidates (`more`) and sends judgements as they come; the parent answers in
one loop. A thread in the child always reads, so that neither side waits for the other to drain.
"""

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from multiprocessing.connection import Connection, Pipe
from typing import Any

from tiers.opening import open_backend
from tiers.tier import Job
from tiers.types import Candidate, Judgement, TierError

CHUNK = 512
CHUNK_CHARACTERS = 1 << 20
SEND_EVERY = 128
SEND_SECONDS = 0.02
STOP_SECONDS = 1.0
CULPRITS_IN_A_ROW = 5
"""After this many candidates that kill the engine in a row, the fault is the engine's."""


class EngineDied(Exception):
    """The child is gone, or its engine raised an error, in the middle of its work."""


class HostedTier:
    """A tier whose engine lives in a child process."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._in_flight: dict[int, Candidate] = {}
        self._convicted: list[Judgement] = []
        self.rates: Mapping[str, float] = {}
        self.remarks: Sequence[str] = ()
        self._start()

    @property
    def pid(self) -> int:
        return self._child.pid

    def judge(self, candidates: Iterable[Candidate]) -> Iterator[Judgement]:
        """Stream judgements of all candidates, whatever dies in between.

        Raises:
            TierError: the engine cannot be opened again, or dies of every candidate.
        """
        source = iter(candidates)
        while True:
            try:
                yield from self._stream(source)
                break
            except EngineDied:
                yield from self._isolate(self._restart())
        yield from self._release()

    def close(self) -> None:
        """End the child and wait until its memory is back.

        Amid its work it is not asked to finish: nobody waits for those answers any more.
        """
        if self._in_flight:
            self._child.terminate()
        with contextlib.suppress(OSError):
            self._connection.send(("close", None))
        self._connection.close()
        try:
            self._child.wait(STOP_SECONDS if self._in_flight else 10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._errors.close()

    def kill(self) -> None:
        """End the child at once; what it was judging is lost, what it sent is not."""
        self._child.kill()

    def _start(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        self._connection, theirs = Pipe()
        self._child = subprocess.Popen(  # noqa: S603 - our own module, no shell
            # -P: or modules would be looked for in the working folder, which may be a stranger's.
            [sys.executable, "-P", "-m", "tiers.host", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._errors,
            stderr=self._errors,
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "GGML_NO_BACKTRACE": "1"},
        )
        theirs.close()
        try:
            self._connection.send(self._job)
            kind, said = self._receive()
        except (EngineDied, OSError) as death:
            message = f"tier '{self._job.config.name}' could not be opened: {death}"
            self.close()
            raise TierError(message) from death
        if kind == "failed":
            self.close()
            raise TierError(f"tier '{self._job.config.name}': {said}")
        self.rates = said

    def _restart(self) -> list[Candidate]:
        """Open the engine again; return the candidates that were in flight."""
        suspects = list(self._in_flight.values())
        self._in_flight.clear()
        self.close()
        self._start()
        return suspects

    def _receive(self) -> tuple[str, Any]:
        try:
            kind, said = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            raise EngineDied(self._last_words()) from error
        if kind == "broke":
            raise EngineDied(said)
        return kind, said

    def _last_words(self) -> str:
        code = self._child.wait()
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        self._errors.seek(0)
        words = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return f"the engine died of {cause}" + (f": {words[-1][:300]}" if words else "")

    def _stream(self, source: Iterator[Candidate]) -> Iterator[Judgement]:
        self._send(("judge", None))
        while True:
            match self._receive():
                case "more", _:
                    self._send(("chunk", self._next_chunk(source)))
                case "judged", judgements:
                    yield from self._release()  # the engine works: it was those candidates
                    for judgement in judgements:
                        self._in_flight.pop(judgement.id, None)
                    yield from judgements
                case "done", rates:
                    self.rates = rates
                    break
        unanswered = list(self._in_flight)
        self._in_flight.clear()
        for candidate in unanswered:
            yield Judgement(candidate, None, error="the tier gave no answer", failed=True)

    def _send(self, message: tuple[str, Any]) -> None:
        try:
            self._connection.send(message)
        except OSError as error:
            raise EngineDied(self._last_words()) from error

    def _next_chunk(self, source: Iterator[Candidate]) -> list[Candidate]:
        chunk: list[Candidate] = []
        characters = 0
        for candidate in islice(source, CHUNK):
            chunk.append(candidate)
            self._in_flight[candidate.id] = candidate
            characters += len(candidate.text)
            if characters > CHUNK_CHARACTERS:
                break
        return chunk

    def _isolate(self, suspects: list[Candidate]) -> Iterator[Judgement]:
        """Judge the suspects in ever smaller groups; who kills the engine alone is the culprit."""
        middle = (len(suspects) + 1) // 2
        for group in (suspects[:middle], suspects[middle:]):
            if not group:
                continue
            try:
                yield from self._stream(iter(group))
            except EngineDied as death:
                left = self._restart()
                if len(left) > 1:
                    yield from self._isolate(left)
                elif left:
                    self._convict(left[0], death)

    def _convict(self, culprit: Candidate, death: EngineDied) -> None:
        """Hold a candidate responsible, but say so only once the engine is seen to work."""
        self._convicted.append(Judgement(culprit.id, None, error=str(death)))
        if len(self._convicted) >= CULPRITS_IN_A_ROW:
            raise TierError(
                f"tier '{self._job.config.name}' died of {len(self._convicted)} candidates in a "
                f"row: {death}; the engine or its settings are at fault"
            )

    def _release(self) -> Iterator[Judgement]:
        yield from self._convicted
        self._convicted.clear()


def _serve(connection: Connection) -> None:
    """The child: open the engine, then judge until told to close or the parent is gone."""
    inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    job = connection.recv()
    try:
        tier = open_backend(job)
    except TierError as error:
        connection.send(("failed", str(error)))
        return
    except Exception as error:  # noqa: BLE001 - any user's class may raise anything
        connection.send(("failed", f"{type(error).__name__}: {error}"))
        return
    connection.send(("opened", dict(tier.rates)))
    threading.Thread(target=_read, args=(connection, inbox), daemon=True).start()
    while inbox.get()[0] == "judge":
        try:
            _judge(tier, connection, inbox)
        except Exception as error:  # noqa: BLE001 - told to the parent, who finds the culprit
            where = traceback.extract_tb(error.__traceback__)[-1]
            connection.send(
                ("broke", f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})")
            )
            return
    tier.close()


def _judge(tier: Any, connection: Connection, inbox: "queue.SimpleQueue[tuple[str, Any]]") -> None:
    def arriving() -> Iterator[Candidate]:
        connection.send(("more", None))
        while chunk := inbox.get()[1]:
            connection.send(("more", None))  # ahead of need: the next arrives while we work
            yield from chunk
        exhausted.set()

    exhausted = threading.Event()
    ready: list[Judgement] = []
    sent = time.monotonic()
    for judgement in tier.judge(arriving()):
        ready.append(judgement)
        if len(ready) >= SEND_EVERY or time.monotonic() - sent > SEND_SECONDS:
            connection.send(("judged", ready))
            ready, sent = [], time.monotonic()
    if ready:
        connection.send(("judged", ready))
    while not exhausted.is_set() and inbox.get()[1]:
        connection.send(("more", None))  # a tier that stopped early: let the parent finish
    connection.send(("done", dict(tier.rates)))


def _read(connection: Connection, inbox: "queue.SimpleQueue[tuple[str, Any]]") -> None:
    while True:
        try:
            inbox.put(connection.recv())
        except (EOFError, OSError, pickle.UnpicklingError):
            os._exit(0)  # the parent is gone: nobody is left to hear an answer


def main() -> None:
    """Serve the parent on the socket whose number is the only argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    connection = Connection(int(sys.argv[1]))
    _serve(connection)


if __name__ == "__main__":
    # Pickles name classes by module: without this, `tiers.host` would exist twice.
    from tiers.host import main as run

    run()
