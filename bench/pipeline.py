"""CPU of a whole `tamis run` beside the judging: reading, child process, Prefect, storage, policy.

python -m bench.pipeline [--sizes 20000,200000] [--format jsonl]

The tier is a stand-in that costs nothing. All processes count, the ephemeral Prefect server too;
the start is what a run over ten candidates costs, and is taken off. The rules that look at accepted texts
are left out, because bench.injection measures them; `--suspicious note` has them.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from bench.common import finish, machine, table

SCREEN = """\
screen: bench
candidates: {{from: {file}, key: id, text: "{{{{ name }}}}\\n{{{{ resume }}}}"}}
rubric: anything
suspicious: {suspicious}
tiers:
  - {{name: only, backend: python, path: "bench.stand_in:StandIn", folder: {folder}, policy: {{accept_above: 0.5}}}}
"""
CHARACTERS = 2_400  # about 600 tokens


class Cost(NamedTuple):
    """What one run took, all processes together; `peak` is the largest of them."""

    user: float
    system: float
    wall: float
    peak_megabytes: float

    @property
    def cpu(self) -> float:
        return self.user + self.system


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--sizes", default="20000,200000")
    arguments.add_argument("--database", help="default: a SQLite file of its own for each run")
    arguments.add_argument("--suspicious", default='"off"', help="as in a screen file")
    options = arguments.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        also = (options.database, options.suspicious)
        run(Path(folder), 10, *also)  # warms up
        costs = {size: run(Path(folder), size, *also) for size in (10, *sizes)}
    start = costs[10]
    rows = [
        (
            f"{size:,}",
            cost.cpu,
            1e6 * (cost.cpu - start.cpu) / size,
            cost.wall,
            size / cost.wall,
            cost.peak_megabytes,
        )
        for size, cost in costs.items()
    ]
    print(machine())
    table(
        [
            "candidates",
            "CPU s",
            "CPU us/candidate, start excluded",
            "wall s",
            "candidates/s",
            "peak MB",
        ],
        rows,
    )
    figures = {f"us_{size}": rows[i + 1][2] for i, size in enumerate(sizes)}
    peaks = [costs[size].peak_megabytes for size in sizes]
    finish("pipeline", {**figures, "start_cpu_s": start.cpu, "peak_ratio": peaks[-1] / peaks[0]})


def run(folder: Path, count: int, database: str | None, suspicious: str) -> Cost:
    """One `tamis run` in a process of its own over so many candidates."""
    home = folder / str(count)
    home.mkdir(exist_ok=True)
    write_candidates(home / "candidates.jsonl", count)
    here = Path(__file__).resolve().parent.parent
    screen = SCREEN.format(file="candidates.jsonl", folder=here, suspicious=suspicious)
    (home / "screen.yaml").write_text(screen)
    url = database or f"sqlite:///{home}/run-{time.time_ns()}.db"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "run", "screen.yaml", "--database", url, "--json",
         "--key", str(time.time_ns())],
        cwd=home, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=os.environ | {"TAMIS_TRUSTED_FOLDERS": "/", "PYTHONPATH": str(here), "TAMIS_DATA_FOLDER": str(folder / "data")},
    )  # fmt: skip
    out, _ = child.communicate()
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    finished = json.loads(out)
    if finished["accepted"] + finished["rejected"] != count:
        raise RuntimeError(f"the run lost somebody: {finished}")
    return Cost(
        after.ru_utime - before.ru_utime,
        after.ru_stime - before.ru_stime,
        wall,
        after.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3),
    )


def write_candidates(path: Path, count: int) -> None:
    words = [
        "applicant",
        "worked",
        "years",
        "with",
        "data",
        "pipelines",
        "in",
        "a",
        "large",
        "company",
        "and",
        "wrote",
        "reports",
    ]
    filler = " ".join(words[i % len(words)] for i in range(CHARACTERS // 6))[:CHARACTERS]
    with path.open("w") as file:
        for number in range(count):
            resume = f"{number} {filler[number % 97 :]}"
            file.write(
                json.dumps({"id": f"C{number:08}", "name": f"N{number}", "resume": resume}) + "\n"
            )


if __name__ == "__main__":
    main()
