"""What a person waits for who tries ten candidates: `python -m bench.start [--vs OTHER/tamis]`.

Whole commands in a new folder: wall time, CPU of the command and of all that it waited for, and
the peak memory of its process tree. What Prefect's server does after the command has ended is
told apart, for nobody waits for that.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from bench.common import finish, machine, table

ROOT = Path(__file__).parent.parent
COMMANDS = {
    "first run in a new folder": ("run", "screen.yaml", "--key", "one"),
    "the same again, another key": ("run", "screen.yaml", "--key", "two"),
    "tamis --help": ("--help",),
    "tamis status": ("status",),
    "tamis results": ("results", "one"),
    "tamis explain": ("explain", "one", "k3"),
    "tamis sql": ("sql", "SELECT count(*) FROM result"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vs", metavar="TAMIS", help="another version's command, run in turn")
    chosen = parser.parse_args()
    tamis = {"now": str(Path(sys.executable).parent / "tamis")}
    if chosen.vs:
        tamis["before"] = chosen.vs
    figures: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    for _ in range(chosen.rounds):
        for version, command in tamis.items():
            for name, measured in one_round(command).items():
                figures.setdefault(version, {}).setdefault(name, []).append(measured)
    print(machine() + f", medians of {chosen.rounds}\n")
    rows = [
        [name, version, *(statistics.median(column) for column in zip(*runs, strict=True))]
        for version, by_name in figures.items()
        for name, runs in by_name.items()
    ]
    table(("command", "version", "wall s", "CPU s", "peak MB"), rows)
    finish("start", {"rows": rows})


def one_round(tamis: str) -> dict[str, tuple[float, float, float]]:
    """Every command once, in a new folder; its server is ended after it."""
    folder = Path(tempfile.mkdtemp(prefix="tamis-start-"))
    lines = [json.dumps({"id": f"k{i}", "text": f"text {i}"}) for i in range(10)]
    (folder / "in.jsonl").write_text("\n".join(lines))
    (folder / "screen.yaml").write_text(
        "screen: start\ncandidates: {from: in.jsonl, key: id}\nrubric: any\ntiers:\n"
        f"  - {{name: only, backend: python, path: 'stand_in:StandIn', folder: {ROOT}/bench, "
        "policy: {accept_above: 0.5}}\n"
    )
    try:
        return {name: measure([tamis, *words], folder) for name, words in COMMANDS.items()}
    finally:
        for process in psutil.process_iter(["cmdline", "cwd"]):
            if process.info["cwd"] == str(folder):
                process.kill()
        time.sleep(0.5)
        shutil.rmtree(folder, ignore_errors=True)


def measure(command: list[str], folder: Path) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak MB of one command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    env["TAMIS_TRUSTED_FOLDERS"] = "/"  # the screens of a bench are its own
    process = subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    peak = [0.0]
    watch = threading.Thread(target=_watch, args=(process.pid, peak), daemon=True)
    watch.start()
    if process.wait() != 0:
        raise SystemExit(f"{' '.join(command)} ended with code {process.returncode}")
    wall = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    watch.join()
    return wall, cpu, peak[0]


def _watch(pid: int, peak: list[float]) -> None:
    try:
        root = psutil.Process(pid)
        while root.is_running() and root.status() != psutil.STATUS_ZOMBIE:
            sizes = [one.memory_info().rss for one in (root, *root.children(recursive=True))]
            peak[0] = max(peak[0], sum(sizes) / 1e6)
            time.sleep(0.02)
    except psutil.NoSuchProcess:
        return


if __name__ == "__main__":
    main()
