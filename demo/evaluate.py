"""Measure the demo's models as they ship: through llama.cpp, on draws that no model was trained on.

python -m demo.evaluate
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from llama_cpp import Llama, llama_model_n_params
from numpy.typing import NDArray

from demo.records import ROLE, population
from demo.task import (
    KINDS,
    PROMPT_END,
    PROMPT_START,
    Difficulty,
    Record,
    Role,
    dice,
    draw_hard_truth,
    draw_record,
    draw_role,
    reply,
)

Scores = NDArray[np.float64]
Mask = NDArray[np.bool_]

MODELS = Path(__file__).with_name("models")
SIZES = ("small", "medium", "large")
MISSED = 0.005
"""Share of all fitting applicants that a tier below the last may reject."""
PRECISION = 0.995
"""Of what a tier below the last accepts, the share that must fit."""
LEAST_ACCEPTED = 50
"""Calibration applicants without which an accepting threshold is not believed."""
CALIBRATION_SEED, TEST_SEED, HARD_SEED, ANY_ROLE_SEED = 2024, 4048, 8096, 16192


class Scorer:
    """One model on one thread; the rubric's cache is kept from one applicant to the next."""

    def __init__(self, path: Path) -> None:
        self.model = Llama(
            str(path), n_ctx=512, n_batch=512, n_threads=1, n_threads_batch=1, verbose=False
        )
        (self.yes,), (self.no,) = self.tokens("yes"), self.tokens("no")
        self.end = self.tokens(PROMPT_END)
        self.rubric = ""
        self.start: list[int] = []

    def tokens(self, text: str) -> list[int]:
        return list(self.model.tokenize(text.encode(), add_bos=False, special=False))

    def score(self, role: Role, record: Record) -> float:
        """P(yes) for the verdict."""
        if role.rubric != self.rubric:
            self.rubric = role.rubric
            self.start = self.tokens(PROMPT_START.format(rubric=role.rubric))
            self.model.reset()
            self.model.eval(self.start)
        self.model.n_tokens = len(self.start)
        self.model.eval(self.tokens(record.text) + self.end)
        logits = self._logits()
        return float(1 / (1 + np.exp(logits[self.no] - logits[self.yes])))

    def reply(self, role: Role, record: Record) -> str:
        """The likeliest reply, word by word, without a grammar."""
        self.score(role, record)
        words: list[int] = []
        while len(words) < 50:
            word = int(self._logits().argmax())
            if word == self.model.token_eos():
                break
            words.append(word)
            self.model.eval([word])
        return str(self.model.detokenize(words), "utf-8")

    def parameters(self) -> int:
        return int(llama_model_n_params(self.model.model))

    def _logits(self) -> NDArray[np.float32]:
        return np.ctypeslib.as_array(self.model._ctx.get_logits(), (self.model.n_vocab(),))


@dataclass(frozen=True, slots=True)
class Case:
    """One question to a model, with its answer."""

    role: Role
    record: Record


def hard_cases(count: int, seed: int, role: Role | None = None) -> list[Case]:
    """Half fit, and most others lack one thing; without a role, each case has a role of its own."""
    random = dice(seed)
    cases = []
    for _ in range(count):
        asked = role or draw_role(random, random.randint(1, len(KINDS)), Difficulty())
        truth = draw_hard_truth(random, list(asked.needs))
        cases.append(Case(asked, draw_record(random, asked, truth, Difficulty())))
    return cases


def population_cases(count: int, seed: int) -> list[Case]:
    """The demo's own applicants, a tenth of whom fit."""
    return [Case(ROLE, record) for record in islice(population(seed), count)]


def truth(cases: Sequence[Case]) -> Mask:
    """(n,) who fits."""
    return np.array([case.record.fits for case in cases])


def scored(scorer: Scorer, cases: Sequence[Case]) -> tuple[Scores, float]:
    """(n,) scores, and CPU seconds a case."""
    began = time.process_time()
    scores = np.array([scorer.score(case.role, case.record) for case in cases])
    return scores, (time.process_time() - began) / len(cases)


