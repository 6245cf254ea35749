"""CPU of the HTTP tier, all in and durable, beside the openai client with asyncio.gather.

python -m bench.http_tier [--sizes 2000,20000] [--delays 0,20] [--large 200000] [--only compare]

Whole processes against a server that is not the bottleneck; the start is what ten candidates cost,
and is taken off. The last row, from one size to another, needs no start. Both contenders run in
turn, in one run of this bench, and the cheapest of their repetitions counts: on a shared machine
the same work costs up to twice as much from one minute to the next.
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from bench.common import finish, machine, table
from bench.pipeline import Cost

HERE = Path(__file__).resolve().parent.parent
TIER = (
    '  - {{name: {name}, backend: http, base_url: "{url}", model: m, ask: yes_no, '
    "concurrency: {concurrency}, policy: {policy}{more}}}\n"
)
SCREEN = """\
screen: bench
candidates: {{from: {file}, key: id, text: "{{{{ text }}}}"}}
rubric: Is this a match? Answer yes or no.
tiers:
"""
CONCURRENCY = 64
SHORT, SHORT_REPEATS = 5_000, 3


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--sizes", default="2000,20000")
    arguments.add_argument("--delays", default="0,20", help="milliseconds")
    arguments.add_argument("--repeats", type=int, default=2, help="of the long runs")
    arguments.add_argument("--only", default="compare,grouped,two_tiers,killed,memory")
    arguments.add_argument("--large", type=int, default=0, help="a size for the memory's growth")
    options = arguments.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    delays = [int(delay) for delay in options.delays.split(",")]
    print(machine())
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.repeats)
        parts = {
            "compare": lambda: [bench.compare(sizes, delay) for delay in delays],
            "grouped": lambda: [bench.grouped(max(sizes))],
            "two_tiers": lambda: [bench.two_tiers(max(sizes))],
            "killed": lambda: [bench.killed(min(min(sizes) * 2, 4_000))],
            "memory": lambda: [bench.memory(size) for size in (max(sizes), options.large) if size],
        }
        for name in options.only.split(","):
            for found in parts[name]():
                figures |= found
    finish("http_tier", figures)


class Bench:
    """Runs whole processes and weighs them."""

    def __init__(self, folder: Path, repeats: int = 1) -> None:
        self._folder = folder
        self._repeats = repeats

    def compare(self, sizes: list[int], delay: int) -> dict[str, float]:
        """Both contenders at one delay: beyond the start, and from the smallest size to the largest."""
        rows, figures, costs = [], {}, {}
        with server(delay) as url:
            starts = [self._in_turn(10, url, SHORT_REPEATS)]
            for size in sizes:
                repeats = SHORT_REPEATS if size <= SHORT else self._repeats
                costs[size] = self._in_turn(size, url, repeats)
                starts.append(self._in_turn(10, url, 1))
        start, peer_start = (min(each, key=_cpu) for each in zip(*starts, strict=True))
        spans = [(f"{size:,}", size, (start, peer_start), costs[size]) for size in sizes]
        if len(sizes) > 1:
            low, high = min(sizes), max(sizes)
            spans.append((f"{low:,} to {high:,}", high - low, costs[low], costs[high]))
        for name, count, (before, peer_before), (ours, theirs) in spans:
            mine = 1e6 * (ours.cpu - before.cpu) / count
            its = 1e6 * (theirs.cpu - peer_before.cpu) / count
            rows.append((name, mine, its, its / mine, ours.wall, theirs.wall, ours.peak_megabytes))
            figures[f"ratio_{name}_{delay}ms"] = its / mine
            figures[f"us_{name}_{delay}ms"] = mine
        print(f"\n{delay} ms, concurrency {CONCURRENCY}")
        table(
            [
                "candidates",
                "Tamis us",
                "openai us",
                "ratio",
                "Tamis wall s",
                "openai wall s",
                "peak MB",
            ],
            rows,
        )
        return figures

    def two_tiers(self, size: int) -> dict[str, float]:
        """A second tier that sees a third of the candidates, beside one tier."""
        with server(0) as one, server(0) as two:
            start = self.tamis(10, [one])
            start_two = self.tamis(10, [one, two])
            alone, both = self.tamis(size, [one]), self.tamis(size, [one, two])
        ratio = (both.cpu - start_two.cpu) / (alone.cpu - start.cpu)
        print(f"\ntwo tiers (a third goes on): {ratio:.2f} x the CPU of one, {size:,} candidates")
        return {"two_tiers_ratio": ratio}

    def killed(self, size: int) -> dict[str, float]:
        """How many are asked again after kill -9 at half."""
        with server(20) as url:
            home = self._prepare(size, [url])
            child = self._start(home, ["--key", "killed"])
            while asked(url) < size // 2 and child.poll() is None:
                time.sleep(0.02)
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            self._start(home, ["--key", "killed"]).communicate()
            again = asked(url) - size
        print(f"\nkill -9 at half of {size:,}: {again} asked again, at {CONCURRENCY} under way")
        return {"asked_again": again}

    def grouped(self, size: int) -> dict[str, float]:
        """128 prompts a request, beside the openai client with one."""
        more = ", api: completions, prompts_per_request: 128"
        with server(0) as url:
            start, peer_start = self.tamis(10, [url], more), self.peer(10, url)
            ours, theirs = self.tamis(size, [url], more), self.peer(size, url)
        mine, its = (1e6 * (a.cpu - b.cpu) / size for a, b in ((ours, start), (theirs, peer_start)))
        print(
            f"\n128 prompts a request: {mine:.0f} us, openai {its:,.0f} us, ratio {its / mine:.1f}"
        )
        return {"grouped_ratio": its / mine, "grouped_us": mine}

    def memory(self, size: int) -> dict[str, float]:
        """Peak memory of the whole process tree, Prefect's server included, shared pages once."""
        with server(0) as url:
            home = self._prepare(size, [url])
            child = self._start(home, ["--key", "memory"])
            root, peak, largest = psutil.Process(child.pid), 0.0, 0.0
            while child.poll() is None:
                with suppress(psutil.Error):
                    tree = [root, *root.children(recursive=True)]
                    sizes = [each.memory_full_info().pss / 1e6 for each in tree]
                    peak, largest = max(peak, sum(sizes)), max(largest, *sizes)
                time.sleep(0.1)
            child.communicate()
        print(
            f"\npeak memory at {size:,}: {peak:.0f} MB in all processes, {largest:.0f} in the largest"
        )
        return {f"peak_tree_{size}": peak, f"peak_{size}": largest}

    def tamis(self, size: int, urls: list[str], more: str = "") -> Cost:
        home = self._prepare(size, urls, more=more)

        def run() -> None:
            out, _ = self._start(home, ["--key", str(time.time_ns())]).communicate()
            finished = json.loads(out)
            if finished["accepted"] + finished["rejected"] != size:
                raise RuntimeError(f"the run lost somebody: {finished}")
            if finished["accepted"] != (size + 2) // 3:
                raise RuntimeError(f"wrong verdicts: {finished}")

        return weigh(run)

    def screened(self, size: int, urls: list[str], promote: str, concurrency: int) -> Any:
        """The summary of one run; all tiers but the last promote by this policy."""
        home = self._prepare(size, urls, promote, concurrency)
        out, _ = self._start(home, []).communicate()
        return json.loads(out)

    def peer(self, size: int, url: str) -> Cost:
        home = self._prepare(size, [url])
        command = [
            sys.executable,
            "-m",
            "bench.http_peer",
            url,
            str(home / "in.jsonl"),
            str(CONCURRENCY),
        ]

        def run() -> None:
            said = subprocess.run(command, cwd=HERE, check=True, capture_output=True).stdout
            if int(said) != (size + 2) // 3:
                raise RuntimeError(f"wrong verdicts: {said!r}")

        return weigh(run)

    def _in_turn(self, size: int, url: str, repeats: int) -> tuple[Cost, Cost]:
        """The cheapest run of ours and of the peer's, one after the other so many times."""
        pairs = [(self.tamis(size, [url]), self.peer(size, url)) for _ in range(repeats)]
        ours, theirs = (min(each, key=_cpu) for each in zip(*pairs, strict=True))
        return ours, theirs

    def _prepare(
        self,
        size: int,
        urls: list[str],
        promote: str = "{reject_below: 0.5}",
        concurrency: int = CONCURRENCY,
        more: str = "",
    ) -> Path:
        home = self._folder / f"{size}-{time.time_ns()}"
        home.mkdir()
        filler = "worked some years with data pipelines in a large company and wrote reports " * 5
        with (home / "in.jsonl").open("w") as file:
            for number in range(size):
                text = f"text number {number} {filler}"
                file.write(json.dumps({"id": f"C{number:08}", "text": text}) + "\n")
        screen = SCREEN.format(file="in.jsonl")
        for number, url in enumerate(urls):
            last = number == len(urls) - 1
            policy = "{accept_above: 0.5}" if last else promote
            screen += TIER.format(
                name=f"tier{number}", url=url, policy=policy, concurrency=concurrency, more=more
            )
        (home / "screen.yaml").write_text(screen)
        return home

    def _start(self, home: Path, arguments: list[str]) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "run", "screen.yaml", "--json", *arguments,
             "--database", f"sqlite:///{home}/tamis.db"],
            cwd=home, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(HERE), "TAMIS_DATA_FOLDER": str(self._folder / "data")},
        )  # fmt: skip


def _cpu(cost: Cost) -> float:
    return cost.cpu


def weigh(run: Any) -> Cost:
    """CPU of all processes that a call waits for, and the peak of the largest so far."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    run()
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return Cost(
        after.ru_utime - before.ru_utime,
        after.ru_stime - before.ru_stime,
        wall,
        after.ru_maxrss / unit,
    )


@contextmanager
def server(delay: int) -> Iterator[str]:
    """The bench's server in a process of its own."""
    child = subprocess.Popen(
        [sys.executable, "-m", "bench.http_server", "--delay", str(delay / 1000)],
        cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert child.stdout is not None
        yield f"http://127.0.0.1:{int(child.stdout.readline())}/v1"
    finally:
        child.kill()
        child.wait()


def asked(url: str) -> int:
    with urllib.request.urlopen(url, timeout=10) as reply:
        return int(reply.read())


if __name__ == "__main__":
    main()
