"""A pilot's answers are never paid again, its run is in no list, and a plan made by it is held to it."""

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from typer.testing import CliRunner, Result

from db.store import RunState, Store
from flows.cli import app
from flows.commands import plan as commands
from flows.files.ingest import ingest
from flows.pilot import at_once as _at_once
from flows.report.plan import held, plans_kept
from flows.run.session import open_run
from tests.project import screened, write
from tests.test_run import tier
from tiers.opening import identity
from tiers.policy import Policy
from tiers.prices import price_of
from tiers.screenfile.file import load_screen
from tiers.screenfile.tiers import HttpTier, OpenAIBatchTier
from tiers.tier import Job


def tamis(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def told(reply: Result) -> Any:
    assert reply.exit_code == 0, reply.output
    return json.loads(reply.stdout.splitlines()[-1])


def two_tiers(folder: Path, count: int = 300) -> Path:
    """The two tiers agree where the first is sure; each judgement is a byte in its file."""
    write(
        folder,
        tier("fast", "reject_below: 0.3", options=f"paid: {folder}/fast"),
        tier("slow", "accept_above: 0.6", options=f"paid: {folder}/slow"),
        count=count,
    )
    return folder / "screen.yaml"


@pytest.fixture
def screen(folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in ("plan", "results"):  # theirs are closed by the end of the process alone
        monkeypatch.setattr(f"flows.commands.{module}.open_store", lambda _database: store)
    return two_tiers(folder)


def test_a_pilot_is_paid_once_and_reused_by_the_run(store: Store, screen: Path) -> None:
    found = told(tamis("pilot", str(screen), "--sample", "100", "--json"))
    folder = screen.parent
    assert (found["sample"], found["of"]) == (100, 300)
    assert [(folder / name).stat().st_size for name in ("fast", "slow")] == [100, 100]
    assert [one["tier"] for one in found["tiers"]] == ["fast", "slow"]
    assert found["tiers"][1]["agreement"][1] == 1.0
    again = told(tamis("pilot", str(screen), "--sample", "100", "--json"))
    assert again["tiers"][0]["candidates_per_second"] is None, "each answer was there"
    assert (folder / "fast").stat().st_size == 100
    run = screened(load_screen(screen, allow_code=True))
    assert run == "try-1", "a pilot takes no number of a run"
    assert (folder / "fast").stat().st_size == 300
    status = store.results.funnel(store.runs.find(run).id)
    assert (status[0].judged, status[0].reused) == (200, 100)


def test_no_list_and_no_view_has_a_pilot(store: Store, screen: Path) -> None:
    told(tamis("pilot", str(screen), "--json"))
    assert store.runs.newest() == []
    assert "no run yet" in str(tamis("status", "try-pilot-1").exception)
    with store.engine.connect() as connection:
        for view in ("result", "funnel", "judgement_detail"):
            assert connection.scalar(text(f"SELECT COUNT(*) FROM {view}")) == 0
        assert connection.scalar(text("SELECT kind FROM run")) == "pilot"


def test_a_pilot_that_was_stopped_leaves_no_rows(store: Store, screen: Path) -> None:
    assert tamis("pilot", str(screen), "--hours", "0").exit_code == 3
    with store.engine.connect() as connection:
        for table in ("verdict", "run_tier", "pilot"):
            assert connection.scalar(text(f"SELECT COUNT(*) FROM {table}")) == 0
    # As one whose process was killed: the next pilot takes its rows away.
    tiers = [("fast", Policy(reject_below=0.3)), ("slow", Policy(accept_above=0.6))]
    store.runs.open("try", {}, "x", tiers, kind="pilot")
    told(tamis("pilot", str(screen), "--json"))
    with store.engine.connect() as connection:
        assert connection.scalar(text("SELECT COUNT(*) FROM run_tier")) == 0


def test_a_plan_tells_what_a_resume_would_redo(store: Store, screen: Path) -> None:
    definition = load_screen(screen, allow_code=True)
    run = open_run(store, definition, None)
    ingest(store, run.id, definition.candidates)
    found = told(tamis("plan", str(screen), "--json"))
    assert found["resume"].startswith("run try-1: a resume would ask 300 candidates (fast 300)")


def test_the_sample_is_drawn_by_its_seed(store: Store, screen: Path) -> None:
    drawn = []
    for seed in ("1", "1", "2"):
        told(tamis("pilot", str(screen), "--sample", "60", "--seed", seed, "--json"))
        drawn.append(store.plans.pilots("try")[0][1]["tiers"][0]["scores"])
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_sample_larger_than_the_input_is_all_of_it(screen: Path) -> None:
    reply = tamis("pilot", str(screen), "--sample", "1000", "--json")
    assert "--sample 1,000 is more than the input holds: all 300 are taken" in reply.stderr
    assert told(reply)["sample"] == 300


def test_a_pilot_has_its_own_budget_and_says_so_first(folder: Path, screen: Path) -> None:
    priced = screen.read_text().replace("policy: {reject", "price: {hour: 9}, policy: {reject")
    screen.write_text(f"budget: {{tokens: 1}}\n{priced}")
    reply = tamis("pilot", str(screen), "--hours", "1")
    assert reply.exit_code == 0, reply.output
    assert "pilot of 100 candidates through 2 tiers; its budget: 1 hours" in reply.stderr
    assert (folder / "slow").stat().st_size == 100, "the run's budget is another matter"
    refused = tamis("pilot", str(screen), "--usd", "1", "--seed", "5")
    assert refused.exit_code == 2
    assert "needs the price of every tier" in refused.stderr
    stopped = tamis("pilot", str(screen), "--hours", "0", "--seed", "5")
    assert stopped.exit_code == 3
    assert "too few for a pilot" in stopped.stderr
    assert "its budget: 1 tokens" in tamis("pilot", str(screen), "--seed", "5").stderr


def test_a_plan_needs_no_pilot_and_then_says_so(screen: Path) -> None:
    found = told(tamis("plan", str(screen), "--json"))["plan"]
    assert found["by"].startswith("no pilot")
    assert found["candidates"] == 300
    assert found["tiers"][1]["candidates"] == [0.0, None, 300.0]
    assert found["seconds"] == [None, None, None]
    shown = tamis("plan", str(screen), "--optimize", "speed")
    assert shown.exit_code == 2
    assert "run tamis pilot first" in shown.stderr
    wished = told(tamis("plan", str(screen), "--deadline", "8h", "--json"))
    assert (wished["choice"], wished["problem"]) == (None, None)
    assert "run tamis pilot first" in wished["plan"]["by"]


def test_a_plan_asks_no_model(screen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told(tamis("pilot", str(screen), "--json"))
    monkeypatch.setattr("flows.run.judging.open_tier", lambda _job: pytest.fail("a model"))
    found = told(tamis("plan", str(screen), "--compare", "--optimize", "speed", "--json"))
    assert (screen.parent / "fast").stat().st_size == 100
    assert found["choice"]["fits"] is True
    assert {"as configured", "fast alone, on all", "slow alone, on all"} <= {
        row["name"] for row in found["alternatives"]
    }
    low, expected, high = found["plan"]["tiers"][0]["promoted"]
    assert low < expected < high


def test_a_pilot_of_another_rubric_is_told_and_not_used(screen: Path) -> None:
    told(tamis("pilot", str(screen), "--json"))
    screen.write_text(screen.read_text().replace("rubric: any", "rubric: another"))
    by = told(tamis("plan", str(screen), "--json"))["plan"]["by"]
    assert by == "no pilot: try-pilot-1 is of another rubric and is not used; run tamis pilot again"
    screen.write_text(screen.read_text().replace("rubric: another", "rubric: any"))
    screen.write_text(screen.read_text().replace("slow", "slower"))
    by = told(tamis("plan", str(screen), "--json"))["plan"]["by"]
    assert "of other models or settings" in by


def test_other_thresholds_leave_a_pilot_as_it_is(screen: Path) -> None:
    told(tamis("pilot", str(screen), "--json"))
    before = told(tamis("plan", str(screen), "--json"))["plan"]
    screen.write_text(screen.read_text().replace("reject_below: 0.3", "reject_below: 0.9"))
    after = told(tamis("plan", str(screen), "--json"))["plan"]
    assert after["by"] == before["by"]
    assert before["tiers"][0]["promoted"][1] > after["tiers"][0]["promoted"][1]


def test_a_deadline_that_nothing_meets_and_one_that_is_no_time(screen: Path) -> None:
    told(tamis("pilot", str(screen), "--sample", "200", "--json"))
    reply = tamis("plan", str(screen), "--candidates", "1000000000", "--deadline", "1s")
    assert reply.exit_code == 2
    assert "nothing that was measured meets it; the nearest is" in reply.stderr
    reply = tamis("plan", str(screen), "--deadline", "soon")
    assert reply.exit_code == 2
    assert "write 8h, 30min or 2d" in reply.stderr


def test_cost_without_a_price_says_what_to_write(screen: Path) -> None:
    told(tamis("pilot", str(screen), "--json"))
    reply = tamis("plan", str(screen), "--optimize", "cost")
    assert reply.exit_code == 2
    assert "write price: {input: 0.10" in reply.stderr


def test_the_choice_is_written_as_a_screen_file(screen: Path) -> None:
    told(tamis("pilot", str(screen), "--sample", "200", "--json"))
    block = screen.read_text().replace("{name: fast", "# mine\n    {name: fast")
    screen.write_text(block)
    target = screen.parent / "chosen.yaml"
    reply = tamis("plan", str(screen), "--optimize", "speed", "--write", str(target))
    assert reply.exit_code == 0, reply.output
    assert "# mine" in target.read_text()
    dropped = "left out; would have cost" in target.read_text()
    assert len(load_screen(target, allow_code=True).tiers) == 2 - dropped
    again = tamis("plan", str(screen), "--optimize", "speed", "--write", str(target))
    assert (again.exit_code, "exists already" in again.stderr) == (2, True)


def test_a_run_keeps_the_plan_that_it_began_with(store: Store, screen: Path) -> None:
    told(tamis("pilot", str(screen), "--sample", "200", "--json"))
    definition = load_screen(screen, allow_code=True)
    key = screened(definition)
    run = store.runs.find(key)
    body = store.plans.of(run.id)
    assert body is not None
    assert body["candidates"] == 300
    assert body["by"].startswith("pilot try-pilot-1")
    screened(definition, key=key)
    assert store.plans.of(run.id) == body, "the first plan stays"
    fast = held(body, store.results.funnel(run.id))[0]
    assert fast.actual["candidates"] == 300
    assert fast.inside["candidates"] is None, "all of them: no matter of estimates"
    shown = tamis("status", key)
    assert "promoted, planned" in shown.output
    assert told(tamis("status", key, "--json"))["plan"][0]["tier"] == "fast"
    kept = {row["figure"]: row["of"] for row in plans_kept(store)}
    assert (kept["candidates"], kept["promoted"]) == (1, 1)
    assert "promoted" in tamis("plan", "--kept").output


def test_a_run_without_a_pilot_keeps_what_it_knew(store: Store, screen: Path) -> None:
    run = store.runs.find(screened(load_screen(screen, allow_code=True)))
    body = store.plans.of(run.id)
    assert body is not None
    assert body["tiers"][0]["candidates"] == [300, 300, 300]
    assert body["tiers"][0]["seconds"] == [None, None, None]


def test_a_person_at_a_terminal_is_asked_for_a_goal(monkeypatch: pytest.MonkeyPatch) -> None:
    from tiers.planning.choice import Limits

    asked = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr(commands.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda words: asked.append(words) or "quality")
    assert commands._goal(None, Limits(), None, ask=True) == "quality"
    assert "speed, cost, balance or quality" in asked[0]
    assert commands._goal(None, Limits(), None, ask=False) is None
    assert len(asked) == 1


def test_a_tier_of_batches_is_the_same_judge_when_it_is_asked_at_once() -> None:
    for ask in ("yes_no", {"json": {"why": "str"}}):
        tier = OpenAIBatchTier.model_validate(
            {"name": "b", "backend": "openai_batch", "model": "gpt-4o-mini", "ask": ask}
        )
        at_once = _at_once(tier)
        assert isinstance(at_once, HttpTier)
        assert identity(Job("any", at_once)) == identity(Job("any", tier))
        dear, cheap = price_of(at_once), price_of(tier)
        assert dear is not None
        assert cheap is not None
        assert dear.input == 2 * cheap.input


def test_kept_answers_count_at_the_tier_that_gave_them(store: Store, screen: Path) -> None:
    tamis("pilot", str(screen), "--sample", "60", "--json")
    screened(load_screen(screen), "first")
    rows = told(tamis("plan", str(screen), "--json"))["plan"]["tiers"]
    assert [one["prompt_tokens"][2] for one in rows] == [0, 0]
    wider = screen.read_text().replace("reject_below: 0.3", "reject_below: 0.1")
    screen.write_text(wider)
    fast, slow = told(tamis("plan", str(screen), "--json"))["plan"]["tiers"]
    assert fast["prompt_tokens"][2] == 0
    assert slow["prompt_tokens"][1] > 0, "those between 0.1 and 0.3 were never asked there"
    clouds = told(tamis("plan", str(screen), "--compare", "--json"))["alternatives"]
    alone = next(row for row in clouds if row["name"] == "openai gpt-4o-mini")
    assert alone["seconds"][1] > 0, "another judge has no answer"


def test_a_plan_counts_the_input_that_the_screen_names_now(store: Store, screen: Path) -> None:
    tamis("pilot", str(screen), "--sample", "60", "--json")
    lines = [json.dumps({"id": f"o{i}", "text": f"another text {i}"}) for i in range(450)]
    (screen.parent / "in.jsonl").write_text("\n".join(lines))
    plan = told(tamis("plan", str(screen), "--json"))["plan"]
    assert plan["candidates"] == 450
    assert "drawn from 300" in plan["by"]
    assert "answers are kept" not in plan["by"]


def test_a_pilot_again_keeps_the_speed_of_the_first(store: Store, screen: Path) -> None:
    for _ in range(2):
        tamis("pilot", str(screen), "--sample", "100", "--json")
    plan = told(tamis("plan", str(screen), "--candidates", "5000", "--json"))["plan"]
    assert plan["seconds"][1] is not None


def test_a_pilot_stands_for_a_screen_of_fewer_tiers(store: Store, screen: Path) -> None:
    tamis("pilot", str(screen), "--sample", "100", "--json")
    kept = [line for line in screen.read_text().splitlines() if "name: fast" not in line]
    screen.write_text("\n".join(kept) + "\n")
    assert "of 100 candidates" in told(tamis("plan", str(screen), "--json"))["plan"]["by"]


def test_the_budget_of_the_screen_file_binds_a_plan_and_a_pilot(folder: Path, screen: Path) -> None:
    priced = screen.read_text().replace("policy:", "price: {input: 1000, output: 0}, policy:")
    screen.write_text(priced)
    told(tamis("pilot", str(screen), "--sample", "100", "--json"))
    screen.write_text(f"{priced}budget: {{usd: 0.01}}\n")
    shown = tamis("plan", str(screen))
    assert "does not fit" in shown.output
    pilot = tamis("pilot", str(screen), "--sample", "200", "--seed", "1")
    assert (pilot.exit_code, "its budget: 0.01 usd" in pilot.stderr) == (3, True)


def test_a_limit_that_cannot_be_kept_is_an_exit_code(screen: Path) -> None:
    priced = "price: {input: 1000000, output: 0}, policy:"
    server = "{name: far, backend: http, base_url: 'http://127.0.0.1:9/v1', model: m, " + priced
    text = screen.read_text().partition("tiers:")[0]
    screen.write_text(f"{text}tiers:\n  - {server} {{accept_above: 0.5}}}}\n")
    found = tamis("plan", str(screen), "--usd", "1", "--json")
    assert found.exit_code == 2
    assert "cannot be met" in json.loads(found.stdout.splitlines()[-1])["problem"]
    assert tamis("plan", str(screen), "--usd", "1000000").exit_code == 0


def test_nothing_has_missed_before_a_run_is_over(store: Store, screen: Path) -> None:
    tamis("pilot", str(screen), "--sample", "100", "--json")
    run = store.runs.find(screened(load_screen(screen), "first"))
    body, rows = store.plans.of(run.id), store.results.funnel(run.id)
    assert body is not None
    body["tiers"][0]["candidates"] = [1, 2, 3]
    assert held(body, rows, RunState.STOPPED)[0].inside["candidates"] is None
    assert held(body, rows, RunState.DONE)[0].inside["candidates"] is False
    body["tiers"][0]["candidates"] = [7, 7, 7]
    assert held(body, rows)[0].inside["candidates"] is False, "what was thought known was wrong"
