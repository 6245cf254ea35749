"""What Prefect is told of a run, through a child process that may be slow, fail or be killed.

A run writes its events down a pipe and never waits for them: the data is in the database, and
Prefect's record is for people. The child (`flows.server`) has a server to tell them to; it tells
us in turn where that server is, and when a person cancels the run there.
"""

import json
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from flows.server import Child, open_child
from flows.settings import Settings

LIVES = 3
"""How often the child is started anew before the record is given up."""
HAND_OVER_SECONDS = 2.0
GOODBYE_SECONDS = 30.0
"""How long a run that ends waits until a server that the user named has heard everything."""

_current: ContextVar["Recorder | None"] = ContextVar("recorder", default=None)


class Recorder:
    """Tells events to the child, and all of them again to another one where it is killed."""

    def __init__(self, opening: Mapping[str, Any], settings: Settings) -> None:
        self._settings = settings
        self._history: list[dict[str, Any]] = []
        self._events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._lives = LIVES
        self.cancelled = False
        """Whether a person cancelled the run in the Prefect UI."""
        self.lost = False
        """Whether the record was given up."""
        self._child = self._start()
        self._tell(**opening)
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._writer.start()

    def say(self, text: str) -> None:
        """A line in the run's log."""
        self._tell(kind="log", text=text)

    @contextmanager
    def block(self, name: str) -> Iterator[Callable[[str], None]]:
        """A stretch of work, as a task run; what is given gives it a better name at its end."""
        task_run, began = str(uuid4()), _now()
        self._tell(kind="task", id=task_run, name=name, began=began)
        state, names = "FAILED", [name]
        try:
            yield names.append
            state = "COMPLETED"
        except (KeyboardInterrupt, SystemExit):
            state = "CANCELLED"
            raise
        finally:
            told = {"id": task_run, "name": names[-1], "began": began}
            self._tell(kind="task", **told, ended=_now(), state=state)

    def progress(self, key: str, description: str, percent: float) -> None:
        """How far something is; the last word about a key counts."""
        self._tell(kind="progress", key=slug(key), description=description, percent=percent)

    def table(self, key: str, description: str, rows: list[dict[str, Any]]) -> None:
        """Rows for people to look at."""
        self._tell(kind="table", key=slug(key), description=description, data=rows)

    def page(self, key: str, description: str, markdown: str) -> None:
        """A page for people to read."""
        self._tell(kind="markdown", key=slug(key), description=description, data=markdown)

    def event(self, name: str, payload: Mapping[str, Any]) -> None:
        """Something that automations may wait for; `run` and `screen` in the payload say whose."""
        self._tell(kind="event", name=name, payload=payload)

    def end(self, state: str, reason: str | None) -> None:
        """How the run ended: a `db.models.RunState`."""
        self._tell(kind="end", state=state, reason=reason)

    def close(self) -> None:
        """Hand over what is left. Our own server tells it to itself later, and outlives us."""
        self._events.put(None)
        self._writer.join(HAND_OVER_SECONDS)
        if self._child.named and not self.lost:
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(GOODBYE_SECONDS)
        self._child.release()

    def _tell(self, **event: Any) -> None:
        self._events.put({"at": _now(), **event})

    def _start(self) -> Child:
        child, _ = open_child(self._settings)
        threading.Thread(target=self._read, args=(child,), daemon=True).start()
        return child

    def _write(self) -> None:
        """The thread that speaks to the child, until the events end."""
        while not self.lost and (event := self._events.get()) is not None:
            if event["kind"] != "gone":
                self._remember(event)
                with suppress(OSError):  # the reader sees its end, and says so
                    self._child.write(json.dumps(event, default=str))
            elif self._lives > 0:
                self._lives -= 1
                self._child = self._start()
                with suppress(OSError):
                    for earlier in self._history:
                        self._child.write(json.dumps(earlier, default=str))
            else:
                self.lost = True
        with suppress(OSError):
            self._child.close()

    def _remember(self, event: dict[str, Any]) -> None:
        if event["kind"] in ("progress", "table"):  # the last word about a key counts
            same = (event["kind"], event["key"])
            self._history = [e for e in self._history if (e["kind"], e.get("key")) != same]
        self._history.append(event)

    def _read(self, child: Child) -> None:
        """The thread that hears what the child says, until the child ends."""
        for line in child.lines():
            if line == "cancel":
                self.cancelled = True
                stop_main()
        self._events.put({"kind": "gone"})


class _Silent(Recorder):
    """Where nobody keeps a record."""

    def __init__(self) -> None:
        self.cancelled = self.lost = False

    def close(self) -> None:
        pass

    def _tell(self, **event: Any) -> None:
        pass


def current() -> Recorder:
    """The recorder of the run that is worked on; one that tells nobody where there is none."""
    return _current.get() or _Silent()


@contextmanager
def recorded(flow: str, name: str, *, tags: list[str], **parameters: Any) -> Iterator[Recorder]:
    """Record what happens inside as a flow run, or with the flow run that it happens in.

    Args:
        flow: the flow's name in the Prefect UI.
        name: the flow run's.
        tags: the flow run's.
        parameters: shown with the flow run; never data or secrets.
    """
    settings = Settings()
    if _current.get() is not None or not settings.record:
        yield current()
        return
    opening: dict[str, Any] = {"kind": "flow", "flow": flow, "name": name, "id": str(uuid4())}
    if (flow_run := _flow_run()) is not None:
        opening["flow_run"] = str(flow_run)
    recorder = Recorder({**opening, "tags": tags, "parameters": parameters}, settings)
    token = _current.set(recorder)
    try:
        yield recorder
    finally:
        _current.reset(token)
        recorder.close()


def stop_main() -> None:
    """Interrupt the main thread as Ctrl-C does, even while it waits for something."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def slug(name: str) -> str:
    """A name as the key of an artifact may be."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _flow_run() -> UUID | None:
    """The flow run that Prefect has us work in."""
    if "prefect" not in sys.modules:
        return None  # and it is not imported, which takes long, to find that out
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    return context.flow_run.id if context and context.flow_run else None


def _now() -> str:
    return datetime.now(UTC).isoformat()
