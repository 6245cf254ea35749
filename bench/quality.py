"""What the guarantee keeps and costs: python -m bench.quality [--runs N] [--coverage N].

Reads the data sets in ../shared/data/calibration, or in the folder that TAMIS_BENCH_DATA names; the
tables that need them are left out, and said to be, where they are not there. The column `bargain`
needs `pip install bargain==0.1.3`.
"""

import argparse
import csv
import gzip
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np

from bench.common import finish, machine, table
from tiers.calibration import Result, Status, Thresholds, calibrate, recall
from tiers.calibration.recall import kept_by
from tiers.calibration.recall_test import best_kth, level

DELTA = 0.1
CELLS = [
    ("court_opinion", 400),
    ("onto", 400),
    ("onto", 1000),
    ("sr_ccb", 400),
    ("sr_ccb", 1000),
    ("sr_nagtegaal", 400),
    ("sr_nagtegaal", 1000),
    ("sr_ppi", 400),
    ("sr_ppi", 1000),
]
COSTS = (1.0, 4.0, 30.0)


@dataclass(frozen=True)
class Data:
    """One data set: scores of one tier (n,) or several (n, tiers), and the labels."""

    scores: np.ndarray
    positive: np.ndarray

    def calibrate(self, kind: str, target: float, budget: int, seed: int, **more: Any) -> Result:
        result = calibrate(
            self.scores,
            lambda ids: self.positive[ids],
            kind=kind,
            target=target,
            delta=DELTA,
            budget=budget,
            seed=seed,
            **more,
        )
        assert result.labels_used <= budget
        return result

    def recall(self, accepted: np.ndarray) -> float:
        return float(self.positive[accepted].sum() / max(self.positive.sum(), 1))

    def precision(self, accepted: np.ndarray) -> float:
        return float(self.positive[accepted].mean()) if accepted.any() else 1.0

    def reached(self, kind: str, result: Result) -> float:
        """What the result has of what was promised."""
        if kind == "recall":
            return self.recall(result.accepted)
        if kind == "precision":
            return self.precision(result.accepted)
        return float(np.mean((result.accepted == self.positive) | ~result.by_proxy))


def data_folder() -> Path:
    beside = Path(__file__).parents[1].parent / "shared" / "data"
    return Path(os.environ.get("TAMIS_BENCH_DATA", beside)) / "calibration"


def read(name: str) -> Data | None:
    path = data_folder() / f"{name}.csv.gz"
    if not path.exists():
        return None
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    scores = np.array([float(row["proxy_score"]) for row in rows])
    return Data(scores, np.array([row["oracle_label"] == "1" for row in rows]))


def generated(items: int, prevalence: float, tiers: int, seed: int) -> Data:
    """Normal scores per tier, 1.5 and more standard deviations apart, better tier by tier."""
    draw = np.random.default_rng(seed)
    positive = draw.random(items) < prevalence
    logits = [draw.normal(positive * (1.5 + tier), 1) - 1.5 for tier in range(tiers)]
    scores = 1 / (1 + np.exp(-np.column_stack(logits)))
    return Data(scores[:, 0] if tiers == 1 else scores, positive)


def coverage_on_data(runs: int) -> Iterator[dict[str, Any]]:
    """Share of runs that keep recall, on real scores."""
    for name, budget, target in (
        ("court_opinion", 400, 0.9),
        ("court_opinion", 400, 0.95),
        ("sr_ccb", 400, 0.9),
        ("sr_nagtegaal", 1000, 0.9),
    ):
        data = read(name)
        if data is None:
            continue
        results = [data.calibrate("recall", target, budget, seed) for seed in range(runs)]
        kept = [data.recall(result.accepted) >= target for result in results]
        certified = [result.status is Status.CERTIFIED for result in results]
        yield {
            "data": name,
            "labels": budget,
            "target": target,
            "runs": runs,
            "kept": float(np.mean(kept)),
            "certified": float(np.mean(certified)),
        }


