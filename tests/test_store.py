import math
import re
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, event, text

from db import candidates, judgements
from db.bulk import stage, transaction
from db.engine import check_ready, open_engine
from db.store import (
    BadRow,
    DatabaseError,
    Ingested,
    Row,
    Run,
    RunState,
    Store,
    StoreError,
)
from tests.project import tier_by
from tiers.policy import Policy, outcomes
from tiers.types import Candidate, Judgement, Outcome

from .test_policy import policies

FAST = tier_by("fast", 0.2, 0.9)
SLOW = tier_by("slow", 0.5)
ALL = 1_000_000


def a_row(i: int, body: str | None = None, **fields: Any) -> Row:
    values = {"id": f"k{i:03}", "text": f"text {i}" if body is None else body, **fields}
    return Row(i, values["id"], values["text"], orjson.dumps(values))


def rows(n: int) -> list[Row]:
    return [a_row(i) for i in range(n)]


def new_run(
    store: Store, tiers: Sequence[tuple[str, Policy]] = (FAST, SLOW), key: str | None = None
) -> Run:
    return store.runs.open("papers", {"rubric": "good?"}, "hash", tiers, key)


def ingested(store: Store, given: Sequence[Row], **options: Any) -> Run:
    run = new_run(store, **options)
    store.candidates.begin(run.id)
    done = store.candidates.add(run.id, given, "papers.csv")
    store.candidates.finish(run.id, len(given), done.duplicate)
    return run


def waiting(store: Store, run: Run, position: int, judge: int) -> list[Candidate]:
    return store.judgements.unjudged(run.id, position, judge, 0, ALL)


def judge_all(
    store: Store, run: Run, position: int = 0, model: str = "small", **answer: Any
) -> int:
    """Give everything that waits at the tier the same answer; return the judge."""
    judge = store.tiers.set_judge(run.id, position, {"model": model})
    answer = {"score": 0.5, **answer}
    texts = waiting(store, run, position, judge)
    store.judgements.record(
        run.id, judge, [Judgement(candidate.id, **answer) for candidate in texts]
    )
    return judge


def query(engine: Engine, sql: str, **parameters: Any) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(text(sql), parameters))


# Runs


def test_an_unfinished_run_is_taken_up_and_a_done_one_is_not(store):
    first = new_run(store)
    assert (first.key, first.state, first.config) == ("papers-1", "running", {"rubric": "good?"})
    store.runs.finish(first.id, RunState.STOPPED, "budget")
    assert new_run(store).id == first.id
    assert store.runs.newest(1)[0].reason == "budget"
    store.runs.resume(first.id, {"rubric": "good?"})
    assert store.runs.newest(1)[0].reason is None
    store.runs.finish(first.id, RunState.DONE)
    assert new_run(store).key == "papers-2"


def test_another_configuration_is_another_run(store):
    first = new_run(store)
    second = store.runs.open("papers", {}, "other hash", [FAST])
    assert second.key == "papers-2"
    with pytest.raises(StoreError, match=r"'papers-1' belongs to .* configuration hash.* other"):
        store.runs.open("papers", {}, "other hash", [FAST], key=first.key)


def test_a_key_is_created_once_and_then_found(store):
    made = new_run(store, key="night-1")
    store.runs.finish(made.id, RunState.DONE)
    found = new_run(store, key="night-1")
    assert (found.id, found.state) == (made.id, RunState.DONE)
    store.runs.resume(made.id, {"rubric": "better?"})
    again = store.runs.find("night-1")
    assert (again.state, again.config) == (RunState.RUNNING, {"rubric": "better?"})


def test_a_new_key_avoids_keys_that_people_gave(store):
    taken = new_run(store, key="papers-2")
    store.runs.finish(taken.id, RunState.DONE)
    assert new_run(store).key == "papers-3"


def test_an_unknown_run_is_answered_with_the_known_ones(store):
    with pytest.raises(StoreError, match="holds no run yet; start one"):
        store.runs.find()
    new_run(store, key="a")
    assert store.runs.find().key == "a"
    with pytest.raises(StoreError, match="no run 'b'; write one of the newest runs: a"):
        store.runs.find("b")


