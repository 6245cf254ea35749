from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from db.engine import open_engine
from db.store import Spent, Store
from flows.report.summary import summary
from flows.run.budget import Admission, Budget, Budgets
from flows.screen import screen as flow
from flows.settings import Settings
from tiers.prices import Price, check_prices, price_of
from tiers.screenfile.file import Screen, load_screen
from tiers.screenfile.limits import BudgetSection
from tiers.screenfile.tiers import HttpTier, LlamaTier, OpenAIBatchTier
from tiers.types import Candidate, Judgement, TierError

from .openai_server import ModelServer
from .project import write

PRICE = Price(2.0, 0.5, 8.0, 0.0, "test")
NOTHING = [Spent(0, 0.0, 0.0, 0)]


def admission(**limits: float) -> Admission:
    budget = Budget(BudgetSection.model_validate(limits), "the budget", NOTHING)
    return Admission([budget], PRICE, None, "rubric")


def run_through(opened: Admission, tokens: int, *, ahead: int) -> int:
    """Candidates of so many tokens each, with so many under way; how many tokens were spent."""
    waiting: list[Candidate] = []
    spent = 0
    for number in range(10_000):
        candidate = Candidate(number, "x" * tokens * 4)
        admitted = opened.admit(candidate)
        if admitted:
            waiting.append(candidate)
        if not admitted or len(waiting) > ahead:
            for one in waiting:
                opened.settle([Judgement(one.id, 0.5, prompt_tokens=tokens, completion_tokens=1)])
                spent += tokens + 1
            waiting.clear()
        if not admitted and not opened.reopen():
            break
        if not admitted and not opened.admit(candidate):
            break
    return spent


@pytest.mark.parametrize("ahead", [1, 10, 300])
def test_a_limit_is_not_passed_however_many_are_under_way(ahead):
    spent = run_through(admission(tokens=50_000), 100, ahead=ahead)
    assert 49_500 < spent <= 50_000


def test_money_is_counted_by_the_price():
    opened = admission(usd=0.01)
    spent = run_through(opened, 100, ahead=5)
    each = PRICE.of(100, 0, 1)
    assert 0.0096 < spent / 101 * each <= 0.01
    assert "0.01 USD is used up" in str(opened.closed)


def test_cached_tokens_cost_less_and_reasoning_is_part_of_the_reply():
    assert PRICE.of(1_000_000, 400_000, 0) == pytest.approx(0.6 * 2.0 + 0.4 * 0.5)
    assert PRICE.of(0, 0, 1_000_000) == pytest.approx(8.0)


