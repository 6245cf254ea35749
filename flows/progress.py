"""What a person sees while a run works: bars in a terminal, plain lines elsewhere. On stderr."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from flows.recorder import current
from flows.settings import Settings
from flows.terminal import json_text, visible

LINE_SECONDS = 10.0
ENOUGH = 10
ENOUGH_SECONDS = 2.0
"""A rate over fewer, or over less time, is an accident."""
SLOW = 10.0
"""Below so many a second, the first two digits are told."""


class Display:
    """Where steps and messages are shown: bars in a terminal, a line now and then elsewhere."""

    def __init__(self, bars: Progress | None = None) -> None:
        self._bars = bars

    def say(self, text: str) -> None:
        if self._bars is None:
            with suppress(BrokenPipeError):  # who listened is gone, and the run goes on
                print(visible(text), file=sys.stderr, flush=True)  # noqa: T201 - a log's line
        else:
            self._bars.console.print(visible(text), highlight=False, markup=False, emoji=False)

    def start(self, name: str, total: int | None) -> "Step":
        """Begin one thing that takes a while; several may go on at once."""
        return Step(self, self._bars, name, total)

    def block(self, tier: str, judged: int, done: int, total: int, seconds: float) -> None:
        """A block of a tier was judged: told to programs, who see no bars."""


class JsonLines(Display):
    """A line of JSON for each message and each block."""

    def __init__(self, run: str) -> None:
        super().__init__()
        self._run = run

    def say(self, text: str) -> None:
        self._line(event="message", message=text)

    def block(self, tier: str, judged: int, done: int, total: int, seconds: float) -> None:
        told = {"judged": judged, "done": done, "total": total, "seconds": round(seconds, 3)}
        self._line(event="block", tier=tier, **told)

    def _line(self, **told: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        with suppress(BrokenPipeError):
            print(json_text({"at": now, "run": self._run, **told}), file=sys.stderr, flush=True)  # noqa: T201


class Step:
    """Reading the files, or a tier: how far it is, how fast, and how long it will take.

    The clock of the rate starts with the first that is done: loading a model says nothing about
    the rest.
    """

    def __init__(self, shown: Display, bars: Progress | None, name: str, total: int | None) -> None:
        self._shown, self._bars, self._name = shown, bars, name
        self._total = total
        self._done = self._first = 0
        self._began: float | None = None
        self._said = time.monotonic()
        self._task = None if bars is None else bars.add_task(name, total=total, rate="", left="")

    def expect(self, more: int) -> None:
        """So many are still to be done."""
        self._total = self._done + more
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, total=self._total)

    def advance(self, count: int) -> None:
        """So many were done."""
        self._done += count
        if self._total is not None:
            self._total = max(self._total, self._done)
        if self._began is None:
            self._first, self._began = count, time.monotonic()
        rate, left = self._pace()
        if self._bars is not None and self._task is not None:
            done, total = self._done, self._total
            self._bars.update(self._task, completed=done, total=total, rate=rate, left=left)
        elif time.monotonic() - self._said >= LINE_SECONDS:
            self._said = time.monotonic()
            so_far = f"{self._done:,}" + ("" if self._total is None else f" of {self._total:,}")
            parts = (so_far, rate, left)
            self._shown.say(f"{self._name}: {', '.join(part for part in parts if part)}")

    def _pace(self) -> tuple[str, str]:
        """Rate and time left in words; empty until they mean something."""
        done = self._done - self._first
        seconds = 0.0 if self._began is None else time.monotonic() - self._began
        if done < ENOUGH or seconds < ENOUGH_SECONDS:
            return "", ""
        rate = done / seconds
        words = f"{rate:,.0f}/s" if rate >= SLOW else f"{rate:.2g}/s"
        if self._total is None or self._done == self._total:
            return words, ""
        return words, f"{(self._total - self._done) / rate:,.0f} s left"


@contextmanager
def display(run: str) -> Iterator[Display]:
    """The display that suits where stderr goes; what the tiers log is shown there, too."""
    if Settings().log_format == "json":
        with _Log(told := JsonLines(run)):
            yield told
        return
    if not sys.stderr.isatty():
        with _Log(lines := Display()):
            yield lines
        return
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars, _Log(shown := Display(bars)):
        yield shown


class _Log(logging.Handler):
    """Shows what the tiers log while it is entered."""

    def __init__(self, shown: Display) -> None:
        super().__init__(logging.WARNING)
        self._shown = shown

    def emit(self, record: logging.LogRecord) -> None:
        self._shown.say(record.getMessage())

    def __enter__(self) -> None:
        logging.getLogger("tiers").addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("tiers").removeHandler(self)


def say(text: str, shown: Display) -> None:
    """Say something in the terminal and in the flow run's log."""
    shown.say(text)
    current().say(visible(text))
