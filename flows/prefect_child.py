"""The process that speaks to Prefect for a run: `python -m flows.prefect_child [SOCKET]`.

With the number of a listening socket it is Prefect's server, too. Events of `flows.recorder` come
as lines of JSON; `up` and `cancel` go back.
"""

import fcntl
import gc
import json
import os
import queue
import shutil
import socket
import sqlite3
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import UUID

from flows.settings import Settings

NICE = 5
"""A run that works goes before what is told of it."""
LOOK_SECONDS = 1.0
"""How often a cancellation is looked for."""
TRY_SECONDS = 60.0
"""How long a server that does not answer is asked again once the run is over."""
STOP_SECONDS = 15.0
CRASHED = "the run's process ended without a word; run the same command to go on"
# How a run ended, in Prefect's words: a red mark where a person has something to do.
STATES: Mapping[str, tuple[str, str]] = {
    "done": ("COMPLETED", "Completed"),
    "waiting": ("COMPLETED", "Waiting"),
    "alarm": ("FAILED", "Alarm"),
    "incomplete": ("FAILED", "Incomplete"),
    "stopped": ("FAILED", "Stopped"),
    "failed": ("FAILED", "Failed"),
    "cancelled": ("CANCELLED", "Cancelled"),
    "paused": ("CANCELLED", "Paused"),  # a pause of Prefect's own would want to be resumed there
}

Event = dict[str, Any]


def main() -> None:
    """Take events until standard input ends; serve Prefect's API meanwhile if a socket is given."""
    gc.disable()  # Prefect's imports make no garbage, and looking for it takes a fifth of the start
    with suppress(OSError):
        os.nice(NICE)
    events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(events,), daemon=True).start()
    if len(sys.argv) > 1:
        _serve(int(sys.argv[1]), events)
    else:
        _say("up")
        tell_all(events, _say)
    os._exit(0)  # taking the interpreter down in order costs more than a second


def _read(events: "queue.SimpleQueue[Event | None]") -> None:
    for line in sys.stdin:
        events.put(json.loads(line))
    events.put(None)


def _say(word: str) -> None:
    with suppress(OSError):  # nobody listens any more
        print(word, flush=True)  # noqa: T201


def _serve(listening: int, events: "queue.SimpleQueue[Event | None]") -> None:
    """Prefect's API on an open socket, until everything is told and nobody asks for a while."""
    home = Path(os.environ["PREFECT_HOME"])
    # Two that start at once would run the same migrations on one database.
    starting = (home / "server.lock").open("w")
    fcntl.flock(starting, fcntl.LOCK_EX)
    _copy_template(home)
    import uvicorn

    config = uvicorn.Config(
        "prefect.server.api.server:create_app", factory=True, log_level="error", lifespan="on"
    )
    server = uvicorn.Server(config)
    known = home / "server.json"

    def work() -> None:
        while not server.started:
            time.sleep(0.02)
        gc.freeze()
        gc.enable()
        starting.close()
        told = {"url": os.environ["PREFECT_API_URL"], "version": version("prefect")}
        known.write_text(json.dumps(told), "utf-8")
        _say("up")
        try:
            tell_all(events, _say)
            _wait_until_idle(lambda: server.server_state.total_requests)
        except Exception:  # noqa: BLE001 - a thread's end would be told to nobody
            traceback.print_exc()
        finally:
            known.unlink(missing_ok=True)
            _keep_template(home)
            server.should_exit = True
            time.sleep(STOP_SECONDS)
            os._exit(1)

    threading.Thread(target=work, daemon=True).start()
    server.run(sockets=[socket.socket(fileno=listening)])


def _wait_until_idle(asked: Callable[[], int]) -> None:
    sys.stdout.close()  # the run that started us need not wait for the end
    count, seconds = -1, Settings().keep_server_seconds
    while count != (count := asked()):
        time.sleep(seconds)


# A new database of Prefect's costs ten seconds of migrations, so a migrated one is kept for others.


def _template() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "tamis" / f"prefect-{version('prefect')}.db"


