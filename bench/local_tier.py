"""Candidates per CPU second: the llama.cpp tier against llama-cpp-python's own interface.

python -m bench.local_tier [--rounds 3] [--model FILE] [--gpu]

A random model of about 100 M parameters is made on the spot. All variants take the same candidates
in turn, round after round, in one process with one thread, so that other load hits all alike.
"""

import argparse
import ctypes
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import llama_cpp
import llama_cpp.llama_cpp as C
import numpy as np

from bench.common import finish, machine, table
from tests.gguf_models import SHAPES, write_model
from tiers.backends.llama.engine import Log, Prepared
from tiers.backends.llama.tier import Llama
from tiers.screenfile.tiers import LlamaTier
from tiers.tier import Job
from tiers.types import Candidate

WORDS = [
    "value",
    "returns",
    "object",
    "module",
    "import",
    "error",
    "type",
    "list",
    "string",
    "number",
    "raise",
    "test",
    "class",
    "self",
]
LAYOUT = "{{ rubric }}\n{{ candidate }}\nanswer:"


class Load(NamedTuple):
    """Tokens of the shared prompt, of a candidate, and of a written reply."""

    shared: int = 400
    own: int = 100
    written: int = 50


class Variant(NamedTuple):
    """One way to get a verdict; `work` handles some candidates and returns how many."""

    name: str
    work: Callable[[], float]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--model", type=Path, help="a GGUF file instead of the random one")
    arguments.add_argument("--gpu", action="store_true", help="all layers on the GPU; wall time")
    arguments.add_argument("--shape", default="llama-100m", help="of the random model")
    arguments.add_argument("--tokens", default="400,100,50", help="shared, own and written")
    options = arguments.parse_args()
    load = Load(*map(int, options.tokens.split(",")))
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or random_model(Path(folder), options.shape)
        measure(model, load, options.rounds, gpu=options.gpu)


def random_model(folder: Path, shape: str) -> Path:
    """Random weights, quantized as people use them."""
    Log()  # hundreds of lines otherwise
    wide = write_model(folder / "wide.gguf", SHAPES[shape])
    small = folder / f"{shape}.gguf"
    parameters = C.llama_model_quantize_default_params()
    parameters.ftype = C.LLAMA_FTYPE_MOSTLY_Q4_K_M
    code = C.llama_model_quantize(str(wide).encode(), str(small).encode(), ctypes.byref(parameters))
    if code:
        raise RuntimeError(f"quantizing failed with {code}")
    return small


def measure(model: Path, load: Load, rounds: int, *, gpu: bool) -> None:
    """Time all variants in turn and print how they compare."""
    layers = -1 if gpu else 0
    config = {"name": "bench", "backend": "llama", "model": str(model), "threads": 1}
    settings = config | {"prompt": LAYOUT, "n_gpu_layers": layers, "chat": False}
    tier = Llama(Job(_rubric(model, load), LlamaTier.model_validate(settings)))
    texts, prompts = zip(*_candidates(tier, load), strict=True)
    clock = time.perf_counter if gpu else time.process_time
    variants = [
        Variant(
            "completion, no prefix reuse", _completion(model, prompts, layers, load, reset=True)
        ),
        Variant("completion, its own prefix reuse", _completion(model, prompts, layers, load)),
        Variant(
            "one position, high-level logprobs", _high_level_position(model, prompts, layers, load)
        ),
        Variant("tamis", _tamis(tier, texts)),
        Variant("raw llama_decode, unique tokens", _raw(tier, load)),
    ]
    seconds: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for number in range(rounds + 1):
        for variant in variants:
            began = clock()
            done = variant.work()
            if number:  # the first round warms up
                seconds[variant.name].append((clock() - began) / done)
    _report(seconds, tier, load, gpu=gpu)
    tier.close()


