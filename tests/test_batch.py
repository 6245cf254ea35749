import asyncio
import gzip
import json
import traceback
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from typer.testing import CliRunner

from db.batches import Out
from db.engine import open_engine
from db.store import BatchState, Spent, Store
from flows.cli import app
from flows.collect import cancel, collect
from flows.report.summary import summary as summary_of
from flows.run.budget import Budgets
from tiers.backends.openai import batch as openai_batch
from tiers.screenfile.file import Screen, load_screen
from tiers.types import Candidate, TierError

from .batch_server import BatchServer, Odd
from .openai_server import is_match
from .project import screened, write

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
    monkeypatch.setenv("TAMIS_RECORD", "false")
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    return tmp_path


def visit(folder: Path) -> dict[str, Any]:
    """One run of the flow: it visits the server once and ends."""
    key = screened(load_screen(folder / "screen.yaml"))
    with stored(folder) as store:
        return asdict(summary_of(store, store.runs.find(key)))


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
        rows = list(store.results.all(store.runs.find().id))
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


def repeats_the_key(status: int) -> Odd:
    """Refuses, with the request's Authorization header in its message."""

    def answer(request: web.Request) -> web.Response:
        said = f"cannot do that with {request.headers['Authorization']}"
        return web.json_response({"error": {"message": said}}, status=status)

    return answer


def html(_request: web.Request) -> web.Response:
    return web.Response(text=f"<html>Welcome, {SECRET}</html>", content_type="text/html")


def check_key_is_nowhere(folder: Path, capsys: pytest.CaptureFixture[str], *others: str) -> None:
    said = capsys.readouterr()
    assert SECRET not in said.out + said.err + "".join(others)
    for path in folder.glob("tamis.db*"):
        assert SECRET.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("step", ["probe", "upload", "create"])
@pytest.mark.parametrize("status", [400, 401, 422])
def test_a_refusal_that_repeats_the_key_stops_the_run_without_it(folder, capsys, step, status):
    with BatchServer(key=SECRET, odd={step: repeats_the_key(status)}) as server:
        batched(folder, server, count=5)
        for _ in range(2):  # the next run is refused in the same words
            with pytest.raises(TierError, match=r"with Bearer \(key\)") as refusal:
                visit(folder)
            everything = "".join(traceback.format_exception(refusal.value))
            check_key_is_nowhere(folder, capsys, everything)
        server.odd.clear()
        assert finished(folder)["accepted"] == 2
        assert server.lines == [5]


@pytest.mark.parametrize("status", [400, 401])
def test_a_refusal_later_on_does_not_tell_the_key(folder, capsys, status):
    with BatchServer(key=SECRET) as server:
        batched(folder, server, count=5)
        visit(folder)
        server.odd["look"] = repeats_the_key(status)
        with pytest.raises(TierError, match=r"with Bearer \(key\)"):
            visit(folder)
        with stored(folder) as store:
            assert "Bearer (key)" in str(store.runs.status(store.runs.find().id).reason)
        server.odd = {"content": repeats_the_key(status)}
        visit(folder)
        with pytest.raises(TierError, match=r"with Bearer \(key\)"):
            visit(folder)
        check_key_is_nowhere(folder, capsys)


def test_the_reason_of_a_crash_does_not_tell_the_key(folder, monkeypatch, capsys):
    def crash(*_: object, **__: object) -> None:
        raise RuntimeError(f"header Authorization: Bearer {SECRET}")

    monkeypatch.setattr("flows.run.screening.publish", crash)
    with BatchServer(key=SECRET) as server:
        batched(folder, server, count=5)
        with pytest.raises(RuntimeError):
            visit(folder)
    with stored(folder) as store:
        reason = store.runs.status(store.runs.find().id).reason
    assert reason == "RuntimeError: header Authorization: Bearer (key)"
    check_key_is_nowhere(folder, capsys)