def test_working_time_adds_up_over_resumes(store):
    run = new_run(store)
    store.runs.finish(run.id, RunState.FAILED, "broke", seconds=2.0)
    store.runs.finish(new_run(store).id, RunState.DONE, seconds=3.0)
    status = store.runs.status(run.id)
    assert (status.seconds, status.run.state, status.reason) == (5.0, RunState.DONE, None)
    assert status.started.tzinfo is not None
    assert status.finished >= status.started


def test_a_tier_keeps_its_measurements_when_it_is_resumed(store, engine):
    run = new_run(store)
    store.tiers.set_state(run.id, 0, "running")
    store.tiers.set_state(run.id, 0, "stopped", "budget", seconds=2.0, load_seconds=7.0)
    store.tiers.set_state(run.id, 0, "running")
    store.tiers.set_state(run.id, 0, "done", seconds=3.0, prompt_rate=100.0)
    (row,) = query(
        engine,
        "SELECT state, reason, seconds, load_seconds, prompt_rate, decode_rate FROM run_tier "
        "WHERE position = 0",
    )
    assert tuple(row) == ("done", None, 5.0, 7.0, 100.0, None)


# Locks


def test_a_lock_keeps_others_out_until_it_is_given_back(store):
    run = new_run(store)
    store.runs.lock(run.id, "host-1")
    store.runs.lock(run.id, "host-1")
    with pytest.raises(StoreError, match=r"'papers-1' is being worked on by host-1 until 20\d\d-"):
        store.runs.lock(run.id, "host-2")
    store.runs.unlock(run.id, "host-2")
    with pytest.raises(StoreError, match="host-1"):
        store.runs.lock(run.id, "host-2")
    store.runs.unlock(run.id, "host-1")
    store.runs.lock(run.id, "host-2")


def test_a_lock_that_expired_can_be_taken_and_is_then_lost(store):
    run = new_run(store)
    store.runs.lock(run.id, "host-1", seconds=0)
    store.runs.lock(run.id, "host-2")
    with pytest.raises(StoreError, match="host-1 lost its lock"):
        store.runs.renew(run.id, "host-1")
    store.runs.renew(run.id, "host-2", seconds=500)