def _report(seconds: dict[str, list[float]], tier: Llama, load: Load, *, gpu: bool) -> None:
    ours = seconds["tamis"]
    unit = "wall" if gpu else "CPU"
    rows = [
        (name, 1e3 * statistics.median(each), 1 / statistics.median(each),
         statistics.median(other / own for other, own in zip(each, ours, strict=True)))
        for name, each in seconds.items()
    ]  # fmt: skip
    print(machine())
    table(["variant", f"{unit} ms/candidate", f"candidates/{unit} s", "tamis is faster by"], rows)
    ratio = tier.rates["prefill"] / tier.rates["decode"]
    reuse, naive = (
        1 + load.written / load.own * ratio,
        1 + load.shared / load.own + load.written / load.own * ratio,
    )
    print(
        f"R = prefill:decode = {tier.rates['prefill']:,.0f}:{tier.rates['decode']:,.0f} = {ratio:.1f};"
        f" the formula predicts {naive:.1f} : {reuse:.1f} : 1"
    )
    finish(
        "local_tier",
        {"ms": {row[0]: row[1] for row in rows}, "faster": {r[0]: r[3] for r in rows}, "R": ratio},
    )


def _rubric(model: Path, load: Load) -> str:
    """Text of as many tokens as the bench shares."""
    llm = llama_cpp.Llama(str(model), vocab_only=True, verbose=False)
    rng = np.random.default_rng(1)
    text = " ".join(rng.choice(WORDS, 2 * load.shared))
    tokens = llm.tokenize(text.encode(), add_bos=False)[: load.shared - 4]
    return str(llm.detokenize(tokens).decode())


def _candidates(tier: Llama, load: Load) -> list[tuple[str, list[int]]]:
    """Texts of the size the bench asks for, and each with its whole prompt in tokens."""
    rng = np.random.default_rng(2)
    model, tail = tier._model, tier._tail
    found = []
    for _ in range(64):
        tokens = model.tokenize(" ".join(rng.choice(WORDS, 2 * load.own)), special=False)
        tokens = tokens[: load.own - len(tail)]
        text = b"".join(model.piece(int(token)) for token in tokens).decode()
        found.append((text, [int(t) for t in (*tier.head, *tokens, *tail)]))
    return found


def _completion(
    model: Path, prompts: Sequence[list[int]], layers: int, load: Load, *, reset: bool = False
) -> Callable[[], float]:
    llm = llama_cpp.Llama(
        str(model),
        n_ctx=sum(load) + 64,
        n_threads=1,
        n_threads_batch=1,
        verbose=False,
        n_gpu_layers=layers,
        flash_attn=True,
    )
    turn = iter(range(10**9))

    def work() -> float:
        for _ in range(2):
            if reset:
                llm.reset()
            prompt = prompts[next(turn) % len(prompts)]
            llm.create_completion(
                prompt, max_tokens=load.written, temperature=0.0, logit_bias={_end(llm): -1e9}
            )
        return 2

    return work


def _end(llm: Any) -> int:
    """The end token, forbidden so that every variant writes as much as it should."""
    return int(llm.token_eos())


def _high_level_position(
    model: Path, prompts: Sequence[list[int]], layers: int, load: Load
) -> Callable[[], float]:
    llm = llama_cpp.Llama(
        str(model),
        n_ctx=sum(load) + 64,
        n_threads=1,
        n_threads_batch=1,
        logits_all=True,
        verbose=False,
        n_gpu_layers=layers,
        flash_attn=True,
    )
    turn = iter(range(10**9))

    def work() -> float:
        for _ in range(2):
            prompt = prompts[next(turn) % len(prompts)]
            llm.create_completion(prompt, max_tokens=1, temperature=0.0, logprobs=10)
        return 2

    return work


def _tamis(tier: Llama, texts: Sequence[str]) -> Callable[[], float]:
    def work() -> float:
        for _ in tier.judge(Candidate(i, text) for i, text in enumerate(texts)):
            pass
        return len(texts)

    return work


def _raw(tier: Llama, load: Load) -> Callable[[], float]:
    """The kernel's own pace: full batches behind the shared prompt, one answer each, no Python."""
    engine = tier._engine
    tokens = np.resize(tier.head, engine._batch_size).astype(np.int32)

    def work() -> float:
        calls = 16
        for _ in range(calls):
            candidate = Prepared(0, tokens, None)
            engine.fork(candidate)
            engine.fill(candidate)
            engine.decode()
            engine.logits(len(tokens) - 1)
            engine.drop(candidate)
        return calls * len(tokens) / load.own

    return work


if __name__ == "__main__":
    main()