def test_a_server_that_refuses_every_dialect_is_asked_a_few_times(folder):
    wanted = iter(["max_completion_tokens", "max_tokens"] * 20)

    def refuse(_request: web.Request) -> web.Response:
        said = {"error": {"message": f"use '{next(wanted)}' instead"}}
        return web.json_response(said, status=400)

    with BatchServer(key=SECRET, odd={"probe": refuse}) as server:
        batched(folder, server, count=5)
        with pytest.raises(TierError, match="refuses the request"):
            visit(folder)
    assert len(list(wanted)) > 30


@pytest.mark.parametrize("step", ["probe", "upload", "create", "look"])
def test_an_answer_of_another_shape_stops_the_run_with_its_first_words(folder, capsys, step):
    with BatchServer(key=SECRET, odd={step: html}) as server:
        batched(folder, server, count=5)
        if step == "look":
            visit(folder)
        with pytest.raises(TierError, match=r"'<html>Welcome, \(key\)</html>'; check base_url"):
            visit(folder)
        check_key_is_nowhere(folder, capsys)
        server.odd = {step: lambda _: web.json_response({"id": 5, "choices": [None]})}
        with pytest.raises(TierError, match="check base_url"):
            visit(folder)
        server.odd.clear()
        assert finished(folder)["accepted"] == 2
        assert server.lines == [5]


def test_a_redirect_is_not_followed_with_the_key(folder):
    with BatchServer(key=SECRET) as other, BatchServer(key=SECRET) as server:

        def elsewhere(request: web.Request) -> web.Response:
            return web.Response(status=307, headers={"Location": f"{other.url}/{request.path}"})

        batched(folder, server, count=5)
        for step in ("probe", "upload", "create"):
            server.odd = {step: elsewhere}
            with pytest.raises(TierError, match=r"sends us on to .*the right address as base_url"):
                visit(folder)
        assert other.headers == []


@pytest.mark.parametrize("step", ["upload", "create"])
def test_a_server_without_batches_is_said_to_be_one(folder, step):
    def missing(_request: web.Request) -> web.Response:
        return web.json_response({"detail": "Not Found"}, status=404)

    with BatchServer(key=SECRET, odd={step: missing}) as server:
        batched(folder, server, count=5)
        for _ in range(2):
            with pytest.raises(TierError, match=r"has no Files and Batches.*backend: http"):
                visit(folder)
        with stored(folder) as store:
            assert store.batches.all() == []


def test_a_batch_that_the_account_no_longer_has_is_sent_again(folder, capsys):
    with BatchServer(key=SECRET) as server:
        batched(folder, server, lines_per_file=50, rounds=2)
        visit(folder)
        del server.batches["batch-1"]
        summary = finished(folder)
        assert summary["accepted"] == COUNT // 3
        assert server.lines[:2] == [50, 40]
        assert sum(server.lines) == COUNT + 50
    assert "gone (the account has no such batch any more): 0 answers" in capsys.readouterr().err


def test_a_batch_that_is_gone_each_time_has_failed_after_its_rounds(folder):
    with BatchServer(key=SECRET) as server:
        batched(folder, server, count=5, rounds=2)
        for _ in range(3):
            summary = visit(folder)
            server.batches.clear()
        assert (summary["failed"], summary["state"]) == (5, "incomplete")
        assert server.lines == [5, 5]


