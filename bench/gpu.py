"""A GPU in one command: llama.cpp built for the card, the tier, the cascade and vLLM on it.

python -m bench.gpu pack                                        here: what a bare machine lacks, to .gpu/
python3 -m bench.gpu build models tier cascade vllm --out DIR   there, without a network

Needs there: Python 3.12 with NumPy, SciPy, sentencepiece and tqdm, CUDA's compiler, CMake, Ninja. Every part of a
step is a process of its own, so that a step that cannot run says why and the next goes on. What the
parts print goes to DIR/log.txt, their figures line by line to DIR/gpu.jsonl, both at once.
`--rehearse` takes small models and the processor.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

PACKED = Path(".gpu")
MOST_BYTES = 60 << 20  # what may travel to the machine
WHEELS = """alembic annotated-doc annotated-types click diskcache duckdb gguf greenlet jinja2 mako
markdown-it-py markupsafe mdurl orjson psutil pydantic pydantic-core pydantic-settings pygments
python-dotenv pyyaml rich shellingham sqlalchemy typer typing-extensions typing-inspection"""
"""What `tamis run` imports with a GGUF model; NumPy and SciPy are too large to travel."""
PLATFORMS = (
    "manylinux_2_28",
    "manylinux_2_27",
    "manylinux_2_24",
    "manylinux_2_17",
    "manylinux2014",
)
SOURCES = re.compile(
    r"[^/]+/(PKG-INFO|llama_cpp/.+|vendor/llama\.cpp/(CMakeLists\.txt|LICENSE"
    r"|(licenses|cmake|include|src|vendor)/.+"
    r"|ggml/(CMakeLists\.txt|(cmake|include)/.+|src/([^/]+|ggml-(cpu|cuda)/.+))))"
)
"""Of llama-cpp-python's sources what its two libraries are made of, for processors and CUDA."""
LEFT_OUT = ("COMMON", "TESTS", "TOOLS", "EXAMPLES", "SERVER", "APP")


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
    arguments.add_argument("steps", nargs="+", choices=["pack", "build", *PARTS])
    arguments.add_argument("--out", type=Path, default=Path("gpu-out"))
    arguments.add_argument("--work", type=Path, default=Path(tempfile.gettempdir(), "tamis-gpu"))
    arguments.add_argument("--minutes", type=float, default=9.5, help="for all steps of this call")
    arguments.add_argument("--rehearse", action="store_true")
    arguments.add_argument("--sdist", type=Path, help="of llama-cpp-python, instead of a download")
    arguments.add_argument("--python", default="3.12", help="of the machine that is packed for")
    options = arguments.parse_args()
    if "pack" in options.steps:
        pack(options.sdist, options.python)
        return
    bench = Bench(options.work, options.out, 60 * options.minutes, rehearse=options.rehearse)
    for step in options.steps:
        parts = build_parts(bench) if step == "build" else PARTS[step](bench)
        for part in parts:
            bench.run(step, *part)
    bench.compare()


def pack(sdist: Path | None, python: str) -> None:
    """Write sources and wheels to PACKED.

    Raises:
        SystemExit: they are more than may travel.
    """
    pins = dict(
        line.split("==") for line in Path("constraints.txt").read_text().lower().splitlines()
        if "==" in line
    )  # fmt: skip
    pins = {name.replace("_", "-"): version for name, version in pins.items()}
    shutil.rmtree(PACKED, ignore_errors=True)
    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d"]
    with tempfile.TemporaryDirectory() as folder:
        if sdist is None:
            wanted = f"llama-cpp-python=={pins['llama-cpp-python']}"
            subprocess.run([*download, folder, "--no-binary=:all:", wanted], check=True)
            (sdist,) = Path(folder).glob("*.tar.gz")
        PACKED.mkdir()
        with tarfile.open(sdist) as full, tarfile.open(PACKED / "llama.tar.xz", "w:xz") as kept:
            for member in full:
                if SOURCES.fullmatch(member.name) and member.isfile():
                    kept.addfile(member, full.extractfile(member))
    platforms = [f"--platform={name}_x86_64" for name in (*PLATFORMS, "manylinux1")]
    subprocess.run(
        [*download, str(PACKED), "--only-binary=:all:", "--python-version", python,
         "--implementation=cp", *platforms, *(f"{n}=={pins[n]}" for n in WHEELS.split())],
        check=True,
    )  # fmt: skip
    size = sum(file.stat().st_size for file in PACKED.iterdir())
    print(f"{PACKED}/: {len(list(PACKED.iterdir()))} files, {size / 1e6:.1f} MB")
    if size > MOST_BYTES:
        raise SystemExit(f"at most {MOST_BYTES / 1e6:.0f} MB may travel: take less into {PACKED}/")


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
        libraries = [self.site / "llama_cpp" / "lib", *(each.parent for each in _cublas())]
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
        ended = {"step": step, "part": name, "seconds": round(time.monotonic() - began, 1)}
        if error is not None:
            last = next((line for line in reversed(said) if line.strip()), "said nothing")
            ended["error"] = f"{error}: {last.strip()}"
        found = [json.loads(line) for line in said if line.startswith('{"bench"')]
        with (self._out / "gpu.jsonl").open("a") as kept:
            for figures in found or [{}]:
                kept.write(json.dumps(ended | figures) + "\n")
        print(json.dumps(ended), flush=True)

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
        [_tool("ninja"), "-C", str(made), "llama", *(["-j1"] if bench.rehearse else [])],
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