def test_only_one_of_many_gets_the_lock(store):
    run = new_run(store)
    got: list[str] = []

    def take(owner: str) -> None:
        try:
            store.runs.lock(run.id, owner)
        except StoreError:
            return
        got.append(owner)

    threads = [threading.Thread(target=take, args=(f"host-{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1


# Ingest


def test_ingest_tells_new_rows_duplicates_and_conflicts_apart(store, engine):
    run = new_run(store)
    store.candidates.begin(run.id)
    changed = a_row(1, "other text")
    chunk = [*rows(3), a_row(0), changed]
    assert store.candidates.add(run.id, chunk, "papers.csv") == Ingested(3, 0, 0, 1, 1)
    assert store.candidates.add(run.id, [a_row(2), changed, a_row(3)], "papers.csv") == Ingested(
        1, 0, 0, 1, 1
    )
    bad = query(engine, "SELECT source, line, reason, raw FROM bad_row ORDER BY id")
    reason = "duplicate key 'k001' with different content; the first was kept"
    assert [tuple(row) for row in bad] == 2 * [("papers.csv", 1, reason, changed.fields.decode())]
    assert query(engine, "SELECT body FROM text WHERE body = 'other text'") == []


def test_ingesting_the_same_input_again_changes_nothing(store, engine):
    given = [*rows(4), a_row(0), a_row(1, "clash")]
    bad = [BadRow("papers.csv", 9, "no closing quote", '"abc')]
    tables = ("text", "candidate", "candidate_fields", "verdict", "bad_row")

    def counts() -> list[int]:
        return [query(engine, f"SELECT COUNT(*) FROM {table}")[0][0] for table in tables]

    run = new_run(store)
    seen = []
    for _ in range(2):
        store.candidates.begin(run.id)
        store.candidates.add_bad(run.id, bad)
        done = store.candidates.add(run.id, given, "papers.csv")
        store.candidates.finish(run.id, len(given) + len(bad), done.duplicate)
        seen.append(counts())
        assert (done.duplicate, done.bad) == (1, 1)
    assert seen == 2 * [[4, 4, 4, 4, 2]]
    status = store.runs.status(run.id)
    assert (status.rows_read, status.rows_duplicate) == (7, 1)
    assert status.account.candidates == 6
    assert status.account.failed == 2


def test_rows_that_got_lost_are_noticed(store):
    run = new_run(store)
    store.candidates.begin(run.id)
    store.candidates.add(run.id, rows(3), "papers.csv")
    with pytest.raises(StoreError, match="4 rows were read, but 3 candidates, 0 dup"):
        store.candidates.finish(run.id, 4, 0)


def test_a_row_without_text_is_reviewed_and_never_judged(store):
    run = ingested(store, [a_row(0), a_row(1, ""), a_row(2)._replace(problem="too long")])
    judge = judge_all(store, run)
    assert waiting(store, run, 0, judge) == []
    store.verdicts.decide(run.id, 0)
    assert store.runs.account(run.id).review == 2
    assert store.results.explain(run.id, "k001").why == "empty text"
    assert store.results.explain(run.id, "k002").why == "too long"
    assert store.results.explain(run.id, "k002").text is None


@pytest.mark.parametrize("broken", ["nul \0 character", "half \ud800 of a pair"])
def test_what_no_database_keeps_becomes_a_bad_row(store, engine, broken):
    run = new_run(store)
    given = [a_row(0), Row(1, "k001", broken, b"{}"), Row(2, f"k{broken}", "text", b"{}")]
    assert store.candidates.add(run.id, given, "papers.csv") == Ingested(1, 0, 0, 0, 2)
    reasons = [row.reason for row in query(engine, "SELECT reason FROM bad_row")]
    assert all(reason.startswith("no database can keep it: ") for reason in reasons)


def test_answers_with_broken_characters_are_kept(store):
    run = ingested(store, rows(1))
    judge_all(store, run, reading="y\0es", error="half \ud800", note="caf\u00e9")
    (answer,) = store.results.explain(run.id, "k000").judgements
    assert (answer.reading, answer.error, answer.note) == ("y\ufffdes", "half ?", "caf\u00e9")


def test_raw_input_is_cut(store, engine):
    run = new_run(store)
    store.candidates.add_bad(run.id, [BadRow("papers.csv", 1, "broken", "x" * 5000)])
    assert query(engine, "SELECT LENGTH(raw) FROM bad_row")[0][0] == 2000


# Judging


def test_twins_are_judged_once_and_decided_both(store):
    run = ingested(store, [a_row(0, "same"), a_row(1, "same"), a_row(2)])
    judge = store.tiers.set_judge(run.id, 0, {"model": "small"})
    texts = waiting(store, run, 0, judge)
    assert [candidate.text for candidate in texts] == ["same", "text 2"]
    assert store.judgements.count_unjudged(run.id, 0, judge) == 2
    store.judgements.record(run.id, judge, [Judgement(texts[0].id, 0.95)])
    assert store.verdicts.decide(run.id, 0)[Outcome.ACCEPT] == 2
    (row, _) = store.results.funnel(run.id)
    assert (row.reached, row.judged, row.reused, row.accepted, row.pending) == (3, 1, 1, 2, 1)


def test_pages_of_unjudged_texts_cover_all_once(store):
    run = ingested(store, rows(10))
    judge = store.tiers.set_judge(run.id, 0, {"model": "small"})
    seen, after = [], 0
    while page := store.judgements.unjudged(run.id, 0, judge, after, 3):
        assert len(page) <= 3
        seen += page
        after = page[-1].id
    assert [candidate.text for candidate in seen] == [f"text {i}" for i in range(10)]


def test_a_judge_is_known_by_its_description(store):
    run = new_run(store)
    first = store.tiers.set_judge(run.id, 0, {"model": "a", "n": 1})
    assert store.tiers.set_judge(run.id, 0, {"n": 1, "model": "a"}) == first
    assert store.tiers.set_judge(run.id, 0, {"model": "a", "n": 2}) != first


def test_a_tier_that_decided_keeps_its_judge(store):
    run = ingested(store, rows(1))
    judge_all(store, run)
    store.tiers.set_judge(run.id, 0, {"model": "not yet decided"})
    judge_all(store, run)
    store.verdicts.decide(run.id, 0)
    with pytest.raises(StoreError, match="tier 'fast' has decided 1 candidates by another judge"):
        store.tiers.set_judge(run.id, 0, {"model": "late"})


def test_a_later_run_pays_only_for_what_is_new(store):
    first = ingested(store, rows(3))
    judge_all(store, first)
    store.verdicts.decide(first.id, 0)
    store.runs.finish(first.id, RunState.DONE)
    second = ingested(store, rows(5))
    assert second.id != first.id
    judge = store.tiers.set_judge(second.id, 0, {"model": "small"})
    assert store.judgements.count_unjudged(second.id, 0, judge) == 2
    judge_all(store, second)
    assert store.verdicts.decide(second.id, 0)[Outcome.PROMOTE] == 5
    (row, _) = store.results.funnel(second.id)
    assert (row.judged, row.reused) == (2, 3)


def test_an_answer_is_never_replaced_unless_it_had_failed(store):
    run = ingested(store, rows(2))
    judge = store.tiers.set_judge(run.id, 0, {"model": "small"})
    good, broken = waiting(store, run, 0, judge)
    store.judgements.record(
        run.id, judge, [Judgement(good.id, 0.4), Judgement(broken.id, None, failed=True)]
    )
    assert waiting(store, run, 0, judge) == [broken]
    store.judgements.record(run.id, judge, [Judgement(good.id, 0.8), Judgement(broken.id, 0.8)])
    scores = {row["key"]: row["fast_score"] for row in store.results.all(run.id)}
    assert scores == {"k000": 0.4, "k001": 0.8}


def test_one_text_twice_in_a_batch_is_one_judgement(store):
    run = ingested(store, rows(1))
    judge = store.tiers.set_judge(run.id, 0, {"model": "small"})
    (only,) = waiting(store, run, 0, judge)
    store.judgements.record(
        run.id, judge, [Judgement(only.id, None, failed=True), Judgement(only.id, 0.6)]
    )
    assert next(store.results.all(run.id))["score"] == 0.6


def test_a_score_that_is_no_number_becomes_null_with_an_error(store):
    run = ingested(store, rows(1))
    judge_all(store, run, score=math.nan)
    store.verdicts.decide(run.id, 0)
    found = store.results.explain(run.id, "k000")
    assert (found.verdict, found.why) == ("review", "score is not a number")


def test_a_score_outside_0_and_1_is_refused_whole(store):
    run = ingested(store, rows(2))
    judge = store.tiers.set_judge(run.id, 0, {"model": "small"})
    first, second = waiting(store, run, 0, judge)
    with pytest.raises(StoreError, match=r"refused a row, nothing was written: .*probability"):
        store.judgements.record(
            run.id, judge, [Judgement(first.id, 0.5), Judgement(second.id, 1.5)]
        )
    assert store.judgements.count_unjudged(run.id, 0, judge) == 2


def test_low_mass_is_counted_over_the_tiers_texts(store):
    run = ingested(store, rows(4))
    judge = store.tiers.set_judge(run.id, 0, {"model": "small"})
    masses = [0.1, 0.5, 0.9, None]
    texts = waiting(store, run, 0, judge)
    store.judgements.record(
        run.id,
        judge,
        [Judgement(c.id, 0.5, mass=mass) for c, mass in zip(texts, masses, strict=True)],
    )
    assert store.judgements.low_mass(judge, run.id, 0)[:2] == (1, 3)
    assert store.judgements.low_mass(judge, run.id, 0, below=0.95)[:2] == (3, 3)
    assert store.judgements.low_mass(judge, run.id, 1) == (0, 0, 0)


# Deciding

numbers = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]) | st.floats(0, 1)
scores = st.none() | st.just(math.nan) | numbers
keys = st.text("aAbBzZé_0-", min_size=1, max_size=4)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    scored=st.dictionaries(keys, scores, min_size=1, max_size=20),
    policy=policies(),
    last=st.booleans(),
)
def test_deciding_in_sql_equals_the_pure_policy(store, scored, policy, last):
    plan = ("only", policy)
    run = store.runs.open("property", {}, "hash", [plan] if last else [plan, SLOW])
    store.candidates.add(
        run.id, [Row(i, key, f"{run.id} {key}", b"{}") for i, key in enumerate(scored)], "x"
    )
    judge = store.tiers.set_judge(run.id, 0, {"run": run.id})
    store.judgements.record(
        run.id,
        judge,
        [
            Judgement(candidate.id, scored[candidate.text.partition(" ")[2]])
            for candidate in waiting(store, run, 0, judge)
        ],
    )
    counted = store.verdicts.decide(run.id, 0)
    store.runs.finish(run.id, RunState.DONE)
    expected = outcomes(list(scored.values()), list(scored), policy, last=last)
    assert {outcome: n for outcome, n in counted.items() if n} == Counter(expected)
    names = {"promote": "pending", "accept": "accepted", "reject": "rejected", "review": "review"}
    found = {row["key"]: row["verdict"] for row in store.results.all(run.id)}
    assert found == {key: names[o] for key, o in zip(scored, expected, strict=True)}


