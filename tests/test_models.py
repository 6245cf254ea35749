"""Model files from the hub, through a small server that stands in for it."""

import hashlib
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tiers.backends.files import file_digest

ROOT = Path(__file__).parent.parent
CONTENT = b"GGUF and the rest of a model" * 1000


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves one file of one repository as the hub does; `damaged` sends other bytes."""

    damaged = False
    requests: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        self.requests.append(f"{self.command} {self.path}")
        if "/resolve/" not in self.path or "absent" in self.path:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("X-Linked-Size", str(len(CONTENT)))
        self.send_header("X-Linked-Etag", f'"{hashlib.sha256(CONTENT).hexdigest()}"')
        self.send_header("ETag", f'"{hashlib.sha256(CONTENT).hexdigest()}"')
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        if body:
            self.wfile.write(CONTENT[::-1] if self.damaged else CONTENT)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    handler = type("OneHub", (Hub,), {"requests": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(name: str) -> str:
    """The path of a hub's file, or what was said of it, from a process of its own.

    huggingface_hub reads its environment once, when it is imported.
    """
    program = (
        "import sys\nfrom tiers.screenfile.tiers import HubModel\nfrom tiers.backends.files import model_file\n"
        "from tiers.types import TierError\n"
        "try: print(model_file(HubModel(hub=sys.argv[1])))\n"
        "except TierError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, name], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return done.stdout.strip()


def test_a_file_is_fetched_once_and_verified(hub: type[Hub]) -> None:
    path = Path(fetch("owner/repo/file.gguf"))
    assert path.read_bytes() == CONTENT
    assert fetch("owner/repo/file.gguf") == str(path)
    assert sum(each.startswith("GET /owner/repo/resolve") for each in hub.requests) == 1


def test_a_damaged_file_is_removed_and_told(hub: type[Hub]) -> None:
    hub.damaged = True
    assert "arrived damaged and was removed" in fetch("owner/repo/file.gguf")
    hub.damaged = False
    assert Path(fetch("owner/repo/file.gguf")).read_bytes() == CONTENT


def test_a_name_that_the_hub_does_not_know_is_told(hub: type[Hub]) -> None:
    assert "could not be fetched" in fetch("owner/repo/absent.gguf")


def test_a_digest_is_remembered_as_long_as_the_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tiers.backends.files.SMALL", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "model"
    path.write_bytes(b"one")
    first = file_digest(path)
    assert first == hashlib.sha256(b"one").hexdigest()
    known = tmp_path / "tamis" / "digests.json"
    assert list(json.loads(known.read_text()).values()) == [first]
    path.write_bytes(b"other")
    assert file_digest(path) == hashlib.sha256(b"other").hexdigest()
