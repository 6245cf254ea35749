"""Prefect for a run: the user's server if one answers, else one of our own for as long as we live.

Prefect can start such a server itself, but that one outlives a flow that is killed. Ours reads
its standard input and ends when that ends, which a kill cannot prevent.
"""

import atexit
import os
import subprocess
import sys
import threading
import time
import tomllib
import urllib.error
import urllib.request
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


def ensure_server(settings: Settings) -> None:
    """Name a server to Prefect, and start one if the user has none that answers.

    Must be called before Prefect is first imported, because Prefect reads the environment only
    then. Our own server ends with this process.

    Raises:
        ServerError: our own did not start; the message holds its last words.
    """
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    url = configured_server()
    if url is None:
        print("starting Prefect's own server, which takes some seconds", file=sys.stderr)  # noqa: T201
    elif not _answers(url):
        print(f"Prefect server {url} does not answer; starting one", file=sys.stderr)  # noqa: T201
        url = None
    os.environ["PREFECT_API_URL"] = url or _start_server(settings)


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
    home.mkdir(parents=True, exist_ok=True)
    return home


def _start_server(settings: Settings) -> str:
    home = prefect_home(settings)
    os.environ["PREFECT_HOME"] = str(home)
    log = home / "server.log"
    with log.open("wb") as lines:
        child = subprocess.Popen(
            [sys.executable, "-m", "flows.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=lines,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # Ctrl-C is ours to answer, and Prefect hears of it from us
        )
    # Registered before Prefect is imported, so that it runs after Prefect has sent its last logs.
    atexit.register(_stop, child)
    port = child.stdout.readline().decode().strip() if child.stdout else ""
    if not port:
        words = log.read_text("utf-8", "replace").strip()[-500:]
        raise ServerError(f"Prefect's server did not start; {log} ends: {words}")
    return f"http://127.0.0.1:{port}/api"


def _stop(server: subprocess.Popen[bytes]) -> None:
    """End the server's input, which it takes as the word to stop, and wait until it has."""
    for pipe in (server.stdin, server.stdout):
        if pipe is not None:
            pipe.close()
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _answers(url: str) -> bool:
    if not url.startswith(("http://", "https://")):
        return False
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=3) as reply:  # noqa: S310
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False


def main() -> None:
    """The child: serve Prefect's API on a free port, say which, and end with the parent."""
    import uvicorn

    config = uvicorn.Config(
        "prefect.server.api.server:create_app",
        factory=True,
        host="127.0.0.1",
        port=0,
        log_level="error",
        lifespan="on",
    )
    server = uvicorn.Server(config)

    def tell_port() -> None:
        while not server.started:
            time.sleep(0.05)
        print(server.servers[0].sockets[0].getsockname()[1], flush=True)  # noqa: T201

    def end_with_parent() -> None:
        sys.stdin.buffer.read()
        server.should_exit = True
        time.sleep(STOP_SECONDS)
        os._exit(1)

    for work in (tell_port, end_with_parent):
        threading.Thread(target=work, daemon=True).start()
    server.run()


if __name__ == "__main__":
    main()