def test_ties_go_to_the_lower_key_in_byte_order(store):
    plan = tier_by("fast", top=2)
    given = [a_row(0)._replace(key=key, text=key) for key in ["b", "a", "é", "B", "_"]]
    run = ingested(store, given, tiers=[plan, SLOW])
    judge_all(store, run)
    store.verdicts.decide(run.id, 0)
    promoted = [row["key"] for row in store.results.all(run.id, "pending")]
    assert promoted == ["B", "_"]
    assert [row["key"] for row in store.results.all(run.id)] == ["B", "_", "a", "b", "é"]


def test_a_late_answer_is_ranked_among_all_and_others_keep_their_outcome(store):
    plan = tier_by("fast", top=2)
    run = ingested(store, rows(4), tiers=[plan, SLOW])
    judge = store.tiers.set_judge(run.id, 0, {"model": "small"})
    texts = waiting(store, run, 0, judge)
    early = [Judgement(c.id, score) for c, score in zip(texts, [0.9, 0.5, 0.1], strict=False)]
    store.judgements.record(run.id, judge, early)
    assert store.verdicts.decide(run.id, 0)[Outcome.PROMOTE] == 2
    store.judgements.record(run.id, judge, [Judgement(texts[3].id, 0.4)])
    decided = store.verdicts.decide(run.id, 0)
    assert {outcome: n for outcome, n in decided.items() if n} == {Outcome.REJECT: 1}


