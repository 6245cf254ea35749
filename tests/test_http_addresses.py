"""Servers by list: who is away is told, addresses are changed while a run works, all are judged once."""

import json
from collections import Counter
from contextlib import ExitStack
from typing import Any

import pytest

from db.query import ask
from db.store import Store
from flows.run.retune import retuned
from tiers.screenfile.file import Screen
from tiers.types import Health, Judgement, TierError

from .openai_server import ModelServer
from .project import Process, Project
from .test_http import all_right, candidates, tier
from .test_prefect import asked, until
from .test_store import ingested, rows, waiting

SCREEN = """
screen: four
candidates: {{from: in.jsonl, key: id, text: "{{{{ text }}}}"}}
rubric: Is this a match?
tiers:
  - {{name: only, backend: http, base_url: {urls}, model: m, version: m1, concurrency: 4, timeout_seconds: 2,
     policy: {{accept_above: 0.5}}}}
"""


def write(project: Project, urls: list[str], count: int) -> None:
    (project.folder / "screen.yaml").write_text(SCREEN.format(urls=json.dumps(urls)))
    lines = (json.dumps({"id": f"k{i:05}", "text": f"text number {i}"}) for i in range(count))
    (project.folder / "in.jsonl").write_text("\n".join(lines) + "\n")


def begin(project: Project) -> Process:
    return project.start("run", "screen.yaml", "--key", "one", "--database", project.database)


def addresses(project: Project) -> dict[str, dict[str, Any]]:
    code, out, err = project.tamis("status", "one", "--json", "--database", project.database)
    assert code == 0, err
    return {one["url"]: one for one in json.loads(out)["addresses"]}


def states(project: Project) -> Counter[str]:
    return Counter(one["state"] for one in addresses(project).values())


@pytest.mark.slow
def test_two_of_four_servers_die_and_one_comes_back(project: Project, prefect_url: str) -> None:
    count = 3_000
    with ExitStack() as stack:
        servers = [ModelServer(latency=0.25) for _ in range(4)]
        for server in servers[:2]:
            stack.enter_context(server)
        for server in servers[2:]:
            server.__enter__()
        urls = [server.url for server in servers]
        write(project, urls, count)
        process = begin(project)
        until(lambda: all(server.good.total() > 20 for server in servers))
        port = servers[2].port
        servers[2].__exit__()
        servers[3].__exit__()
        until(lambda: states(project) == {"answering": 2, "away": 2})
        told = addresses(project)
        assert {url for url, one in told.items() if one["state"] == "away"} == set(urls[2:])
        assert all("cannot be reached" in str(told[url]["error"]) for url in urls[2:])
        assert all(0 < told[url]["in_flight"] <= 4 for url in urls[:2])
        _, shown, _ = project.tamis("status", "one", "--database", project.database)
        assert "away" in shown
        back = stack.enter_context(ModelServer(latency=0.25, port=port))
        until(lambda: states(project) == {"answering": 3, "away": 1})
        for server in (*servers, back):
            server.latency = 0.0
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    end = addresses(project)
    assert sum(one["judged"] for one in end.values()) == count
    assert end[urls[2]]["judged"] > 20 < back.good.total()
    assert end[urls[3]]["state"] == "away"
    assert all(one["in_flight"] == 0 for one in end.values())
    rows = ask(project.database, "SELECT key, score FROM judgement_detail")
    assert sorted(row["key"] for row in rows) == [f"k{i:05}" for i in range(count)]
    assert all((row["score"] > 0.5) == (int(row["key"][1:]) % 3 == 0) for row in rows)
    table = {"artifacts": {"key": {"any_": ["four-one-addresses"]}}, "sort": "CREATED_DESC"}
    shown_there = json.loads(asked(f"{prefect_url}/artifacts/filter", table)[0]["data"])
    assert [row["address"] for row in shown_there] == urls
    assert [row["state"] for row in shown_there] == ["answering"] * 3 + ["away"]
    assert sum(row["judged"] for row in shown_there) == count
    answered = sum((server.good for server in (*servers, back)), Counter())
    assert sum(answered.values()) <= count + 2 * 4  # what was under way at the two that died