def area_under_curve(scores: Scores, fits: Mask) -> float:
    """Chance that a fitting applicant outscores another one; ties count half."""
    others = np.sort(scores[~fits])
    below = np.searchsorted(others, scores[fits], "left")
    not_above = np.searchsorted(others, scores[fits], "right")
    return float((below + not_above).mean() / 2 / len(others))


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What lies between them goes on to the next tier."""

    reject_below: float
    accept_above: float
    """Above 1 where the tier never accepts."""


def screening_thresholds(scores: Scores, fits: Mask, reached: Mask) -> Thresholds:
    """Thresholds of a tier below the last, from labelled scores.

    Args:
        scores: (n,) the tier's scores of a calibration draw.
        fits: (n,) the truth.
        reached: (n,) who was left for this tier.
    """
    fitting = np.sort(scores[reached & fits])
    missed = int(MISSED * fits.sum())
    order = np.argsort(-scores[reached])
    precision = np.cumsum(fits[reached][order]) / np.arange(1, reached.sum() + 1)
    enough = np.flatnonzero(precision[LEAST_ACCEPTED - 1 :] >= PRECISION) + LEAST_ACCEPTED - 1
    accept_above = scores[reached][order[enough[-1]]] if len(enough) else 2.0
    return Thresholds(_rounded_down(fitting[missed]), float(np.ceil(accept_above * 1e4) / 1e4))


def _rounded_down(score: float) -> float:
    """Three significant digits: a threshold that is typed into a file, and never too high."""
    unit = 10.0 ** (np.floor(np.log10(score)) - 2)
    return float(f"{np.floor(score / unit) * unit:.3g}")


def even_odds(fits: Mask) -> float:
    """The score that means an even chance here, from models that saw as many fit as not.

    By the share of the whole population that fits: those who reach the last tier were chosen by
    scores that agree with its own, so their share would count the same evidence twice.
    """
    return round(1 - float(fits.mean()), 2)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many reached each tier, and (n,) who was accepted at any."""

    reached: list[int]
    accepted: Mask


def decide(scores: Sequence[Scores], thresholds: Sequence[Thresholds], last: float) -> Outcome:
    """The cascade on stored scores, one (n,) array a tier from cheap to dear."""
    left = np.ones(len(scores[0]), bool)
    accepted = np.zeros(len(scores[0]), bool)
    reached = []
    for tier, limits in zip(scores, [*thresholds, Thresholds(last, last)], strict=True):
        reached.append(int(left.sum()))
        accepted |= left & (tier > limits.accept_above)
        left = left & (tier >= limits.reject_below) & (tier <= limits.accept_above)
    return Outcome(reached, accepted)


def calibrated(scorers: Sequence[Scorer], cases: Sequence[Case]) -> tuple[list[Thresholds], float]:
    """Thresholds of all tiers but the last, then the last one's; each tier reads who is left."""
    fits = truth(cases)
    left = np.ones(len(cases), bool)
    thresholds = []
    for scorer in scorers[:-1]:
        scores = np.zeros(len(cases))
        scores[left], _ = scored(
            scorer, [case for case, stays in zip(cases, left, strict=True) if stays]
        )
        limits = screening_thresholds(scores, fits, left)
        thresholds.append(limits)
        left = left & (scores >= limits.reject_below) & (scores <= limits.accept_above)
    return thresholds, even_odds(fits)


def recall_and_precision(accepted: Mask, fits: Mask) -> str:
    """Two cells of a table."""
    found = (accepted & fits).sum()
    return f"{found / fits.sum():.4f} | {found / accepted.sum():.4f}"


QUALITY_HEADER = """\
| model | parameters | MB | AUC, any role | AUC | accuracy | plain | middling | tricky | replies |
|---|---|---|---|---|---|---|---|---|---|"""
BANDS = ((0, 2), (3, 4), (5, 8))
"""Summed levels of four criteria: plain, middling, tricky."""