def test_deciding_twice_changes_nothing(store):
    run = ingested(store, rows(3))
    judge_all(store, run)
    assert store.verdicts.decide(run.id, 0)[Outcome.PROMOTE] == 3
    assert not any(store.verdicts.decide(run.id, 0).values())


def test_a_failed_candidate_is_asked_again_once_undecided(store):
    run = ingested(store, rows(2))
    judge = store.tiers.set_judge(run.id, 0, {"model": "small"})
    good, broken = waiting(store, run, 0, judge)
    store.judgements.record(
        run.id,
        judge,
        [Judgement(good.id, 0.95), Judgement(broken.id, None, error="crash", failed=True)],
    )
    assert store.verdicts.decide(run.id, 0)[Outcome.FAILED] == 1
    assert store.results.explain(run.id, "k001").why == "crash"
    assert waiting(store, run, 0, judge) == []
    store.verdicts.undecide(run.id)
    assert waiting(store, run, 0, judge) == [broken]
    store.judgements.record(run.id, judge, [Judgement(broken.id, 0.95)])
    assert store.verdicts.decide(run.id, 0)[Outcome.ACCEPT] == 2
    assert store.runs.account(run.id).failed == 0
    assert store.results.explain(run.id, "k001").why is None


def test_deciding_without_a_judge_says_so(store):
    run = ingested(store, rows(1))
    with pytest.raises(StoreError, match="position 0 has no judge yet"):
        store.verdicts.decide(run.id, 0)


