"""What a machine with a GPU and no network needs of us, and how llama.cpp is built there.

python -m bench.gpu_build [--sdist FILE] [--python 3.12]

Writes llama.cpp's sources, without models, tests, servers and other cards, and the wheels that
`tamis run` needs, to .gpu/. The machine brings Python with NumPy, SciPy, sentencepiece and tqdm,
CUDA's compiler, CMake and Ninja. Imports nothing that is not in Python: there it runs first.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKED = Path(".gpu")
MOST_BYTES = 60 << 20  # what may travel to the machine
WHEELS = """alembic annotated-doc annotated-types click diskcache duckdb gguf greenlet jinja2 mako
markdown-it-py markupsafe mdurl orjson psutil pydantic pydantic-core pydantic-settings pygments
python-dotenv pyyaml rich shellingham sqlalchemy typer typing-extensions typing-inspection"""
"""What `tamis run` imports with a GGUF model; NumPy and SciPy are too large to travel."""
PLATFORMS = ("_2_28", "_2_27", "_2_24", "_2_17", "2014", "1")
"""Of manylinux; pip takes a wheel only for those that it is told."""
SOURCES = re.compile(
    r"[^/]+/(PKG-INFO|llama_cpp/.+|vendor/llama\.cpp/(CMakeLists\.txt|LICENSE"
    r"|(licenses|cmake|include|src|vendor)/.+"
    r"|ggml/(CMakeLists\.txt|(cmake|include)/.+|src/([^/]+|ggml-(cpu|cuda)/.+))))"
)
"""Of llama-cpp-python's sources what its two libraries are made of, for processors and CUDA."""
LEFT_OUT = ("COMMON", "TESTS", "TOOLS", "EXAMPLES", "SERVER", "APP")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--sdist", type=Path, help="of llama-cpp-python, instead of a download")
    arguments.add_argument("--python", default="3.12", help="of the machine that is packed for")
    options = arguments.parse_args()
    pack(options.sdist, options.python)


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
    platforms = [f"--platform=manylinux{name}_x86_64" for name in PLATFORMS]
    subprocess.run(
        [*download, str(PACKED), "--only-binary=:all:", "--python-version", python,
         "--implementation=cp", *platforms, *(f"{n}=={pins[n]}" for n in WHEELS.split())],
        check=True,
    )  # fmt: skip
    size = sum(file.stat().st_size for file in PACKED.iterdir())
    print(f"{PACKED}/: {len(list(PACKED.iterdir()))} files, {size / 1e6:.1f} MB")
    if size > MOST_BYTES:
        raise SystemExit(f"at most {MOST_BYTES / 1e6:.0f} MB may travel: take less into {PACKED}/")


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
    command = [tool("cmake"), "-S", str(source), "-B", str(made), "-G", "Ninja"]
    command += [f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", "-DCMAKE_BUILD_TYPE=Release"]
    command += [f"-DLLAMA_BUILD_{part}=OFF" for part in LEFT_OUT]
    if not gpu:
        return command
    # Without VMM nothing is linked with the driver, which a bare machine may keep elsewhere.
    command += ["-DGGML_CUDA=ON", "-DGGML_CUDA_NO_VMM=ON", "-DGGML_CUDA_NCCL=OFF"]
    command += [f"-DCMAKE_CUDA_COMPILER={tool('nvcc')}"]
    command += [f"-DCMAKE_CUDA_ARCHITECTURES={_architecture()}"]
    for library in cublas():  # else CMake finds it in the toolkit
        command.append(f"-DCUDA_{library.name.partition('.')[0][3:]}_LIBRARY={library}")
        headers = library.parent.parent / "include"
        command += [f"-DCMAKE_{language}_FLAGS=-I{headers}" for language in ("CUDA", "CXX")]
    return command


def _architecture() -> str:
    """The card's, such as 90-real; "native" where the driver's tool does not say."""
    asks = shutil.which("nvidia-smi")
    if asks is None:
        return "native"
    asked = [asks, "--query-gpu=compute_cap", "--format=csv,noheader"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
    return f"{said[0].replace('.', '')}-real" if said else "native"


def cublas() -> list[Path]:
    """NVIDIA's library as Python packages bring it, unless the toolkit has it."""
    compiler = Path(tool("nvcc"))
    if not compiler.exists() or list(compiler.resolve().parent.parent.glob("**/libcublas.so")):
        return []
    found = [
        sorted(Path(folder).glob(f"nvidia/*/lib/{name}.so.*"))
        for name in ("libcublas", "libcublasLt")
        for folder in sys.path
        if folder
    ]
    return [paths[-1] for paths in found if paths]


def tool(name: str) -> str:
    """Where a program is: on the path, beside this Python, or in CUDA's folder."""
    cuda = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    beside = [str(Path(sys.executable).parent), f"{cuda}/bin"]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(beside)) or name


if __name__ == "__main__":
    main()
