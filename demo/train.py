"""Train the demo's three models from nothing, each on one core.

python -m demo.train --only small

What made training short: examples of one criterion and one sentence first; skill lists that grow
from one entry; a mark at the end of each sentence that settles a criterion, where the target is
yes or no although the record goes on; and one block more, after the marks, to gather the verdict.
"""

import argparse
import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional

from demo.export import export
from demo.model import Judge, Shape
from demo.records import ROLE
from demo.task import (
    CRITERION,
    KINDS,
    PROMPT_END,
    PROMPT_START,
    Difficulty,
    Kind,
    Record,
    Role,
    dice,
    draw_hard_truth,
    draw_record,
    draw_role,
    reply,
)

MODELS = Path(__file__).with_name("models")
SPECIAL = ("<pad>", "<s>", "</s>")
END_OF_REPLY = SPECIAL.index("</s>")
MATRIX_RATE, EMBEDDING_RATE = 0.006, 3e-3
VERDICT_WEIGHT, MARK_WEIGHT, FIELD_WEIGHT, LETTER_WEIGHT = 3.0, 1.0, 0.5, 0.05


@dataclass(frozen=True, slots=True)
class Recipe:
    """A model's sizes and how long it trains."""

    shape: Shape
    tokens: int
    """Read in training, padding included."""
    marked_after: int
    """Blocks after which the marks are read: the verdict needs a later one to gather them."""
    polish_tokens: int = 0
    """Read in a second, gentler course. The large model needs it: it takes fewer steps before."""

    def shortened(self, share: float) -> "Recipe":
        tokens, polish_tokens = int(self.tokens * share), int(self.polish_tokens * share)
        return replace(self, tokens=tokens, polish_tokens=polish_tokens)


RECIPES = {
    "small": Recipe(Shape(width=32, layers=3, heads=2, hidden=96), 11_000_000, 2),
    "medium": Recipe(Shape(width=64, layers=4, heads=4, hidden=192), 9_000_000, 3),
    "large": Recipe(Shape(width=160, layers=4, heads=5, hidden=448), 6_000_000, 3, 2_000_000),
}


@dataclass(frozen=True, slots=True)
class Stage:
    """What is trained on until a share of the tokens is spent."""

    until: float
    micro: float
    """Share of examples with one criterion and one sentence."""
    criteria: tuple[int, ...]
    """How many criteria a role may have, each as likely."""
    own_role: float
    """Share of the other examples that ask for the demo's own role."""
    difficulty: Difficulty


MICRO_KINDS: dict[Kind, float] = {
    "years": 1.5,
    "skill": 4.0,
    "place": 3.0,
    "pay": 1.0,
    "degree": 0.75,
    "certificate": 0.75,
}
"""How often micro examples are about a kind: the more words to know, the oftener."""

PLAIN = Difficulty(levels=(0.7, 0.3, 0.0), longest_list=1)
PAIRS = Difficulty(levels=(0.5, 0.4, 0.1), longest_list=2)
SHORT = Difficulty((0.4, 0.35, 0.25), longest_list=3, unasked=0.2, unsaid=0.06, asides=(0, 2))
MIDDLE = Difficulty((0.4, 0.35, 0.25), longest_list=4, unasked=0.4, unsaid=0.06, asides=(1, 5))
FULL = Difficulty(unsaid=0.06)
MICRO_VERDICTS = 0.1
"""Share of micro examples that go on to the verdict."""
STAGES = (
    Stage(0.08, 1.00, (1,), 0.0, PLAIN),
    Stage(0.16, 1.00, (1,), 0.0, PAIRS),
    Stage(0.25, 1.00, (1,), 0.0, SHORT),
    Stage(0.32, 0.70, (1, 2, 3), 0.0, SHORT),
    Stage(0.45, 0.40, (2, 3, 4, 5), 0.3, MIDDLE),
    Stage(1.01, 0.20, (1, 2, 3, 4, 5, 6), 0.6, FULL),
)


