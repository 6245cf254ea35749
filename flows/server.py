"""Prefect for a run: the user's server if one answers, else one of our own for as long as we need.

Either is spoken to by a child process of ours, for a run must not wait for Prefect, nor end with
it. The child reads events on its standard input until that ends, which a kill cannot prevent,
tells them to the server, and stays some time longer for the next run.
"""

import atexit
import json
import os
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, NoReturn

import psutil

from flows.settings import Settings

STOP_SECONDS = 15.0
START_SECONDS = 240
UP = "up"
"""What the child says once a server answers."""
_DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    # Prefect gives a server it starts itself 20 s, which a busy machine needs more than.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "240",
    # Its lines are for its UI; in the terminal a fault is told once, by us.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    # Prefect's own default. Said here, for a prefect.toml in the working folder, which may be a
    # stranger's, could else name a file of its own; such a file runs code.
    "PREFECT_LOGGING_CONFIG_PATH": str(Path("~/.prefect/logging.yml").expanduser()),
}


class ServerError(Exception):
    """Prefect's server did not start."""


class Child:
    """The process that speaks to Prefect: lines go in, and lines come out."""

    def __init__(
        self,
        home: Path,
        environment: dict[str, str],
        listening: int | None = None,
        *,
        named: bool = False,
    ) -> None:
        self.log = home / "server.log"
        self.named = named
        """Whether the user named the server, which may not outlive a container of ours."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603
                # Neither modules nor settings of the working folder, which may be a stranger's.
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "flows.prefect_child",
                    *map(str, filter(None, [listening])),
                ],
                pass_fds=[] if listening is None else [listening],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=home,
                env=os.environ
                | environment
                | {
                    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "ERROR",  # its console is the log
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                },
                start_new_session=True,  # Ctrl-C is ours to answer, and Prefect hears of it from us
            )

    def write(self, line: str) -> None:
        """Tell it an event.

        Raises:
            OSError: it is gone.
        """
        if self._process.stdin is not None:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def lines(self) -> Iterator[str]:
        """What it says, until it ends."""
        with suppress(ValueError):  # closed meanwhile
            for line in self._process.stdout or ():
                yield line.strip()

    def close(self) -> None:
        """End its input: there are no more events."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def wait(self, seconds: float) -> None:
        """Wait until it has ended, or has told everything.

        Raises:
            subprocess.TimeoutExpired: it still works.
        """
        self._process.wait(seconds)

    def release(self) -> None:
        """Leave it to itself: it ends once it has told everything, and nobody waits for that."""
        with suppress(OSError):
            self.close()
        if self._process.poll() is None:
            self._process.returncode = 0  # else Python complains of a child that still runs


def open_child(settings: Settings) -> tuple[Child, str]:
    """Start the child that speaks to Prefect, and the address of the API that it speaks to.

    The server is the one that the user named if it answers, else the one of another run of this
    data folder, else one that the child serves itself.
    """
    environment = dict(_DEFAULTS)
    environment["TAMIS_KEEP_SERVER_SECONDS"] = str(settings.keep_server_seconds)
    home = prefect_home(settings)
    url = named = configured_server()
    if url is not None and not _answers(url):
        print(f"Prefect server {url} does not answer; using our own", file=sys.stderr)  # noqa: T201
        url = named = None
    if url is None:
        environment["PREFECT_HOME"] = str(home)
        url = running_server(home)
    if url is not None:
        environment["PREFECT_API_URL"] = url
        return Child(home, environment, named=named is not None), url
    # Bound here, so that the address is known before the server is there.
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
        child = Child(home, {**environment, "PREFECT_API_URL": url}, listening.fileno())
    return child, url


def ensure_server(settings: Settings) -> Callable[[], None]:
    """Name a server to Prefect, for a flow that Prefect itself runs in this process.

    Must be called before Prefect is first imported, because Prefect reads the environment only
    then.

    Returns:
        What waits until the server answers, to be called before a flow. It raises ServerError
        if our own did not start; the message holds its last words.
    """
    child, url = open_child(settings)
    os.environ.update({name: os.environ.get(name, value) for name, value in _DEFAULTS.items()})
    os.environ["PREFECT_API_URL"] = url
    if configured_server() is None:
        os.environ["PREFECT_HOME"] = str(prefect_home(settings))
    # Registered before Prefect is imported, so that it runs after Prefect's last logs are sent.
    atexit.register(child.release)

    def wait() -> None:
        if next(child.lines(), None) is None:
            words = child.log.read_text("utf-8", "replace").strip()[-500:]
            raise ServerError(f"Prefect's server did not start; {child.log} ends: {words}")

    return wait