# Reading


def test_every_candidate_is_accounted_for_at_every_step(store):
    given = [*rows(20), a_row(20, ""), a_row(0, "clash")]
    run = ingested(store, given)
    for position in (0, 1):
        judge = store.tiers.set_judge(run.id, position, {"tier": position})
        texts = waiting(store, run, position, judge)
        answers = [
            Judgement(c.id, None if i == 3 else i / len(texts), failed=i == 5)
            for i, c in enumerate(texts)
        ]
        store.judgements.record(run.id, judge, answers)
        store.verdicts.decide(run.id, position)
        account = store.runs.account(run.id)
        assert account.candidates == 22
        for row in store.results.funnel(run.id):
            ends = (row.promoted, row.accepted, row.rejected, row.review, row.failed, row.pending)
            assert row.reached == sum(ends)
    assert account.pending == 0
    assert (account.failed, account.bad_rows) == (3, 1)


def test_results_stream_every_tier_side_by_side(store):
    run = ingested(store, rows(2))
    judge_all(store, run, score=0.6, reading="yes")
    store.verdicts.decide(run.id, 0)
    judge_all(store, run, position=1, model="large", score=0.4, reading="{}")
    store.verdicts.decide(run.id, 1)
    assert next(store.results.all(run.id, "rejected")) == {
        "key": "k000",
        "verdict": "rejected",
        "tier": "slow",
        "score": 0.4,
        "why": None,
        "fast_score": 0.6,
        "fast_reading": "yes",
        "slow_score": 0.4,
        "slow_reading": "{}",
    }
    assert list(store.results.all(run.id, "accepted")) == []
    with pytest.raises(StoreError, match="no verdict 'good'; write one of: accepted, rej"):
        next(store.results.all(run.id, "good"))


def test_results_hide_the_answers_of_tiers_that_were_not_reached(store):
    first = ingested(store, rows(1), tiers=[SLOW])
    judge_all(store, first, model="large", score=0.9)
    store.runs.finish(first.id, RunState.DONE)
    second = ingested(store, rows(1))
    judge_all(store, second, score=0.1)
    store.tiers.set_judge(second.id, 1, {"model": "large"})
    store.verdicts.decide(second.id, 0)
    assert next(store.results.all(second.id))["slow_score"] is None


def test_an_explanation_tells_everything_about_one_candidate(store):
    run = ingested(store, [a_row(0, year=2020)])
    judge_all(store, run, score=0.95, reading="yes", mass=0.9, prompt_tokens=30, note="cut")
    store.verdicts.decide(run.id, 0)
    found = store.results.explain(run.id, "k000")
    assert found.fields == {"id": "k000", "text": "text 0", "year": 2020}
    assert (found.text, found.verdict, found.tier) == ("text 0", "accepted", "fast")
    (answer,) = found.judgements
    assert (answer.outcome, answer.score, answer.reading) == (Outcome.ACCEPT, 0.95, "yes")
    assert (answer.mass, answer.prompt_tokens, answer.note) == (0.9, 30, "cut")
    assert (answer.reused, answer.judge, answer.policy) == (False, {"model": "small"}, FAST[1])
    assert answer.judged.tzinfo is not None
    with pytest.raises(StoreError, match="run 'papers-1' has no candidate 'nobody'"):
        store.results.explain(run.id, "nobody")


def test_paid_tokens_are_counted_once(store):
    run = ingested(store, [a_row(0, "same"), a_row(1, "same")])
    judge_all(store, run, prompt_tokens=30, cached_tokens=20, completion_tokens=1, seconds=0.5)
    store.verdicts.decide(run.id, 0)
    judge_all(store, run, position=1)  # the same judge: nothing to pay
    row, later = store.results.funnel(run.id)
    assert (row.prompt_tokens, row.cached_tokens, row.completion_tokens) == (30, 20, 1)
    assert (later.reached, later.judged, later.reused, later.prompt_tokens) == (2, 0, 2, 0)


