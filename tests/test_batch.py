import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from db.engine import open_engine
from db.store import BatchState, Store
from flows.screen import screen
from flows.summary import summary as summary_of
from tiers.config import load_screen
from tiers.types import TierError

from .batch_server import BatchServer
from .openai_server import is_match
from .project import write

SECRET = "sk-of-the-batch-0815"  # noqa: S105
COUNT = 90


def batched(folder: Path, server: BatchServer, *, count: int = COUNT, **settings: Any) -> None:
    """A screen whose only tier asks this server's Batch API."""
    options = {"rounds": 4} | settings
    said = "".join(f", {name}: {json.dumps(value)}" for name, value in options.items())
    policy = "policy: {accept_above: 0.5}"
    write(
        folder,
        f'{{name: only, backend: openai_batch, base_url: "{server.url}", model: m{said}, {policy}}}',
        count=count,
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for a screen that is run in this process, without Prefect."""
    monkeypatch.setenv("TAMIS_DATABASE_URL", f"sqlite:///{tmp_path}/tamis.db")
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    return tmp_path


def visit(folder: Path) -> dict[str, Any]:
    """One run of the flow: it visits the server once and ends."""
    key = screen.fn(load_screen(folder / "screen.yaml"))
    with stored(folder) as store:
        return summary_of(store, store.find_run(key))


def finished(folder: Path, *, visits: int = 12) -> dict[str, Any]:
    """Visit again until nothing is out."""
    for _ in range(visits):
        summary = visit(folder)
        if summary["state"] == "done":
            return summary
        assert summary["state"] == "waiting", summary
    raise AssertionError(f"not done after {visits} visits: {summary}")


@contextmanager
def stored(folder: Path) -> Iterator[Store]:
    engine = open_engine(f"sqlite:///{folder}/tamis.db")
    try:
        yield Store(engine)
    finally:
        engine.dispose()


def right(folder: Path) -> bool:
    with stored(folder) as store:
        rows = list(store.results(store.find_run().id))
    return len(rows) == COUNT and all(
        (row["verdict"] == "accepted") == is_match(int(row["key"][1:])) for row in rows
    )


def test_a_run_sends_a_batch_and_is_picked_up_again(folder, capsys):
    with BatchServer(key=SECRET) as server:
        batched(folder, server)
        summary = visit(folder)
        assert (summary["state"], summary["pending"]) == ("waiting", COUNT)
        assert "90 candidates are out in 1 batch" in capsys.readouterr().err
        finished(folder)
        assert right(folder)
        assert server.lines == [COUNT]
        assert server.files == {}  # all deleted once collected
    with stored(folder) as store:
        [batch] = store.batches.all()
    assert (batch.state, batch.answered, batch.unanswered) == (BatchState.COLLECTED, COUNT, 0)
    assert SECRET not in repr(batch)


@pytest.mark.parametrize("behaviour", ["half fails", "expires", "invalid", "too much", "twice"])
def test_what_a_batch_leaves_unanswered_is_sent_again_and_nothing_else(folder, behaviour):
    with BatchServer(behaviour, "well", key=SECRET, bad_looks=3) as server:
        batched(folder, server)
        summary = finished(folder)
        assert summary["accepted"] == COUNT // 3
        assert right(folder)
        resent = {
            "half fails": COUNT // 2,
            "expires": COUNT // 2,
            "invalid": COUNT,
            "too much": COUNT,
        }
        if behaviour == "too much":  # in two waves, of half the tokens at most
            assert sum(server.lines[1:]) == COUNT
            assert max(server.lines[1:]) <= COUNT // 2
        else:
            assert server.lines[1:] == ([resent[behaviour]] if behaviour in resent else [])
        assert server.files == {}
        tokens = summary["tiers"][0]["completion_tokens"]
        assert tokens == COUNT  # a line answered twice is charged once


def test_a_line_that_never_gets_an_answer_has_failed_after_its_rounds(folder):
    with BatchServer("invalid", key=SECRET) as server:
        batched(folder, server, count=5, rounds=2)
        while (summary := visit(folder))["state"] == "waiting":
            assert len(server.lines) <= 2
        assert (summary["state"], summary["failed"], summary["pending"]) == ("incomplete", 5, 0)
        assert server.lines == [5, 5]


@pytest.mark.parametrize(
    ("setting", "lines"),
    [({"lines_per_file": 20}, [20, 20, 20, 20, 10]), ({"bytes_per_file": 10_000}, None)],
)
def test_files_keep_their_limits(folder, setting, lines):
    with BatchServer(key=SECRET) as server:
        batched(folder, server, **setting)
        visit(folder)
        sizes = [len(content) for content in server.files.values()]
        assert lines in (None, server.lines)
        assert max(sizes) <= setting.get("bytes_per_file", max(sizes))
        assert len(sizes) > 2
        assert finished(folder)["accepted"] == COUNT // 3
        assert sum(server.lines) == COUNT


def test_tokens_go_out_in_waves(folder):
    with BatchServer(key=SECRET) as server:
        batched(folder, server, enqueued_tokens=2_000)
        visit(folder)
        assert sum(server.lines) < COUNT
        assert finished(folder, visits=30)["accepted"] == COUNT // 3
        assert sum(server.lines) == COUNT
        assert len(set(server.custom_ids)) == COUNT


@pytest.mark.parametrize("arrived", [True, False])
def test_a_batch_made_just_before_we_died_is_found_again(folder, arrived):
    with BatchServer(key=SECRET) as server:
        batched(folder, server)
        visit(folder)
        with stored(folder) as store:
            [batch] = store.batches.all()
            # As if we had died after the server made the batch and before we noted it, or sooner.
            kept = None if arrived else batch.input_file
            change = {"state": BatchState.PREPARED, "remote_id": None, "input_file": kept}
            store.batches.change(batch.id, **change)
        if not arrived:
            server.batches.clear()
        assert finished(folder)["accepted"] == COUNT // 3
        assert server.lines == [COUNT] if arrived else [COUNT, COUNT]


def test_a_batch_of_another_key_is_not_touched(folder, monkeypatch):
    with BatchServer(key=SECRET) as server:
        batched(folder, server)
        visit(folder)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-another")
        with pytest.raises(TierError, match=r"was sent to .* with another key; set OPENAI_API_KEY"):
            visit(folder)


def test_the_commands_and_the_key_is_nowhere(project):
    project.env["OPENAI_API_KEY"] = SECRET

    def tamis(*arguments: str) -> tuple[int, str, str]:
        return project.tamis(*arguments, "--database", project.database)

    with BatchServer("stays", "well", key=SECRET) as server:
        batched(project.folder, server)
        code, summary, _ = project.run()
        assert (code, summary["state"], summary["pending"]) == (3, "waiting", COUNT)
        code, out, _ = tamis("batch", "list", "--json")
        assert (code, json.loads(out)[0]["lines"]) == (0, COUNT)
        code, out, _ = tamis("batch", "cancel", "1")
        assert (code, out.strip()) == (0, "batch 1: cancelled")
        for _ in range(4):
            code, out, err = tamis("batch", "poll")
            if code == 0:
                break
        assert "nothing is out any more" in out, err
        assert server.lines == [COUNT, COUNT - COUNT // 4]
        assert any(SECRET in str(headers) for headers in server.headers)
    assert right(project.folder)
    code, _, err = tamis("batch", "cancel", "7")
    assert code == 2
    assert "no open batch 7" in err
    for path in Path(project.folder).rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path
