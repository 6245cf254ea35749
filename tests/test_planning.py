"""Plans: figures that can be worked out by hand, and what is chosen where the best is known."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_policy import SCORES, keys, policies
from tiers.planning.alternatives import Maker
from tiers.planning.choice import Limits, NothingToRank, choose, judged
from tiers.planning.estimate import (
    SCENES,
    Batches,
    Estimate,
    Pace,
    Stage,
    Tokens,
    Workload,
    _shares,
    best_cut,
    estimate,
    steady,
)
from tiers.planning.measured import (
    Pilot,
    Range,
    Seen,
    decide,
    decision,
    report,
    suggested_max_tokens,
    wilson,
)
from tiers.planning.stages import gpu_pace, hardware, parameters, stage_of
from tiers.policy import Policy, outcomes
from tiers.screenfile.edit import Change, edited
from tiers.screenfile.file import Screen
from tiers.screenfile.tiers import HttpTier
from tiers.types import Outcome, Price

ALL, HOUR = 200_000, 3600
OPENAI = {"backend": "http", "profile": "openai", "model": "gpt-4o-mini"}


def reference(
    price: Price | None, pace: Pace, count: int = ALL, shared: int = 2_400, own: int = 600,
    cached: bool = False, written: int = 300,
) -> Estimate:  # fmt: skip
    """The reference workload, at one tier that is asked about all."""
    tokens = Tokens(*(np.array([float(x)]) for x in (shared + own, shared * cached, written)))
    stage = Stage("one", Policy(accept_above=0.5), dict.fromkeys(SCENES, tokens), price, pace)
    load = Workload(count, 0)
    return estimate([stage], load, load.weights())


def at_rate(a_second: float) -> Pace:
    return Pace(steady(1 / a_second))


def cloud(profile: str, plan: str | None = None) -> dict[str, Any]:
    rows = hardware()["clouds"]
    return next(row for row in rows if row["profile"] == profile and row.get("plan") == plan)


# The figures of the reference workload, recomputed from what the planner's sources state.


def test_one_position_with_the_prefix_kept_is_20_a_second_at_a_gpus_peak() -> None:
    peak = gpu_pace("RTX 4080", 1, "a-2b", share=steady(1.0))
    kept = reference(None, peak, cached=True, written=0).seconds.expected
    assert kept is not None
    assert (ALL / kept, kept / HOUR) == (pytest.approx(20, rel=0.02), pytest.approx(2.8, rel=0.02))
    whole = reference(None, peak, written=0).seconds.expected
    assert whole is not None
    assert ALL / whole == pytest.approx(4, rel=0.02)


def test_a_provider_at_once_takes_33_minutes_and_126_dollars() -> None:
    tier = HttpTier(name="one", **OPENAI)
    pace = Pace(steady(0.0), requests_per_minute=cloud("openai")["requests_per_minute"])
    price = stage_of(tier, Policy(accept_above=0.5), None).price
    whole = reference(price, pace)
    assert whole.usd.expected == pytest.approx(126)
    assert whole.seconds.expected == pytest.approx(33.3 * 60, rel=0.01)
    part = reference(price, pace, count=20_000)
    assert part.seconds.expected == pytest.approx(3.3 * 60, rel=0.02)
    assert part.usd.expected == pytest.approx(12.6)


def test_the_same_by_batch_is_half_the_money_in_files_and_waves() -> None:
    batches = Batches(reply_tokens=0)
    candidates, prompt = np.array([float(ALL)]), np.array([6e8])
    assert batches.files(candidates, np.zeros(1)) == 4, "by count"
    assert batches.files(candidates, prompt) == 12, "by size"
    assert batches.waves(candidates, prompt) == 300
    half = reference(Price(0.075, 0.0375, 0.30, 0, ""), Pace(steady(0.0), batches=batches))
    assert half.usd.expected == pytest.approx(63)
    assert half.seconds == Range(0.0, None, 300 * 24 * HOUR)


@pytest.mark.parametrize(("a_second", "count", "hours"), [
    (1.3, ALL, 42.7), (1.8, 50_000, 7.7), (3.6, 50_000, 3.9), (2.6, ALL, 21.4), (5.2, ALL, 10.7),
])  # fmt: skip
def test_a_measured_rate_is_hours(a_second: float, count: int, hours: float) -> None:
    took = reference(None, at_rate(a_second), count=count).seconds.expected
    assert took is not None
    assert took / HOUR == pytest.approx(hours, abs=0.05)


@pytest.mark.parametrize(("name", "count", "a_second", "hours", "usd"), [
    ("A100 40GB", 4, 15.6, 3.6, 21.4), ("H100 80GB", 8, 62.4, 0.9, 25),
])  # fmt: skip
def test_rented_gpus(name: str, count: int, a_second: float, hours: float, usd: float) -> None:
    hour = hardware()["gpus"][name]["usd_per_hour"] * count
    found = reference(Price(0, 0, 0, hour, ""), at_rate(a_second))
    assert found.seconds.expected is not None
    assert found.seconds.expected / HOUR == pytest.approx(hours, abs=0.05)
    assert found.usd.expected == pytest.approx(usd, rel=0.01)


@pytest.mark.parametrize(("million", "usd"), [(0.20, 132), (0.27, 178)])
def test_a_price_for_all_tokens(million: float, usd: float) -> None:
    price = Price(million, million, million, 0, "")
    assert reference(price, at_rate(1)).usd.expected == pytest.approx(usd, abs=0.5)


def test_a_free_account_cannot_finish_and_says_what_binds() -> None:
    limit = cloud("groq", "free tier")["requests_per_minute"]
    found = reference(None, Pace(steady(0.0), requests_per_minute=limit))
    assert found.seconds.expected == pytest.approx(111 * HOUR, rel=0.01)
    assert found.limit == "one: rate limit: 30 requests a minute"
    assert found.usd == Range(None, None, None), "a price that is not known is not nothing"


# What is chosen.

WORDS = {"backend": "python", "path": "tests.own_tiers:Steady"}


def screen(*thresholds: tuple[str, dict[str, float]], **tier: Any) -> Screen:
    tiers = [{"name": name, "policy": policy, **WORDS, **tier} for name, policy in thresholds]
    candidates = {"from": "in.jsonl", "key": "id"}
    return Screen.model_validate(
        {"screen": "s", "candidates": candidates, "rubric": "r", "tiers": tiers}
    )


def seen(name: str, scores: Any, seconds: float) -> Seen:
    n = len(scores)
    told = [None if math.isnan(one) else float(one) for one in scores]
    return Seen(name, name, told, [1.0] * n, [100] * n, [0] * n, [0] * n, seconds)


def piloted(tiers: list[Seen], candidates: int = 20_000) -> Pilot:
    return Pilot("s-pilot-1", "s", "r", "2026-11-26T00:00:00+00:00", candidates, 0, tiers)


THREE = screen(
    ("small", {"reject_below": 0.3}),
    ("medium", {"reject_below": 0.3, "accept_above": 0.7}),
    ("large", {"accept_above": 0.5}),
)


def cascade(seed: int, *, needed: bool, n: int = 1_000) -> Pilot:
    """Small keeps a third; medium promotes all of them at a price, or decides most of them."""
    lot = np.random.default_rng(seed)
    fits = lot.random(n) < 0.2
    small = np.where(fits | (lot.random(n) < 0.2), 0.6, 0.1)
    large = np.where(fits, 0.9, 0.1)
    unsure = lot.random(n) < 0.2
    medium = np.where(unsure, 0.5, large) if needed else np.full(n, 0.5)
    # Of the unsure ones medium cannot even rank the sides.
    dear = (0.02, 8.0) if needed else (1.0, 2.0)
    return piloted([
        seen("small", small, n * 0.001), seen("medium", medium, n * dear[0]),
        seen("large", large, n * dear[1]),
    ])  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("needed", "dropped"), [(False, ("medium",)), (True, ())])
def test_a_useless_middle_tier_is_dropped_and_a_needed_one_kept(
    seed: int, needed: bool, dropped: tuple[str, ...]
) -> None:
    pilot = cascade(seed, needed=needed)
    rows = judged(Maker(THREE, Workload(20_000, 1_000), pilot).all(), Limits())
    found = choose(rows, "speed", Limits())
    assert found.chosen is not None
    assert found.chosen.drops == dropped
    assert ("drops 'medium', which would have cost" in found.reason) == bool(dropped)


def test_every_subset_has_a_row_once() -> None:
    rows = Maker(THREE, Workload(20_000, 1_000), cascade(0, needed=True)).all()
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    subsets = {"as configured", "small + medium", "small + large", "medium + large"}
    assert subsets | {f"{name} alone, on all" for name in ("small", "medium", "large")} <= set(
        names
    )


def test_a_deadline_that_nothing_meets_names_the_nearest() -> None:
    limits = Limits(seconds=1.0)
    rows = judged(Maker(THREE, Workload(20_000, 1_000), cascade(0, needed=True)).all(), limits)
    found = choose(rows, "quality", limits)
    assert found.chosen is None
    assert found.nearest is not None
    assert f"the nearest is '{found.nearest.name}'" in found.reason
    assert all(row.infeasible for row in rows if row.ours), "they stay, with what binds"


def test_cost_cannot_be_chosen_by_where_no_price_is_known() -> None:
    rows = judged(Maker(THREE, Workload(20_000, 1_000), cascade(0, needed=True)).all(), Limits())
    assert rows[0].estimate.usd == Range(None, None, None)
    with pytest.raises(NothingToRank, match="tiers have no price; write"):
        choose(rows, "cost", Limits())


def test_without_a_pilot_what_is_not_known_stays_so() -> None:
    maker = Maker(THREE, Workload(20_000, 0), None)
    (small, medium, _) = maker.configured().estimate.tiers
    assert small.candidates == Range(20_000, 20_000, 20_000)
    assert small.promoted == medium.candidates == Range(0, None, 20_000)
    assert small.seconds == small.usd == Range(None, None, None)
    with pytest.raises(NothingToRank, match="run tamis pilot first"):
        choose(judged(maker.all(), Limits()), "speed", Limits())
    by_count = screen(("first", {"top": 500}), ("last", {"accept_above": 0.5}))
    last = Maker(by_count, Workload(20_000, 0), None).configured().estimate.tiers[1]
    assert last.candidates == Range(500, 500, 500)


def test_too_few_that_reach_a_tier_are_no_number() -> None:
    pilot = cascade(1, needed=True, n=100)
    made = Maker(THREE, Workload(20_000, 100), pilot).configured().estimate.tiers
    assert made[1].promoted.expected is None
    assert made[2].candidates.high == made[1].candidates.high, "at most all of those"
    told = report(pilot, [THREE.policy(i) for i in range(3)])
    assert told[0].passed is not None
    assert told[1].passed is None


def test_ranges_of_a_small_sample_hold_in_eight_of_ten() -> None:
    lot, hits = np.random.default_rng(5), 0
    two = screen(("small", {"reject_below": 0.5}), ("large", {"accept_above": 0.5}))
    for _ in range(200):
        all_scores = np.where(lot.random(5_000) < 0.2, 0.9, 0.1)
        drawn = lot.choice(all_scores, 200, replace=False)
        pilot = piloted([seen("small", drawn, 1.0), seen("large", drawn, 1.0)])
        made = Maker(two, Workload(5_000, 200), pilot).configured().estimate.tiers[0].promoted
        hits += (made.low or 0) <= (all_scores > 0.5).sum() <= (made.high or 0)
    assert 140 <= hits <= 180


def test_a_sample_of_all_is_certain() -> None:
    pilot = cascade(2, needed=True)
    made = Maker(THREE, Workload(1_000, 1_000), pilot).configured().estimate.tiers[0].promoted
    assert made.low == pytest.approx(made.high)


@given(SCORES.filter(bool), policies(), st.booleans())
def test_shares_are_the_policys_outcomes(
    scores: list[float | None], policy: Policy, last: bool
) -> None:
    n = len(scores)
    values = np.array([np.nan if one is None else one for one in scores])
    tokens = dict.fromkeys(SCENES, Tokens(*[np.zeros(n)] * 3))
    stage = Stage("t", policy, tokens, None, at_rate(1), scores=values)
    if isinstance(policy.top, float):
        policy = policy.model_copy(update={"top": policy.quota(int((~np.isnan(values)).sum()))})
        stage = Stage("t", policy, tokens, None, at_rate(1), scores=values)
    found = _shares(stage, np.full((1, n), 1 / n), n, last=last)
    told = outcomes(scores, keys(scores), policy, last=last)
    counts = {name: float(part.sum() * n) for name, part in found.items()}
    assert counts == pytest.approx({
        "accept": told.count(Outcome.ACCEPT), "reject": told.count(Outcome.REJECT),
        "on": told.count(Outcome.PROMOTE),
    })  # fmt: skip


def test_the_best_cut_lies_between_the_sides() -> None:
    truth = [Outcome.REJECT, Outcome.REJECT, Outcome.ACCEPT, Outcome.ACCEPT]
    assert best_cut(np.array([0.1, 0.4, 0.6, 0.9]), truth).reject_below == 0.5
    assert best_cut(np.array([0.3, 0.3, 0.3, 0.3]), truth).reject_below in (0.0, 1.0)


# What a pilot says.


def test_wilsons_interval() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), 857-872, table I: 81 of 263, and 0 of 20.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3080, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.0, 0.1611), abs=1e-4)


def test_max_tokens_are_suggested_with_what_they_cut() -> None:
    assert suggested_max_tokens([20] * 99 + [300]) == (24, 0.01)
    assert suggested_max_tokens([20] * 100) == (24, 0.0)


@pytest.mark.parametrize(("agreed", "of", "good"), [
    (200, 200, True), (150, 200, False), (181, 200, None), (40, 40, None),
])  # fmt: skip
def test_good_enough_is_decided_by_the_interval(agreed: int, of: int, good: bool | None) -> None:
    assert decide(agreed, of, "large").good is good


def test_the_decision_is_about_the_whole_cascade() -> None:
    pilot = cascade(3, needed=True)
    own = [THREE.policy(i) for i in range(3)]
    assert decision(pilot, own).good is True
    strict = [Policy(reject_below=0.9), *own[1:]]
    assert decision(pilot, strict).good is False, "small rejects all who fit"


def test_a_models_name_tells_its_size() -> None:
    assert parameters("gemma-2-2b-it-Q4_K_M.gguf") == 2e9
    assert parameters("Meta-Llama-3.1-8B-Instruct-Turbo") == 8e9
    assert parameters("applicants-small.gguf") is None


# The choice as a file.

FILE = """\
# Mine.
tiers:
  # the quick one
  - name: small        # cheap
    policy: {reject_below: 0.3}
  - name: medium
    prompt: |
      {{ rubric }}
    policy:
      reject_below: 0.3   # by hand
  # the dear one
  - {name: large, policy: {accept_above: 0.5}}
screen: s
"""


def test_a_file_is_edited_and_keeps_its_comments() -> None:
    made = edited(FILE, {
        "large": Change("left out; would have cost 3 h"),
        "medium": Change("has the last word now", Policy(reject_below=0.45)),
    })  # fmt: skip
    for kept in ("# Mine.", "# the quick one", "# cheap", "# by hand", "# the dear one"):
        assert kept in made
    import yaml

    tiers = yaml.safe_load(made)["tiers"]
    assert [tier["name"] for tier in tiers] == ["small", "medium"]
    assert tiers[1] == {
        "name": "medium", "prompt": "{{ rubric }}\n", "policy": {"reject_below": 0.45},
    }  # fmt: skip
    assert "# tamis plan: left out; would have cost 3 h" in made
    assert edited(FILE, {}) == FILE


def test_tiers_in_one_line_are_not_edited() -> None:
    with pytest.raises(ValueError, match="write each one on lines of its own"):
        edited("tiers: [{name: small}, {name: large}]\n", {"large": Change("left out")})
