"""Prefect for a run: the user's server if one answers, else one of our own for as long as we live.

Prefect can start such a server itself, but that one outlives a flow that is killed. Ours reads
its standard input and ends when that ends, which a kill cannot prevent.
"""

import atexit
import fcntl
import os
import socket
import subprocess
import sys
import threading
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from flows.settings import Settings

STOP_SECONDS = 15.0
_DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    # Prefect gives a server it starts itself 20 s, which a busy machine needs more than.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "240",
    # Its lines are for its UI; in the terminal a fault is told once, by us.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
}


class ServerError(Exception):
    """Prefect's server did not start."""


def ensure_server(settings: Settings) -> Callable[[], None]:
    """Name a server to Prefect, and start one if the user has none that answers.

    Must be called before Prefect is first imported, because Prefect reads the environment only
    then. Our own server ends with this process.

    Returns:
        What waits until the server answers, to be called before a flow. In between there is time
        to import Prefect, which takes about as long as its server's start. It raises ServerError
        if our own did not start; the message holds its last words.
    """
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    url = configured_server()
    if url is None:
        known = (prefect_home(settings) / "prefect.db").exists()
        takes = "some seconds" if known else "half a minute the first time"
        print(f"starting Prefect's own server, which takes {takes}", file=sys.stderr)  # noqa: T201
    elif _answers(url):
        os.environ["PREFECT_API_URL"] = url
        return lambda: None
    else:
        print(f"Prefect server {url} does not answer; starting one", file=sys.stderr)  # noqa: T201
    return _OwnServer(settings).wait


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


def prefect_home(settings: Settings) -> Path:
    """The folder of our own Prefect: its database holds the runs that the UI shows."""
    home = settings.data_folder.resolve() / "prefect"
    home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    home.mkdir(mode=0o700, exist_ok=True)
    return home


class _OwnServer:
    """Prefect's server in a child, whose standard output says when it answers."""

    def __init__(self, settings: Settings) -> None:
        home = prefect_home(settings)
        self._log = home / "server.log"
        self._answers = False
        # Bound here, so that the address is known before the server is there.
        with self._log.open("wb") as log, socket.create_server(("127.0.0.1", 0)) as listening:
            os.environ["PREFECT_HOME"] = str(home)
            os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
            self._child = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "flows.server", str(listening.fileno())],
                pass_fds=[listening.fileno()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ
                | {
                    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "ERROR",  # its console is the log
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                },
                start_new_session=True,  # Ctrl-C is ours to answer, and Prefect hears of it from us
            )
        # Registered before Prefect is imported, so that it runs after Prefect's last logs are sent.
        atexit.register(self.stop)

    def wait(self) -> None:
        """Return once it answers.

        Raises:
            ServerError: it ended instead.
        """
        self._answers = bool(self._child.stdout and self._child.stdout.readline())
        if not self._answers:
            words = self._log.read_text("utf-8", "replace").strip()[-500:]
            raise ServerError(f"Prefect's server did not start; {self._log} ends: {words}")

    def stop(self) -> None:
        """End the server's input, which it takes as the word to stop, and wait until it has.

        One that still starts is not waited for: it ends on its own as soon as it has started,
        since it may be amid the migrations of its database.
        """
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()
        if not self._answers:
            return
        try:
            self._child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()


def _answers(url: str) -> bool:
    if not url.startswith(("http://", "https://")):
        return False
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=3) as reply:  # noqa: S310
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False


def main() -> None:
    """The child: serve Prefect's API on an open socket, say when, and end with the parent."""
    import uvicorn

    config = uvicorn.Config(
        "prefect.server.api.server:create_app", factory=True, log_level="error", lifespan="on"
    )
    server = uvicorn.Server(config)
    # Two that start at once would run the same migrations on one database.
    starting = (Path(os.environ["PREFECT_HOME"]) / "server.lock").open("w")
    fcntl.flock(starting, fcntl.LOCK_EX)

    def follow_parent() -> None:
        while not server.started:
            time.sleep(0.05)
        starting.close()
        with suppress(OSError):  # it is gone
            print("started", flush=True)  # noqa: T201
        sys.stdin.buffer.read()
        server.should_exit = True
        time.sleep(STOP_SECONDS)
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()
    server.run(sockets=[socket.socket(fileno=int(sys.argv[1]))])


if __name__ == "__main__":
    main()