def test_machines_cost_while_they_run(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("flows.run.budget.time.monotonic", lambda: now[0])
    budget = Budget(BudgetSection(usd=1.0), "the budget", NOTHING)
    opened = Admission([budget], Price(0, 0, 0, 3.6, "test"), None, "rubric")
    now[0] += 5000  # other tiers work
    opened.start()
    assert opened.admit(Candidate(1, "x"))
    now[0] += 999
    assert opened.admit(Candidate(2, "x"))
    opened.stop()
    now[0] += 5000
    opened.start()
    assert opened.admit(Candidate(3, "x"))
    now[0] += 2
    assert not opened.admit(Candidate(4, "x"))


def test_hours_count_those_of_earlier_attempts(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("flows.run.budget.time.monotonic", lambda: now[0])
    budget = Budget(BudgetSection(hours=1), "the budget", [Spent(0, 0.0, 3500.0, 0)])
    now[0] += 5000
    one, other = budget.start(0.0), budget.start(0.0)
    assert budget.reserve(0, 0) is None
    now[0] += 99
    budget.stop(one)
    assert budget.reserve(0, 0) is None  # hours at the same time count once
    now[0] += 2
    budget.stop(other)
    assert budget.reserve(0, 0) == "the budget of 1 hours is used up"


def test_what_one_purse_refuses_is_given_back_to_the_other():
    small = Budget(BudgetSection(tokens=10), "the tier's budget", NOTHING)
    large = Budget(BudgetSection(tokens=1_000_000), "the run's budget", NOTHING)
    opened = Admission([large, small], PRICE, None, "rubric")
    assert not opened.admit(Candidate(1, "x" * 1000))
    assert large.pays_for(0, 1) == 1_000_000


def test_how_many_a_budget_pays_for_includes_those_it_has_paid():
    definition = Screen.model_validate(screen({"budget": {"tokens": 10_000}}))

    spent_before = [Spent(0, 0.0, 0.0, 0), Spent(4_400, None, 0.0, 40)]
    store = SimpleNamespace(tiers=SimpleNamespace(spent=lambda _: spent_before))
    budgets = Budgets(definition, store, 1)  # type: ignore[arg-type]
    spent = Spent(4_400, None, 0.0, 40)
    assert budgets.affordable(1, spent, 0) == 40 + int((10_000 - 4_400) / (110 * 1.1))


def screen(last: dict[str, object], **top: object) -> dict[str, object]:
    tier = {"backend": "http", "base_url": "http://h/v1", "model": "m"}
    tiers = [{"name": "a", "policy": {"budget": True}, **tier}, {"name": "b", **tier, **last}]
    return {
        "screen": "s",
        "candidates": {"from": "a.csv", "key": "k"},
        "rubric": "r",
        "tiers": tiers,
    } | top


def test_a_budget_of_money_names_every_tier_without_a_price():
    with pytest.raises(TierError, match="not known: 'a', 'b'"):
        check_prices(Screen.model_validate(screen({}, budget={"usd": 1})))
    with pytest.raises(TierError, match="not known: 'b'"):
        check_prices(Screen.model_validate(screen({"budget": {"usd": 1}})))
    check_prices(Screen.model_validate(screen({"budget": {"usd": 1}, "price": {"hour": 0}})))
    check_prices(Screen.model_validate(screen({"budget": {"tokens": 1}})))


def test_prices_are_the_screens_or_the_tables_or_unknown():
    openai = {"name": "a", "backend": "http", "profile": "openai", "model": "gpt-4.1-nano"}
    listed = price_of(HttpTier.model_validate(openai))
    assert listed is not None
    assert listed[:4] == (0.10, 0.025, 0.40, 0.0)
    assert "2026-11-21" in listed.source
    batch = price_of(OpenAIBatchTier(name="a", backend="openai_batch", model="gpt-4.1-nano"))
    assert batch is not None
    assert batch[:3] == (0.05, 0.0125, 0.20)
    assert "batch x 0.5" in batch.source
    assert price_of(HttpTier.model_validate(openai | {"model": "gpt-unheard-of"})) is None
    elsewhere = openai | {"base_url": "http://proxy/v1"}
    assert price_of(HttpTier.model_validate(elsewhere)) is None
    own = price_of(HttpTier.model_validate(openai | {"price": {"input": 1, "output": 2}}))
    assert own is not None
    assert own[:3] == (1, 1, 2)
    four = elsewhere | {"base_url": [f"http://{i}/v1" for i in range(4)], "price": {"hour": 0.5}}
    rented = price_of(HttpTier.model_validate(four))
    assert rented is not None
    assert rented.hour == 2.0
    assert price_of(LlamaTier(name="a", backend="llama", model="x.gguf")) is None


@pytest.mark.parametrize("price", [0, 0.0, {"hour": 0}])
def test_a_tier_that_costs_nothing_needs_only_a_nought_for_a_budget(price):
    tier = {"name": "own", "backend": "python", "path": "mine:Tier", "price": price}
    definition = Screen.model_validate(
        {
            "screen": "try", "candidates": {"from": "x.csv", "key": "id"}, "rubric": "r",
            "budget": {"usd": 1}, "tiers": [tier],
        }
    )  # fmt: skip
    check_prices(definition)
    with pytest.raises(ValidationError, match=r"write \{input: 0.10, output: 0.40\}, \{hour"):
        HttpTier.model_validate({"name": "a", "backend": "http", "model": "m", "price": 5})


def counted(folder: Path, number: Any, *settings: str) -> dict[str, Any]:
    """A run of 30 candidates whose server tells this number of tokens for each."""

    class Counting(ModelServer):
        def reply(self, body: Any, authorization: str | None) -> Any:
            status, reply, headers = super().reply(body, authorization)
            return status, {**reply, "usage": {"prompt_tokens": number}}, headers

    with Counting() as server:
        price = "price: {input: 1, output: 1}"
        own = "".join(f", {each}" for each in (price, *settings))
        write(folder, f'{{name: only, backend: http, base_url: "{server.url}", model: m{own}}}', count=30)  # fmt: skip
        try:
            flow.fn(load_screen(folder / "screen.yaml"))
        except TierError as error:
            assert "does not tell how many tokens it charges" in str(error)  # noqa: PT017
        asked = sum(server.asked.values())
    engine = open_engine(Settings().database())
    found = asdict(summary(Store(engine), Store(engine).runs.find()))
    engine.dispose()
    return found | {"asked": asked}


@pytest.mark.parametrize("number", [2**64 - 1, 1e300, -1_000_000, 9 * 10**18])
def test_no_answer_is_lost_for_a_number_of_tokens_that_cannot_be(folder, number):
    found = counted(folder, number)
    assert (found["state"], found["accepted"], found["asked"]) == ("done", 10, 30)
    assert found["usd"] is None
    assert found["tiers"][0]["prompt_tokens"] == 0


def test_no_budget_is_passed_by_negative_tokens(folder):
    found = counted(folder, -1_000_000, "budget: {usd: 0.001}")
    assert found["state"] == "stopped"
    assert "no budget can be kept" in found["reason"]


def test_a_limit_is_what_may_be_spent_and_not_less():
    money = Budget(BudgetSection(usd=1.0), "the budget", [Spent(0, 0.25, 0.0, 0)])
    assert money.reserve(0.75, 0) is None
    assert "used up" in str(money.reserve(0.0001, 0))
    tokens = Budget(BudgetSection(tokens=10), "the budget", NOTHING)
    assert tokens.reserve(0, 10) is None
    assert "used up" in str(tokens.reserve(0, 1))
    hours = Budget(BudgetSection(hours=1), "the budget", [Spent(0, 0.0, 3599.0, 0)])
    assert hours.reserve(0, 0) is None
    hours = Budget(BudgetSection(hours=1), "the budget", [Spent(0, 0.0, 3600.0, 0)])
    assert "used up" in str(hours.reserve(0, 0))


def test_how_many_are_left_goes_by_the_scarcer_of_money_and_tokens():
    both = Budget(BudgetSection(usd=1.0, tokens=1_000), "the budget", [Spent(100, 0.5, 0.0, 0)])
    assert both.pays_for(0.1, 0) == 5
    assert both.pays_for(0.1, 300) == 3
    assert both.pays_for(0.1, 300, reserved=(0.3, 0)) == 3
    assert both.pays_for(0.1, 0, reserved=(0.3, 100)) == 8
    assert both.pays_for(0, 300, reserved=(0.3, 600)) == 5
    assert both.pays_for(0, 0) is None
    assert both.pays_for(0.6, 0) == 0
    assert Budget(BudgetSection(hours=1), "the budget", NOTHING).pays_for(1, 1) is None


def budgets_of(last: dict[str, object], spent: Spent) -> Budgets:
    definition = Screen.model_validate(screen(last))
    before = [Spent(0, 0.0, 0.0, 0), spent]
    store: Any = SimpleNamespace(tiers=SimpleNamespace(spent=lambda _: before))
    return Budgets(definition, store, 1)


def test_the_first_guess_of_a_cost_is_a_third_of_a_token_a_character():
    nothing = Spent(0, 0.0, 0.0, 0)
    prompt = (len("r") + 400 + 1_000) // 3
    short = budgets_of({"budget": {"tokens": 100_000}}, nothing)
    assert short.affordable(1, nothing, 1_000) == int(100_000 / ((prompt + 1) * 1.1))
    price = {"input": 2.0, "output": 8.0}
    written = {"ask": "json", "max_tokens": 200, "price": price, "budget": {"usd": 1}}
    usd = (prompt * 2.0 + 200 * 8.0) / 1e6
    assert budgets_of(written, nothing).affordable(1, nothing, 1_000) == int(1 / (usd * 1.1))
    only_hours = budgets_of({"budget": {"hours": 1}}, nothing)
    assert only_hours.affordable(1, nothing, 1_000) is None


def test_what_was_paid_tells_what_the_next_will_cost():
    paid = Spent(3_000, 0.30, 0.0, 30)
    price = {"input": 2.0, "output": 8.0}
    known = budgets_of({"price": price, "budget": {"usd": 1}}, paid)
    assert known.affordable(1, paid, 0) == 30 + int(0.7 / (0.01 * 1.1))


def test_a_reservation_is_replaced_by_what_was_charged():
    budget = Budget(BudgetSection(tokens=100_000), "the budget", NOTHING)
    opened = Admission([budget], PRICE, None, "r" * 600)
    assert opened.admit(Candidate(1, "x" * 1_000))
    first = opened.reserved
    assert first[1] == int(2_000 * 0.5 * 1.05) + 1
    assert first[0] == pytest.approx(PRICE.of(1_050, 0, 1))
    opened.settle([Judgement(1, 0.5, prompt_tokens=500, completion_tokens=3)])
    assert opened.reserved == (0, 0)
    assert budget.pays_for(0, 1) == 100_000 - 503
    # The rate is learnt, and never again lowered; a longer reply is counted with.
    assert opened.admit(Candidate(2, "x" * 1_000))
    assert opened.reserved[1] == int(2_000 * 0.25 * 1.05) + 3
    opened.settle([Judgement(2, 0.5, prompt_tokens=100, completion_tokens=1)])
    assert opened.admit(Candidate(3, "x" * 1_000))
    assert opened.reserved[1] == int(2_000 * 0.25 * 1.05) + 3
    opened.release([3, 4])
    assert budget.pays_for(0, 1) == 100_000 - 503 - 101
    opened.settle(
        [Judgement(9, 0.5, prompt_tokens=50)]
    )  # never admitted here: charged all the same
    assert budget.pays_for(0, 1) == 100_000 - 503 - 101 - 50
    opened.hold(5, 1_000, PRICE)
    assert opened.reserved[1] == int(2_000 * 0.25 * 1.05) + 3


def test_machines_are_paid_by_the_second_and_added_to_what_was_paid(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("flows.run.budget.time.monotonic", lambda: now[0])
    budget = Budget(BudgetSection(usd=10), "the budget", [Spent(0, 1.0, 0.0, 0)])
    meter = budget.start(3_600.0)  # a dollar a second
    now[0] += 5
    budget.stop(meter)
    assert budget.pays_for(1, 0) == 4
    budget.start(3_600.0)
    now[0] += 3
    assert budget.reserve(0.99, 0) is None
    assert "used up" in str(budget.reserve(0.02, 0))
    hours = Budget(BudgetSection(hours=1), "the budget", [Spent(0, 0.0, 1_800.0, 0)])
    hours.start(0.0)
    now[0] += 1_799
    assert hours.reserve(0, 0) is None
    now[0] += 1
    assert "used up" in str(hours.reserve(0, 0))


def test_once_closed_nobody_is_let_through_and_every_budget_gets_its_money_back():
    whole = Budget(BudgetSection(usd=1.0), "the run's budget", NOTHING)
    small = Budget(BudgetSection(tokens=10), "the tier's budget", NOTHING)
    opened = Admission([whole, small], PRICE, None, "rubric")
    assert not opened.admit(Candidate(1, "x" * 1_000))
    assert whole.pays_for(0.1, 0) == 10
    assert not opened.admit(Candidate(2, ""))
    assert "the tier's budget" in str(opened.closed)
    assert opened.reopen()
    assert not opened.reopen()


def test_what_is_reserved_is_left_for_those_that_are_to_be_promoted():
    paid = Spent(3_000, 0.0, 0.0, 30)
    budgets = budgets_of({"budget": {"tokens": 10_000}}, paid)
    admission = budgets.admission(1)
    assert admission is not None
    before = budgets.affordable(1, paid, 0)
    assert before == 30 + int(7_000 / (100 * 1.1))
    assert admission.admit(Candidate(1, "x" * 4_000))
    assert budgets.affordable(1, paid, 0) == before