def _copy_template(home: Path) -> None:
    """Begin with a migrated database where there is one; any trouble means to begin without."""
    database = home / "prefect.db"
    with suppress(OSError):
        if not database.exists():
            part = database.with_suffix(".part")
            shutil.copyfile(_template(), part)
            part.replace(database)


def _keep_template(home: Path) -> None:
    """Keep a copy of this folder's database without its runs, if there is none of this version."""
    with suppress(OSError, sqlite3.Error):
        if _template().exists():
            return
        _template().parent.mkdir(parents=True, exist_ok=True)
        part = _template().with_suffix(f".{os.getpid()}")
        with (
            closing(sqlite3.connect(home / "prefect.db")) as ours,
            closing(sqlite3.connect(part)) as copy,
        ):
            ours.backup(copy)
            for table in ("artifact", "artifact_collection", "log", "events", "event_resources"):
                copy.execute(f"DELETE FROM {table}")  # noqa: S608 - names of our own
            for table in ("task_run", "task_run_state", "flow_run", "flow_run_state", "flow"):
                copy.execute(f"DELETE FROM {table}")  # noqa: S608 - names of our own
            copy.commit()
            copy.execute("VACUUM")
        part.replace(_template())


def tell_all(events: "queue.SimpleQueue[Event | None]", say: Callable[[str], None]) -> None:
    """Tell Prefect all events until they end; say so where a person cancels the run there."""
    scribe: _Scribe | None = None
    while (event := _next(events, scribe)) is not None:
        if event["kind"] == "flow":
            scribe = _Scribe(event, say)
        elif scribe is not None:
            scribe.tell(event)
    if scribe is not None:
        scribe.close()


def _next(events: "queue.SimpleQueue[Event | None]", scribe: "_Scribe | None") -> Event | None:
    """The next event; a cancellation is looked for while there is none."""
    while True:
        try:
            return events.get(timeout=LOOK_SECONDS)
        except queue.Empty:
            if scribe is not None:
                scribe.look()