@dataclass(frozen=True, slots=True)
class Course:
    """Stages, and how fast to learn in them."""

    stages: tuple[Stage, ...]
    batch_tokens: int
    rate: float
    """Share of the full rate to start with."""
    constant_until: float
    """Share of the tokens after which the rate falls."""

    def rate_share(self, step: int, spent: float) -> float:
        """100 steps of warm-up, then constant, then down in a line to 2 %."""
        fall = max(0.02, (1 - spent) / (1 - self.constant_until))
        return self.rate * min(1.0, (step + 1) / 100, fall)


LEARNING = Course(STAGES, batch_tokens=3_000, rate=1.0, constant_until=0.55)
POLISHING = Course(
    (Stage(1.01, 0.1, (1, 2, 3, 4, 5, 6), 0.8, Difficulty()),),
    batch_tokens=2_000,
    rate=0.5,
    constant_until=0.1,
)


def tokenizer() -> Tokenizer:
    """Byte-level BPE over the task's own words, split the way llama.cpp calls gpt-2."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(_sample_text(dice(11), 20_000), trainer)
    return made


def _sample_text(random: Random, count: int) -> Iterator[str]:
    for _ in range(count):
        role = draw_role(random, random.randint(1, len(KINDS)), FULL)
        record = draw_record(random, role, draw_hard_truth(random, list(role.needs)), FULL)
        start = PROMPT_START.format(rubric=role.rubric)
        yield from (start, record.text, PROMPT_END, reply(record))


@dataclass(frozen=True, slots=True)
class Target:
    """What should follow one position, and how much that matters."""

    position: int
    token: int
    weight: float
    name: str
    """The criterion or `verdict` that the token answers; empty for the JSON around it."""

    @property
    def is_mark(self) -> bool:
        return self.name in KINDS


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt with its reply, or a sentence alone."""

    tokens: list[int]
    targets: list[Target]


