"""How long a question about other thresholds takes: python -m bench.what_if [--candidates N].

Scores of three tiers are made up and stored; then `what-if` is asked, the certified bound
included. On SQLite, and on Postgres where TAMIS_BENCH_POSTGRES names an empty database.
"""

import argparse
import os
import random
import tempfile
import time
from typing import Any

import orjson

from bench.common import finish, machine, table
from db.engine import check_ready, open_engine
from db.store import Change, Row, Run, Store
from flows.guarantee.thresholds import change_of, consequences
from tiers.policy import Policy
from tiers.types import Judgement

TARGET_SECONDS = 2.0
CHUNK = 5_000
TIERS = (
    ("fast", Policy(reject_below=0.3)),
    ("rescore", Policy(reject_below=0.4)),
    ("refine", Policy(accept_above=0.5)),
)
QUESTIONS = ((0, 0.2), (0, 0.4), (1, 0.5))


def fill(store: Store, candidates: int) -> Run:
    """A run whose every candidate has a score at every tier."""
    run = store.runs.open("bench", {"rubric": "any", "screen": "bench"}, "hash", TIERS)
    store.candidates.begin(run.id)
    for start in range(0, candidates, CHUNK):
        rows = [
            Row(i, f"k{i:07}", f"text number {i}", orjson.dumps({"id": i}))
            for i in range(start, min(start + CHUNK, candidates))
        ]
        store.candidates.add(run.id, rows, "made up")
    store.candidates.finish(run.id, candidates, 0)
    generator = random.Random(0)
    judges = [
        store.tiers.set_judge(run.id, position, {"model": name})
        for position, (name, _) in enumerate(TIERS)
    ]
    after = 0
    while page := store.judgements.unjudged(run.id, 0, judges[0], after, CHUNK):
        after = page[-1].id
        for judge in judges:
            store.judgements.record(
                run.id,
                judge,
                [Judgement(one.id, generator.random(), prompt_tokens=600) for one in page],
            )
    certify(store, run)
    store.verdicts.redecide(run.id)
    return run


def certify(store: Store, run: Run) -> None:
    """Thresholds with a certificate of 100 drawn positives, so that the bound is computed too."""
    drawn = [f"k{i * 31:07}" for i in range(100)]
    certificate: dict[str, Any] = {
        "run": run.key, "candidates": store.labels.candidates(run.id),
        "kind": "recall", "status": "certified", "target": 0.9, "budget": 1000,
        "certified_bound": 0.9, "threshold_bound": 0.9, "labels_used": 1000, "positives_found": 100,
        "evidence": {
            "kth": 5, "positives_tested": 100, "positives_known": 0, "most_positives": 20_000,
            "best_bound": 0.97, "drawn_most": 20_000, "drawn_known": 0, "test_delta": 0.1,
        },
        "thresholds": [{"reject_below": 0.3, "accept_above": None}, {"reject_below": 0.4, "accept_above": None}],
        "drawn_positives": drawn,
    }  # fmt: skip
    changes = {
        position: Change(policy.reject_below, policy.accept_above)
        for position, (_, policy) in enumerate(TIERS)
    }
    store.policies.certify(
        run.id,
        changes,
        labels_from="refine",
        certificate=certificate,
        author="bench",
        reason="bench",
    )


def measure(url: str, candidates: int) -> dict[str, float]:
    check_ready(url)
    store = Store(open_engine(url))
    run = fill(store, candidates)
    seconds = {}
    for position, low in QUESTIONS:
        tier = TIERS[position][0]
        began = time.perf_counter()
        found = consequences(store, run, *change_of(store, run, tier, low, None))
        seconds[f"{tier} {low:g}"] = time.perf_counter() - began
        seconds[f"{tier} {low:g} flips"] = len(found.candidates)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, default=200_000)
    candidates = parser.parse_args().candidates
    print(f"{machine()}; {candidates:,} candidates x {len(TIERS)} tiers\n")
    figures: dict[str, Any] = {"candidates": candidates}
    with tempfile.TemporaryDirectory() as folder:
        urls = {
            "sqlite": f"sqlite:///{folder}/bench.db",
            "postgres": os.environ.get("TAMIS_BENCH_POSTGRES"),
        }
        for name, url in urls.items():
            if url is not None:
                figures[name] = measure(url, candidates)
    databases = [name for name in urls if name in figures]
    rows = [
        [
            f"{TIERS[position][0]}, reject_below {low:g}",
            *(figures[name][f"{TIERS[position][0]} {low:g}"] for name in databases),
            figures[databases[0]][f"{TIERS[position][0]} {low:g} flips"],
        ]
        for position, low in QUESTIONS
    ]
    table(["question", *(f"{name} s" for name in databases), "verdicts that change"], rows)
    worst = max(row[1 + i] for row in rows for i in range(len(databases)))
    print(f"\ntarget: under {TARGET_SECONDS:g} s; the slowest took {worst:.2f} s")
    finish("what_if", figures)


if __name__ == "__main__":
    main()
