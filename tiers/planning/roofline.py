"""What a local tier could reach at most on a machine: operations and bytes against its ceilings.

Pure functions but for `measured_ceilings`. Symbols: P weights of the layers, u tokens of
a candidate's own, W bytes of weights, n cells of the cache, b bytes of one, k replies at once.
"""

import json
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from tiers.planning.fit import own_shape
from tiers.planning.machine import Machine
from tiers.planning.memory import BYTES, shared_tokens
from tiers.planning.shape import Shape
from tiers.screenfile.ask import JsonAsk
from tiers.screenfile.tiers import LlamaTier
from tiers.tier import Job

KEPT_DAYS = 30
GEMM_SIZE = 1536
PROBE_SECONDS = 0.3
STREAM_BYTES = 128 << 20
"""Beyond any cache of a processor."""


class Ceilings(NamedTuple):
    """What a machine does at most."""

    name: str
    flops: float
    """Floating-point operations a second, in products of matrices."""
    bandwidth: float
    """Bytes of memory a second."""
    source: str
    """Where the figures are from, and of which day."""


_TENSOR = "data sheet as of 2026-11-26, FP16 by tensor cores, dense"
HARDWARE = {
    "4080": Ceilings("RTX 4080", 48.7e12, 716e9, "data sheet as of 2026-11-26, plain FP16"),
    "t4": Ceilings("T4", 65e12, 320e9, _TENSOR),
    "l4": Ceilings("L4", 121e12, 300e9, _TENSOR),
    "a10": Ceilings("A10", 125e12, 600e9, _TENSOR),
    "a100": Ceilings("A100 40 GB", 312e12, 1555e9, _TENSOR),
    "h100": Ceilings("H100 80 GB SXM", 989e12, 3350e9, _TENSOR),
    "h200": Ceilings("H200", 989e12, 4800e9, _TENSOR),
}
"""Peaks of cards by the word of their names that tells them; engines reach a part of them."""


class Roofline(NamedTuple):
    """The most that a tier could do."""

    prefill_flop: float
    """Of one candidate."""
    shared_flop: float
    """Of the shared prefix, once for all."""
    decode_bytes: float
    """Read for one written token of one reply."""
    records: float
    """Candidates a second, if every operation were at the ceiling."""
    prefill: float
    """Tokens a second."""
    decode: float
    """Tokens a second of one reply at a time."""
    bound: str
    """What limits a candidate: `compute` or `memory`."""


def prefill_flop(matrices: int, tokens: float) -> float:
    """2 P u operations: a product and a sum for each weight and token.

    Kaplan et al., 2020, arXiv:2001.08361, table 1: without the vocabulary, which one position in
    a candidate meets, and without attention over the context, which adds 2 layers x context x
    width and is a few per cent at our lengths.
    """
    return 2.0 * matrices * tokens


def decode_bytes(weights: int, cell_bytes: float, context: float, together: int = 1) -> float:
    """(W + n b k) / k bytes: weights are read once for k replies, each reply's cache for itself.

    Pope et al., 2022, arXiv:2211.05102, section 2: small batches are bound by reading weights.
    """
    return weights / together + context * cell_bytes


def roofline(
    shape: Shape,
    ceilings: Ceilings,
    *,
    own: float,
    shared: float,
    written: float = 0.0,
    together: int = 1,
    kv_bytes: float = 2.0,
) -> Roofline:
    """The ceiling of a tier (Williams et al., 2009, doi:10.1145/1498765.1498785).

    Args:
        shape: of the model.
        ceilings: of the machine.
        own: tokens of a candidate's own prompt; one position is read at their end.
        shared: tokens of the prefix, evaluated once.
        written: tokens of its reply beyond that position.
        together: replies that are written at the same time.
        kv_bytes: bytes of a number in the cache.
    """
    flop = prefill_flop(shape.matrices, own)
    read = decode_bytes(shape.weights, kv_bytes * shape.cell, shared + own, together)
    reading, writing = flop / ceilings.flops, written * read / ceilings.bandwidth
    return Roofline(
        prefill_flop=flop,
        shared_flop=prefill_flop(shape.matrices, shared),
        decode_bytes=read,
        records=1 / max(reading + writing, 1e-12),
        prefill=ceilings.flops / (2.0 * shape.matrices),
        decode=ceilings.bandwidth / read,
        bound="memory" if writing > reading else "compute",
    )


