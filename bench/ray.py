"""Engines on a Ray cluster: candidates a second by one and two workers, against a child process.

    python -m bench.ray --count 20000 --milliseconds 1

The tier sleeps instead of judging, so that two workers can be twice as fast on any machine. The
cluster is this machine's, with a node of one processor for each worker.
"""

import argparse
import os
import time
from pathlib import Path

import psutil

from tiers.placing import open_tier
from tiers.screenfile.tiers import PythonTier
from tiers.tier import Job
from tiers.types import Candidate

WORDS = "some words of a text that is about as long as a title is, and no longer than that "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--milliseconds", type=float, default=1.0)
    asked = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        print(f"{asked.count:,} candidates, each {asked.milliseconds:g} ms of sleep\n")
        print("| engines | candidates/s | times one child | CPU us a candidate, driver |")
        print("|---|---:|---:|---:|")
        base, _ = measured(asked, None)
        for name, workers in (
            ("a child process", None),
            ("1 Ray worker", {"ray": cluster.address, "count": 1}),
            ("2 Ray workers", {"ray": cluster.address, "count": 2}),
        ):
            rate, cpu = measured(asked, workers)
            base = rate if workers is None else base
            print(f"| {name} | {rate:,.0f} | {rate / base:.2f} | {cpu:.0f} |", flush=True)
    finally:
        cluster.shutdown()


def measured(asked: argparse.Namespace, workers: dict[str, object] | None) -> tuple[float, float]:
    """Candidates a second once engines are open, and CPU of this process for each, in us."""
    config = PythonTier.model_validate(
        {
            "name": "sleeps",
            "backend": "python",
            "path": "tests.own_tiers:Steady",
            "folder": str(Path(__file__).parent.parent),
            "options": {"seconds": asked.milliseconds / 1e3},
            "workers": workers,
        }
    )
    tier = open_tier(Job("any", config))
    process = psutil.Process()
    try:
        if workers is not None:
            time.sleep(5)  # all workers are open, not the first alone
        began, before = time.monotonic(), process.cpu_times()
        done = sum(
            1 for _ in tier.judge(Candidate(n, f"{n} {WORDS * 4}") for n in range(asked.count))
        )
        seconds, after = time.monotonic() - began, process.cpu_times()
    finally:
        tier.close()
    assert done == asked.count
    cpu = after.user + after.system - before.user - before.system
    return done / seconds, cpu / done * 1e6


if __name__ == "__main__":
    main()