@pytest.mark.slow
def test_addresses_are_changed_while_the_run_works(project: Project) -> None:
    with ModelServer(latency=0.25) as old, ModelServer(latency=0.25) as new:
        write(project, [old.url], 2_000)
        process = begin(project)
        until(lambda: old.good.total() > 20)
        where = ("--database", project.database)
        code, out, err = project.tamis("set", "one", "--base-url", new.url, *where)
        assert (code, out) == (0, f"run one asks at {new.url} within seconds\n"), err
        until(lambda: addresses(project).get(new.url, {}).get("judged", 0) > 0)
        new.latency = 0.0
        before = old.good.total()
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        assert old.good.total() <= before + 4
        assert f"only: asks from now on at {new.url}" in said
    end = addresses(project)
    assert (end[old.url]["state"], end[new.url]["state"]) == ("removed", "answering")
    assert end[old.url]["judged"] + end[new.url]["judged"] == 2_000
    assert set((old.good + new.good).values()) == {1}


def test_addresses_without_a_version_belong_to_the_judge() -> None:
    section = {"name": "a", "backend": "http", "base_url": ["http://127.0.0.1:1/v1"], "model": "m"}
    found = {
        "screen": "s", "candidates": {"from": "x.csv", "key": "id"}, "rubric": "r",
        "tiers": [section | {"policy": {"accept_above": 0.5}}],
    }  # fmt: skip
    other = ["http://127.0.0.1:2/v1"]
    with pytest.raises(TierError, match="as the tier has no version"):
        retuned(Screen.model_validate(found), tier=None, urls=other)
    found["tiers"][0]["version"] = "1"  # type: ignore[index]
    named = Screen.model_validate(found)
    moved = retuned(named, tier=None, urls=other)
    assert moved.tiers[0].urls == tuple(other)  # type: ignore[union-attr]
    assert moved.digest == named.digest
    with pytest.raises(TierError, match="base_url is no address; write http"):
        retuned(named, tier=None, urls=["gpu-1:8000"])
    found["tiers"].append(section | {"name": "b", "policy": {"accept_above": 0.5}})  # type: ignore[attr-defined]
    found["tiers"][0]["policy"] = {"reject_below": 0.5}  # type: ignore[index]
    with pytest.raises(TierError, match="name it with --tier, here one of: a, b"):
        retuned(Screen.model_validate(found), tier=None, urls=other)


def test_a_key_is_not_sent_to_an_address_that_was_added_and_may_not_get_it(monkeypatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret-4711")
    monkeypatch.delenv("TAMIS_TRUSTED_HOSTS", raising=False)
    with ModelServer() as server:
        opened = tier(server, key_variable="MY_KEY")
        with pytest.raises(
            TierError, match=r"would send the variable MY_KEY to http://10\.0\.0\.9"
        ):
            opened.move(["http://10.0.0.9/v1"])
        assert all_right({one.id: one for one in opened.judge(candidates(20))})
        assert [health.url for health in opened.healths] == [server.url]
        opened.close()


def test_what_is_under_way_at_an_address_that_was_removed_is_waited_for() -> None:
    with ModelServer(latency=0.3) as slow, ModelServer() as quick:
        opened = tier(slow, concurrency=4, version="1")
        found = {}
        for one in opened.judge(candidates(60)):
            found[one.id] = one
            opened.move([quick.url])
        assert all_right(found)
        assert len(found) == 60
        assert set((slow.good + quick.good).values()) == {1}
        assert [health.state for health in opened.healths] == ["removed", "answering"]
        opened.close()


def test_judgements_are_counted_at_the_address_that_gave_them(store: Store) -> None:
    run = ingested(store, rows(5))
    ids = store.addresses.ids(run.id, 0, ["http://a/v1", "http://b/v1"])
    assert store.addresses.ids(run.id, 0, ["http://a/v1"]) == ids
    judge = store.tiers.set_judge(run.id, 0, {"model": "small"})
    answers = [
        Judgement(one.id, 0.5, address=f"http://{'ab'[number > 1]}/v1")
        for number, one in enumerate(waiting(store, run, 0, judge)[:4])
    ]
    store.judgements.record(run.id, judge, answers[:3], addresses=ids)
    store.judgements.record(run.id, judge, answers[3:])  # of a tier without addresses
    store.addresses.record(run.id, 0, [Health("http://b/v1", "away", 1.0e9, 3, "500: gone")])
    first, second = store.addresses.all(run.id)
    assert (first.tier, first.state, first.judged, first.error) == ("fast", "untried", 2, None)
    assert (second.state, second.in_flight, second.judged) == ("away", 3, 1)
    assert (second.since.timestamp(), second.error) == (1.0e9, "500: gone")
