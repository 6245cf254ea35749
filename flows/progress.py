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
    TimeRemainingColumn,
)

from flows.console import visible

LINE_SECONDS = 10.0


class Step(Protocol):
    """One thing that takes a while: reading the files, or a tier. Several may go on at once."""

    def expect(self, total: int) -> None: ...

    def advance(self, count: int) -> None: ...


class Display(Protocol):
    """Where steps and messages are shown."""

    def say(self, text: str) -> None: ...

    def start(self, name: str, total: int | None) -> Step: ...


class Bars:
    """A bar a step, for a terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def say(self, text: str) -> None:
        self._progress.console.print(visible(text), highlight=False, markup=False, emoji=False)

    def start(self, name: str, total: int | None) -> "Bar":
        return Bar(self._progress, self._progress.add_task(name, total=total, rate=""))


class Bar:
    """One step of `Bars`."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task
        self._began = time.monotonic()
        self._done = 0

    def expect(self, total: int) -> None:
        self._progress.update(self._task, total=total)

    def advance(self, count: int) -> None:
        self._done += count
        rate = self._done / max(time.monotonic() - self._began, 1e-9)
        self._progress.update(self._task, advance=count, rate=f"{rate:,.0f}/s")


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
        self._total = total
        self._done = 0
        self._began = self._said = time.monotonic()

    def expect(self, total: int) -> None:
        self._total = total

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._said < LINE_SECONDS:
            return
        self._said = now
        rate = self._done / (now - self._began)
        of = "" if self._total is None else f" of {self._total:,}"
        left = "" if self._total is None else f", {(self._total - self._done) / rate:,.0f} s left"
        self._lines.say(f"{self._name}: {self._done:,}{of}, {rate:,.0f}/s{left}")


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
        TimeRemainingColumn(),
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
