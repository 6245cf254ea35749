"""What ten criteria cost beside one question: python -m bench.criteria [--candidates 24] [--own 600].

A model of 100 million random weights; the rubric has 2,400 tokens, which all candidates share. The
two ways take turns, and the ratio is of the processor's time.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

from bench.common import finish, machine, table
from tests.gguf_models import SHAPES, write_model
from tiers.backends.llama.tier import Llama
from tiers.screenfile.tiers import LlamaTier
from tiers.tier import Job
from tiers.types import Candidate

TURNS = 3
WORDS = "import os\nclass Reader:\n    def read(self, path):\n        return open(path)\n"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--candidates", type=int, default=24)
    arguments.add_argument("--own", type=int, default=600, help="tokens of a candidate")
    arguments.add_argument("--shape", choices=SHAPES, default="llama-100m")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "model.gguf", SHAPES[options.shape])
        criteria = {f"c{i}": {"text": f"The module reads file {i}"} for i in range(10)}
        tiers = {"one": opened(model, "yes_no"), "ten": opened(model, {"criteria": criteria})}
        texts = [text_of(tiers["one"], options.own, i) for i in range(options.candidates)]
        costs: dict[str, list[float]] = {name: [] for name in tiers}
        tokens = {}
        for _ in range(TURNS):
            for name, tier in tiers.items():
                began = time.process_time()
                judged = list(tier.judge(Candidate(i, text) for i, text in enumerate(texts)))
                costs[name].append((time.process_time() - began) / len(judged))
                tokens[name] = sum(one.prompt_tokens - one.cached_tokens for one in judged)
        for tier in tiers.values():
            tier.close()
    print(f"{machine()}, {options.shape}\n")
    middle = {name: median(each) for name, each in costs.items()}
    table(
        ("questions", "CPU ms a candidate", "tokens of its own"),
        [(name, 1e3 * middle[name], tokens[name] / len(texts)) for name in tiers],
    )
    print(f"\nten cost {middle['ten'] / middle['one']:.2f} times one")
    finish("criteria", {"costs": costs, "tokens": tokens})


def opened(model: Path, ask: object) -> Llama:
    rubric = "The module imports nothing outside the standard library. " * 240
    config = {"name": "a", "backend": "llama", "model": str(model), "ask": ask, "chat": False}
    return Llama(Job(rubric, LlamaTier.model_validate(config)))


def text_of(tier: Llama, tokens: int, number: int) -> str:
    """A text of about so many tokens."""
    line = f"# {number}\n{WORDS}"
    each = len(tier._model.tokenize(line, special=False))
    return line * max(tokens // each, 1)


if __name__ == "__main__":
    main()
