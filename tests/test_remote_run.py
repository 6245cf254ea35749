"""Whole runs over HTTP: money, budgets, overlap, kills, keys."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from .openai_server import ModelServer, is_match
from .project import Project
from .test_http_odd_servers import Odd

SECRET = "sk-in-the-whole-run-1234"  # noqa: S105
PRICE = "price: {input: 2.0, cached_input: 0.5, output: 8.0}"
ACCEPT = "policy: {accept_above: 0.5}"


def http(server: ModelServer, *more: str, name: str = "only") -> str:
    parts = [f"name: {name}", "backend: http", f'base_url: "{server.url}"', "model: m", *more]
    return "{" + ", ".join(parts) + "}"


def cost(tier: dict[str, Any]) -> float:
    fresh = tier["prompt_tokens"] - tier["cached_tokens"]
    dear = fresh * 2.0 + tier["cached_tokens"] * 0.5 + tier["completion_tokens"] * 8.0
    return float(dear / 1e6)


def right(project: Project, run: str) -> bool:
    rows = project.results(run)
    return all(
        (dict(rest)["verdict"] == "accepted") == is_match(int(key[1:]))
        for key, rest in rows.items()
    )


def test_two_servers_work_at_the_same_time_and_the_ledger_is_right(project):
    with ModelServer(latency=0.02) as one, ModelServer(latency=0.02) as two:
        first = http(one, PRICE, "concurrency: 8", "policy: {reject_below: 0.3}", name="first")
        second = http(two, PRICE, "concurrency: 8", ACCEPT, name="second")
        project.write(first, second, count=900)
        started: list[int] = []
        two.fault = lambda number, times: started.append(sum(one.good.values())) or None
        code, summary, err = project.run()
        assert code == 0, err
        assert min(started) < 900, "the second began only after the first had ended"
        assert set(one.asked.values()) == {1}
        assert set(two.asked) == {number for number in range(900) if is_match(number)}
    assert right(project, "try-1")
    tiers = summary["tiers"]
    assert [tier["judged"] for tier in tiers] == [900, 300]
    for tier in tiers:
        assert tier["usd"] == pytest.approx(cost(tier), abs=1e-6)
    assert summary["usd"] == pytest.approx(sum(map(cost, tiers)), abs=2e-6)
    code, out, _ = project.tamis(
        "sql",
        "SELECT SUM(usd) AS usd FROM judgement_detail",
        "--json",
        "--database",
        project.database,
    )
    assert json.loads(out)[0]["usd"] == pytest.approx(summary["usd"], abs=2e-6)


def test_an_unknown_price_is_no_zero_and_allows_no_budget_of_money(project):
    with ModelServer() as server:
        project.write(http(server, ACCEPT), count=20)
        code, summary, err = project.run()
        assert code == 0, err
        assert summary["usd"] is None
        assert summary["tiers"][0]["usd"] is None
        project.write(http(server, ACCEPT, "budget: {usd: 1}"), count=20, name="money.yaml")
        code, _, err = project.tamis("run", "money.yaml", "--database", project.database)
        assert code == 2
        assert "needs the price of every tier that it covers; not known: 'only'" in err
        assert sum(server.asked.values()) == 20


def test_a_budget_holds_and_a_higher_one_goes_on(project):
    with ModelServer(latency=0.002) as server:

        def attempt(usd: float) -> tuple[int, dict[str, Any]]:
            project.write(http(server, PRICE, ACCEPT, f"budget: {{usd: {usd}}}"), count=600)
            code, summary, _ = project.run()
            return code, summary

        code, stopped = attempt(0.02)
        assert (code, stopped["state"]) == (3, "stopped")
        assert "the budget of tier 'only' of 0.02 USD is used up" in stopped["reason"]
        assert 0.0199 < stopped["usd"] <= 0.02
        assert stopped["pending"] == 600 - stopped["accepted"] - stopped["rejected"] > 0
        code, done = attempt(1.0)
        assert (code, done["state"], done["run"]) == (0, "done", stopped["run"])
        assert set(server.asked.values()) == {1}
        assert done["usd"] == pytest.approx(cost(done["tiers"][0]), abs=1e-6)
    assert right(project, "try-1")


def test_a_policy_promotes_the_best_that_the_next_tier_can_pay(project):
    with ModelServer() as one, ModelServer() as two:
        first = http(one, "policy: {budget: true}", "price: {hour: 0}", name="first")
        second = http(two, PRICE, ACCEPT, "budget: {usd: 0.01}", "ask: score", name="second")
        project.write(first, second, count=900)
        code, summary, err = project.run()
    assert code == 0, (summary, err)
    promoted = summary["tiers"][0]["promoted"]
    assert promoted == sum(two.asked.values()) > 30
    assert all(is_match(number) for number in two.asked)  # the best ones
    assert 0.009 < summary["tiers"][1]["usd"] <= 0.01
    assert summary["pending"] == 0


def test_killed_at_half_only_what_was_under_way_is_asked_again(project):
    count = 1200
    with ModelServer(latency=0.02) as server:
        project.write(http(server, ACCEPT, "concurrency: 32"), count=count)
        child = project.start("run", "screen.yaml", "--database", project.database, "--key", "one")
        while sum(server.good.values()) < count / 2:
            assert child.poll() is None
            time.sleep(0.01)
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        code, summary, err = project.run("--key", "one")
        assert code == 0, err
        again = sum(server.good.values()) - count
        assert again <= 32 + 256
    assert summary["accepted"] == count // 3
    assert right(project, "one")


def test_a_budget_of_tokens_needs_a_server_that_tells_them(project):
    def untold(_: int, __: Any, reply: Any) -> Any:
        return 200, {**reply, "usage": None}, {}

    with Odd(untold) as server:
        project.write(http(server, ACCEPT, "budget: {tokens: 3000}"), count=900)
        code, summary, err = project.run()
        assert (code, summary["state"]) == (3, "stopped")
        assert "does not tell how many tokens it charges" in err
        assert server.count < 900


def test_what_was_answered_before_a_tier_stopped_is_kept(project):
    def revoked(number: int, _: Any, __: Any) -> Any:
        return (401, {"error": {"message": "revoked"}}, {}) if number > 300 else None

    with Odd(revoked) as server:
        project.write(http(server, ACCEPT, "concurrency: 4"), count=900)
        code, summary, _ = project.run()
        assert (code, summary["state"]) == (3, "stopped")
        assert 300 - 4 <= summary["tiers"][0]["judged"] <= 300


def test_ctrl_c_ends_tiers_that_work_at_the_same_time(project):
    hangs = ModelServer(fault=lambda number, _: "hang" if number > 300 else None)
    with hangs as one, ModelServer() as two:
        first = http(one, "policy: {reject_below: 0.3}", "timeout_seconds: 60", name="first")
        project.write(first, http(two, ACCEPT, name="second"), count=900)
        child = project.start("run", "screen.yaml", "--database", project.database)
        while sum(one.good.values()) < 300:
            assert child.poll() is None
            time.sleep(0.05)
        time.sleep(1)
        began = time.monotonic()
        os.killpg(child.pid, signal.SIGINT)
        child.communicate(timeout=40)
        assert child.returncode == 130
        assert time.monotonic() - began < 30


def test_a_run_over_http_ends_on_sigterm_within_seconds_every_time(project):
    """Prefect's own handler raises what uvloop swallows: the run then went on, deaf."""
    project.env["TAMIS_RECORD"] = "false"
    with ModelServer(latency=0.2) as server:
        project.write(http(server, ACCEPT, "concurrency: 8"), count=5_000)
        for number in range(10):
            before = sum(server.good.values())
            child = project.start(
                "run", "screen.yaml", "--key", f"run{number}", "--database", project.database
            )
            while sum(server.good.values()) < before + 20:
                assert child.poll() is None, child.communicate()
                time.sleep(0.02)
            os.kill(child.pid, signal.SIGTERM)
            sent = sum(server.asked.values())
            _, err = child.communicate(timeout=30)
            assert child.returncode == 143, err
            assert "what was judged is kept" in err
            # Within two seconds of a signal, eight at a time at five a second each.
            assert sum(server.asked.values()) - sent < 100
            status = project.tamis(
                "status", f"run{number}", "--json", "--database", project.database
            )
            assert json.loads(status[1])["state"] == "cancelled"


