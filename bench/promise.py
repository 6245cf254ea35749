"""Whether the demo's cascade keeps its promise: python -m bench.promise [--pool N] [--populations N].

All three models judge a pool of made-up applicants once. Each population is a draw from it, is
calibrated with a seed of its own against the largest model, and its thresholds are held against
what that model says of everybody. Last, the pool as a whole.
"""

import argparse
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from bench.common import finish, machine, table
from demo.records import applicants
from tiers.calibration import Result, Status, calibrate
from tiers.placing import open_tier
from tiers.screenfile.file import Screen, load_screen
from tiers.tier import job_of
from tiers.types import Candidate

TARGET, DELTA, AUDIT = 0.95, 0.1, 0.005
CHUNK = 1_000


def score(screen: Screen, position: int, texts: list[str]) -> np.ndarray:
    """(n,) scores of one tier; an unreadable answer is NaN."""
    tier = open_tier(job_of(screen, position))
    found = np.full(len(texts), np.nan)
    try:
        for start in range(0, len(texts), CHUNK):
            block = [
                Candidate(start + i, text) for i, text in enumerate(texts[start : start + CHUNK])
            ]
            for one in tier.judge(iter(block)):
                found[one.id] = np.nan if one.score is None else one.score
    finally:
        tier.close()
    return found


class Kept:
    """One population, calibrated."""

    def __init__(self, scores: np.ndarray, positive: np.ndarray, labels: int, seed: int) -> None:
        result: Result = calibrate(
            scores,
            lambda ids: positive[ids].astype(np.int8),
            kind="recall",
            target=TARGET,
            delta=DELTA,
            budget=labels,
            seed=seed,
        )
        self.certified = result.status is Status.CERTIFIED
        self.recall = float(result.accepted[positive].mean())
        audited = AUDIT * float(result.rejected.sum())
        self.calls = (result.labels_used + float(result.promoted.sum()) + audited) / len(scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=5_000, help="of a population")
    parser.add_argument("--populations", type=int, default=100)
    parser.add_argument("--labels", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=31_337, help="of the pool")
    options = parser.parse_args()
    print(machine())
    screen = load_screen(Path(str(files("demo"))) / "screen.yaml")
    texts = [one.text for one in applicants(options.pool, options.seed)]
    began = time.perf_counter()
    scores = np.column_stack([score(screen, i, texts) for i in range(len(screen.tiers))])
    bar = screen.policy(len(screen.tiers) - 1).accept_above or 0.5
    positive = scores[:, -1] > bar  # an unreadable answer of the largest model is no yes
    print(f"{options.pool:,} applicants judged by all tiers in {time.perf_counter() - began:.0f} s")

    draws = [np.random.default_rng(seed) for seed in range(options.populations)]
    picks = [draw.choice(options.pool, options.size, replace=False) for draw in draws]
    small = [
        Kept(scores[pick, :-1], positive[pick], options.labels, seed)
        for seed, pick in enumerate(picks)
    ]
    whole = Kept(scores[:, :-1], positive, options.labels, 0)
    rows: list[tuple[Any, ...]] = []
    for name, runs in ((f"{options.size:,}", small), (f"{options.pool:,}", [whole])):
        certified = [run for run in runs if run.certified]
        recalls = [run.recall for run in certified]
        rows.append(
            (
                name,
                len(runs),
                len(certified),
                sum(recall >= TARGET for recall in recalls) / max(len(certified), 1),
                float(np.mean(recalls)) if recalls else float("nan"),
                min(recalls, default=float("nan")),
                float(np.mean([run.calls for run in certified])) if certified else float("nan"),
            )
        )
    print(f"\nrecall >= {TARGET} with confidence {1 - DELTA:g}, {options.labels:,} labels")
    table(
        ["applicants", "runs", "certified", "kept it", "mean recall", "worst", "calls of the largest"],
        rows,
    )  # fmt: skip
    finish("promise", {"kept": rows[0][3], "calls": rows[1][6], "positives": int(positive.sum())})


if __name__ == "__main__":
    main()
