"""Whole runs, as a user starts them: the command, a Prefect server, a child process, a database."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import pytest

from db.errors import StoreError
from db.query import ask

from .project import Project, lives

HERE = Path(__file__).parent
TIER = '{{name: {name}, backend: python, path: "own_tiers:{tier}", folder: {here}, options: {{{options}}}, policy: {{{policy}}}}}'


def tier(name: str, policy: str, tier: str = "Steady", options: str = "") -> str:
    return TIER.format(name=name, policy=policy, tier=tier, options=options, here=HERE)


THREE = (
    tier("fast", "reject_below: 0.3, accept_above: 0.95"),
    tier("rescore", "top: 200"),
    tier("refine", "accept_above: 0.6", options="seconds: 0.0"),
)


@pytest.mark.postgres
def test_a_run_accounts_for_everybody_and_pays_once(project: Project, database_url: str) -> None:
    project.write(*THREE)
    code, first, err = project.run(database=database_url)
    assert code == 0, err
    outcomes = ("accepted", "rejected", "review", "failed", "pending")
    assert first["candidates"] == 500 == sum(first[name] for name in outcomes)
    assert first["failed"] == first["pending"] == 0
    fast, rescore, refine = first["tiers"]
    assert (fast["name"], fast["judged"]) == ("fast", 500)
    assert rescore["promoted"] == 200
    assert fast["prompt_tokens"] == 5_000
    assert fast["usd"] is None
    # The three tiers ask the same of the same judge, which answers each text only once.
    assert rescore["reused"] == fast["promoted"]
    assert refine["judged"] == 200
    code, again, err = project.run(database=database_url)
    assert code == 0, err
    assert again["run"] != first["run"]
    assert [each["judged"] for each in again["tiers"]] == [0, 0, 0]
    assert sum(each["prompt_tokens"] for each in again["tiers"]) == 0
    assert project.results(again["run"], database_url) == project.results(
        first["run"], database_url
    )


def test_ctrl_c_keeps_what_was_judged_and_says_how_to_go_on(project: Project) -> None:
    project.write(tier("only", "accept_above: 0.5", options="seconds: 0.002"), count=3_000)
    process = project.start("run", "screen.yaml", "--json", "--database", project.database)
    database = project.folder / "tamis.db"
    count = 0
    while process.poll() is None and count < 300:
        time.sleep(0.05)
        if database.exists() and database.stat().st_size > 100_000:
            count = ask(project.database, "SELECT count(*) AS n FROM judgement")[0]["n"]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Go on with the same command" in err
    assert "Traceback" not in err
    code, finished, err = project.run()
    assert code == 0, err
    assert finished["run"] == "try-1"
    assert finished["accepted"] + finished["rejected"] == 3_000


def test_a_model_that_does_not_answer_stops_the_tier_and_rejects_nobody(project: Project) -> None:
    project.write(tier("deaf", "reject_below: 0.5", "Deaf"), tier("next", "accept_above: 0.5"))
    for _ in range(2):  # running again does not slip past it
        code, finished, err = project.run()
        assert code == 3
        assert "does not answer the question" in err
        assert finished["state"] == "stopped"
        assert finished["pending"] == finished["candidates"] == 500
        assert finished["tiers"][0]["judged"] < 500


def test_what_kills_or_confuses_an_engine_goes_to_review(project: Project) -> None:
    project.write(
        tier("odd", "reject_below: 0.1", "Odd"), tier("crash", "accept_above: 0", "Crashing")
    )
    with (project.folder / "in.jsonl").open("a") as file:
        for word in ("nan", "seven", "silent", "abort", "raise"):
            file.write(json.dumps({"id": word, "text": f"please {word}"}) + "\n")
    code, finished, err = project.run()
    assert code == 3, err  # the silent tier failed, which another run may mend
    verdicts = {key: dict(row)["verdict"] for key, row in project.results(finished["run"]).items()}
    assert {word: verdicts[word] for word in ("nan", "seven", "silent", "abort", "raise")} == {
        "nan": "review", "seven": "review", "silent": "failed", "abort": "review", "raise": "review",
    }  # fmt: skip
    assert finished["review"] == 4
    assert finished["failed"] == 1
    code, out, err = project.tamis(
        "explain", finished["run"], "abort", "--database", project.database
    )
    assert code == 0, err
    assert "SIGABRT" in out


def test_a_second_process_on_a_run_is_refused(project: Project) -> None:
    project.write(tier("only", "accept_above: 0.5", options="seconds: 0.01"), count=3_000)
    first = project.start("run", "screen.yaml", "--key", "one", "--database", project.database)
    try:
        for _ in range(600):
            time.sleep(0.05)
            if (project.folder / "tamis.db").exists() and any(
                row["lock_owner"] for row in _rows(project.database, "SELECT lock_owner FROM run")
            ):
                break
        code, _, err = project.tamis(
            "run", "screen.yaml", "--key", "one", "--database", project.database
        )
        assert code == 5
        assert "is being worked on" in err
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()


def _rows(database: str, query: str) -> list[dict[str, Any]]:
    try:
        return ask(database, query)
    except StoreError:  # the tables are not there yet
        return []


def test_a_screen_with_five_faults_gives_five_messages(project: Project) -> None:
    (project.folder / "screen.yaml").write_text(
        "screen: a b\ncandidates: {from: in.jsonl}\ntiers:\n"
        "  - {name: x, backend: lama}\n"
        "  - {name: x, backend: llama, model: m.gguf, policy: {top: -1}}\n"
    )
    code, out, err = project.tamis("run", "screen.yaml")
    assert code == 2
    assert out == ""
    assert len(err.strip().splitlines()) == 8  # the count, and the seven faults
    for place in (
        "screen (line 1)",
        "candidates.key",
        "rubric",
        "tiers[0] (line 4)",
        "tiers[1].policy.top",
    ):
        assert place in err
    assert not (project.folder / "data").exists()


def test_a_missing_model_is_told_before_anything_is_done(project: Project) -> None:
    project.write("{name: only, backend: llama, model: absent.gguf}")
    code, _, err = project.tamis("run", "screen.yaml", "--database", project.database)
    assert code == 2
    assert "model 'absent.gguf' is neither a file nor a preset" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("url", "said", "ends"),
    [
        ("postgresql://user:pass-word-1@127.0.0.1:1/none", "cannot be reached", 5),
        ("mysql://host/db", "not supported", 2),
        ("nonsense", "cannot be read", 2),
    ],
)
def test_a_database_that_cannot_be_used_is_told_without_its_password(
    project: Project, url: str, said: str, ends: int
) -> None:
    project.write(*THREE)
    code, out, err = project.tamis("run", "screen.yaml", "--database", url)
    assert code == ends
    assert said in err
    assert "pass-word-1" not in out + err
    assert "Traceback" not in err


def test_the_commands_that_read(project: Project) -> None:
    project.write(*THREE)
    code, finished, err = project.run("--key", "monday")
    assert (code, finished["run"]) == (0, "monday"), err
    database = ("--database", project.database)
    code, out, _ = project.tamis("status", "--json", *database)
    assert json.loads(out)[0]["run"] == "monday"
    code, out, _ = project.tamis("status", "monday", "--json", *database)
    assert finished.pop("whole_seconds") > finished["seconds"]
    told = json.loads(out)
    assert {name: told[name] for name in finished} == finished
    assert told["resume"]["candidates"] == 0
    code, out, _ = project.tamis("results", "monday", "--verdict", "accepted", *database)
    header, *lines = out.splitlines()
    assert header == (
        "key,verdict,tier,score,why,fast_score,fast_reading,rescore_score,rescore_reading,"
        "refine_score,refine_reading,id,text"
    )
    assert len(lines) == finished["accepted"]
    target = project.folder / "out.parquet"
    code, out, err = project.tamis("results", "monday", "--output", str(target), *database)
    assert code == 0, err
    counted = duckdb.execute(f"SELECT count(*), count(score), max(fast_score) < 1 FROM '{target}'")
    assert counted.fetchall() == [(500, 500, True)]
    code, out, _ = project.tamis("explain", "monday", "k000007", "--json", *database)
    explained = json.loads(out)
    assert explained["text"] == "text: text number 7"
    assert explained["judgements"][0]["tier"] == "fast"
    code, out, _ = project.tamis("sql", "SELECT count(*) AS n FROM result", "--json", *database)
    assert json.loads(out) == [{"n": 500}]
    code, _, err = project.tamis("sql", "DELETE FROM verdict", *database)
    assert code == 2
    assert "only questions are answered here" in err
    typo = ("--tier", "fats", "--reject-below", "0.1", "--because", "x")
    code, _, err = project.tamis("decide", "monday", *typo, *database)
    assert (code, "has no tier 'fats'" in err) == (2, True)
    code, out, _ = project.tamis("status", "monday", "--json", *database)
    assert json.loads(out)["state"] == "done", "a typo changes nothing"
    code, _, err = project.tamis("results", "tuesday", *database)
    assert code == 2
    assert "monday" in err


def test_a_limit_reads_a_part_and_the_same_run_goes_on_with_the_rest(project: Project) -> None:
    project.write(*THREE)
    code, part, _ = project.run("--key", "one", "--limit", "100")
    assert (code, part["candidates"]) == (0, 100)
    code, whole, _ = project.run("--key", "one")
    assert (code, whole["candidates"]) == (0, 500)
    fast, rescore, _ = whole["tiers"]
    assert fast["judged"] == 500
    assert rescore["promoted"] == 200  # of all, not of each part


def test_an_input_that_shrank_or_is_empty_is_refused_with_code_2(project: Project) -> None:
    project.write(tier("only", "accept_above: 0.5"), count=9)
    assert project.run("--key", "one")[0] == 0
    file = project.folder / "in.jsonl"
    first = file.read_text().splitlines(keepends=True)[0]
    for content, why in (("", "holds no candidate"), (first, "lacks 8 of the run's 9 candidates")):
        file.write_text(content)
        code, _, err = project.run("--key", "one")
        assert (code, why in err, "Traceback" in err) == (2, True, False), err
        assert len(project.results("one")) == 9
    code, summary, err = project.run("--key", "one", "--allow-shrink")
    assert (code, summary["candidates"], summary["state"]) == (0, 1, "done"), err
    assert "8 candidates left the run" in err


def children(pid: int) -> set[int]:
    listed = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
    )
    pairs = [tuple(map(int, line.split())) for line in listed.stdout.splitlines()]
    return {child for child, parent in pairs if parent == pid}


def test_a_run_brings_its_own_prefect_and_a_kill_leaves_nothing_behind(project: Project) -> None:
    project.write(tier("only", "accept_above: 0.5", options="seconds: 0.005"), count=4_000)
    project.env.pop("PREFECT_API_URL")
    project.env["TAMIS_KEEP_SERVER_SECONDS"] = "0"
    process = project.start("run", "screen.yaml", "--database", project.database)
    while process.poll() is None and not _rows(project.database, "SELECT 1 FROM judgement LIMIT 1"):
        time.sleep(0.05)
    left = children(process.pid)
    assert len(left) == 2, "Prefect's server and the tier's engine"
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while left and time.monotonic() < deadline:
        left = {pid for pid in left if lives(pid)}
        time.sleep(0.1)
    assert not left


def test_prefects_that_start_at_once_take_turns(project: Project) -> None:
    project.env.pop("PREFECT_API_URL")
    project.env["TAMIS_KEEP_SERVER_SECONDS"] = "0"
    start = "from flows.server import ensure_server as e, Settings; e(Settings())()"
    both = [
        subprocess.Popen([sys.executable, "-c", start], cwd=project.folder, env=project.env)
        for _ in range(2)
    ]
    assert [process.wait() for process in both] == [0, 0], "one database of Prefect's, and new"
