"""What a person sees while a run works: bars in a terminal, plain lines elsewhere. On stderr."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from flows.recorder import current
from flows.terminal import visible

LINE_SECONDS = 10.0
ENOUGH = 10
ENOUGH_SECONDS = 2.0
"""A rate over fewer, or over less time, is an accident."""
SLOW = 10.0
"""Below so many a second, the first two digits are told."""


class Step(Protocol):
    """One thing that takes a while: reading the files, or a tier. Several may go on at once."""

    def expect(self, more: int) -> None:
        """So many are still to be done."""

    def advance(self, count: int) -> None:
        """So many were done."""


class Display(Protocol):
    """Where steps and messages are shown."""

    def say(self, text: str) -> None: ...

    def start(self, name: str, total: int | None) -> Step: ...


class Pace:
    """How far a step is, how fast, and how long it will take: told once that means something.

    The clock starts with the first that is done: loading a model says nothing about the rest.
    """

    def __init__(self, total: int | None) -> None:
        self.total = total
        self.done = 0
        self._first = 0
        self._began: float | None = None

    def expect(self, more: int) -> None:
        self.total = self.done + more

    def advance(self, count: int) -> None:
        self.done += count
        if self.total is not None:
            self.total = max(self.total, self.done)
        if self._began is None:
            self._first, self._began = count, time.monotonic()

    def rate(self) -> float | None:
        """A second; None until some were done in some seconds."""
        done = self.done - self._first
        seconds = 0.0 if self._began is None else time.monotonic() - self._began
        return done / seconds if done >= ENOUGH and seconds >= ENOUGH_SECONDS else None

    def rate_in_words(self) -> str:
        rate = self.rate()
        if rate is None:
            return ""
        return f"{rate:,.0f}/s" if rate >= SLOW else f"{rate:.2g}/s"

    def seconds_left(self) -> float | None:
        rate = self.rate()
        if rate is None or self.total is None or self.done == self.total:
            return None
        return (self.total - self.done) / rate


class Bars:
    """A bar a step, for a terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def say(self, text: str) -> None:
        self._progress.console.print(visible(text), highlight=False, markup=False, emoji=False)

    def start(self, name: str, total: int | None) -> "Bar":
        task = self._progress.add_task(name, total=total, rate="", left="")
        return Bar(self._progress, task, total)


class Bar:
    """One step of `Bars`."""

    def __init__(self, progress: Progress, task: TaskID, total: int | None) -> None:
        self._progress = progress
        self._task = task
        self._pace = Pace(total)

    def expect(self, more: int) -> None:
        self._pace.expect(more)
        self._progress.update(self._task, total=self._pace.total)

    def advance(self, count: int) -> None:
        pace = self._pace
        pace.advance(count)
        left = pace.seconds_left()
        self._progress.update(
            self._task,
            completed=pace.done,
            total=pace.total,
            rate=pace.rate_in_words(),
            left="" if left is None else f"{left:,.0f} s left",
        )


class Lines:
    """A line now and then, for a log."""

    def say(self, text: str) -> None:
        print(visible(text), file=sys.stderr, flush=True)  # noqa: T201 - a log's line

    def start(self, name: str, total: int | None) -> "Line":
        return Line(self, name, total)


class Line:
    """One step of `Lines`."""

    def __init__(self, lines: Lines, name: str, total: int | None) -> None:
        self._lines = lines
        self._name = name
        self._pace = Pace(total)
        self._said = time.monotonic()

    def expect(self, more: int) -> None:
        self._pace.expect(more)

    def advance(self, count: int) -> None:
        pace = self._pace
        pace.advance(count)
        now = time.monotonic()
        if now - self._said < LINE_SECONDS:
            return
        self._said = now
        left = pace.seconds_left()
        parts = (
            f"{pace.done:,}" + ("" if pace.total is None else f" of {pace.total:,}"),
            pace.rate_in_words(),
            "" if left is None else f"{left:,.0f} s left",
        )
        self._lines.say(f"{self._name}: {', '.join(part for part in parts if part)}")


@contextmanager
def display() -> Iterator[Display]:
    """The display that suits where stderr goes; what the tiers log is shown there, too."""
    if not sys.stderr.isatty():
        with _Log(lines := Lines()):
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
    with Progress(*columns, console=Console(stderr=True)) as progress, _Log(bars := Bars(progress)):
        yield bars


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
