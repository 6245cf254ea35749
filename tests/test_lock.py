"""The lock of a run: by the database's clock, given up before another takes it, fenced by attempt."""

import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

import db.bulk
import db.runs
from db.errors import RunHeld
from db.query import ask
from db.store import DatabaseError, RunState, Store, TierState
from flows.run import hold as holding
from flows.run.hold import held

from .project import Project
from .test_prefect import judged, until
from .test_run import tier
from .test_store import new_run

SHORT = "import sys, flows.run.hold as h; h.LOCK_SECONDS = 12.0; from flows.cli import main; main()"
SLOW = tier("only", "accept_above: 0.5", options="seconds: 0.01")


@pytest.mark.postgres
def test_a_lock_goes_by_the_databases_clock_and_not_by_the_hosts(
    postgres_url: str, templates: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from db.engine import open_engine

    from .conftest import fill

    fill(postgres_url, templates)
    engine = open_engine(postgres_url)
    store = Store(engine)
    run = new_run(store)
    store.runs.lock(run.id, "host-1", seconds=60)

    def ahead() -> datetime:
        return real() + timedelta(hours=1)

    real = db.bulk.now
    monkeypatch.setattr(db.bulk, "now", ahead)
    monkeypatch.setattr(db.runs, "now", ahead)
    with pytest.raises(RunHeld):
        store.runs.lock(run.id, "host-2")
    assert store.runs.status(run.id).locked
    store.runs.renew(run.id, "host-1", seconds=60)
    with engine.connect() as connection:
        left = connection.scalar(text("SELECT lock_until - clock_timestamp() FROM run"))
    engine.dispose()
    assert timedelta() < left < timedelta(minutes=2)


def test_who_lost_the_run_writes_no_state_of_it_any_more(store: Store) -> None:
    run = new_run(store)
    first = store.runs.lock(run.id, "host-1", seconds=0)
    before = store.runs.status(run.id)
    second = store.runs.lock(run.id, "host-2")
    assert second == first + 1
    store.tiers.set_state(run.id, 0, TierState.RUNNING, attempt=second)
    store.runs.resume(run.id, {"budget": 2}, attempt=second)

    store.runs.finish(run.id, RunState.CANCELLED, "late", seconds=100, attempt=first)
    store.runs.put_back(before, attempt=first)
    store.runs.resume(run.id, {"budget": 1}, attempt=first)
    store.tiers.set_state(run.id, 0, TierState.STOPPED, "late", seconds=100, attempt=first)
    with pytest.raises(Exception, match="another process took the run over"):
        store.runs.renew(run.id, "host-2", attempt=first)

    status = store.runs.status(run.id)
    assert (status.run.state, status.reason, status.seconds) == (RunState.RUNNING, None, 0)
    assert status.run.config == {"budget": 2}
    assert store.tiers.reasons(run.id) == []
    assert store.tiers.spent(run.id)[0].seconds == 0

    store.runs.finish(run.id, RunState.DONE, attempt=second)
    assert store.runs.find(run.key).state is RunState.DONE


def test_a_holder_that_cannot_renew_ends_before_another_may_begin(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "LOCK_SECONDS", 3.0)

    def away(*_: Any, **__: Any) -> None:
        raise DatabaseError("the server cannot be reached")

    monkeypatch.setattr(store.runs, "renew", away)
    run = new_run(store)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), held(store, run) as hold:
        time.sleep(20)
    assert 1.9 < time.monotonic() - began < 3.0
    assert "could not be renewed for 2 s" in str(hold.lost)


def test_a_lock_is_renewed_for_as_long_as_it_is_held(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "LOCK_SECONDS", 1.5)
    run = new_run(store)
    with held(store, run):
        time.sleep(2.5)
        with pytest.raises(RunHeld):
            store.runs.lock(run.id, "host-2")


def test_a_holder_that_stood_still_leaves_the_run_to_who_took_it_over(
    project: Project, request: pytest.FixtureRequest
) -> None:
    """SIGSTOP is what a frozen machine looks like; the second process is one of another machine."""
    project.write(SLOW, count=3_000)
    project.env["TAMIS_RECORD"] = "false"
    command = ("run", "screen.yaml", "--key", "one", "--database", project.database)
    first = started(project, *command)
    request.addfinalizer(lambda: ended(first))
    until(lambda: judged(project) > 50)
    first.send_signal(signal.SIGSTOP)
    try:
        time.sleep(12.2)
        second = started(project, *command)
        request.addfinalizer(lambda: ended(second))
        until(lambda: attempt(project) == 2)
        seen = judged(project)
        until(lambda: judged(project) > seen)
    finally:
        first.send_signal(signal.SIGCONT)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 5, err
    assert "took the run over" in err or "could not be renewed" in err
    assert "Traceback" not in err
    row = ask(project.database, "SELECT state, reason, attempt, lock_owner FROM run")[0]
    assert (row["reason"], row["attempt"]) == (None, 2), "the first wrote nothing"
    if second.poll() is None:
        assert f" {second.pid} " in row["lock_owner"]
    _, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    (row,) = ask(project.database, "SELECT state, attempt FROM run")
    assert row == {"state": "done", "attempt": 2}
    assert judged(project) == 3_000


def ended(process: subprocess.Popen[str]) -> None:
    """No process outlives a test, whatever the test found."""
    process.kill()
    process.communicate()


def attempt(project: Project) -> int:
    return int(ask(project.database, "SELECT attempt FROM run")[0]["attempt"])


def started(project: Project, *arguments: str) -> subprocess.Popen[str]:
    """As `project.start`, with a lock that lasts twelve seconds."""
    return subprocess.Popen(
        [sys.executable, "-c", SHORT, *arguments],
        cwd=project.folder, env=project.env, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
