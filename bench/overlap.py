"""Two tiers at two servers: one after the other, and at the same time.

python -m bench.overlap [--candidates 4000] [--delay 20]

The second server takes three times as long as the first, and a third of the candidates go on. One after the other is
measured with a policy that promotes the same ones by `top`, which needs all scores first.
"""

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path

from bench.common import finish, machine, table
from bench.http_tier import Bench, server


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--candidates", type=int, default=4_000)
    arguments.add_argument("--delay", type=int, default=20, help="milliseconds")
    options = arguments.parse_args()
    count = options.candidates
    ways = {
        "one tier": ("", 1),
        "two, one after the other (top)": (f"{{top: {(count + 2) // 3}}}", 2),
        "two, at the same time (reject_below)": ("{reject_below: 0.5}", 2),
    }
    rows, seconds = [], []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as servers:
        bench = Bench(Path(folder))
        urls = [
            servers.enter_context(server(options.delay)),
            servers.enter_context(server(3 * options.delay)),
        ]
        for name, (promote, tiers) in ways.items():
            finished = bench.screened(count, urls[:tiers], promote, concurrency=8)
            working = sum(tier["seconds"] for tier in finished["tiers"])
            seconds.append(finished["seconds"])
            rows.append((name, finished["seconds"], working, finished["accepted"]))
    print(machine())
    table(["way", "seconds of the run", "seconds of its tiers", "accepted"], rows)
    names = ("one_tier", "one_after_the_other", "at_the_same_time")
    finish("overlap", dict(zip(names, seconds, strict=True)))


if __name__ == "__main__":
    main()
