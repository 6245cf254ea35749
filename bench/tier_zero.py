"""Tier 0 on labelled data: python -m bench.tier_zero [--seeds N] [--only NAME].

Reads the data sets in ../shared/data/screening, or in the folder that TAMIS_SCREENING_DATA names, and
the demo's records, which are generated. The labels of the data stand in for the last tier.
"""

import argparse
import csv
import gzip
import json
import os
import time
import warnings
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
from sklearn.decomposition import TruncatedSVD
from sklearn.metrics import roc_auc_score
from sklearn.naive_bayes import MultinomialNB
from sklearn.svm import LinearSVC

from bench.common import finish, machine, table
from flows.guarantee.classifiers import MISS, NEARLY_FREE
from tiers.backends.classifier import fit as training
from tiers.backends.classifier.tier import WORD, unpack
from tiers.calibration import Status, calibrate, expected_cost, plan_calibration
from tiers.calibration.recall import kept_by

DATA = Path(os.environ.get("TAMIS_SCREENING_DATA", "../shared/data/screening"))
NAMES = ("nudging", "sms_spam", "se_reviews")
SIZES = (50, 100, 200)
DELTA = 0.1
CELLS = {
    "nudging": ((0.95, 400), (0.95, 800)),
    "sms_spam": ((0.95, 500), (0.95, 1000)),
    "se_reviews": ((0.95, 1000), (0.9, 1000)),
    "demo": ((0.95, 500), (0.95, 1000)),
}
"""Recall that is promised, and labels that may be drawn."""


class Data(NamedTuple):
    """Texts with their labels, as vectors without and with topics, and how near to the rubric."""

    name: str
    texts: list[str]
    truth: np.ndarray
    plain: Any
    whole: Any
    liking: np.ndarray
    bm25: np.ndarray


