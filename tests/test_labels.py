"""Labels, versions of policies and moved thresholds, on both databases."""

from typing import Any

import pytest
from sqlalchemy import Engine

from db.store import Change, LabelSource, Store, StoreError, rubric_digest, what_if
from tests.project import tier_by
from tiers.types import Judgement, Outcome

from .test_store import SLOW, ingested, query, rows, waiting

PERSON, TIER = LabelSource.PERSON, LabelSource.TIER
RUBRIC = rubric_digest("good?")
FAST = tier_by("fast", 0.2, 0.9)


def screened(store: Store, count: int = 20, tiers: Any = (FAST, SLOW)) -> Any:
    """A run in which text i has the score i / count at the first tier, and 1 minus it after."""
    run = ingested(store, rows(count), tiers=tiers)
    for position in range(len(tiers)):
        judge = store.tiers.set_judge(run.id, position, {"model": f"model {position}"})
        texts = waiting(store, run, position, judge)
        scores = [int(one.text.split()[1]) / count for one in texts]
        answers = [
            Judgement(one.id, 1 - score if position else score, prompt_tokens=10)
            for one, score in zip(texts, scores, strict=True)
        ]
        store.judgements.record(run.id, judge, answers)
        store.verdicts.decide(run.id, position)
    return run


def verdicts(store: Store, run: Any) -> dict[str, str]:
    return {row["key"]: row["verdict"] for row in store.results.all(run.id)}


def text_of(store: Store, run: Any, key: str) -> int:
    return next(one.text_id for one in store.labels.scored(run.id, 1) if one.key == key)


def test_a_label_is_told_once_and_changed_only_on_purpose(store: Store) -> None:
    run = screened(store)
    first, second = (text_of(store, run, key) for key in ("k000", "k001"))
    assert store.labels.record(RUBRIC, PERSON, "ada", {first: True, second: None}) == 2
    assert store.labels.record(RUBRIC, PERSON, "ada", {first: True}) == 0
    with pytest.raises(StoreError, match=r"ada told 1 candidates otherwise .*'text 0': yes then"):
        store.labels.record(RUBRIC, PERSON, "ada", {first: False, second: None})
    assert store.labels.record(RUBRIC, PERSON, "ada", {first: False}, replace=True) == 1
    store.labels.record(RUBRIC, PERSON, "bob", {first: True})
    told = [(label.reviewer, label.answer) for label in store.labels.all(RUBRIC, PERSON)]
    assert told == [("ada", False), ("bob", True), ("ada", None)]
    assert store.labels.all(RUBRIC, TIER) == []
    assert store.labels.all(rubric_digest("better?"), PERSON) == []


def test_scores_of_all_tiers_are_read_by_key(store: Store) -> None:
    run = screened(store)
    scored = store.labels.scored(run.id, 2)
    assert [one.key for one in scored] == [f"k{i:03}" for i in range(20)]
    assert scored[1].scores == (0.05, None)  # rejected by the first tier
    assert scored[10].scores == (0.5, 0.5)
    some = store.labels.scored(run.id, 2, ["k010", "k001"])
    assert some == [scored[1], scored[10]]
    assert store.labels.texts([scored[3].text_id]) == {scored[3].text_id: "text 3"}


def test_candidates_pass_without_being_decided_and_some_of_them_go_on(store: Store) -> None:
    run = ingested(store, rows(6))
    judge = store.tiers.set_judge(run.id, 0, {"model": "small"})
    texts = waiting(store, run, 0, judge)
    store.judgements.record(run.id, judge, [Judgement(one.id, 0.01) for one in texts[:5]])
    store.labels.send_on(run.id, 1, [texts[1].id, texts[3].id])
    slow = store.tiers.set_judge(run.id, 1, {"model": "large"})
    assert [one.id for one in waiting(store, run, 1, slow)] == [texts[1].id, texts[3].id]
    store.labels.advance(run.id, 0, judge)
    assert [one.id for one in waiting(store, run, 1, slow)] == [one.id for one in texts[:5]]
    assert store.runs.account(run.id).pending == 6


def test_labels_go_before_scores_where_the_policy_follows_them(store: Store) -> None:
    run = screened(store)
    low, high = (text_of(store, run, key) for key in ("k001", "k019"))
    change = {"certificate": {"recall": 0.9}, "author": "ada", "reason": "calibrated"}
    store.labels.record(RUBRIC, TIER, "slow #2", {low: True, high: None})
    store.policies.certify(run.id, {0: Change(0.2, 0.9)}, labels_from="slow #1", **change)
    store.verdicts.redecide(run.id)
    assert verdicts(store, run)["k001"] == "rejected"  # another reviewer's labels
    store.policies.certify(run.id, {0: Change(0.2, 0.9)}, labels_from="slow #2", **change)
    store.verdicts.redecide(run.id)
    moved = verdicts(store, run)
    assert (moved["k001"], moved["k019"]) == ("pending", "pending")  # waits for the second tier
    assert (moved["k002"], moved["k000"]) == ("rejected", "rejected")


def test_at_the_last_tier_the_majority_of_people_decides(store: Store) -> None:
    run = screened(store)
    yes, no, split = (text_of(store, run, key) for key in ("k017", "k006", "k016"))
    for reviewer, answers in (
        ("ada", {yes: True, no: False, split: True}),
        ("bob", {yes: True, no: False, split: False}),
        ("cleo", {yes: False, no: None}),
    ):
        store.labels.record(RUBRIC, PERSON, reviewer, answers)
    before = verdicts(store, run)
    assert (before["k017"], before["k006"], before["k016"]) == ("rejected", "accepted", "rejected")
    store.policies.certify(
        run.id, {1: Change(0.5, None)}, labels_from="people", certificate={}, author="a", reason="b"
    )
    store.verdicts.redecide(run.id)
    after = verdicts(store, run)
    assert (after["k017"], after["k006"], after["k016"]) == ("accepted", "rejected", "rejected")
    assert {key for key in after if after[key] != before[key]} == {"k017", "k006"}