class Reader:
    """Turns roles and records into examples, each part of a prompt tokenized apart."""

    def __init__(self, words: Tokenizer) -> None:
        self.words = words
        (no,), (yes,) = self.tokens("no"), self.tokens("yes")
        self.answer = {False: no, True: yes}
        self.prompt_end = self.tokens(PROMPT_END)

    def tokens(self, text: str) -> list[int]:
        ids: list[int] = self.words.encode(text).ids
        return ids

    def prompt(self, role: Role, record: Record) -> list[int]:
        start = self.tokens(PROMPT_START.format(rubric=role.rubric))
        return start + self.tokens(record.text) + self.prompt_end

    def full(self, role: Role, record: Record) -> Example:
        start = self.tokens(PROMPT_START.format(rubric=role.rubric))
        read = self.words.encode(record.text)
        ends = {end: len(start) + index for index, (_, end) in enumerate(read.offsets)}
        marks = [
            Target(ends[end], self.answer[record.met[kind]], MARK_WEIGHT, kind)
            for kind, end in record.settled.items()
        ]
        prompt = start + read.ids + self.prompt_end
        answered = [*self.tokens(reply(record)), END_OF_REPLY]
        return Example(prompt + answered, marks + self._reply_targets(len(prompt), answered))

    def _reply_targets(self, start: int, answered: Sequence[int]) -> list[Target]:
        verdict = Target(start - 1, answered[0], VERDICT_WEIGHT, "verdict")
        rest = enumerate(answered[1:], start)
        yes_or_no = self.answer.values()
        return [verdict] + [
            Target(position, token, FIELD_WEIGHT if token in yes_or_no else LETTER_WEIGHT, "")
            for position, token in rest
        ]

    def micro(self, random: Random, difficulty: Difficulty) -> Example:
        (kind,) = random.choices(tuple(MICRO_KINDS), tuple(MICRO_KINDS.values()))
        criterion = CRITERION[kind].draw(random, difficulty)
        met = random.random() < 0.5
        sentence = criterion.sentence(random, met, difficulty.level(random), difficulty)
        tokens = self.tokens(PROMPT_START.format(rubric=f"Needs: {criterion.text}."))
        tokens += self.tokens(sentence)
        targets = [Target(len(tokens) - 1, self.answer[met], MARK_WEIGHT, kind)]
        if random.random() < MICRO_VERDICTS:
            tokens += self.prompt_end
            targets.append(Target(len(tokens) - 1, self.answer[met], VERDICT_WEIGHT, "verdict"))
        return Example(tokens, targets)


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples padded to one length.

    tokens: (examples, length).
    marks, at: where targets stand in the flattened tokens, marks apart from the others.
    wanted, weights, names: of the marks, then of the others.
    """

    tokens: Tensor
    marks: Tensor
    at: Tensor
    wanted: Tensor
    weights: Tensor
    names: list[str]


class Stream:
    """Fresh examples for ever, in batches of similar length."""

    def __init__(self, reader: Reader, course: Course, seed: int) -> None:
        self.reader = reader
        self.course = course
        self.random = dice(seed)
        self.ready: list[list[Example]] = []

    def next(self, spent: float) -> Batch:
        """spent: share of the tokens already used, in [0, 1]; it chooses the stage."""
        if not self.ready:
            self._fill(next(stage for stage in self.course.stages if spent < stage.until))
        return _batch(self.ready.pop())

    def _fill(self, stage: Stage) -> None:
        examples: list[Example] = []
        drawn = 0
        while drawn < 40 * self.course.batch_tokens:
            examples.append(self._draw(stage))
            drawn += len(examples[-1].tokens)
        examples.sort(key=lambda example: len(example.tokens))
        self.ready = list(_grouped(examples, self.course.batch_tokens))
        self.random.shuffle(self.ready)

    def _draw(self, stage: Stage) -> Example:
        random, difficulty = self.random, stage.difficulty
        if random.random() < stage.micro:
            return self.reader.micro(random, difficulty)
        if random.random() < stage.own_role:
            role = ROLE
        else:
            role = draw_role(random, random.choice(stage.criteria), difficulty)
        truth = draw_hard_truth(random, list(role.needs))
        return self.reader.full(role, draw_record(random, role, truth, difficulty))


def _grouped(examples: list[Example], batch_tokens: int) -> Iterator[list[Example]]:
    """Consecutive examples whose padded size stays within a batch; expects rising lengths."""
    group: list[Example] = []
    for example in examples:
        if group and len(example.tokens) * (len(group) + 1) > batch_tokens:
            yield group
            group = []
        group.append(example)
    yield group


def _batch(examples: list[Example]) -> Batch:
    length = max(len(example.tokens) for example in examples)
    tokens = torch.zeros(len(examples), length, dtype=torch.long)
    for row, example in enumerate(examples):
        tokens[row, : len(example.tokens)] = torch.tensor(example.tokens)
    targets = [(row, t) for row, example in enumerate(examples) for t in example.targets]
    targets.sort(key=lambda target: not target[1].is_mark)
    places = [row * length + target.position for row, target in targets]
    marks = sum(target.is_mark for _, target in targets)
    return Batch(
        tokens,
        torch.tensor(places[:marks], dtype=torch.long),
        torch.tensor(places[marks:], dtype=torch.long),
        torch.tensor([target.token for _, target in targets]),
        torch.tensor([target.weight for _, target in targets]),
        [target.name for _, target in targets],
    )


class Muon:
    """Momentum whose step for each matrix is made orthogonal.

    Jordan et al. (2024), kellerjordan.github.io/posts/muon. Not torch.optim.Muon: that one
    orthogonalizes in bfloat16, 60 times slower than float32 on a CPU without such instructions.
    """

    def __init__(self, matrices: list[torch.nn.Parameter], rate: float) -> None:
        shapes = sorted({tuple(matrix.shape) for matrix in matrices})
        self.groups = [[m for m in matrices if tuple(m.shape) == shape] for shape in shapes]
        self.momenta = [torch.zeros(len(group), *group[0].shape) for group in self.groups]
        self.rate = rate

    @torch.no_grad()
    def step(self, share: float) -> None:
        """share: of the full rate, in [0, 1]."""
        rate = self.rate * share
        for group, momentum in zip(self.groups, self.momenta, strict=True):
            gradient = torch.stack([m.grad for m in group if m.grad is not None])
            momentum.lerp_(gradient, 0.05)
            steps = orthogonal(gradient.lerp(momentum, 0.95))
            stretch = max(1.0, gradient.shape[1] / gradient.shape[2]) ** 0.5
            for matrix, step in zip(group, steps, strict=True):
                matrix.mul_(1 - 0.01 * rate).sub_(step, alpha=rate * stretch)
                matrix.grad = None


def orthogonal(matrices: Tensor) -> Tensor:
    """(n, rows, columns), each with its singular values brought near 1 by Newton-Schulz steps."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    result: Tensor = x.mT if tall else x
    return result


