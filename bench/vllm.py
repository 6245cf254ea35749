"""Candidates per CPU second with vLLM: one token or a reply, in process or by a server.

python -m bench.vllm [--candidates 16] [--shared 800] [--own 200] [--written 100] [--gpu]

Runs where vLLM is installed, on a processor (`make test-vllm` makes such an environment). A random
model of about 30 M parameters is made on the spot. Counted is the CPU time of all processes that
work for a row, engine, server and client, after a warm-up and without the start. With --gpu it is
a gemma of 2 B parameters whose weights vLLM makes up, in process alone, and wall time.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import numpy as np
import psutil
from transformers import Gemma2Config

from bench.common import finish, machine, table
from tests.vllm.tiny import tokenizer, write_model
from tiers.opening import open_backend
from tiers.screenfile.tiers import HttpTier, VllmTier
from tiers.tier import Job
from tiers.types import Candidate

WORDS = ["value", "returns", "object", "module", "import", "error", "type", "list", "string"]
QUIET = {
    "OMP_NUM_THREADS": "1",  # threads that spin while they wait would be counted as work
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}

OPTIONS = {"enforce_eager": True, "dtype": "float32"}  # bf16 is emulated on many processors
GPU_OPTIONS = {"load_format": "dummy", "dtype": "bfloat16"}


class Load(NamedTuple):
    """How many candidates, and the tokens of a shared prompt, of a candidate and of a reply."""

    candidates: int
    shared: int
    own: int
    written: int

    @property
    def rubric(self) -> str:
        return " ".join(np.random.default_rng(1).choice(WORDS, self.shared))

    def texts(self, seed: int) -> list[Candidate]:
        rng = np.random.default_rng(seed)
        words = [" ".join(rng.choice(WORDS, self.own)) for _ in range(self.candidates)]
        return [Candidate(i, text) for i, text in enumerate(words)]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    for name, default in Load(16, 800, 200, 100)._asdict().items():
        arguments.add_argument(f"--{name}", type=int, default=default)
    arguments.add_argument("--gpu", action="store_true")
    options = vars(arguments.parse_args())
    gpu = options.pop("gpu")
    load = Load(**options)
    os.environ |= QUIET
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        if gpu:
            gemma = str(write_gemma(Path(folder) / "model"))
            for caching in (True, False):
                seconds |= _in_a_child(offline, gemma, load, caching, gpu)
            report(seconds, load, "a gemma of 2 B parameters, bfloat16", "wall")
            return
        model = write_model(Path(folder) / "model", width=512, layers=8, feed_forward=1536)
        for caching in (True, False):
            seconds |= _in_a_child(offline, str(model), load, caching)
            print(seconds, file=sys.stderr)
        with served(model) as (url, server):
            seconds |= over_http(url, server, load)
    report(seconds, load, "a random llama of 30 M parameters, float32", "CPU")


def write_gemma(folder: Path) -> Path:
    """The configuration of gemma-2-2b with a small tokenizer, and no weights."""
    config = Gemma2Config(architectures=["Gemma2ForCausalLM"], vocab_size=256_000)
    config.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def _in_a_child(work: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """An engine's memory comes back only with its process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def offline(model: str, load: Load, caching: bool, gpu: bool = False) -> dict[str, float]:
    """Seconds a candidate of the tier in this process, and of vLLM alone writing."""
    job = Job(load.rubric, VllmTier.model_validate(_section(model, caching, gpu)))
    clock = time.perf_counter if gpu else time.process_time
    tier: Any = open_backend(job)
    with closing(tier):
        list(tier.judge(load.texts(0)[:4]))
        began = clock()
        judged = list(tier.judge(load.texts(1)))
        scored = (clock() - began) / load.candidates
        assert all(judgement.score is not None for judgement in judged)
        if not caching:
            return {"in process, one token, no prefix cache": scored}
        began = clock()
        write_offline(tier, load)
        written = (clock() - began) / load.candidates
    return {
        "in process, one token": scored,
        f"in process, {load.written} tokens": written,
    }


def write_offline(tier: Any, load: Load) -> None:
    from vllm import SamplingParams

    longest = SamplingParams(temperature=0, max_tokens=load.written, ignore_eos=True)
    texts = tier._vocabulary.as_text([each.text for each in load.texts(2)])
    prompts = [{"prompt_token_ids": tier.head + own} for own in texts]
    tier._engine._model.generate(prompts, longest, use_tqdm=False)


def _section(model: str, caching: bool, gpu: bool) -> dict[str, Any]:
    chosen = GPU_OPTIONS if gpu else OPTIONS
    options = {"enable_prefix_caching": caching, "max_model_len": 4096, **chosen}
    return {"name": "bench", "backend": "vllm", "model": model, "options": options}


@contextmanager
def served(model: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The server that comes with vLLM, with the same model, and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    server = subprocess.Popen(
        [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1",
         "--port", port, "--model", str(model), "--served-model-name", "bench",
         "--enforce-eager", "--dtype", "float32", "--max-model-len", "4096"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        _await(f"http://127.0.0.1:{port}/health", server)
        yield f"http://127.0.0.1:{port}/v1", psutil.Process(server.pid)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def _await(url: str, server: "subprocess.Popen[bytes]") -> None:
    while server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise RuntimeError(f"the server ended with {server.returncode}")


def over_http(url: str, server: psutil.Process, load: Load) -> dict[str, float]:
    """CPU seconds a candidate of server and client together."""
    ways = {
        "server, one token, a candidate a request": {"api": "chat"},
        "server, one token, 16 candidates a request": {"api": "completions"},
    }
    seconds = {}
    for seed, (name, way) in enumerate(ways.items(), 3):
        section = {"name": "bench", "backend": "http", "base_url": url, "model": "bench"} | way
        with closing(open_backend(Job(load.rubric, HttpTier.model_validate(section)))) as tier:
            list(tier.judge(load.texts(0)[:4]))
            began = _cpu(server)
            judged = list(tier.judge(load.texts(seed)))
            seconds[name] = (_cpu(server) - began) / load.candidates
            assert all(judgement.score is not None for judgement in judged)
    began = _cpu(server)
    asyncio.run(_write(url, load))
    seconds[f"server, {load.written} tokens"] = (_cpu(server) - began) / load.candidates
    return seconds


async def _write(url: str, load: Load) -> None:
    async def one(text: str) -> None:
        body = {"model": "bench", "prompt": f"{load.rubric}\n{text}", "temperature": 0}
        body |= {"max_tokens": load.written, "ignore_eos": True}
        async with session.post(f"{url}/completions", json=body) as reply:
            usage = json.loads(await reply.text())["usage"]
            assert usage["completion_tokens"] == load.written

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(600)) as session:
        await asyncio.gather(*(one(each.text) for each in load.texts(9)))


def _cpu(server: psutil.Process) -> float:
    """CPU seconds of a process, of all below it, and of this one."""
    family = [server, *server.children(recursive=True), psutil.Process()]
    return sum(sum(process.cpu_times()[:2]) for process in family)


def report(seconds: dict[str, float], load: Load, model: str, unit: str) -> None:
    base = seconds["in process, one token"]
    print(machine())
    print(
        f"{load.candidates} candidates, {load.shared} shared and {load.own} own words each, {model}"
    )
    table(
        ["way", f"{unit} ms/candidate", f"candidates/{unit} s", "dearer by"],
        [(name, 1e3 * each, 1 / each, each / base) for name, each in seconds.items()],
    )
    finish("vllm", {"load": load._asdict(), f"{unit.lower()}_seconds": seconds})


if __name__ == "__main__":
    main()