def coverage_on_generated(runs: int) -> Iterator[dict[str, Any]]:
    """Share of runs that keep the promise: all kinds, one to four tiers, rare to common."""
    settings = [("recall", tiers) for tiers in (1, 2, 3, 4)] + [("precision", 1), ("accuracy", 1)]
    for kind, tiers in settings:
        for prevalence, budget in ((0.005, 8000), (0.05, 1500), (0.5, 300)):
            kept, certified = [], []
            for seed in range(runs):
                data = generated(10_000, prevalence, tiers, seed)
                result = data.calibrate(kind, 0.9, budget, seed + 10_000)
                kept.append(data.reached(kind, result) >= 0.9 - 1e-12)
                certified.append(result.status is Status.CERTIFIED)
            yield {
                "kind": kind,
                "tiers": tiers,
                "prevalence": prevalence,
                "labels": budget,
                "runs": runs,
                "kept": float(np.mean(kept)),
                "certified": float(np.mean(certified)),
            }


def bargain(data: Data, target: float, budget: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(n,) accepted by BARGAIN_R as it is, and with hygiene: negatives dropped, calls spent."""
    from BARGAIN import BARGAIN_R, Oracle, Proxy

    class Scores(Proxy):
        def get_preds_and_scores(self, ids: Any, _: Any) -> tuple[np.ndarray, np.ndarray]:
            return np.ones(len(ids)), data.scores[ids]

    class Labels(Oracle):
        def get_pred(self, _: Any, ids: Any) -> np.ndarray:
            self.preds_dict.update(dict.fromkeys(np.asarray(ids).tolist()))
            return np.asarray(data.positive[ids]).astype(int)

    oracle = Labels(verbose=False)
    method = BARGAIN_R(Scores(verbose=False), oracle, DELTA, target, budget, seed=seed)
    accepted = np.zeros(len(data.scores), bool)
    accepted[method.process(np.arange(len(data.scores)))] = True
    labelled = np.zeros(len(data.scores), bool)
    labelled[list(oracle.preds_dict)] = True
    open_ids = np.flatnonzero(accepted & ~labelled)
    open_ids = open_ids[np.argsort(data.scores[open_ids], kind="stable")]
    labelled[open_ids[: budget - labelled.sum()]] = True
    clean = (accepted & ~labelled) | (labelled & data.positive)
    return accepted, clean


def utility(runs: int, target: float) -> Iterator[dict[str, Any]]:
    """Mean precision at a recall target, beside BARGAIN, over the cells of the data."""
    for name, budget in CELLS:
        data = read(name)
        if data is None:
            continue
        rows = []
        for seed in range(runs):
            ours = data.calibrate("recall", target, budget, seed)
            plain, clean = bargain(data, target, budget, seed)
            sets = (ours.accepted, plain, clean)
            rows.append(
                [data.precision(s) for s in sets]
                + [data.recall(s) >= target for s in sets]
                + [ours.status is Status.CERTIFIED]
            )
        mean = np.mean(rows, axis=0).tolist()
        yield {
            "data": name,
            "labels": budget,
            "tamis": mean[0],
            "bargain": mean[1],
            "bargain, hygiene": mean[2],
            "tamis kept": mean[3],
            "hygiene kept": mean[5],
            "certified": mean[6],
        }


def union_bound(data: Data, target: float, budget: int, seed: int) -> tuple[Any, np.ndarray]:
    """Tier by tier: each keeps the tiers-th root of the recall at its share of delta."""
    tiers, items = data.scores.shape[1], len(data.scores)
    drawn = np.zeros(items, bool)
    drawn[np.random.default_rng(seed).permutation(items)[:budget]] = True
    hits = data.scores[drawn & data.positive]
    most = items - budget + len(hits)
    kth = best_kth(len(hits), most, target ** (1 / tiers), level(DELTA / tiers))
    lowest = np.sort(hits, axis=0)[kth - 1] if kth else [None] * tiers
    return tuple(Thresholds(reject_below=x) for x in lowest) if kth else None, drawn


def cascade_cost(data: Data, thresholds: Any, labelled: np.ndarray) -> float:
    """Cost of tiers and labels, as a share of a label for every candidate.

    A labelled candidate has run through all tiers; a survivor of all tiers costs a label.
    """
    tiers = data.scores.shape[1]
    cost = labelled.sum() * sum(COSTS)
    for tier in range(tiers + 1):
        cost += (kept_by(data.scores, thresholds[:tier]) & ~labelled).sum() * COSTS[tier]
    return float(cost / (COSTS[-1] * len(data.scores)))


def cascades(runs: int) -> Iterator[dict[str, Any]]:
    """Total cost of two cheap tiers and the top tier: the joint path beside the union bound."""
    for items, prevalence, budget, target in (
        (20_000, 0.05, 2500, 0.9),
        (20_000, 0.05, 2500, 0.95),
        (20_000, 0.02, 5000, 0.9),
        (50_000, 0.02, 6000, 0.9),
        (10_000, 0.5, 400, 0.9),
    ):
        joint, union, kept, certified = [], [], [], []
        for seed in range(runs):
            data = generated(items, prevalence, 2, seed)
            result = data.calibrate("recall", target, budget, seed, costs=COSTS)
            kept.append(data.recall(result.accepted) >= target)
            labelled = ~result.by_proxy & ~result.promoted
            cost = cascade_cost(data, result.thresholds, labelled)
            thresholds, drawn = union_bound(data, target, budget, seed)
            both = thresholds is not None and result.status is Status.CERTIFIED
            certified.append((result.status is Status.CERTIFIED, thresholds is not None))
            if both:
                joint.append(cost)
                union.append(cascade_cost(data, thresholds, drawn))
        ours, theirs = np.mean(certified, axis=0).tolist()
        yield {
            "items": items,
            "prevalence": prevalence,
            "labels": budget,
            "target": target,
            "joint": float(np.mean(joint)) if joint else None,
            "union": float(np.mean(union)) if union else None,
            "saving": float(1 - np.sum(joint) / np.sum(union)) if joint else None,
            "joint kept": float(np.mean(kept)),
            "joint certified": ours,
            "union certified": theirs,
        }


def planning(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Mean precision and coverage where scores are mediocre, by how far apart the curves are.

    `hindsight` is the best that any of seven assumed separations gives in the cell, found by trying
    them all: what a perfect guess would be worth.
    """
    cells = [
        (separation, prevalence, budget)
        for separation in (0.5, 0.7, 1.0, 1.5, 2.0, 3.0)
        for prevalence in (0.01, 0.05, 0.2)
        for budget in (400, 1000, 3000)
    ]
    assumed = (recall.SEPARATION, 0.3, 0.7, 1.0, 2.0, 3.0, 4.0)
    with Pool(options.processes) as pool:
        jobs = [(*cell, guess, options.runs) for cell in cells for guess in assumed]
        found = np.array(pool.map(_planned, jobs, chunksize=1)).reshape(len(cells), len(assumed), 2)
    for cell, by_guess in zip(cells, found, strict=True):
        yield dict(
            zip(
                ("separation", "prevalence", "labels", "precision", "hindsight", "kept"),
                (*cell, by_guess[0, 0], by_guess[:, 0].max(), by_guess[0, 1]),
                strict=True,
            )
        )


def _planned(job: tuple[float, float, int, float, int]) -> tuple[float, float]:
    """Mean precision and coverage of one cell under one assumed separation."""
    separation, prevalence, budget, assumed, runs = job
    recall.SEPARATION = assumed  # in a process of its own
    precision, kept = [], []
    for seed in range(runs):
        data = separated(10_000, prevalence, (separation,), seed)
        result = data.calibrate("recall", 0.9, budget, seed + 10_000)
        precision.append(data.precision(result.accepted))
        kept.append(data.recall(result.accepted) >= 0.9)
    return float(np.mean(precision)), float(np.mean(kept))


def separated(items: int, prevalence: float, separations: tuple[float, ...], seed: int) -> Data:
    """Normal scores of tiers, so many standard deviations apart for positives and negatives."""
    draw = np.random.default_rng(seed)
    positive = draw.random(items) < prevalence
    logits = [draw.normal(positive * apart, 1) - 1.5 for apart in separations]
    scores = 1 / (1 + np.exp(-np.column_stack(logits)))
    return Data(scores[:, 0] if len(separations) == 1 else scores, positive)


def mediocre_middles(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Cost of two cheap tiers and the top tier where the cheap ones are mediocre.

    Beside what was assumed before: a separation of 2 and a pilot of 20 positives.
    """
    cells = [
        (separations, *setting)
        for separations in ((1.5, 2.5), (0.7, 1.0), (1.0, 0.5), (0.5, 2.0), (1.0, 1.5))
        for setting in ((0.05, 2500), (0.2, 1000), (0.02, 5000))
    ]
    assumed = ((recall.SEPARATION, recall.PILOT_POSITIVES), (2.0, 20))
    runs = max(options.runs // 4, 1)
    with Pool(options.processes) as pool:
        jobs = [(*cell, *guess, runs) for cell in cells for guess in assumed]
        found = np.array(pool.map(_middle, jobs, chunksize=1)).reshape(len(cells), 2, 2)
    for (separations, prevalence, budget), ((now, kept), (before, _)) in zip(
        cells, found, strict=True
    ):
        yield {
            "separations": " and ".join(map(str, separations)), "prevalence": prevalence,
            "labels": budget, "cost": now, "before": before, "saving": 1 - now / before,
            "kept": kept,
        }  # fmt: skip


def _middle(
    job: tuple[tuple[float, ...], float, int, float, int, int],
) -> tuple[float, float]:
    """Mean cost and coverage of one cell under what is assumed."""
    separations, prevalence, budget, assumed, pilot, runs = job
    recall.SEPARATION, recall.PILOT_POSITIVES = assumed, pilot  # in a process of its own
    costs, kept = [], []
    for seed in range(runs):
        data = separated(20_000, prevalence, separations, seed)
        result = data.calibrate("recall", 0.9, budget, seed, costs=COSTS)
        costs.append(cascade_cost(data, result.thresholds, ~result.by_proxy & ~result.promoted))
        kept.append(data.recall(result.accepted) >= 0.9)
    return float(np.mean(costs)), float(np.mean(kept))


def show(title: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    print(f"\n{title}\n")
    if rows:
        table(list(rows[0]), [list(row.values()) for row in rows])
    return rows


def installed(module: str) -> bool:
    try:
        __import__(module)
    except ImportError:
        return False
    return True


def plan_tables(options: argparse.Namespace) -> None:
    """How long to draw, and what the assumption costs on mediocre scores."""
    print(f"{machine()}; delta {DELTA}, {options.runs} seeds")
    rows = show("Precision at recall 0.9, 10,000 candidates", list(planning(options)))
    middles = show("Cost of a cascade of three, 20,000 candidates", list(mediocre_middles(options)))
    means = {
        name: float(np.mean([row[name] for row in rows])) for name in ("precision", "hindsight")
    }
    costs = {name: float(np.mean([row[name] for row in middles])) for name in ("cost", "before")}
    print("\nmeans: " + ", ".join(f"{name} {mean:.4f}" for name, mean in (means | costs).items()))
    print(f"least kept: {min(row['kept'] for row in (*rows, *middles)):.3f}")
    finish("planning", {"runs": options.runs, **means, **costs, "rows": rows, "middles": middles})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100, help="seeds of a cell (default 100)")
    parser.add_argument("--coverage", type=int, default=1500, help="seeds on data (default 1500)")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--planning", action="store_true", help="the tables of planning alone")
    options = parser.parse_args()
    if options.planning:
        plan_tables(options)
        return
    began = time.process_time()
    print(f"{machine()}; delta {DELTA}, {options.runs} and {options.coverage} seeds")
    figures: dict[str, Any] = {"runs": options.runs}
    if data_folder().exists():
        rows = list(coverage_on_data(options.coverage))
        figures["coverage"] = show("Recall kept, real scores", rows)
        for target in (0.9, 0.95) if installed("BARGAIN") else ():
            rows = list(utility(options.runs, target))
            figures[f"utility {target}"] = show(f"Precision at recall {target}", rows)
            means = {
                name: float(np.mean([row[name] for row in rows]))
                for name in ("tamis", "bargain", "bargain, hygiene")
            }
            figures[f"means {target}"] = means
            print("\nmeans: " + ", ".join(f"{name} {mean:.3f}" for name, mean in means.items()))
        if not installed("BARGAIN"):
            print("\nbargain is not installed, so nothing is compared: pip install bargain==0.1.3")
    else:
        print(f"\nno data in {data_folder()}: set TAMIS_BENCH_DATA; generated scores only")
    rows = list(coverage_on_generated(options.runs))
    figures["generated"] = show("Promise kept, generated scores, target 0.9", rows)
    rows = list(cascades(max(options.runs // 2, 1)))
    figures["cascades"] = show("Cost of a cascade of three, costs 1 : 4 : 30", rows)
    print(f"\n{time.process_time() - began:,.0f} CPU seconds")
    finish("quality", figures)


if __name__ == "__main__":
    main()
