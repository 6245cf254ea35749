"""Candidates per CPU second: the llama.cpp tier against llama-cpp-python's own interface.

python -m bench.local_tier [--rounds 3] [--model FILE] [--gpu]

A random model of about 100 M parameters is made on the spot. All variants take the same candidates
in turn, round after round, in one process with one thread, so that other load hits all alike.
With --gpu all layers are on the card, time is wall time, and the pace is held against what the
card does in a product of two large matrices.
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
MOST_WORDS = 100_000
"""Vocabulary up to which high-level logprobs are measured: they keep all words at all tokens."""
LAYOUT = "{{ rubric }}\n{{ candidate }}\nanswer:"


class Load(NamedTuple):
    """Tokens of the shared prompt, of a candidate, and of a written reply."""

    shared: int = 400
    own: int = 100
    written: int = 50


class Place(NamedTuple):
    """Where the model is evaluated, and how many tokens a call takes; None for the tier's own."""

    gpu: bool
    batch_tokens: int | None = None

    @property
    def llama(self) -> dict[str, Any]:
        """Settings of llama-cpp-python's own interface."""
        if self.gpu:
            size = self.batch_tokens or 2048  # its 512 would leave the card idle
            return {"n_gpu_layers": -1, "n_batch": size, "n_ubatch": size}
        return {"n_threads": 1, "n_threads_batch": 1}

    @property
    def tier(self) -> dict[str, Any]:
        """Settings of the tier."""
        way = {"n_gpu_layers": -1} if self.gpu else {"threads": 1}
        return way | {"batch_tokens": self.batch_tokens}


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
    arguments.add_argument("--batch-tokens", type=int, help="of one call")
    arguments.add_argument("--only", default="", help="how the variants wanted begin: tamis,raw")
    options = arguments.parse_args()
    load = Load(*map(int, options.tokens.split(",")))
    only = (*options.only.split(","), "tamis") if options.only else ("",)
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or random_model(Path(folder), options.shape)
        measure(model, load, options.rounds, Place(options.gpu, options.batch_tokens), only)


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


def measure(model: Path, load: Load, rounds: int, place: Place, only: tuple[str, ...]) -> None:
    """Time all variants in turn and print how they compare."""
    config = {"name": "bench", "backend": "llama", "model": str(model), "prompt": LAYOUT}
    settings = config | {"chat": False} | place.tier
    words = llama_cpp.Llama(str(model), vocab_only=True, verbose=False)
    rubric = text_of(words, load.shared - 4, np.random.default_rng(1))
    tier = Llama(Job(rubric, LlamaTier.model_validate(settings)))
    texts, prompts = zip(*_candidates(tier, load), strict=True)
    clock = time.perf_counter if place.gpu else time.process_time
    ways: dict[str, Callable[[], Callable[[], float]]] = {
        "completion, no prefix reuse": lambda: _completion(model, prompts, place, load, reset=True),
        "completion, its own prefix reuse": lambda: _completion(model, prompts, place, load),
        "one position, high-level logprobs": lambda: _high_level(model, prompts, place, load),
        "tamis": lambda: _tamis(tier, texts),
        "raw llama_decode, unique tokens": lambda: _raw(tier, load),
    }
    if tier._model.size > MOST_WORDS:
        del ways["one position, high-level logprobs"]
    variants = [Variant(name, way()) for name, way in ways.items() if name.startswith(only)]
    seconds: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for number in range(rounds + 1):
        for variant in variants:
            began = clock()
            done = variant.work()
            if number:  # the first round warms up
                seconds[variant.name].append((clock() - began) / done)
    _report(seconds, tier, load, place)
    tier.close()


def _report(seconds: dict[str, list[float]], tier: Llama, load: Load, place: Place) -> None:
    ours = seconds["tamis"]
    unit = "wall" if place.gpu else "CPU"
    rows = [
        (name, 1e3 * statistics.median(each), 1 / statistics.median(each),
         statistics.median(other / own for other, own in zip(each, ours, strict=True)))
        for name, each in seconds.items()
    ]  # fmt: skip
    print(machine())
    table(["variant", f"{unit} ms/candidate", f"candidates/{unit} s", "tamis is faster by"], rows)
    # The engine's own figure, but for a GPU, whose first calls are no measure of the others.
    rates = tier._engine.measure() if place.gpu else tier.rates
    prefill = load.own / statistics.median(ours) if place.gpu else rates["prefill"]
    ratio = prefill / rates["decode"]
    reuse, naive = (
        1 + load.written / load.own * ratio,
        1 + load.shared / load.own + load.written / load.own * ratio,
    )
    print(
        f"R = prefill:decode = {prefill:,.0f}:{rates['decode']:,.0f} = {ratio:.1f};"
        f" the formula predicts {naive:.1f} : {reuse:.1f} : 1"
    )
    figures = {"ms": {row[0]: row[1] for row in rows}, "faster": {r[0]: r[3] for r in rows}}
    rest = {"R": ratio, "prefill": prefill, "decode": rates["decode"]}
    about = {"load": load._asdict(), "batch_tokens": tier._engine._batch_size}
    finish("local_tier", {**about, **figures, **rest, **_work_done(tier, prefill, place)})


def _work_done(tier: Llama, prefill: float, place: Place) -> dict[str, float]:
    """Operations a second, two for each weight and token; attention and embeddings left out."""
    pointer = tier._model.pointer
    weights = C.llama_model_n_params(pointer) - tier._model.size * C.llama_model_n_embd(pointer)
    done = 2 * weights * prefill / 1e12
    peak = _card_peak() if place.gpu else None
    if peak is None:
        return {"tflops": done}
    print(f"{done:,.0f} of {peak:,.0f} TFLOP/s, a share of {done / peak:.2f}")
    return {"tflops": done, "peak_tflops": peak, "share_of_peak": done / peak}


def _card_peak() -> float | None:
    """TFLOP/s of a product of two random matrices in bf16 by PyTorch; None without PyTorch."""
    try:
        import torch
    except ImportError:
        return None
    size, count = 8192, 10
    left, right = torch.randn(2, size, size, device="cuda", dtype=torch.bfloat16)
    for number in range(count + 3):
        if number == 3:  # those before warm up
            torch.cuda.synchronize()
            began = time.perf_counter()
        left @ right
    torch.cuda.synchronize()
    return float(2 * size**3 * count / (time.perf_counter() - began) / 1e12)


def text_of(words: Any, count: int, rng: np.random.Generator) -> str:
    """Text of so many tokens; `words` is a model of llama-cpp-python's own interface."""
    text = " ".join(rng.choice(WORDS, 2 * count))
    tokens = words.tokenize(text.encode(), add_bos=False)[:count]
    return str(words.detokenize(tokens).decode())


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
    model: Path, prompts: Sequence[list[int]], place: Place, load: Load, *, reset: bool = False
) -> Callable[[], float]:
    llm = llama_cpp.Llama(
        str(model),
        n_ctx=sum(load) + 64,
        verbose=False,
        flash_attn=True,
        **place.llama,
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


def _high_level(
    model: Path, prompts: Sequence[list[int]], place: Place, load: Load
) -> Callable[[], float]:
    llm = llama_cpp.Llama(
        str(model),
        n_ctx=sum(load) + 64,
        logits_all=True,
        verbose=False,
        flash_attn=True,
        **place.llama,
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