def test_a_server_without_an_answer_to_the_question_decides_nothing(project):
    with ModelServer(mass=0.2) as server:
        project.write(http(server, ACCEPT), count=400)
        code, summary, err = project.run()
    assert code == 3
    assert summary["state"] == "stopped"
    assert "it does not answer the question" in err
    assert summary["pending"] == 400


def test_the_key_is_nowhere(project):
    project.env.pop("PREFECT_API_URL")  # its own Prefect server, whose files are in the folder
    (project.folder / ".env").write_text(f"MY_KEY={SECRET}\n")
    with ModelServer(key=SECRET, fault=lambda n, times: "500" if n == 7 else None) as server:
        project.write(http(server, ACCEPT, "key_variable: MY_KEY", "retries: 1"), count=50)
        code, _, said = project.run()
        assert code == 3  # the one that always fails
        server.key = "another"
        code, summary, revoked = project.run()
        assert (code, summary["state"]) == (3, "stopped")
        assert "refuses the key" in revoked
    (project.folder / ".env").unlink()
    assert SECRET not in said + revoked + json.dumps(summary)
    searched = [path for path in Path(project.folder).rglob("*") if path.is_file()]
    assert any("prefect" in str(path) for path in searched)
    for path in searched:
        assert SECRET.encode() not in path.read_bytes(), path


def test_settings_that_move_no_score_may_change_in_an_unfinished_run():
    from tiers.screenfile.file import Screen

    def digest(**tier: Any) -> str:
        text = """
        screen: s
        candidates: {from: a.csv, key: k}
        rubric: r
        tiers: [{name: a, backend: http, base_url: "http://h/v1", model: m}]
        """
        value = yaml.safe_load(text)
        value["tiers"][0] |= tier
        return Screen.model_validate(value).digest

    assert digest() == digest(concurrency=3, budget={"usd": 1}, price={"hour": 1}, retries=9)
    assert digest() != digest(model="n")
    assert digest() != digest(base_url="http://other/v1")
    assert digest(version="1") == digest(version="1", base_url="http://other/v1")