def test_the_funnel_and_the_details_agree_on_what_was_reused(store, engine):
    first = ingested(store, [a_row(0)])
    judge_all(store, first)
    store.runs.finish(first.id, RunState.DONE)
    second = ingested(store, [a_row(0), a_row(1, "same"), a_row(2, "same")])
    judge_all(store, second)
    details = query(
        engine,
        "SELECT key, reused FROM judgement_detail WHERE run = :run ORDER BY key",
        run=second.key,
    )
    assert [bool(row.reused) for row in details] == [True, False, True]
    assert store.results.funnel(second.id)[0].reused == 2


# Trouble


def test_a_full_disk_is_told_and_loses_nothing_committed(sqlite_url):
    check_ready(sqlite_url)
    engine = open_engine(sqlite_url)

    @event.listens_for(engine, "connect")
    def limit(connection: Any, _record: object) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 20}")

    store = Store(engine)
    run = ingested(store, rows(10))
    with pytest.raises(DatabaseError, match="disk is full; free some space, then run again"):
        store.candidates.add(
            run.id, [a_row(i, f"{i} " + "x" * 5000) for i in range(10, 2000)], "papers.csv"
        )
    assert store.runs.account(run.id).candidates == 10
    engine.dispose()


@pytest.mark.postgres
def test_a_connection_that_breaks_is_told(postgres_url):
    check_ready(postgres_url)
    engine = open_engine(postgres_url)
    with (
        pytest.raises(DatabaseError, match="cannot be reached"),
        transaction(engine, writes=True) as connection,
    ):
        connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    engine.dispose()


def test_taking_back_from_a_tier_on_leaves_what_came_before_and_other_runs(store):
    given = [*rows(10), a_row(99, "")]
    run = ingested(store, given)
    judge_all(store, run)
    store.verdicts.decide(run.id, 0)
    judge_all(store, run, position=1, model="large", score=0.9)
    store.verdicts.decide(run.id, 1)
    store.runs.finish(run.id, RunState.DONE)
    other = ingested(store, given)
    judge_all(store, other)
    store.verdicts.decide(other.id, 0)
    before = list(store.results.all(other.id))

    def verdicts() -> dict[str, tuple[str, str, str | None]]:
        return {
            row["key"]: (row["verdict"], row["tier"], row["why"])
            for row in store.results.all(run.id)
        }

    whole = verdicts()
    unreadable = {key: row for key, row in whole.items() if row[2] is not None}
    assert len(unreadable) == 1
    store.verdicts.undecide(run.id, 1)
    later = {key: ("pending", "slow", None) for key, row in whole.items() if row[1] == "slow"}
    assert later
    assert verdicts() == whole | later
    store.verdicts.undecide(run.id)
    assert verdicts() == dict.fromkeys(whole, ("pending", "fast", None)) | unreadable
    store.verdicts.redecide(run.id, 0)
    assert verdicts() == whole
    assert list(store.results.all(other.id)) == before


def test_postgres_goes_by_index_however_little_it_knows_of_the_tables(postgres_url: str) -> None:
    """Else each thousand of a large reading, or of a tier, would go through all rows."""
    check_ready(postgres_url)
    engine = open_engine(postgres_url)
    values = {"screen": "s", "run_id": 1, "ingest": 1, "position": 0, "judge_id": 1, "after": 0, "limit": 9}  # fmt: skip
    with engine.connect() as connection:
        stage(connection, candidates._STAGED, [])
        for statement in (candidates._CONFLICTS, candidates._KNOWN, candidates._CHANGED, candidates._MET_BEFORE, candidates._ADD_CANDIDATES, candidates._ADD_VERDICTS, judgements._UNJUDGED):  # fmt: skip
            sql = statement["postgresql"].text
            plan = "\n".join(connection.execute(text(f"EXPLAIN {sql}"), values).scalars())
            read = set(re.findall(r"Seq Scan on (\w+)", plan))
            assert read <= {"staged_row"}, plan
            assert "Hash" not in plan
    engine.dispose()