def loaded(name: str) -> Data | None:
    if name == "demo":
        from demo.records import RUBRIC, applicants

        people = list(applicants(3000, 7))
        texts = [f"{one.title}\n{one.resume}" for one in people]
        truth, rubric = np.array([int(one.truth) for one in people]), RUBRIC
    elif (DATA / f"{name}.csv.gz").exists():
        csv.field_size_limit(1 << 30)
        with gzip.open(DATA / f"{name}.csv.gz", "rt", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        texts = [row.get("text") or f"{row['title']}\n{row['abstract']}" for row in rows]
        truth = np.array([int(row["label"]) for row in rows])
        rubric = _criteria(json.loads((DATA / "datasets.json").read_text()), name)
    else:
        return None
    _, plain = training._vectors(texts)
    turn = TruncatedSVD(training.TOPICS, random_state=0, n_iter=3).fit(plain).components_.T
    whole = scipy.sparse.hstack([plain, scipy.sparse.csr_matrix(plain @ turn)]).tocsr()
    return Data(
        name, texts, truth, plain, whole, training.likeness(texts, rubric), _bm25(texts, rubric)
    )


def _criteria(told: Any, name: str) -> str:
    told = told.get("datasets", told) if isinstance(told, dict) else told
    rows = told.values() if isinstance(told, dict) else told
    found = told[name] if isinstance(told, dict) else next(r for r in rows if r["name"] == name)
    return str(found["criteria"])


def _bm25(texts: list[str], rubric: str, k1: float = 1.5, b: float = 0.75) -> np.ndarray:
    counts = [WORD.findall(text.lower()) for text in texts]
    mean = np.mean([len(words) for words in counts])
    score = np.zeros(len(texts))
    for term in set(WORD.findall(rubric.lower())):
        tf = np.array([words.count(term) for words in counts])
        df = int((tf > 0).sum())
        idf = np.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
        length = np.array([len(words) for words in counts]) / mean
        score += idf * tf * (k1 + 1) / (tf + k1 * (1 - b + b * length))
    return score


def quality(scores: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """AUC, WSS@95 and TNR@95, the threshold set by the truth: what no calibration can exceed."""
    cut = np.sort(scores[truth == 1])[int(0.05 * truth.sum())]
    below = scores < cut
    return (
        float(roc_auc_score(truth, scores)),
        float(below.mean() - 0.05),
        float(below[truth == 0].mean()),
    )


def methods(data: Data, seed: int, size: int) -> dict[str, tuple[float, float, float]]:
    """Each method's quality on what it was not trained on; empty where a class is missing."""
    chosen = np.array(training.seeded(data.liking, size, seed))
    rest = np.setdiff1d(np.arange(len(data.texts)), chosen)
    truth = data.truth[chosen]
    if len(set(truth)) < 2:
        return {}
    found = {"BM25 of the rubric": data.bm25[rest]}
    found["naive Bayes"] = MultinomialNB().fit(data.plain[chosen], truth).predict_log_proba(
        data.plain[rest]
    ) @ [-1, 1]
    svm = LinearSVC(C=0.5, class_weight="balanced").fit(data.plain[chosen], truth)
    found["linear SVM"] = svm.decision_function(data.plain[rest])
    for name, rows in (("logistic regression", data.plain), ("tier 0", data.whole)):
        weights, bias = training._weigh(rows[chosen], truth.astype(float))
        found[name] = rows[rest] @ weights + bias
    return {name: quality(scores, data.truth[rest]) for name, scores in found.items()}


class Outcome(NamedTuple):
    """One screen from its first label to its certificate."""

    status: str
    """admitted, refused, or lacking."""
    labels: int
    removed: float
    """Share of all candidates that no model was asked about."""
    threshold: float
    """Share of the candidates that the threshold rejects, as in a later run of the same source."""
    rest: float
    """Recall among those that trained nothing, whom the certificate is about."""
    recall: float
    """Recall among all: who trained is known."""
    lacked: int


def end_to_end(data: Data, seed: int) -> list[Outcome]:
    """200 labels train, others certify, as `tamis distil` has it with one model after tier 0."""
    chosen = np.array(training.seeded(data.liking, 200, seed))
    truth = data.truth[chosen].astype(float)
    rest = np.setdiff1d(np.arange(len(data.texts)), chosen)
    weights, bias = training._weigh(data.whole[chosen], truth)
    scores = 1 / (1 + np.exp(-np.clip(data.whole[rest] @ weights + bias, -30, 30)))
    held_out = training._held_out(data.whole[chosen], truth)[truth == 1]
    return [
        certified(data, rest, scores, held_out, target, budget, seed)
        for target, budget in CELLS[data.name]
    ]


def certified(
    data: Data, rest: np.ndarray, scores: np.ndarray, held_out: np.ndarray, target: float,
    budget: int, seed: int,
) -> Outcome:  # fmt: skip
    prices, asked = (NEARLY_FREE, 4.0), data.truth[rest]
    plan = plan_calibration(
        len(rest), target=target, delta=DELTA, prevalence_hint=float(asked.mean()), budget=budget
    )
    needed = plan.labels_needed or len(rest)
    if plan.feasible is False:
        return Outcome("lacking", 0, 0.0, 0.0, 1.0, 1.0, needed - budget)
    miss = MISS * (1 - target)
    cost = expected_cost(scores[:, None], held_out[:, None], prices, miss, needed)
    if cost >= 1 - 2 * miss:
        return Outcome("refused", 0, 0.0, 0.0, 1.0, 1.0, 0)
    result = calibrate(
        scores, lambda ids: asked[ids], kind="recall", target=target, delta=DELTA, budget=budget,
        seed=seed, costs=prices, cleaning=False,
    )  # fmt: skip
    if result.status is not Status.CERTIFIED:
        return Outcome("lacking", result.labels_used, 0.0, 0.0, 1.0, 1.0, 0)
    kept = kept_by(scores[:, None], result.thresholds)
    if (~kept).mean() <= 2 * miss:
        return Outcome("refused", result.labels_used, 0.0, 0.0, 1.0, 1.0, 0)
    lost = int((asked[result.rejected] == 1).sum())
    return Outcome(
        "admitted",
        result.labels_used,
        float(result.by_proxy.sum() / len(data.texts)),
        float((~kept).mean()),
        1 - lost / asked.sum(),
        1 - lost / data.truth.sum(),
        0,
    )


def speed(data: Data) -> float:
    """Candidates a second by the tier itself, on one core."""
    chosen = training.seeded(data.liking, 200, 0)
    texts = [data.texts[i] for i in chosen]
    made = training.fit(texts, data.truth[chosen].astype(float).tolist(), data.texts)
    weights = unpack(made.body, made.version)
    began = time.process_time()
    for text in data.texts:
        weights.score(text)
    return len(data.texts) / (time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--only", choices=(*NAMES, "demo"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    figures: dict[str, Any] = {}
    print(machine())
    for name in (*NAMES, "demo"):
        if options.only not in (None, name):
            continue
        data = loaded(name)
        if data is None:
            print(f"\n{name}: left out, {DATA} is not there")
            continue
        print(f"\n{name}: {len(data.texts):,} texts, {data.truth.mean():.1%} positive\n")
        with Pool(2) as pool:
            rows = []
            for size in SIZES:
                tried = pool.map(partial(methods, data, size=size), range(5))
                for method in tried[0] or tried[1]:
                    mean = np.mean([one[method] for one in tried if one], axis=0)
                    rows.append((f"{method}, {size}", *map(float, mean)))
            table(("method, labels", "AUC", "WSS@95", "TNR@95"), rows)
            print()
            cells = []
            found = pool.map(partial(end_to_end, data), range(options.seeds))
            for place, (target, budget) in enumerate(CELLS[name]):
                cells.append(_cell(target, budget, [one[place] for one in found]))
            table(
                ("promise, labels allowed", "admitted", "refused", "lacking", "labels lacked",
                 "labels used", "removed unasked", "threshold rejects", "below promise", "lowest recall", "whole below"),
                cells,
            )  # fmt: skip
        rate = speed(data)
        print(f"\n{rate:,.0f} candidates a second on one core")
        figures[name] = {"quality": rows, "cells": cells, "per_second": round(rate)}
    finish("tier_zero", figures)


def _cell(target: float, budget: int, out: list[Outcome]) -> tuple[Any, ...]:
    there = [one for one in out if one.status == "admitted"]
    count = {
        word: sum(one.status == word for one in out) for word in ("admitted", "refused", "lacking")
    }
    lacked = [int(one.lacked) for one in out if one.lacked]
    return (
        f"{target}, {budget}",
        *count.values(),
        int(np.median(lacked)) if lacked else 0,
        int(np.median([one.labels for one in there])) if there else 0,
        float(np.mean([one.removed for one in there])) if there else 0.0,
        float(np.mean([one.threshold for one in there])) if there else 0.0,
        sum(bool(one.rest < target) for one in there),
        float(min((one.rest for one in there), default=1.0)),
        sum(bool(one.recall < target) for one in there),
    )


if __name__ == "__main__":
    main()
