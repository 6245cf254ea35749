"""A million candidates through three tiers: `python -m bench.load [--count 1000000] [--postgres]`.

The tiers cost next to nothing, so that what is measured is ours: memory over all processes, CPU a
candidate, the slowest statements, and how long `tamis status` takes meanwhile. The same at 20,000
comes first, to compare with.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from bench.chaos_world import Services
from bench.common import finish, machine, table

ROOT = Path(__file__).parent.parent
SMALL = 20_000
STATUS_EVERY = 10.0
WORDS = "a line about as long as a title and the first sentence of an abstract are together, "
TIMED = """
import time
from sqlalchemy import event
from sqlalchemy.engine import Engine
@event.listens_for(Engine, "before_cursor_execute")
def before(connection, cursor, statement, parameters, context, many):
    context.began = time.monotonic()
@event.listens_for(Engine, "after_cursor_execute")
def after(connection, cursor, statement, parameters, context, many):
    took = time.monotonic() - context.began
    if took > 0.3:
        print(f"{took:.2f} {' '.join(statement.split())}", file=open("slow", "a"))
from flows.cli import main; main()
"""


class Load(NamedTuple):
    """What a run took, all its processes together."""

    candidates: int
    cpu: float
    wall: float
    peak: float
    """Megabytes, pages that processes share counted in each."""
    status: float
    """The longest `tamis status` while it worked, in seconds."""
    report: float
    """Seconds of `tamis report` afterwards."""
    slow: list[str]
    """Statements that took longer than 0.3 s, with their seconds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--postgres", action="store_true")
    chosen = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tamis-load-")))
        folder.chmod(0o755)
        services = Services(folder, stack)
        loads = []
        for count in (10, SMALL, chosen.count):
            url = services.new_database() if chosen.postgres else f"sqlite:///{folder}/{count}.db"
            loads.append(run(folder / str(count), count, url))
    report("Postgres" if chosen.postgres else "SQLite", loads)


def write(folder: Path, count: int) -> None:
    """The screen and its candidates."""
    folder.mkdir()
    tier = (
        '  - {{name: {0}, backend: python, path: "tests.own_tiers:Steady", folder: {1}, '
        "options: {{salt: {0}}}, policy: {{{2}}}}}\n"
    )
    (folder / "screen.yaml").write_text(
        "screen: load\ncandidates: {from: in.jsonl, key: id}\nrubric: any\ntiers:\n"
        + tier.format("fast", ROOT, "reject_below: 0.7")
        + tier.format("rescore", ROOT, "reject_below: 0.7")
        + tier.format("refine", ROOT, "accept_above: 0.5")
    )
    with (folder / "in.jsonl").open("w") as file:
        for number in range(count):
            file.write(json.dumps({"id": f"k{number:08}", "text": f"{number} {WORDS * 3}"}) + "\n")


def run(folder: Path, count: int, url: str) -> Load:
    """One `tamis run`, watched."""
    write(folder, count)
    env = os.environ | {
        "PYTHONPATH": str(ROOT), "TAMIS_TRUSTED_FOLDERS": "/", "TAMIS_DATABASE_URL": url, "TAMIS_DATA_FOLDER": str(folder / "data"),
    }  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", TIMED, "run", "screen.yaml", "--key", "one", "--json"],
        cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    peaks = [0.0]
    watching = threading.Thread(target=watch, args=(process.pid, peaks))
    watching.start()
    longest, own = 0.0, 0.0
    while process.poll() is None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(STATUS_EVERY)
        if process.poll() is None:
            asked = time.monotonic()
            status = [sys.executable, "-m", "flows.cli", "status", "one", "--json"]
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(status, cwd=folder, env=env, stdout=subprocess.DEVNULL, check=True)
            now = resource.getrusage(resource.RUSAGE_CHILDREN)
            own += now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
            longest = max(longest, time.monotonic() - asked)
    wall = time.monotonic() - began
    watching.join()
    finished = json.loads(process.communicate()[0])
    if finished["candidates"] != count or finished["pending"] or finished["failed"]:
        raise SystemExit(f"the run lost somebody: {finished}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime - own
    asked = time.monotonic()
    written = [sys.executable, "-m", "flows.cli", "report", "one"]
    subprocess.run(written, cwd=folder, env=env, stdout=subprocess.DEVNULL, check=True)
    page = time.monotonic() - asked
    slow = (folder / "slow").read_text().splitlines() if (folder / "slow").exists() else []
    return Load(
        count, cpu, wall, peaks[0], longest, page, sorted(slow, key=seconds_of, reverse=True)
    )


def seconds_of(line: str) -> float:
    return float(line.partition(" ")[0])


def watch(pid: int, peaks: list[float]) -> None:
    """Keep the most memory that a process and its children have had."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        while process.status() != psutil.STATUS_ZOMBIE:
            total = 0
            for each in (process, *process.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    total += each.memory_info().rss
            peaks[0] = max(peaks[0], total / 1e6)
            time.sleep(0.5)


def report(kind: str, loads: list[Load]) -> None:
    start, small, large = loads
    print(f"{machine()}, {kind}\n")

    def each(load: Load) -> float:
        return 1e6 * (load.cpu - start.cpu) / load.candidates

    header = (
        "candidates",
        "CPU us each, start excluded",
        "wall s",
        "peak MB",
        "status, longest, s",
        "report s",
    )
    table(
        header,
        [
            [f"{one.candidates:,}", each(one), one.wall, one.peak, one.status, one.report]
            for one in (small, large)
        ],
    )
    print(f"\ncost a candidate: {each(large) / each(small):.2f} of that at {small.candidates:,}")
    print(f"peak memory: {large.peak / small.peak:.2f} of that at {small.candidates:,}\n")
    print("slowest statements:")
    for line in large.slow[:8]:
        print(f"  {line[:150]}")
    finish(
        "load",
        {"database": kind, "loads": [one._asdict() | {"slow": one.slow[:8]} for one in loads]},
    )


if __name__ == "__main__":
    main()
