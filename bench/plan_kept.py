"""Whether plans hold: python -m bench.plan_kept [--seeds N] [--candidates N] [--sample N] [--draws N].

For each seed other made-up applicants, a pilot of them, a plan, and the run; then each figure of each tier
is held against its 80 % range. Figures for which the pilot was too small are counted apart. With
`--draws`, so many pilots are also drawn from the first tier's scores of one input: counts alone, and
of them enough to tell 80 % from less.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from bench.common import finish, machine, table
from bench.promise import score
from demo.records import applicants
from tiers.planning.alternatives import Maker
from tiers.planning.estimate import Workload
from tiers.planning.measured import Pilot, Seen
from tiers.screenfile.file import load_screen

FIGURES = ("candidates", "promoted", "seconds")


def tamis(folder: Path, *arguments: str) -> dict[str, Any]:
    """The JSON of one command in a folder."""
    environment = os.environ | {
        "TAMIS_DATABASE_URL": f"sqlite:///{folder}/tamis.db",
        "TAMIS_RECORD": "false",
        "TAMIS_TRUSTED_FOLDERS": str(folder),
    }
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments, "--json"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def one_seed(seed: int, candidates: int, sample: int) -> list[dict[str, Any]]:
    """The tiers of one run beside their plans. The sample is drawn by another seed than the rows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        target = folder / "screen"
        subprocess.run(
            [sys.executable, "-m", "flows.cli", "init", str(target)],
            check=True,
            capture_output=True,
        )
        subprocess.run(
            [
                sys.executable, "-m", "demo.records", "--count", str(candidates),
                "--seed", str(seed), "--format", "csv", "--output", str(target / "applicants.csv"),
            ],
            check=True, capture_output=True,
        )  # fmt: skip
        screen = str(target / "screen.yaml")
        tamis(folder, "pilot", screen, "--sample", str(sample), "--seed", str(seed + 1000))
        run = tamis(folder, "run", screen)["run"]
        found: list[dict[str, Any]] = tamis(folder, "status", run)["plan"]
        return found


def drawn(draws: int, candidates: int, sample: int) -> int:
    """How many of so many pilots of one input have the true count of promoted in their range."""
    definition = load_screen(Path(str(files("demo"))) / "screen.yaml")
    scores = score(definition, 0, [one.text for one in applicants(candidates, 7)])
    policy, hits = definition.policy(0), 0
    two = definition.model_copy(update={"tiers": (definition.tiers[0], definition.tiers[2])})
    true = float(((scores >= policy.reject_below) & (scores <= policy.accept_above)).sum())
    lot, zeros = np.random.default_rng(0), [0] * sample
    for _ in range(draws):
        told: list[float | None] = [float(one) for one in lot.choice(scores, sample, replace=False)]
        tiers = [Seen(name, "", told, list(told), zeros, zeros, zeros) for name in "ab"]
        pilot = Pilot("", "", "", "", candidates, 0, tiers)
        made = Maker(two, Workload(candidates, sample), pilot).configured().estimate.tiers[0]
        low, _, high = made.promoted
        hits += (low or 0.0) <= true <= (high or 0.0)
    return hits


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=100, help="the first seed")
    parser.add_argument("--candidates", type=int, default=20_000)
    parser.add_argument("--sample", type=int, default=200)
    parser.add_argument("--draws", type=int, default=0)
    given = parser.parse_args()
    print(f"{machine()}; {given.candidates:,} candidates, pilots of {given.sample}\n")
    rows, kept = [], {name: [0, 0] for name in FIGURES}
    whole = {"counts": 0, "seconds": 0}
    for seed in range(given.first, given.first + given.seeds):
        load = os.getloadavg()[0]
        tiers = one_seed(seed, given.candidates, given.sample)
        inside: dict[str, list[bool]] = {name: [] for name in FIGURES}
        for tier in tiers:
            for name in FIGURES:
                if (hit := tier["inside"][name]) is not None:
                    inside[name].append(hit)
                low, expected, high = tier["planned"][name]
                if hit is not None:
                    span = f"{expected:,.4g} ({low:,.4g} to {high:,.4g})"
                    actual = tier["actual"][name]
                    word = "yes" if hit else "no"
                    rows.append((seed, f"{load:.1f}", tier["tier"], name, span, actual, word))
        for name in FIGURES:
            kept[name][0] += sum(inside[name])
            kept[name][1] += len(inside[name])
        whole["counts"] += all(inside["candidates"] + inside["promoted"])
        whole["seconds"] += all(inside["seconds"])
    table(("seed", "load", "tier", "figure", "planned, 80 %", "actual", "inside"), rows)
    print()
    shares = [(name, hits, of, hits / max(of, 1)) for name, (hits, of) in kept.items()]
    table(("figure", "inside", "of", "share"), shares)
    print(f"\nall counts inside: {whole['counts']} of {given.seeds} seeds; ", end="")
    print(f"all times: {whole['seconds']} of {given.seeds}")
    if given.draws:
        hits = drawn(given.draws, given.candidates, given.sample)
        print(f"{hits} of {given.draws} pilots of one input have the count in their range")
    finish("plan_kept", {"kept": kept, "seeds": given.seeds, "whole": whole})


if __name__ == "__main__":
    main()
