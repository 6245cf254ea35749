"""A tier in its child process: what crosses the pipe, and what survives a crash."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tiers.host import CHUNK, HostedTier
from tiers.opening import identity
from tiers.screenfile.tiers import PythonTier
from tiers.tier import Job
from tiers.types import Candidate, Judgement, TierError

from .own_tiers import score_of
from .project import lives

HERE = Path(__file__).parent


def job(name: str, **options: object) -> Job:
    config = PythonTier(
        name="own", backend="python", path=f"own_tiers:{name}", options=options, folder=str(HERE)
    )
    return Job("the rubric", config)


@contextmanager
def hosted(name: str, **options: object) -> Iterator[HostedTier]:
    tier = HostedTier(job(name, **options))
    try:
        yield tier
    finally:
        tier.close()


def judge(tier: HostedTier, texts: list[str]) -> dict[int, Judgement]:
    got = list(tier.judge(Candidate(i, text) for i, text in enumerate(texts)))
    assert len(got) == len(texts), "a judgement for each candidate, and one only"
    return {judgement.id: judgement for judgement in got}


@pytest.mark.parametrize("count", [0, 1, CHUNK, 3 * CHUNK + 1])
def test_every_candidate_comes_back_once(count: int) -> None:
    texts = [f"text {i}" for i in range(count)]
    with hosted("Steady") as tier:
        for _ in range(2):  # the child serves one call after the other
            got = judge(tier, texts)
            assert [got[i].score for i in range(count)] == [score_of(text) for text in texts]


def test_judgements_stream_before_the_last_candidate_is_known() -> None:
    with hosted("Steady") as tier:
        first_is_back = threading.Event()

        def candidates() -> Iterator[Candidate]:
            yield from (Candidate(i, "text") for i in range(CHUNK * 2))
            yield Candidate(-1, "last")

        for judgement in tier.judge(candidates()):
            if judgement.id == 0:
                first_is_back.set()
        assert first_is_back.is_set()


@pytest.mark.parametrize("how", ["abort", "segfault", "raise"])
def test_a_crash_costs_the_one_candidate_that_causes_it(how: str) -> None:
    texts = [f"text {i}" for i in range(700)]
    texts[13] = texts[650] = f"please {how}"
    with hosted("Crashing") as tier:
        got = judge(tier, texts)
    for i, text in enumerate(texts):
        if how in text:
            assert got[i].score is None
            assert "cannot read this one" in got[i].error or "SIG" in got[i].error
        else:
            assert got[i].score == score_of(text)


def test_an_engine_that_dies_of_everybody_stops_the_tier() -> None:
    judged = []
    with hosted("Crashing") as tier, pytest.raises(TierError, match="in a row"):
        judged += tier.judge(Candidate(i, "abort") for i in range(50))
    assert not judged, "nobody is blamed for what is the engine's fault"


def test_two_tiers_of_one_name_in_two_folders_are_two(tmp_path: Path) -> None:
    scores = {}
    for folder, score in (("a", 0.9), ("b", 0.05)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(
            "from tiers.types import Judgement\nclass Mine:\n    def __init__(self, rubric): pass\n"
            f"    def judge(self, candidates):\n"
            f"        for candidate in candidates: yield Judgement(candidate.id, {score})\n"
        )
        config = PythonTier(
            name=folder, backend="python", path="mine:Mine", folder=str(tmp_path / folder)
        )
        scores[folder] = (identity(Job("r", config)), Job("r", config))
    assert scores["a"][0] != scores["b"][0]
    for folder, score in (("a", 0.9), ("b", 0.05)):
        tier = HostedTier(scores[folder][1])
        assert [j.score for j in tier.judge([Candidate(1, "x")])] == [score]
        tier.close()


def test_what_is_no_score_is_never_a_low_one() -> None:
    with hosted("Odd") as tier:
        got = judge(tier, ["fine", "silent", "nan", "seven"])
    assert got[0].score == score_of("fine")
    assert got[1].failed
    assert "no answer" in (got[1].error or "")
    assert got[2].score != got[2].score
    assert got[3].score is None
    assert "outside 0 to 1" in (got[3].error or "")


def test_a_tier_that_cannot_open_says_why() -> None:
    with pytest.raises(TierError, match="the device is on fire"):
        HostedTier(job("Unopenable"))
    with pytest.raises(TierError, match="cannot import own_tiers:Absent"):
        HostedTier(job("Absent"))


def test_the_child_is_gone_after_close() -> None:
    with hosted("Steady") as tier:
        pid = tier.pid
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    """Kill -9 of the flow leaves no engine behind."""
    program = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from tests.test_host import job\nfrom tiers.host import HostedTier\n"
        "print(HostedTier(job('Steady')).pid, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(HERE.parent)], stdout=subprocess.PIPE, cwd=HERE.parent
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        if not lives(child):
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        pytest.fail("the child outlived its parent")