def configured_server() -> str | None:
    """The server of the environment or of Prefect's active profile."""
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    profiles = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser() / "profiles.toml"
    if not profiles.is_file():
        return None
    try:
        known = tomllib.loads(profiles.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return None
    active = os.environ.get("PREFECT_PROFILE") or known.get("active")
    url = known.get("profiles", {}).get(active, {}).get("PREFECT_API_URL")
    return str(url) if url else None


def answering_server() -> str | None:
    """The server that the user named, if it answers."""
    url = configured_server()
    return url if url is not None and _answers(url) else None


def prefect_home(settings: Settings) -> Path:
    """The folder of our own Prefect: its database holds the runs that the UI shows."""
    home = settings.data_folder.resolve() / "prefect"
    home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    home.mkdir(mode=0o700, exist_ok=True)
    return home


def running_server(home: Path) -> str | None:
    """The API of a server of this folder that an earlier run left, if it answers."""
    try:
        told = json.loads((home / "server.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    same = told.get("version") == version("prefect")
    return str(told["url"]) if same and _answers(str(told.get("url"))) else None


def _answers(url: str) -> bool:
    if not url.startswith(("http://", "https://")):
        return False
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=3) as reply:  # noqa: S310
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False


@contextmanager
def server_of_our_own(settings: Settings, port: int) -> Iterator[str]:
    """Prefect's server of this data folder with its UI on a port of loopback, until the end.

    Yields:
        The address of its API. Runs of this data folder tell themselves to it meanwhile.

    Raises:
        ServerError: the port is taken, or the server does not start.
    """
    home = prefect_home(settings)
    known = home / "server.json"
    _take_over(known)
    command = _server_command(settings, port)
    with (home / "server.log").open("ab") as log:
        server = subprocess.Popen(  # noqa: S603
            command,
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is ours to answer
        )
    url = os.environ["PREFECT_API_URL"]
    told = {"url": url, "version": version("prefect"), "pid": server.pid, "owner": os.getpid()}
    try:
        known.write_text(json.dumps(told), "utf-8")
        for _ in range(START_SECONDS * 5):
            if server.poll() is not None:
                words = (home / "server.log").read_text("utf-8", "replace").strip()[-500:]
                raise ServerError(f"Prefect's server did not start: {words}")
            if _answers(url):
                break
            time.sleep(0.2)
        yield url
    finally:
        known.unlink(missing_ok=True)
        server.terminate()
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


class _Serving(NamedTuple):
    """A server that `tamis serve` has started."""

    url: str
    server: psutil.Process
    owner: int
    """The process that serves, which may have been killed."""


def _serving(known: Path) -> _Serving | None:
    """The server of this folder that `tamis serve` has started; None where none runs.

    What a run has started for itself is none of these: it has no UI, and soon ends.
    """
    try:
        told = json.loads(known.read_text("utf-8"))
        found = _Serving(str(told["url"]), psutil.Process(int(told["pid"])), int(told["owner"]))
        return found if any("prefect" in part for part in found.server.cmdline()) else None
    except (OSError, ValueError, KeyError, psutil.Error):
        return None


def _take_over(known: Path) -> None:
    """End the server that a process like this one has left, which was killed.

    Raises:
        ServerError: that process lives, and serves this folder.
    """
    if (left := _serving(known)) is None:
        return
    if psutil.pid_exists(left.owner):
        raise ServerError(
            f"process {left.owner} serves this folder already, at "
            f"{left.url.removesuffix('/api')}; end it, and name all screens in one command: "
            "tamis serve FILE FILE"
        )
    left.server.terminate()
    with suppress(psutil.Error):
        left.server.wait(STOP_SECONDS)


def serve_ui(settings: Settings, port: int) -> NoReturn:
    """Become Prefect's server of this data folder, with its UI; or say where the user's own is.

    Raises:
        ServerError: the port is taken.
    """
    url = configured_server()
    serving = _serving(prefect_home(settings) / "server.json") if url is None else None
    if serving is not None:
        print(f"Prefect UI: {serving.url.removesuffix('/api')} (tamis serve)")  # noqa: T201
        raise SystemExit(0)
    if url is not None and _answers(url):
        print(f"Prefect UI: {url.removesuffix('/api')} (your own server)")  # noqa: T201
        raise SystemExit(0)
    command = _server_command(settings, port)
    address = f"http://127.0.0.1:{port}"
    print(f"Prefect UI: {address} (Ctrl-C ends it)", file=sys.stderr, flush=True)  # noqa: T201
    os.chdir(prefect_home(settings))
    os.execv(sys.executable, command)  # noqa: S606


def _server_command(settings: Settings, port: int) -> list[str]:
    """The command of Prefect's server with its UI; the environment is set for it and for us.

    Raises:
        ServerError: the port is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ServerError(
                f"port {port} is taken: {error.strerror}; write another one: --port {port + 1}"
            ) from error
    address = f"http://127.0.0.1:{port}"
    named = {
        "PREFECT_HOME": str(prefect_home(settings)),
        "PREFECT_API_URL": f"{address}/api",
        "PREFECT_SERVER_UI_API_URL": f"{address}/api",
    }
    os.environ.update({name: os.environ.get(name, value) for name, value in _DEFAULTS.items()})
    os.environ.update(named)
    command = [sys.executable, "-P", "-m", "uvicorn", "--factory"]
    return [
        *command,
        "prefect.server.api.server:create_app",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--log-level",
        "error",
    ]