def test_every_change_of_thresholds_is_a_version_with_its_author(store: Store) -> None:
    run = screened(store)
    moved = store.policies.move(
        run.id, 0, Change(0.1, 0.9), author="ada", reason="the client said so"
    )
    versions = [one for one in store.policies.versions(run.id) if one.tier == "fast"]
    assert [one.in_use for one in versions] == [False, True]
    assert (versions[1].id, versions[1].author) == (moved, "ada")
    assert versions[1].reason == "the client said so"
    assert [one.policy.reject_below for one in versions[:2]] == [0.2, 0.1]
    who = {"author": "bob", "reason": "too dear"}
    assert store.policies.use(run.id, versions[0].id, **who) == 0
    versions = store.policies.versions(run.id)
    assert [one.in_use for one in versions] == [False, False, True, True]
    assert (versions[2].author, versions[2].reason) == ("bob", "too dear")
    assert versions[2].thresholds == (0.2, 0.9)
    with pytest.raises(StoreError, match="no policy 99; write one of: 1, 3, 4, 2"):
        store.policies.use(run.id, 99, **who)


def test_going_back_brings_all_of_a_version_with_it(store: Store) -> None:
    run = screened(store)
    change = {0: Change(0.4, None), 1: Change(0.5, None)}
    words: Any = {"author": "ada", "reason": "calibrated"}
    first, _ = store.policies.certify(
        run.id, change, labels_from="slow", certificate={"n": 1}, **words
    )
    store.runs.finish(run.id, "done")
    later = ingested(store, rows(5))
    for position in range(2):
        store.tiers.set_judge(later.id, position, {"model": f"model {position}"})
    assert store.policies.inherit(later.id, {"n": 1})
    both = [(run.id, run.key), (later.id, later.key)]
    assert store.audits.same_promise(later.id) == both
    store.policies.move(run.id, 0, Change(0.1, None), author="ada", reason="try")
    assert store.audits.same_promise(later.id) == both[1:]
    store.policies.use(run.id, first, author="bob", reason="back")
    back = next(one for one in store.policies.versions(run.id) if one.in_use)
    assert back.id != first
    assert (back.policy.reject_below, back.labels_from, back.certified) == (0.4, "slow", True)
    assert store.policies.certificate(run.id) == {"n": 1}
    # Its audits still count: going there and back does not make evidence forgotten.
    assert store.audits.same_promise(later.id) == both


def test_a_later_run_takes_over_the_thresholds_of_the_last_calibrated_one(store: Store) -> None:
    run = screened(store)
    store.policies.certify(
        run.id,
        {0: Change(0.4, None)},
        labels_from="slow",
        certificate={"n": 1},
        author="a",
        reason="b",
    )
    store.runs.finish(run.id, "done")
    later = ingested(store, rows(5))
    assert later.id != run.id
    assert store.policies.certificate(later.id) is None
    store.tiers.set_judge(later.id, 0, {"model": "model 0"})
    store.tiers.set_judge(later.id, 1, {"model": "another model"})
    assert not store.policies.inherit(later.id, {"n": 1})
    store.tiers.set_judge(later.id, 1, {"model": "model 1"})
    assert not store.policies.inherit(later.id, {"n": 2})
    assert store.policies.inherit(later.id, {"n": 1})
    assert store.policies.certificate(later.id) == {"n": 1}
    other = store.runs.open("papers", {}, "another hash", [FAST, SLOW])
    assert not store.policies.inherit(other.id, {"n": 1})


@pytest.mark.parametrize(
    ("plan", "change"),
    [
        (FAST, Change(0.45, 0.7)),
        (FAST, Change(0.05, None)),
        (FAST, Change(None, None)),
        (tier_by("fast", 0.2, top=4), Change(0.9, None)),
        (tier_by("fast", 0.2, top=0.5), Change(None, 0.8)),
    ],
)
def test_what_if_foretells_what_deciding_does(store, engine: Engine, plan, change) -> None:
    run = screened(store, 20, (plan, tier_by("mid", 0.3), SLOW))
    store.labels.record(RUBRIC, TIER, "slow", {text_of(store, run, "k000"): True})
    before, funnel = verdicts(store, run), store.results.funnel(run.id)
    foretold = what_if(store.engine, run.id, {0: change})
    assert verdicts(store, run) == before
    assert store.results.funnel(run.id) == funnel
    assert query(engine, "SELECT COUNT(*) FROM policy")[0][0] == 3

    store.policies.move(run.id, 0, change, author="ada", reason="try")
    store.verdicts.redecide(run.id)
    after = verdicts(store, run)
    flips = {(one.key, one.was, one.would_be) for one in foretold.flips}
    assert flips == {(k, before[k], after[k]) for k in after if after[k] != before[k]}
    for step, row in zip(foretold.after, store.results.funnel(run.id), strict=True):
        for name in ("tier", "reached", "promoted", "accepted", "rejected", "review", "pending"):
            assert getattr(step, name) == getattr(row, name)


def test_what_if_leaves_the_connection_as_it_was(store: Store) -> None:
    run = screened(store)
    for _ in range(3):  # the pool gives the same connection again
        what_if(store.engine, run.id, {0: Change(0.9, None)})
    assert store.verdicts.decide(run.id, 0)[Outcome.REJECT] == 0
    assert store.runs.account(run.id).candidates == 20
