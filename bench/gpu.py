"""A GPU in one command: llama.cpp built for the card, the tier, the cascade and vLLM on it.

python -m bench.gpu_build                                       here: what travels, to .gpu/
python3 -m bench.gpu build models tier cascade vllm --out DIR   there, without a network

Every part of a step is a process of its own, so that a step that cannot run says why and the next
goes on. What the parts print goes to DIR/log.txt, their figures line by line to DIR/gpu.jsonl, both
at once. `--rehearse` takes small models and the processor.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, NamedTuple

from bench.gpu_build import configure, cublas, tool, unpack


class Way(NamedTuple):
    """How the steps are run: on the card with real sizes, or rehearsed."""

    gpu: list[str]
    models: Sequence[str]
    kinds: Sequence[str]
    """Other quantizations of the first model, for its pace alone."""
    tokens: str
    batches: Sequence[str]
    cascade: list[str]


REAL = Way(
    ["--gpu"],
    ("gemma-2-2b", "gemma-2-9b", "gemma-3-12b"),
    ("q8_0", "f16"),
    "2400,600,150",
    ("512", "1024", "4096"),
    ["--first", "600", "--tokens", "2400,600"],
)
REHEARSED = Way(
    [],
    ("gemma-small", "gemma-medium", "gemma-large"),
    ("q8_0", "f16"),
    "120,60,15",
    ("64",),
    ["--first", "40", "--tokens", "120,60"],
)
GOALS = (
    ("share of raw llama_decode", "at least 0.90"),
    ("one position, times naive generation", "at least 20"),
    ("minutes for 200,000 candidates", "less than 60"),
)


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("steps", nargs="+", choices=PARTS)
    arguments.add_argument("--out", type=Path, default=Path("gpu-out"))
    arguments.add_argument("--work", type=Path, default=Path(tempfile.gettempdir(), "tamis-gpu"))
    arguments.add_argument("--minutes", type=float, default=9.5, help="for all steps of this call")
    arguments.add_argument("--rehearse", action="store_true")
    options = arguments.parse_args()
    bench = Bench(options.work, options.out, 60 * options.minutes, rehearse=options.rehearse)
    for step in options.steps:
        try:
            for part in PARTS[step](bench):
                bench.run(step, *part)
        except OSError as error:
            bench.keep([{"step": step, "error": str(error)}])
    bench.compare()


class Bench:
    """Runs parts one after the other, until the time is over, and keeps their figures."""

    def __init__(self, work: Path, out: Path, seconds: float, *, rehearse: bool) -> None:
        self.work = work.resolve()
        self.site = self.work / "site"
        self.way = REHEARSED if rehearse else REAL
        self.rehearse = rehearse
        self._out = out
        self._ends = time.monotonic() + seconds
        for folder in (out, self.work / "models", self.site):
            folder.mkdir(parents=True, exist_ok=True)
        libraries = [self.site / "llama_cpp" / "lib", *(each.parent for each in cublas())]
        self._environment = os.environ | {
            "PYTHONPATH": _paths(self.site, os.environ.get("PYTHONPATH")),
            "LD_LIBRARY_PATH": _paths(*libraries, os.environ.get("LD_LIBRARY_PATH")),
            "PYTHONUNBUFFERED": "1",
            "XDG_CACHE_HOME": str(self.work / "cache"),
        }

    @property
    def left(self) -> float:
        """Seconds."""
        return max(self._ends - time.monotonic(), 1.0)

    def model(self, name: str, kind: str = "q4_k") -> str:
        return str(self.work / "models" / f"{name}-{kind}.gguf")

    def run(self, step: str, name: str, command: Sequence[str]) -> None:
        """Run a part of a step; keep what it prints as JSON, and how it ended."""
        began = time.monotonic()
        with (self._out / "log.txt").open("a+") as log:
            log.write(f"== {step} {name}: {' '.join(command)}\n")
            log.flush()
            start = log.tell()
            error = self._wait(command, log)
            log.seek(start)
            said = log.read().splitlines()
        ended: dict[str, Any] = {
            "step": step,
            "part": name,
            "part_seconds": round(time.monotonic() - began, 1),
        }
        if error is not None:
            last = next((line for line in reversed(said) if line.strip()), "said nothing")
            ended["error"] = f"{error}: {last.strip()}"
        found = [json.loads(line) for line in said if line.startswith('{"bench"')]
        self.keep([ended | figures for figures in found or [{}]])

    def keep(self, lines: list[dict[str, Any]]) -> None:
        text = "\n".join(json.dumps(line) for line in lines)
        with (self._out / "gpu.jsonl").open("a") as kept:
            kept.write(f"{text}\n")
        print(text, flush=True)

    def _wait(self, command: Sequence[str], log: IO[str]) -> str | None:
        """None, or why the part did not end well."""
        try:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=self._environment, start_new_session=True
            )
        except OSError as error:
            return str(error)
        try:
            code = process.wait(self.left)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            return "the time was over"
        return f"ended with {code}" if code else None

    def compare(self) -> None:
        """Print the figures that were promised beside their goals."""
        kept = [json.loads(line) for line in (self._out / "gpu.jsonl").read_text().splitlines()]
        print("\n| figure | model | measured | goal |\n|---|---|---:|---|")
        for line in kept:
            faster = line.get("faster", {})
            values = (
                next((v for k, v in faster.items() if k.startswith("raw")), None),
                faster.get("completion, no prefix reuse"),
                line.get("minutes_of_all"),
            )
            for value, (figure, goal) in zip(values, GOALS, strict=True):
                if value is not None:
                    print(f"| {figure} | {line['part']} | {value:.3g} | {goal} |")


Parts = Iterator[tuple[str, list[str]]]


def build_parts(bench: Bench) -> Parts:
    """Unpack, configure and compile; ninja goes on where an earlier call was cut."""
    source, made = bench.work / "llama.cpp", bench.work / "made"
    if not source.exists():
        unpack(bench.site, source)
    yield "configure", configure(source, made, gpu=not bench.rehearse)
    yield (
        "compile",
        [tool("ninja"), "-C", str(made), "llama", *(["-j1"] if bench.rehearse else [])],
    )
    libraries = bench.site / "llama_cpp" / "lib"
    libraries.mkdir(parents=True, exist_ok=True)
    for library in (made / "bin").glob("lib*.so"):
        shutil.copy(library, libraries)
        # The libraries ask for one another by the names that end in a version.
        for alias in (made / "bin").glob(f"{library.name}.*"):
            shutil.copy(library, libraries / alias.name)
    check = "import llama_cpp as c; print(c.__file__, c.llama_supports_gpu_offload()); "
    wanted = "" if bench.rehearse else "assert c.llama_supports_gpu_offload(), 'no GPU found'"
    yield "import", [sys.executable, "-c", check + wanted]


def model_parts(bench: Bench) -> Parts:
    wanted = [(name, "q4_k") for name in bench.way.models]
    for name, kind in [*wanted, *((bench.way.models[0], kind) for kind in bench.way.kinds)]:
        yield (
            f"{name} {kind}",
            _module("large_model", name, bench.model(name, kind), "--kind", kind),
        )


def tier_parts(bench: Bench) -> Parts:
    way = bench.way
    common = ["--tokens", way.tokens, "--rounds", "2", *way.gpu]
    for name in way.models:
        yield name, _module("local_tier", "--model", bench.model(name), *common)
    first = way.models[0]
    for kind in way.kinds:
        model = bench.model(first, kind)
        yield f"{first} {kind}", _module("local_tier", "--model", model, *common, "--only", "raw")
    for size in way.batches:
        extra = ["--only", "raw", "--batch-tokens", size]
        yield (
            f"{first} batch {size}",
            _module("local_tier", "--model", bench.model(first), *common, *extra),
        )


def cascade_parts(bench: Bench) -> Parts:
    models = [bench.model(name) for name in bench.way.models]
    minutes = 1.5 if bench.rehearse else 0.85 * bench.left / 60
    yield (
        " > ".join(bench.way.models),
        _module(
            "cascade", *models, "--minutes", f"{minutes:.2f}", *bench.way.cascade, *bench.way.gpu
        ),
    )


def vllm_parts(bench: Bench) -> Parts:
    yield "import", [sys.executable, "-c", "import vllm"]
    if find_spec("vllm"):
        sizes = "--candidates 16 --shared 60 --own 30 --written 10"
        if not bench.rehearse:
            sizes = "--candidates 512 --shared 2400 --own 600 --written 150"
        yield "gemma-2-2b", _module("vllm", *sizes.split(), *bench.way.gpu)


PARTS: dict[str, Callable[[Bench], Parts]] = {
    "build": build_parts, "models": model_parts, "tier": tier_parts, "cascade": cascade_parts, "vllm": vllm_parts,
}  # fmt: skip


def _module(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"bench.{name}", *arguments]


def _paths(*folders: Path | str | None) -> str:
    return os.pathsep.join(str(folder) for folder in folders if folder)


if __name__ == "__main__":
    main()