@dataclass
class Tally:
    """Running accuracy by criterion, on examples not yet learned from."""

    seen: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)

    def add(self, batch: Batch, logits: Tensor, answer: dict[bool, int]) -> None:
        said_yes = logits[:, answer[True]] > logits[:, answer[False]]
        correct = (said_yes == (batch.wanted == answer[True])).tolist()
        for name, is_right in zip(batch.names, correct, strict=True):
            self.seen[name] += 1
            self.right[name] += is_right

    def flush(self) -> str:
        names = [name for name in sorted(self.seen) if name]
        line = " ".join(f"{name} {self.right[name] / self.seen[name]:.3f}" for name in names)
        self.seen.clear()
        self.right.clear()
        return line


def train(recipe: Recipe, words: Tokenizer, seed: int = 1234) -> Judge:
    """A model of that shape; the same seed gives the same one, up to the CPU's rounding."""
    torch.manual_seed(seed)
    judge = Judge(replace(recipe.shape, vocabulary=words.get_vocab_size()))
    reader = Reader(words)
    follow(LEARNING, judge, reader, recipe.tokens, recipe.marked_after, seed)
    if recipe.polish_tokens:
        follow(POLISHING, judge, reader, recipe.polish_tokens, recipe.marked_after, seed + 1)
    return judge


def follow(
    course: Course, judge: Judge, reader: Reader, tokens: int, marked_after: int, seed: int
) -> None:
    """Train a judge in place; prints the running accuracy by criterion."""
    named = dict(judge.named_parameters())
    matrices = [p for name, p in named.items() if p.dim() == 2 and "embd" not in name]
    others = [p for name, p in named.items() if p.dim() != 2 or "embd" in name]
    muon = Muon(matrices, MATRIX_RATE)
    adam = torch.optim.AdamW(others, lr=EMBEDDING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    stream, tally = Stream(reader, course, seed), Tally()
    read = step = 0
    report_at = 0.0
    while read < tokens:
        spent = read / tokens
        batch = stream.next(spent)
        logits = judge(batch.tokens, batch.marks, batch.at, marked_after)
        losses = functional.cross_entropy(logits, batch.wanted, reduction="none")
        loss: Tensor = (losses * batch.weights).sum() / batch.weights.sum()
        torch.autograd.backward(loss)
        tally.add(batch, logits, reader.answer)
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        share = course.rate_share(step, spent)
        muon.step(share)
        adam.param_groups[0]["lr"] = EMBEDDING_RATE * share
        adam.step()
        adam.zero_grad()
        read, step = read + batch.tokens.numel(), step + 1
        if spent >= report_at:
            print(f"{spent:4.0%} {time.process_time():6.0f} s  {tally.flush()}", flush=True)
            report_at += 0.02


def write_checksums(folder: Path) -> None:
    """`SHA256SUMS` over every model of the folder, readable by sha256sum --check."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(folder.glob("*.gguf"))
    ]
    (folder / "SHA256SUMS").write_text("".join(lines))


def main() -> None:
    """Train, export, and renew the checksums after each model."""
    parser = argparse.ArgumentParser(
        prog="python -m demo.train",
        description="Train the demo's models and write them as GGUF.",
        epilog="example: python -m demo.train --only small --share 0.1 --output trial",
    )
    parser.add_argument("--only", choices=tuple(RECIPES), help="one model (default: all three)")
    parser.add_argument(
        "--share", type=float, default=1.0, help="of the full training; below 1 for a trial"
    )
    parser.add_argument("--output", type=Path, default=MODELS, help="folder (default: demo/models)")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    chosen.output.mkdir(parents=True, exist_ok=True)
    words = tokenizer()
    for size in [chosen.only] if chosen.only else list(RECIPES):
        recipe = RECIPES[size].shortened(chosen.share)
        export(train(recipe, words), words, chosen.output / f"applicants-{size}.gguf")
        write_checksums(chosen.output)


if __name__ == "__main__":
    main()