def quality_row(size: str, path: Path, scorer: Scorer, count: int) -> str:
    """Parameters, size, then AUC and accuracy on hard cases, by level, and right replies."""
    any_role = hard_cases(count, ANY_ROLE_SEED)
    hard = hard_cases(count, HARD_SEED, ROLE)
    any_scores, _ = scored(scorer, any_role)
    scores, _ = scored(scorer, hard)
    fits, right = truth(hard), (scores > 0.5) == truth(hard)
    levels = np.array([case.record.difficulty for case in hard])
    by_level = " | ".join(f"{right[(levels >= a) & (levels <= b)].mean():.3f}" for a, b in BANDS)
    replies = [scorer.reply(c.role, c.record) == reply(c.record) for c in hard[: count // 4]]
    return (
        f"| {size} | {scorer.parameters():,} | {path.stat().st_size / 1e6:.2f} "
        f"| {area_under_curve(any_scores, truth(any_role)):.4f} "
        f"| {area_under_curve(scores, fits):.4f} | {right.mean():.4f} | {by_level} "
        f"| {np.mean(replies):.1%} |"
    )


def report(folder: Path, hard_count: int, population_count: int) -> None:
    """Print both tables."""
    paths = {size: folder / f"applicants-{size}.gguf" for size in SIZES}
    scorers = {size: Scorer(path) for size, path in paths.items()}
    print(f"Hard cases: {hard_count:,}, half fit.\n")
    print(QUALITY_HEADER)
    for size in SIZES:
        print(quality_row(size, paths[size], scorers[size], hard_count), flush=True)
    _report_cascade(scorers, population_count)


def _report_cascade(scorers: dict[str, Scorer], count: int) -> None:
    calibration = population_cases(count, CALIBRATION_SEED)
    test = population_cases(count, TEST_SEED)
    thresholds, last = calibrated(list(scorers.values()), calibration)
    measured = [scored(scorer, test) for scorer in scorers.values()]
    scores, seconds = [s for s, _ in measured], [cost for _, cost in measured]
    fits = truth(test)
    outcome = decide(scores, thresholds, last)
    print(f"\nThe demo's applicants: {count:,} to calibrate on, {count:,} others to measure on.\n")
    print("| tier | AUC | applicants a CPU second | reject below | accept above | reached |")
    print("|---|---|---|---|---|---|")
    for size, tier, cost, limits, reached in zip(
        scorers,
        scores,
        seconds,
        [*thresholds, Thresholds(last, last)],
        outcome.reached,
        strict=True,
    ):
        print(
            f"| {size} | {area_under_curve(tier, fits):.4f} | {1 / cost:,.0f} "
            f"| {limits.reject_below:g} | {limits.accept_above:g} | {reached:,} |"
        )
    spent = float(np.dot(outcome.reached, seconds))
    print("\n| who decides | recall | precision | CPU seconds | calls of large |")
    print("|---|---|---|---|---|")
    print(
        f"| cascade | {recall_and_precision(outcome.accepted, fits)} "
        f"| {spent:.1f} | {outcome.reached[-1]:,} |"
    )
    for size, tier, cost in zip(scorers, scores, seconds, strict=True):
        calls = count if size == SIZES[-1] else 0
        row = recall_and_precision(tier > last, fits)
        print(f"| {size} alone | {row} | {cost * count:.1f} | {calls:,} |")


def main() -> None:
    """Measure the three models of a folder."""
    parser = argparse.ArgumentParser(
        prog="python -m demo.evaluate",
        description="Measure the demo's models through llama.cpp; find the thresholds.",
        epilog="example: python -m demo.evaluate --hard 500 --population 2000",
    )
    parser.add_argument("--models", type=Path, default=MODELS, help="folder (default: demo/models)")
    parser.add_argument("--hard", type=int, default=2_000, help="hard cases (default: 2000)")
    parser.add_argument(
        "--population", type=int, default=20_000, help="applicants in each draw (default: 20000)"
    )
    chosen = parser.parse_args()
    report(chosen.models, chosen.hard, chosen.population)


if __name__ == "__main__":
    main()
