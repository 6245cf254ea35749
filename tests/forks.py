"""Commands of tests, forked from a process that has imported what they need: a second less for each.

`Forks` starts that process, and `Forks.start` a command in a child of it, which is a process like
any other: it has a working folder, an environment, a session and pipes of its own, can be killed,
and ends as an interpreter does.
"""

import array
import atexit
import gc
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

NEEDED = (
    "flows.cli", "flows.commands.local", "flows.files.ingest", "flows.files.writing",
    "flows.recorder", "flows.report.forecast", "flows.report.inspection", "flows.report.summary",
    "flows.run.retune", "flows.run.screening", "tiers.backends.python", "tiers.placing",
)  # fmt: skip
"""What commands import anyway; nothing of Prefect's, which reads the environment as it is imported."""


class Forks:
    """The process from which commands are forked."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.forks", str(theirs.fileno())],
            cwd=Path(__file__).parent.parent, pass_fds=[theirs.fileno()],
        )  # fmt: skip
        theirs.close()
        self._socket.recv(1)

    def start(self, arguments: Sequence[str], folder: Path, env: Mapping[str, str]) -> "Forked":
        """`tamis` with these arguments, in a session of its own."""
        out, their_out = os.pipe()
        err, their_err = os.pipe()
        status, their_status = os.pipe()
        asked = json.dumps([list(arguments), str(folder), dict(env)]).encode()
        fds = array.array("i", [their_out, their_err, their_status])
        header = len(asked).to_bytes(8)
        self._socket.sendmsg([header], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        self._socket.sendall(asked)
        for each in fds:
            os.close(each)
        return Forked(out, err, status)

    def close(self) -> None:
        self._socket.close()
        self._server.wait()


class Forked:
    """As `subprocess.Popen` of a command: what tests use of it."""

    def __init__(self, out: int, err: int, status: int) -> None:
        self.stdout: io.TextIOWrapper | None = open(out, encoding="utf-8")  # noqa: SIM115
        self.stderr: io.TextIOWrapper | None = open(err, encoding="utf-8")  # noqa: SIM115
        self._status = status
        self.pid = int.from_bytes(os.read(status, 8))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._ended(0.0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("tamis", timeout or 0.0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What is left of both streams; the process has ended then."""
        until = None if timeout is None else time.monotonic() + timeout
        kept = ["", ""]

        def read(number: int, stream: io.TextIOWrapper) -> None:
            kept[number] = stream.read()

        streams = [each for each in (self.stdout, self.stderr) if each and not each.closed]
        threads = [
            threading.Thread(target=read, args=(number, stream), daemon=True)
            for number, stream in enumerate(streams)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(None if until is None else max(until - time.monotonic(), 0))
        if any(thread.is_alive() for thread in threads):
            raise subprocess.TimeoutExpired("tamis", timeout or 0.0)
        self.wait(None if until is None else max(until - time.monotonic(), 0.1))
        for stream in streams:
            stream.close()
        return kept[0], kept[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ended(self, seconds: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], seconds)[0]:
            said = os.read(self._status, 8)
            self.returncode = int.from_bytes(said, signed=True) if said else -signal.SIGKILL
            os.close(self._status)
        return self.returncode

    def __del__(self) -> None:
        for each in (self.stdout, self.stderr):
            if each is not None:
                each.close()


def serve(control: socket.socket) -> None:
    """Fork commands until the tests are over."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    control.send(b".")
    while True:
        header, fds, _, _ = socket.recv_fds(control, 8, 3)
        if not header:
            return
        asked = b""
        size = int.from_bytes(header)
        while len(asked) < size:
            asked += control.recv(size - len(asked))
        if os.fork() == 0:
            control.close()
            supervise(json.loads(asked), fds)
        for each in fds:
            os.close(each)


def supervise(asked: tuple[list[str], str, dict[str, str]], fds: Sequence[int]) -> None:
    """Fork the command, and tell its number and how it ended; in the command, run it."""
    out, err, status = fds
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.close(status)
        run(asked, out, err)
    os.close(out)
    os.close(err)
    os.write(status, pid.to_bytes(8))
    _, ended = os.waitpid(pid, 0)
    os.write(status, os.waitstatus_to_exitcode(ended).to_bytes(8, signed=True))
    os._exit(0)


def run(asked: tuple[list[str], str, dict[str, str]], out: int, err: int) -> None:
    """Be the command."""
    arguments, folder, env = asked
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for mine, theirs in ((nothing, 0), (out, 1), (err, 2)):
        os.dup2(mine, theirs)
        os.close(mine)
    sys.argv = ["tamis", *arguments]
    from flows.cli import main

    code = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
        code = 1
    # As an interpreter ends, but for taking apart a thousand modules.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    for name in NEEDED:
        __import__(name)
    gc.freeze()  # or each child would copy what its collector looks at
    serve(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)
