"""What this machine has for models: processor, memory, disk, GPUs, and how llama.cpp was built.

What a container may use is read, not what its host has. Nothing of an engine is loaded here.
"""

import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tiers.container import cores
from tiers.container import memory as memory_of

FEATURES = {
    "avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "VNNI", "avx512_bf16": "BF16",
    "amx_tile": "AMX", "asimd": "NEON", "sve": "SVE",
}  # fmt: skip
"""By their names in /proc/cpuinfo."""
METAL_SHARE = 0.7
"""Of a Mac's memory that its GPU takes without complaint, about."""
ASK_SECONDS = 10.0
# In a child: a library that was built for another processor dies of SIGILL at its first step.
_ASK = """\
import ctypes, json, sys
library = ctypes.CDLL(sys.argv[1])
library.llama_print_system_info.restype = ctypes.c_char_p
library.llama_supports_gpu_offload.restype = ctypes.c_bool
words = library.llama_print_system_info().decode()
print(json.dumps([words, library.llama_supports_gpu_offload()]))
"""


class Gpu(NamedTuple):
    """A graphics card, or the part of a Mac's memory that its GPU may take."""

    name: str
    memory: int
    """Bytes."""
    free: int


class Llama(NamedTuple):
    """How llama.cpp was built; `problem` where it cannot be used."""

    features: list[str]
    gpu: bool = False
    """Whether layers can be put on a GPU."""
    problem: str | None = None


class Machine(NamedTuple):
    """What this process may use."""

    processor: str
    features: list[str]
    cores: float
    """By affinity and the container's quota, which may be a part of one."""
    host_cores: int
    memory: int
    """Bytes: of the container, or of the machine."""
    free_memory: int
    disk: int
    """Bytes free in the data folder."""
    gpus: list[Gpu]
    llama: Llama


def look(folder: Path, root: Path = Path("/")) -> Machine:
    """Look at this machine.

    Args:
        folder: the data folder, whose disk counts; it need not be there.
        root: where /proc and /sys are.
    """
    processor, features = _processor(root)
    memory, free = memory_of(root)
    there = next(one for one in (folder, *folder.resolve().parents) if one.exists())
    return Machine(
        processor,
        features,
        cores(root),
        os.cpu_count() or 1,
        memory,
        free,
        shutil.disk_usage(there).free,
        gpus(memory, free),
        _llama(),
    )


def gpus(memory: int, free: int) -> list[Gpu]:
    """The cards that NVIDIA's library names; on a Mac of Apple's processors its own."""
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return [Gpu("Apple GPU (Metal)", int(METAL_SHARE * memory), int(METAL_SHARE * free))]
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 - not installed, no driver, no card
        return []
    found = []
    for i in range(pynvml.nvmlDeviceGetCount()):
        card = pynvml.nvmlDeviceGetHandleByIndex(i)
        room = pynvml.nvmlDeviceGetMemoryInfo(card)
        name = pynvml.nvmlDeviceGetName(card)
        text = name.decode() if isinstance(name, bytes) else str(name)
        found.append(Gpu(text, int(room.total), int(room.free)))
    return found


def cards() -> tuple[int, float] | None:
    """Bytes in use on all cards, and how busy they are in [0, 1]; None without any."""
    try:
        import pynvml

        pynvml.nvmlInit()  # quick where it was done before
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        used = sum(int(pynvml.nvmlDeviceGetMemoryInfo(one).used) for one in handles)
        busy = [pynvml.nvmlDeviceGetUtilizationRates(one).gpu / 100 for one in handles]
    except Exception:  # noqa: BLE001 - not installed, no driver, no card
        return None
    return (used, statistics.fmean(busy)) if busy else None


def can_see_nvidia() -> bool:
    """Whether a driver of NVIDIA is there, so that the extra `gpu` would tell more."""
    return Path("/proc/driver/nvidia/version").exists()


def _processor(root: Path) -> tuple[str, list[str]]:
    try:
        lines = (root / "proc/cpuinfo").read_text().splitlines()
    except OSError:
        features = ["NEON"] if platform.machine() == "arm64" else []
        return platform.processor() or platform.machine(), features
    facts: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        facts.setdefault(name.strip().lower(), value.strip())
    flags = set((facts.get("flags") or facts.get("features") or "").split())
    return (
        facts.get("model name") or platform.machine(),
        [word for flag, word in FEATURES.items() if flag in flags],
    )


def _llama() -> Llama:
    """How llama-cpp-python's own library was built, asked in a process of its own."""
    spec = importlib.util.find_spec("llama_cpp")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    found = [one for folder in folders for one in Path(folder, "lib").glob("libllama.*")]
    library = min((one for one in found if one.suffix in (".so", ".dylib")), default=None)
    if library is None:
        return Llama([], problem="llama-cpp-python is not installed; pip install llama-cpp-python")
    try:
        asked = subprocess.run(  # noqa: S603 - our own words, no shell
            [sys.executable, "-I", "-S", "-c", _ASK, str(library)],
            capture_output=True, text=True, timeout=ASK_SECONDS, check=False,
        )  # fmt: skip
        words, gpu = json.loads(asked.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError):
        return Llama(
            [],
            problem="llama.cpp does not start here, as if built for another processor; reinstall "
            "it on this machine: pip install --force-reinstall --no-cache-dir llama-cpp-python",
        )
    parts = [part.split("=") for part in words.replace(":", "|").split("|")]
    return Llama([part[0].strip() for part in parts if part[-1].strip() == "1"], gpu)