class _Scribe:
    """Writes one flow run's record through Prefect's client."""

    def __init__(self, opening: Event, say: Callable[[str], None]) -> None:
        from prefect.client.orchestration import get_client

        self._say = say
        self._client = get_client(sync_client=True)
        self._client.__enter__()
        self._opening = opening
        self._attached = "flow_run" in opening
        self._flow_run: UUID | None = None
        self._artifacts: dict[str, UUID] = {}
        self._over = False
        self._looked = 0.0

    def tell(self, event: Event) -> None:
        """Write an event down; one that the server refuses is left out."""
        if self._flow_run is None:
            self._try(self._begin)
        write: Callable[[Event], object] = {
            "log": self._log,
            "task": self._task,
            "progress": self._progress,
            "table": self._artifact,
            "markdown": self._artifact,
            "event": self._event,
            "end": self._end,
        }[event["kind"]]
        self._try(lambda: write(event))
        self.look()

    def look(self) -> None:
        """Look whether a person cancels the run."""
        if self._over or self._flow_run is None or time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        with suppress(Exception):  # asked again in a second
            state = self._client.read_flow_run(self._flow_run).state
            if state is not None and state.type.value in ("CANCELLING", "CANCELLED"):
                self._over = True
                self._say("cancel")

    def close(self) -> None:
        """The run is over: say how, if it did not say so itself."""
        if not self._opening.get("ended"):
            self.tell({"kind": "end", "state": None, "reason": CRASHED})
        from prefect.events.worker import EventsWorker

        EventsWorker.instance().drain()
        self._client.__exit__(None, None, None)

    def _try(self, write: Callable[[], object]) -> None:
        """Do it, again and again while the server does not answer."""
        import httpx

        until = time.monotonic() + TRY_SECONDS
        while True:
            try:
                write()
                return
            except httpx.TransportError as error:
                if time.monotonic() > until:
                    print(f"given up: {error}", file=sys.stderr, flush=True)  # noqa: T201
                    os._exit(1)
                time.sleep(1)
            except httpx.HTTPStatusError as error:
                print(f"left out: {error}", file=sys.stderr, flush=True)  # noqa: T201
                return

    def _begin(self) -> None:
        opening = self._opening
        if self._attached:
            self._flow_run = UUID(opening["flow_run"])
            self._client.update_flow_run(self._flow_run, name=opening["name"])
            return
        flow = self._client.request("POST", "/flows/", json={"name": opening["flow"]}).json()
        made = self._client.request(
            "POST",
            "/flow_runs/",
            json={
                "flow_id": flow["id"],
                "name": opening["name"],
                "tags": opening["tags"],
                "parameters": opening["parameters"],
                "idempotency_key": opening["id"],
                "state": {"type": "RUNNING", "name": "Running"},
            },
        )
        self._flow_run = UUID(made.json()["id"])

    def _log(self, event: Event) -> None:
        line = {
            "name": "tamis",
            "level": 20,
            "message": event["text"],
            "timestamp": event["at"],
            "flow_run_id": str(self._flow_run),
        }
        self._client.create_logs([line])

    def _task(self, event: Event) -> None:
        """As Prefect's own engine tells of its tasks: by events, with the times that were."""
        from prefect.events import emit_event

        state = event.get("state", "RUNNING")
        occurred = datetime.fromisoformat(str(event.get("ended", event["began"])))
        task_run: dict[str, Any] = {
            "name": event["name"],
            "task_key": "judge",
            "dynamic_key": event["id"],
            "run_count": 1,
            "start_time": event["began"],
            "expected_start_time": event["began"],
        }
        if "ended" in event:
            seconds = (occurred - datetime.fromisoformat(event["began"])).total_seconds()
            task_run |= {"end_time": event["ended"], "total_run_time": seconds}
        emit_event(
            event=f"prefect.task-run.{state.capitalize()}",
            occurred=occurred,
            resource={
                "prefect.resource.id": f"prefect.task-run.{event['id']}",
                "prefect.resource.name": event["name"],
                "prefect.run-count": "1",
                "prefect.state-name": state.capitalize(),
                "prefect.state-type": state,
                "prefect.state-timestamp": occurred.isoformat(),
                "prefect.orchestration": "client",
            },
            related=[
                {
                    "prefect.resource.id": f"prefect.flow-run.{self._flow_run}",
                    "prefect.resource.role": "flow-run",
                }
            ],
            payload={
                "intended": {"from": None, "to": state},
                "initial_state": None,
                "validated_state": {"type": state, "name": state.capitalize()},
                "task_run": task_run,
            },
        )

    def _event(self, event: Event) -> None:
        from prefect.events import emit_event

        payload = event["payload"]
        emit_event(
            event=event["name"],
            occurred=datetime.fromisoformat(event["at"]),
            resource={
                "prefect.resource.id": f"tamis.run.{payload['run']}",
                "prefect.resource.name": payload["run"],
                "tamis.screen": payload["screen"],
            },
            related=[
                {
                    "prefect.resource.id": f"prefect.flow-run.{self._flow_run}",
                    "prefect.resource.role": "flow-run",
                }
            ],
            payload=payload,
        )

    def _progress(self, event: Event) -> None:
        percent = event["percent"]
        if known := self._artifacts.get(event["key"]):
            from prefect.client.schemas.actions import ArtifactUpdate

            self._client.update_artifact(known, ArtifactUpdate(data=percent))
        else:
            made = self._artifact({**event, "data": percent})
            self._artifacts[event["key"]] = made

    def _artifact(self, event: Event) -> UUID:
        from prefect.client.schemas.actions import ArtifactCreate

        rows = json.dumps(event["data"]) if event["kind"] == "table" else event["data"]
        return self._client.create_artifact(
            ArtifactCreate(
                key=event["key"],
                type=event["kind"],
                description=event["description"],
                data=rows,
                flow_run_id=self._flow_run,
            )
        ).id

    def _end(self, event: Event) -> None:
        self._over = self._opening["ended"] = True
        if self._attached:
            return
        kind, name = STATES.get(event["state"] or "", ("CRASHED", "Crashed"))
        from prefect.client.schemas.objects import State, StateType

        state = State(type=StateType(kind), name=name, message=event["reason"])
        if self._flow_run is not None:
            self._client.set_flow_run_state(self._flow_run, state, force=True)


if __name__ == "__main__":
    main()
