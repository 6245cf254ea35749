"""The demo: the shipped models through the whole of Tamis, as a newcomer meets it."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from db.errors import StoreError
from db.query import ask
from demo.records import RUBRIC, applicants, main
from tiers.opening import open_backend
from tiers.screenfile.file import Screen, load_screen
from tiers.tier import job_of
from tiers.types import Candidate

from .project import Project

DEMO = Path(__file__).parent.parent / "demo"


@pytest.fixture(scope="module")
def screen() -> Screen:
    return load_screen(DEMO / "screen.yaml")


def area_under_curve(scores: np.ndarray, truth: np.ndarray) -> float:
    """Probability that a random positive scores above a random negative; ties count half."""
    order = np.argsort(np.argsort(scores, kind="stable"), kind="stable") + 1
    positives = truth.sum()
    return float(
        (order[truth].sum() - positives * (positives + 1) / 2) / (positives * (~truth).sum())
    )


def test_the_screen_asks_what_the_models_learned(screen: Screen) -> None:
    assert screen.rubric.strip() == RUBRIC.strip()


@pytest.mark.parametrize(("position", "least"), [(0, 0.85), (1, 0.96), (2, 0.99)])
def test_each_model_tells_fit_from_unfit(screen: Screen, position: int, least: float) -> None:
    people = list(applicants(400, seed=4242))
    tier = open_backend(job_of(screen, position))
    judged = {j.id: j for j in tier.judge(Candidate(i, one.text) for i, one in enumerate(people))}
    tier.close()
    scores = np.array([judged[i].score for i in range(len(people))], float)
    assert not np.isnan(scores).any()
    assert area_under_curve(scores, np.array([one.truth for one in people])) >= least
    assert all((judged[i].mass or 0) > 0.9 for i in range(len(people)))
    if position == 2:
        replies = [json.loads(judged[i].reading or "") for i in range(len(people))]
        assert all(list(reply)[:2] == ["verdict", "confidence"] for reply in replies)


def write_screen(project: Project, count: int, form: str) -> None:
    """The demo's own screen file over a file that its generator wrote."""
    target = project.folder / f"applicants.{form}"
    main(["--count", str(count), "--seed", "11", "--format", form, "--output", str(target)])
    text = (DEMO / "screen.yaml").read_text()
    text = text.replace("data/applicants.jsonl", str(target)).replace("models/", f"{DEMO}/models/")
    (project.folder / "screen.yaml").write_text(text)


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_generated_file_is_screened_end_to_end(project: Project, form: str) -> None:
    write_screen(project, 600, form)
    code, finished, err = project.run()
    assert code == 0, err
    assert finished["candidates"] == 600
    assert finished["tiers"][2]["judged"] < finished["tiers"][1]["judged"] < 600
    verdicts = {key: dict(row)["verdict"] for key, row in project.results(finished["run"]).items()}
    truth = {one.applicant_id: one.truth for one in applicants(600, seed=11)}
    right = sum((verdicts[key] == "accepted") == fits for key, fits in truth.items())
    assert right / 600 > 0.95


def test_killed_while_a_model_judges_it_ends_with_the_same_scores(project: Project) -> None:
    write_screen(project, 2_000, "jsonl")
    process = project.start("run", "screen.yaml", "--database", project.database)
    judged = 0
    while process.poll() is None and judged < 300:
        time.sleep(0.01)
        judged = judgements(project)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert 300 <= judgements(project) < 2_000
    code, finished, err = project.run()
    assert code == 0, err
    other = f"sqlite:///{project.folder}/other.db"
    code, whole, err = project.run(database=other)
    assert code == 0, err
    first = project.results(finished["run"])
    second = project.results(whole["run"], other)
    for key, row in first.items():
        # What else was in a batch moves a score by rounding, so a verdict may turn at a threshold.
        small, again = dict(row)["small_score"], dict(second[key])["small_score"]
        assert abs(small - again) < 2e-2
    turned = sum(dict(row)["verdict"] != dict(second[key])["verdict"] for key, row in first.items())
    assert turned <= 4


def judgements(project: Project) -> int:
    try:
        return int(ask(project.database, "SELECT count(*) AS n FROM judgement")[0]["n"])
    except StoreError:  # the tables are not there yet
        return 0


def test_the_demo_ends_with_its_quality_and_the_next_steps(project: Project) -> None:
    code, out, err = project.tamis("demo", "--count", "300", "--database", project.database)
    assert code == 0, err
    for part in ("recall", "precision", "largest model on all", "tamis results", "tamis ui"):
        assert part in out
    code, _, err = project.tamis("demo", "--count", "300", "--database", project.database)
    assert code == 0, err


def test_a_first_screen_is_written_checked_and_run(project: Project) -> None:
    code, out, err = project.tamis("init", "mine")
    assert code == 0, err
    assert "tamis check" in out
    code, out, err = project.tamis("check", "mine/screen.yaml")
    assert code == 0, err
    assert "tokens shared by all candidates" in out
    assert "all is well" in out
    written = (project.folder / "mine" / "screen.yaml").read_text()
    assert "model: models/applicants-small.gguf" in written  # no path of this machine
    assert str(Path.cwd()) not in written
    code, out, err = project.tamis("init", "mine")
    assert code == 2
    assert "exists already" in err
    code, out, err = project.tamis(
        "run", "mine/screen.yaml", "--json", "--database", project.database
    )
    assert code == 0, err
    assert json.loads(out)["candidates"] == 200