def test_a_download_that_is_cut_is_fetched_again(folder, capsys):
    with BatchServer(key=SECRET) as server:
        batched(folder, server)
        visit(folder)

        async def cut(request: web.Request) -> web.StreamResponse:
            whole = server.files[request.match_info["id"]]
            response = web.StreamResponse(headers={"Content-Length": str(len(whole))})
            await response.prepare(request)
            await response.write(whole[: len(whole) // 2])
            assert request.transport is not None
            request.transport.close()
            return response

        server.odd["content"] = cut
        for _ in range(2):
            assert visit(folder)["state"] == "waiting"
        assert "the answer was cut off" in capsys.readouterr().err
        server.odd = {"content": html}
        assert visit(folder)["state"] == "waiting"
        said = capsys.readouterr().err
        assert "holds no answers, but '<html>Welcome, (key)</html>'; try again later" in said
        server.odd.clear()
        assert finished(folder)["tiers"][0]["completion_tokens"] == COUNT
        assert server.lines == [COUNT]
        assert right(folder)


@pytest.mark.parametrize(
    "body",
    [
        {"error": "too long"},
        {"error": {"message": "too long"}},
        {"error": None, "why": "too long"},
        "too long",
        ["too long"],
    ],
)
def test_a_refused_line_goes_to_review_whatever_its_shape(folder, body):
    with BatchServer(key=SECRET, answer=lambda _: (400, body)) as server:
        batched(folder, server, count=5)
        assert finished(folder)["review"] == 5
    with stored(folder) as store:
        detail = store.results.explain(store.runs.find().id, "k000001").judgements[0]
    assert "the server refused: " in str(detail.error)
    assert "too long" in str(detail.error)


@pytest.mark.parametrize(
    "body",
    [
        {"choices": "none"},
        {"choices": [None]},
        {"choices": {"0": {}}},
        {"choices": [{"message": 1}]},
    ],
)
def test_a_reply_of_another_shape_goes_to_review(folder, body):
    with BatchServer(key=SECRET, answer=lambda _: (200, body)) as server:
        batched(folder, server, count=5)
        assert finished(folder)["review"] == 5


def test_only_a_newline_ends_a_line_and_broken_ones_are_told(folder, capsys):
    strange = "so\u2028far\u0085and\x1con"

    class Strange(BatchServer):
        def _file(self, content: bytes) -> dict[str, Any]:
            if b'"custom_id"' in content and b'"response"' in content:
                rows = [json.loads(line) for line in content.splitlines()]
                lines = [json.dumps(row | {"said": strange}, ensure_ascii=False) for row in rows]
                content = "\n".join([*lines, '{"custom_id": "half']).encode()
            return super()._file(content)

    with Strange(key=SECRET) as server:
        batched(folder, server)
        assert finished(folder)["accepted"] == COUNT // 3
        assert server.lines == [COUNT]
    said = capsys.readouterr().err
    assert f"1 of {COUNT + 1} lines of file" in said
    assert 'the first begins \'{"custom_id": "half\'' in said


def test_every_wave_is_sent_as_the_server_likes_it(folder):
    with BatchServer(key=SECRET, refuses=("temperature",)) as server:
        batched(folder, server, count=30, enqueued_tokens=500)
        assert finished(folder)["accepted"] == 10
        assert len(server.lines) > 1


@pytest.mark.parametrize("budget", [{"tokens": 10_000}, {"usd": 0.01}])
def test_what_is_out_is_in_the_budget_of_every_later_run(folder, budget):
    with BatchServer("stays", key=SECRET) as server:
        batched(folder, server, budget=budget, price={"input": 1, "output": 1})
        for _ in range(3):
            assert visit(folder)["state"] == "waiting"
        assert len(server.lines) == 1
        assert server.lines[0] < COUNT
        for batch in server.batches.values():
            batch.behaviour = "well"
        server.behaviours = ("well",)
        summary = visit(folder)
        while summary["state"] == "waiting":
            summary = visit(folder)
        # They cost less than was reserved: what was left over has been spent, and no more.
        assert sum(server.lines) > server.lines[0]
        [tier] = summary["tiers"]
        assert tier["prompt_tokens"] + tier["completion_tokens"] <= 10_000
        assert summary["usd"] <= 0.01


def test_as_many_are_promoted_while_some_of_them_are_out():
    remote = {"base_url": "http://h/v1", "model": "m"}
    budget = {"tokens": 10_000}
    tiers = [
        {"name": "a", "backend": "http", "policy": {"budget": True}, **remote},
        {"name": "b", "backend": "openai_batch", "budget": budget, **remote},
    ]
    definition = Screen.model_validate(
        {
            "screen": "s",
            "candidates": {"from": "a.csv", "key": "k"},
            "rubric": "r",
            "tiers": tiers,
        }
    )

    def affordable(*out: Out) -> int | None:
        spent = Spent(0, 0.0, 0.0, 0)
        store = SimpleNamespace(
            tiers=SimpleNamespace(spent=lambda _: [spent, spent]),
            batches=SimpleNamespace(outstanding=lambda *_: list(out)),
        )
        budgets = Budgets(definition, store, 1)  # type: ignore[arg-type]
        admission = budgets.admission(1)
        assert admission is not None
        assert admission.admit(Candidate(99, "x" * 400)) == (len(out) < 20)
        admission.release([99])
        return budgets.affordable(1, spent, 400)

    assert affordable(*(Out(i, 400, None) for i in range(30))) == affordable() != 0


def test_lines_without_an_answer_are_out_of_the_budget_again(folder):
    with BatchServer("invalid", "well", key=SECRET) as server:
        batched(folder, server, count=20, budget={"tokens": 6_000})
        summary = finished(folder)
        assert summary["accepted"] == 7
        assert server.lines == [20, 20]


def test_answers_cost_what_they_cost_when_they_were_sent(folder):
    with BatchServer(key=SECRET) as server:
        batched(folder, server, price={"input": 1, "output": 1})
        visit(folder)
        batched(folder, server, price={"input": 100, "output": 100}, budget={"usd": 0.1})
        summary = finished(folder)
        [tier] = summary["tiers"]
        tokens = tier["prompt_tokens"] + tier["completion_tokens"]
        assert tier["usd"] == pytest.approx(tokens / 1e6, abs=1e-6)


def test_who_is_out_stands_beside_the_cost(folder):
    with BatchServer(key=SECRET) as server:
        batched(folder, server, price={"input": 1, "output": 1})
        assert visit(folder)["out"] == COUNT
        summary = finished(folder)
        assert (summary["out"], summary["usd"] > 0) == (0, True)


@pytest.mark.parametrize("forget", [False, True])
def test_a_batch_stopped_by_hand_is_no_round(folder, forget, capsys):
    with BatchServer("stays", "invalid", key=SECRET) as server:
        batched(folder, server, count=12, rounds=1)
        visit(folder)
        with stored(folder) as store:
            cancel(store, store.batches.all()[0], forget=forget)
        capsys.readouterr()
        summary = visit(folder)
        answered = 0 if forget else 3
        again = f"{12 - answered} without an answer are sent again"
        assert (again in capsys.readouterr().err) != forget
        assert server.lines == [12, 12 - answered]
        while summary["state"] == "waiting":
            summary = visit(folder)
        assert summary["failed"] == 12 - answered
        said = capsys.readouterr().err
        assert "sent again" not in said
        assert f"{12 - answered} without an answer have failed" in said


def test_the_exit_code_of_a_poll_is_that_of_its_runs(folder, monkeypatch):
    monkeypatch.setattr("flows.server.ensure_server", lambda _: lambda: None)

    monkeypatch.setattr("flows.collect.collect", collect.fn)

    def poll() -> tuple[int, str]:
        result = CliRunner().invoke(app, ["batch", "poll"])
        return result.exit_code, result.output

    with BatchServer("invalid", "well", key=SECRET) as server:
        batched(folder, server, count=12, rounds=1)
        screened(load_screen(folder / "screen.yaml"), key="fails")
        assert poll()[0] == 3
        code, out = poll()
        assert "run fails: incomplete" in out
        assert (code, server.lines) == (3, [12])
        screened(load_screen(folder / "screen.yaml"), key="ends")
        server.odd["look"] = repeats_the_key(401)
        code, out = poll()
        assert code == 3
        assert "run ends: " in out
        assert "refuses the key" in " ".join(out.split())
        assert SECRET not in out
        server.odd.clear()
        poll()
        code, out = poll()
        assert code == 0
        assert out.endswith("run ends: done\nnothing is out any more\n")
        assert poll()[1] == "no run waits for a batch\n"


def test_the_trouble_of_one_run_leaves_the_others(folder, monkeypatch):
    with BatchServer(key=SECRET) as server:
        batched(folder, server, count=12)
        for key in ("monday", "tuesday"):
            screened(load_screen(folder / "screen.yaml"), key=key)

        refuse = repeats_the_key(401)

        async def look(request: web.Request) -> web.StreamResponse:
            if request.match_info["id"] == "batch-1":
                return refuse(request)
            return await server._look(request)

        server.odd["look"] = look
        with stored(folder) as store:
            while "tuesday" in store.batches.waiting_runs():
                with pytest.raises(TierError, match=r"run monday: .*refuses the key"):
                    collect.fn()
            assert store.batches.waiting_runs() == ["monday"]
            assert summary_of(store, store.runs.find("tuesday")).state == "done"


def test_the_commands_and_the_key_is_nowhere(project):
    project.env["OPENAI_API_KEY"] = SECRET

    def tamis(*arguments: str) -> tuple[int, str, str]:
        return project.tamis(*arguments, "--database", project.database)

    with BatchServer("stays", "well", key=SECRET) as server:
        batched(project.folder, server, rounds=1)
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


def endless(piece: bytes) -> Odd:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(piece)
        except (ConnectionError, asyncio.CancelledError):
            return response

    return answer


BOMB = gzip.compress(bytes(300 << 20))


def bomb(_: web.Request) -> web.StreamResponse:
    return web.Response(body=BOMB, headers={"Content-Encoding": "gzip"})


def visit_often(folder: Path) -> None:
    for _ in range(3):
        visit(folder)


@pytest.mark.parametrize(
    ("step", "odd", "said"),
    [
        ("probe", endless(b" " * 65_536), "its reply is longer than 16,777,216 bytes"),
        ("upload", endless(b" " * 65_536), "its reply is longer than 16,777,216 bytes"),
        ("look", endless(b" " * 65_536), "its reply is longer than 16,777,216 bytes"),
        ("look", bomb, "the reply is packed, which nobody asked for"),
        ("content", bomb, "the reply is packed, which nobody asked for"),
        ("content", endless(b" " * 65_536), r"a line of file .* has more than 16,777,216 bytes"),
        ("content", endless(b"\n" * 65_536), r"file .* has more than 100,000 lines"),
    ],
)
def test_a_reply_without_bounds_is_not_read_to_its_end_and_nobody_is_judged(
    folder, step, odd, said
):
    with BatchServer(key=SECRET, odd={step: odd}) as server:
        batched(folder, server, count=5)
        tracemalloc.start()
        try:
            with pytest.raises(TierError, match=f"misbehaves: {said}"):
                visit_often(folder)
            assert tracemalloc.get_traced_memory()[1] < 150 << 20
        finally:
            tracemalloc.stop()
        server.odd.clear()
        assert finished(folder)["accepted"] == 2


def test_a_reply_that_drips_is_given_up(folder, monkeypatch):
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            for _ in range(300):
                await response.write(b" ")
                await asyncio.sleep(0.1)
        except (ConnectionError, asyncio.CancelledError):
            pass
        return response

    monkeypatch.setattr(openai_batch, "REPLY_SECONDS", 0.5)
    with BatchServer(key=SECRET, odd={"look": drip}) as server:
        batched(folder, server, count=5)
        with pytest.raises(TierError, match=r"misbehaves: its reply takes longer than 0\.5 s"):
            visit_often(folder)