def unpack(site: Path, source: Path) -> None:
    """Wheels and llama-cpp-python's own Python to `site`, llama.cpp to `source`."""
    for wheel in PACKED.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(site)
    with tarfile.open(PACKED / "llama.tar.xz") as packed, tempfile.TemporaryDirectory() as folder:
        packed.extractall(folder, filter="data")
        (root,) = Path(folder).iterdir()
        shutil.copytree(root / "llama_cpp", site / "llama_cpp", dirs_exist_ok=True)
        facts = site / f"{root.name}.dist-info"
        facts.mkdir(exist_ok=True)
        shutil.copy(root / "PKG-INFO", facts / "METADATA")
        shutil.copytree(root / "vendor" / "llama.cpp", source)


def configure(source: Path, made: Path, *, gpu: bool) -> list[str]:
    """CMake for the card of this machine; without one, for the processor."""
    command = [_tool("cmake"), "-S", str(source), "-B", str(made), "-G", "Ninja"]
    command += [f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}", "-DCMAKE_BUILD_TYPE=Release"]
    command += [f"-DLLAMA_BUILD_{part}=OFF" for part in LEFT_OUT]
    if not gpu:
        return command
    # Without VMM nothing is linked with the driver, which a bare machine may keep elsewhere.
    command += ["-DGGML_CUDA=ON", "-DGGML_CUDA_NO_VMM=ON", "-DGGML_CUDA_NCCL=OFF"]
    command += [
        f"-DCMAKE_CUDA_ARCHITECTURES={_architecture()}",
        f"-DCMAKE_CUDA_COMPILER={_tool('nvcc')}",
    ]
    for library in _cublas():  # else CMake looks in the toolkit
        headers = f"-I{library.parent.parent / 'include'}"
        name = library.name.partition(".")[0].removeprefix("lib")
        command += [
            f"-DCUDA_{name}_LIBRARY={library}",
            f"-DCMAKE_CUDA_FLAGS={headers}",
            f"-DCMAKE_CXX_FLAGS={headers}",
        ]
    return command


def _architecture() -> str:
    """The card's, such as 90-real; "native" where the driver's tool does not say."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "native"
    asked = [tool, "--query-gpu=compute_cap", "--format=csv,noheader"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
    return f"{said[0].replace('.', '')}-real" if said else "native"


def _cublas() -> list[Path]:
    """NVIDIA's library as Python packages bring it, unless the toolkit has it."""
    compiler = Path(_tool("nvcc"))
    if not compiler.exists() or list(compiler.resolve().parent.parent.glob("**/libcublas.so")):
        return []
    found = [
        sorted(Path(folder).glob(f"nvidia/*/lib/{name}.so.*"))
        for name in ("libcublas", "libcublasLt")
        for folder in sys.path
        if folder
    ]
    return [paths[-1] for paths in found if paths]


def _tool(name: str) -> str:
    """Where a program is: on the path, beside this Python, or in CUDA's folder."""
    cuda = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    beside = [str(Path(sys.executable).parent), f"{cuda}/bin"]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(beside)) or name


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
    minutes = 0.5 if bench.rehearse else 0.85 * bench.left / 60
    yield (
        " > ".join(bench.way.models),
        _module(
            "cascade", *models, "--minutes", f"{minutes:.2f}", *bench.way.cascade, *bench.way.gpu
        ),
    )


def vllm_parts(bench: Bench) -> Parts:
    sizes = "--candidates 16 --shared 60 --own 30 --written 10"
    if not bench.rehearse:
        sizes = "--candidates 512 --shared 2400 --own 600 --written 150"
    yield "gemma-2-2b", _module("vllm", *sizes.split(), *bench.way.gpu)


PARTS: dict[str, Any] = {
    "models": model_parts, "tier": tier_parts, "cascade": cascade_parts, "vllm": vllm_parts,
}  # fmt: skip


def _module(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"bench.{name}", *arguments]


def _paths(*folders: Path | str | None) -> str:
    return os.pathsep.join(str(folder) for folder in folders if folder)


if __name__ == "__main__":
    main()
