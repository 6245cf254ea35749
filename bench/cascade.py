"""How long the whole pipeline takes over 200,000 candidates: `tamis run` through several models.

python -m bench.cascade MODEL MODEL ... [--gpu] [--first 600] [--minutes 7] [--tokens 2400,600]

A fifth of the candidates goes on from the first model, a quarter of those from each that follows.
Two runs, the second as large as the minutes allow, and the line through both gives the time of
200,000: what a run costs however small it is, and what a candidate costs. Where the first run
leaves no time for another, all of its time is taken as the candidates'.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import yaml

from bench.common import finish, machine, table
from bench.local_tier import text_of
from tiers.backends.files import file_digest

ALL = 200_000
GO_ON = [0.2, 0.25]
"""Shares that the first tier and the later ones promote."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("models", type=Path, nargs="+")
    arguments.add_argument("--gpu", action="store_true")
    arguments.add_argument("--first", type=int, default=600, help="candidates of the first run")
    arguments.add_argument("--minutes", type=float, default=7.0, help="for both runs")
    arguments.add_argument("--tokens", default="2400,600", help="shared, and of a candidate")
    options = arguments.parse_args()
    shared, own = map(int, options.tokens.split(","))
    ends = time.perf_counter() + 60 * options.minutes
    for model in options.models:
        file_digest(model)  # once for a file, and no part of a run
    words = llama_cpp.Llama(str(options.models[0]), vocab_only=True, verbose=False)
    section = screen(options.models, text_of(words, shared, np.random.default_rng(0)), options.gpu)
    with tempfile.TemporaryDirectory() as folder:
        runs = [run(Path(folder), section, words, options.first, own)]
        # The first run's start counts as pace here, so the second ends in time.
        room = 0.8 * (ends - time.perf_counter()) / runs[0]["seconds"]
        if room > 1.5:
            count = min(ALL, int(options.first * room))
            runs.append(run(Path(folder), section, words, count, own))
    report(runs, shared, own)


def screen(models: list[Path], rubric: str, gpu: bool) -> dict[str, Any]:
    """The screen file's content."""
    way = {"n_gpu_layers": -1} if gpu else {"threads": 1}
    policies = [{"top": GO_ON[min(i, 1)]} for i in range(len(models) - 1)]
    tiers = [
        {"name": model.stem, "backend": "llama", "model": str(model.resolve()), "policy": policy}
        | way
        for model, policy in zip(models, [*policies, {"accept_above": 0.5}], strict=True)
    ]
    source = {"from": "candidates.jsonl", "key": "id", "text": "{{ text }}"}
    return {"screen": "bench", "candidates": source, "rubric": rubric, "tiers": tiers}


def run(folder: Path, section: dict[str, Any], words: Any, count: int, own: int) -> dict[str, Any]:
    """What one `tamis run` in a process and with a database of its own says, and its seconds."""
    home = folder / str(count)
    home.mkdir()
    rng = np.random.default_rng(count)
    sample = text_of(words, own, rng).split()
    with (home / "candidates.jsonl").open("w") as file:
        for number in range(count):  # other orders of the same words are as many tokens
            text = " ".join(rng.permutation(sample))
            file.write(json.dumps({"id": number, "text": text}) + "\n")
    (home / "screen.yaml").write_text(yaml.safe_dump(section))
    here = str(Path(__file__).resolve().parent.parent)
    paths = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "run", "screen.yaml", "--json"],
        cwd=home, stdout=subprocess.PIPE, check=False,
        env=os.environ | {"PYTHONPATH": paths, "TAMIS_TRUSTED_FOLDERS": "/", "TAMIS_RECORD": "false",
                          "TAMIS_DATA_FOLDER": str(home / "data")},
    )  # fmt: skip
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"tamis run ended with {done.returncode}")
    said = json.loads(done.stdout)
    tiers = {each["name"]: (each["judged"], each["seconds"]) for each in said["tiers"]}
    if said["accepted"] + said["rejected"] != count:
        raise RuntimeError(f"the run lost somebody: {said}")
    figures = {"candidates": count, "seconds": seconds, "tiers": tiers}
    finish("cascade", figures)  # at once: the second run may be cut
    return figures


def report(runs: list[dict[str, Any]], shared: int, own: int) -> None:
    few, many = ({"candidates": 0, "seconds": 0.0}, *runs)[-2:]
    each = (many["seconds"] - few["seconds"]) / (many["candidates"] - few["candidates"])
    start = many["seconds"] - each * many["candidates"]
    minutes = (start + each * ALL) / 60
    print(machine())
    table(
        ["candidates", "seconds", *(f"{name}: judged, s" for name in runs[0]["tiers"])],
        [(f"{run['candidates']:,}", run["seconds"],
          *(f"{judged:,}, {took:.1f}" for judged, took in run["tiers"].values())) for run in runs],
    )  # fmt: skip
    print(
        f"{start:.1f} s for a run and {1e3 * each:.2f} ms for a candidate: "
        f"{ALL:,} take {'at most ' if len(runs) == 1 else ''}{minutes:.1f} minutes"
    )
    finish(
        "cascade",
        {"tokens": [shared, own], "runs": runs, "start_seconds": start, "seconds_each": each,
         "minutes_of_all": minutes},
    )  # fmt: skip


if __name__ == "__main__":
    main()