def explain(
    job: Job,
    ceilings: Ceilings,
    own: float,
    *,
    written: float = 0.0,
    measured: float | None = None,
) -> list[tuple[str, str]]:
    """What a tier of a screen could do at most: rows of name and words, for people.

    Args:
        job: the tier's.
        ceilings: of the machine, from `ceilings_for`.
        own: tokens of a usual candidate's own prompt.
        written: tokens of a usual reply of a `json` tier.
        measured: candidates a second that it reached; None where it was not measured.

    Raises:
        TierError: the model's file is not there, or is cut.
    """
    config = job.config
    if not isinstance(config, LlamaTier):
        return [("tier", config.name), ("ceiling", "not known: its machine is not ours to see")]
    together = config.active if isinstance(config.ask, JsonAsk) else 1
    found = roofline(
        own_shape(config), ceilings, own=own, shared=shared_tokens(job), written=written,
        together=together, kv_bytes=BYTES[config.kv_type],
    )  # fmt: skip
    return explained(config.name, found, ceilings, measured)


def explained(
    tier: str, found: Roofline, ceilings: Ceilings, measured: float | None = None
) -> list[tuple[str, str]]:
    """Rows of name and words for people, for one tier.

    Args:
        tier: its name.
        found: its ceiling.
        ceilings: of the machine.
        measured: candidates a second that it reached; None where it was not measured.
    """
    share = "not measured"
    if measured is not None:
        share = f"{measured:,.1f} candidates/s, {measured / found.records:.0%} of the ceiling"
    return [
        ("tier", tier),
        ("machine", f"{ceilings.name}: {ceilings.flops / 1e12:,.2f} TFLOP/s, "
                    f"{ceilings.bandwidth / 1e9:,.0f} GB/s ({ceilings.source})"),
        ("reading a candidate", f"{found.prefill_flop / 1e9:,.3g} GFLOP: 2 x weights x tokens"),
        ("shared prefix, once", f"{found.shared_flop / 1e9:,.3g} GFLOP"),
        ("writing a token", f"{found.decode_bytes / 1e9:,.3g} GB of memory read"),
        ("ceiling", f"{found.records:,.1f} candidates/s, bound by {found.bound}; reads "
                    f"{found.prefill:,.0f} and writes {found.decode:,.0f} tokens/s"),
        ("measured", share),
    ]  # fmt: skip


def ceilings_for(job: Job, machine: Machine, folder: Path) -> Ceilings:
    """Those of the cards where a tier uses them and the table knows them, else as measured."""
    on_gpu = isinstance(job.config, LlamaTier) and job.config.n_gpu_layers != 0
    for gpu in machine.gpus if on_gpu else ():
        words = gpu.name.lower().replace("-", " ").split()
        for row in (HARDWARE[word] for word in words if word in HARDWARE):
            return row
    return measured_ceilings(folder, machine.processor, machine.cores)


def measured_ceilings(folder: Path, processor: str, cores: float) -> Ceilings:
    """What this processor does, measured for a second, and kept in the data folder for a month.

    Products of single-precision matrices by NumPy's library, and a sum over memory: engines that
    compute in 8 bits may exceed the first.
    """
    kept = folder / "ceilings.json"
    mark = f"{processor}|{cores:g}|{platform.machine()}"
    try:
        known = json.loads(kept.read_text())
        age = time.time() - float(known["at"])
        if known["mark"] == mark and age < KEPT_DAYS * 86400:
            return Ceilings(*known["ceilings"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    today = datetime.now(UTC).date()
    found = Ceilings(
        f"{processor}, {cores:g} cores",
        _gemm(),
        _stream(max(1, int(cores))),
        f"measured by NumPy on {today}",
    )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    kept.write_text(json.dumps({"mark": mark, "at": time.time(), "ceilings": found}))
    return found


def _gemm() -> float:
    """Operations a second of the best of some products."""
    import numpy as np

    left, right = np.random.default_rng(0).standard_normal((2, GEMM_SIZE, GEMM_SIZE), np.float32)
    return 2.0 * GEMM_SIZE**3 / _best(lambda: left @ right)


def _stream(threads: int) -> float:
    """Bytes a second of the best of some sums over memory, in as many threads as cores."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    parts = np.array_split(np.ones(STREAM_BYTES // 8), threads)
    with ThreadPoolExecutor(threads) as pool:
        return STREAM_BYTES / _best(lambda: list(pool.map(np.sum, parts)))


def _best(work: Callable[[], object]) -> float:
    """Seconds of the quickest of some rounds, after one that warms up."""
    work()
    ends, best = time.perf_counter() + PROBE_SECONDS, float("inf")
    while time.perf_counter() < ends:
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best
