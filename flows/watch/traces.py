"""Prompts and replies as files, for those who want to read what was asked. Off by default.

A thread of its own writes. It never holds up judging: what it cannot keep up with is left out, and
a disk that is full ends the traces and not the run.
"""

import os
import queue
import re
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple
from zlib import crc32

from db.store import Run
from flows.progress import Display, say
from flows.settings import Settings
from flows.terminal import json_text
from tiers.backends.openai.account import HIDDEN, hide
from tiers.opening import inspect
from tiers.tier import Job
from tiers.types import Candidate, Judgement

Wanted = Literal["none", "errors", "sample", "all"]
WAITING = 10_000
"""Traces that may wait to be written; more are left out."""
MOST_BYTES = 1 << 28
"""Of one attempt's files together."""
SAMPLE = 100
"""One text in so many."""
END_SECONDS = 5.0
HOLE = "\ue000candidate\ue000"
"""Stands for the candidate in a tier's prompt, which is asked for once."""


class _Trace(NamedTuple):
    """A judgement and what was asked, on its way to a file."""

    tier: "TierTraces"
    judgement: Judgement
    text: str
    at: float


class Traces:
    """The traces of one attempt at a run; shared by the threads of its tiers."""

    def __init__(self, folder: Path, wanted: Wanted, keys: Sequence[str] = ()) -> None:
        """Begin to write, into a folder that is made with the first trace.

        Args:
            folder: of this attempt.
            wanted: which judgements.
            keys: taken out of what is written.
        """
        self.folder = folder
        self.written = self.left_out = 0
        self.trouble: str | None = None
        """Why no more is written."""
        self._wanted, self._keys = wanted, keys
        self._room = MOST_BYTES
        self._files: dict[str, int] = {}
        self._queue: queue.Queue[_Trace | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def wants(self, judgement: Judgement) -> bool:
        if self._wanted == "errors":
            return judgement.score is None or judgement.error is not None
        return self._wanted == "all" or crc32(str(judgement.id).encode()) % SAMPLE == 0

    def put(self, trace: _Trace) -> None:
        """Have a trace written, unless too many wait."""
        try:
            if self.trouble is not None:
                raise queue.Full
            self._queue.put_nowait(trace)
        except queue.Full:
            self.left_out += 1

    def close(self) -> str | None:
        """Write what waits, for some seconds at most; what there is now, in words."""
        until = time.monotonic() + END_SECONDS
        with suppress(queue.Full):
            self._queue.put(None, timeout=END_SECONDS)
        self._thread.join(max(until - time.monotonic(), 0.0))
        if not self.written and not self.left_out:
            return None
        lost = f"; {self.left_out:,} left out" if self.left_out else ""
        why = f" ({self.trouble})" if self.trouble else ""
        return f"{self.written:,} traces in {self.folder}{lost}{why}"

    def _write(self) -> None:
        while (trace := self._queue.get()) is not None:
            try:
                if self.trouble is None:
                    self._keep(trace)
                    self.written += 1
                else:
                    self.left_out += 1
            except Exception as error:  # noqa: BLE001 - a trace is worth no run
                self.left_out += 1
                self.trouble = getattr(error, "strerror", None) or str(error)
        for file in self._files.values():
            os.close(file)

    def _keep(self, trace: _Trace) -> None:
        before, after = trace.tier.around
        judgement = trace.judgement._asdict() | {"tier": trace.tier.name, "at": trace.at}
        judgement["text"] = judgement.pop("id")
        for key in self._keys:
            judgement["error"] = judgement["error"] and hide(judgement["error"], key)
        line = json_text(judgement | {"prompt": f"{before}{trace.text}{after}"})
        for key in self._keys:
            line = line.replace(key, HIDDEN)
        data = f"{line}\n".encode("utf-8", "replace")
        self._room -= len(data)
        if self._room < 0:
            raise OSError(f"{MOST_BYTES >> 20:,} MB are enough")
        os.write(self._file(trace.tier.name), data)

    def _file(self, tier: str) -> int:
        """The open file of a tier, whose name is a word."""
        if tier not in self._files:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self.folder / f"{tier}.jsonl"
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
            self._files[tier] = os.open(path, flags, 0o600)
        return self._files[tier]


class TierTraces:
    """The traces of one tier: what was asked is held until it is answered."""

    def __init__(self, traces: Traces, job: Job) -> None:
        self.name = job.config.name
        self._traces, self._job = traces, job
        self._texts: dict[int, str] = {}

    @cached_property
    def around(self) -> tuple[str, str]:
        """The prompt before and after the candidate; empty where no prompt is written."""
        before, _, after = (inspect(self._job, HOLE).prompt or HOLE).partition(HOLE)
        return before, after

    def asked(self, candidate: Candidate) -> None:
        """Hold what is asked now."""
        self._texts[candidate.id] = candidate.text

    def answered(self, judgements: Iterable[Judgement]) -> None:
        """Have those written that are wanted."""
        for judgement in judgements:
            text = self._texts.pop(judgement.id, None)
            if text is not None and self._traces.wants(judgement):
                self._traces.put(_Trace(self, judgement, text, time.time()))


@contextmanager
def traced(
    run: Run, wanted: Wanted, keys: Sequence[str], shown: Display
) -> Iterator[Traces | None]:
    """The traces of a run that is worked on, where they are wanted; their folder is told."""
    if wanted == "none":
        yield None
        return
    traces = Traces(folder_of(run), wanted, keys)
    try:
        yield traces
    finally:
        if (told := traces.close()) is not None:
            say(told, shown)


def folder_of(run: Run) -> Path:
    """Where the traces of an attempt at a run lie."""
    name = re.sub(r"[^\w.@+-]+", "-", run.key).lstrip(".-") or "run"
    return Settings().data_folder.resolve() / "traces" / f"{name}-{run.attempt}"
