"""Tier 0: what it learns, what it refuses, and what a promise says of it; whole flows on both databases."""

import json
import math
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sqlalchemy import text

from db.engine import open_engine
from db.store import ClassifierState, LabelSource, Store, StoreError, rubric_digest
from demo.records import applicants, write_jsonl
from flows.calibrate import calibrate
from flows.distil import distil, due, train
from flows.files.training import split_of, write_training_set
from flows.guarantee.classifiers import fitted
from flows.guarantee.labelling import ask_in_turn
from flows.guarantee.state import Calibration
from flows.report.costs import costs_of_runs
from flows.served import _distil
from flows.settings import Settings
from tiers.backends.classifier.fit import active, choose, fit
from tiers.backends.classifier.tier import Classifier, unpack, version_of
from tiers.calibration import Thresholds
from tiers.screenfile.faults import ScreenError
from tiers.screenfile.file import Screen, load_screen
from tiers.screenfile.tiers import ClassifierTier
from tiers.tier import Job
from tiers.types import Candidate, TierError

from .own_tiers import score_of
from .project import Project, screened

HERE = Path(__file__).parent
COUNT = 900
PROMISE = "{recall: 0.9, confidence: 0.9, against: large, labels: 400, seed: 3}"
GOOD = (
    "voucher prize claim now",
    "urgent prize call now",
    "claim a free voucher",
    "cash prize urgent",
)
BAD = ("see you at lunch", "the meeting is moved", "lunch with mother", "train is late today")


def words(i: int) -> tuple[str, bool]:
    """A text and whether it is wanted: one in five is, and one in twenty of those reads like others."""
    wanted = i % 5 == 0
    kind = GOOD if wanted and i % 100 else BAD
    return f"{kind[i % 4]} {kind[(i // 7) % 4]} number{i}", wanted


def write(
    folder: Path,
    promise: str = PROMISE,
    *,
    every: Any = words,
    section: str = "",
    count: int = COUNT,
) -> Screen:
    with (folder / "in.jsonl").open("w") as file:
        for i in range(count):
            file.write(json.dumps({"id": f"k{i:04}", "text": every(i)[0]}) + "\n")
    (folder / "wanted.txt").write_text(
        "".join(f"{body}\n" for body, wanted in map(every, range(count)) if wanted)
    )
    tier = f"{{name: large, backend: python, path: 'own_tiers:Listed', folder: {HERE}, " + (
        f'options: {{wanted: "{folder}/wanted.txt", paid: "{folder}/large"}}}}'
    )
    (folder / "screen.yaml").write_text(
        "screen: try\ncandidates: {from: in.jsonl, key: id, text: '{{ text }}'}\n"
        f"rubric: a prize or a voucher\nguarantee: {promise}\ntiers:\n"
        f"  - {{name: zero, backend: classifier{section}}}\n  - {tier}\n"
    )
    return load_screen(folder / "screen.yaml")


@contextmanager
def stored() -> Iterator[Store]:
    engine = open_engine(Settings().database())
    try:
        yield Store(engine)
    finally:
        engine.dispose()


def paid(folder: Path) -> int:
    path = folder / "large"
    return path.stat().st_size if path.exists() else 0


def blind(i: int) -> tuple[str, bool]:
    """A text whose words say nothing of whether it is wanted; its number makes it one of its own."""
    return f"{BAD[i % 4]} {BAD[(i // 4) % 4]} n{i:04}", score_of(f"blind {i}") < 0.2


def test_a_version_scores_as_scikit_learn_does() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [words(i)[0] for i in range(120)] + ["Ünïcode Prize, PRIZE prize", "", "!!"]
    made = fit(texts[:60], [float(words(i)[1]) for i in range(60)], texts)
    weights = unpack(made.body, made.version)
    vectorizer = TfidfVectorizer(
        token_pattern=r"\w\w+", ngram_range=(1, 2), sublinear_tf=True, min_df=2, max_features=50_000
    ).fit([*texts[:60], *texts])
    names = vectorizer.get_feature_names_out()
    assert set(names) == set(weights.places)
    places = [weights.places[one] for one in names]
    weight = weights.weight[places] / weights.squared[places] ** 0.5
    odds = vectorizer.transform(texts) @ weight + weights.bias
    mine = [math.log(p / (1 - p)) for p in map(weights.score, texts)]
    assert np.allclose(mine, odds, atol=1e-4)
    wanted = [weights.score(words(i)[0]) for i in range(60, 120) if words(i)[1] and i % 100]
    others = [weights.score(words(i)[0]) for i in range(60, 120) if not words(i)[1]]
    assert min(wanted) > max(others)


def test_a_soft_label_moves_the_model_less_than_a_sure_one() -> None:
    texts = [words(i)[0] for i in range(100)] + ["odd one out"] * 2
    sure = [float(words(i)[1]) for i in range(100)]
    scores = []
    for share in (0.0, 0.5, 1.0):
        made = fit(texts, [*sure, share, share], ())
        scores.append(unpack(made.body, made.version).score("odd one out"))
    assert scores[0] < scores[1] < scores[2]


@pytest.mark.parametrize(
    ("shares", "texts", "said"),
    [
        ([], [], "no label is there"),
        ([1.0, 0.9], ["one two", "one two"], "all 2 training labels are yes"),
        ([0.0, 0.1], ["one two", "one two"], "all 2 training labels are no"),
        ([1.0, 0.0], ["alpha beta", "gamma delta"], "no word of two letters occurs in two texts"),
        ([1.0, 0.0], ["", "!"], "no word of two letters occurs in two texts"),
    ],
)
def test_what_teaches_nothing_is_said(shares: list[float], texts: list[str], said: str) -> None:
    with pytest.raises(TierError, match=said):
        fit(texts, shares, ())


def test_a_damaged_or_exchanged_model_is_refused_and_never_run() -> None:
    made = fit([words(i)[0] for i in range(50)], [float(words(i)[1]) for i in range(50)], ())
    for body in (b"", made.body[:-9], b"cos\nsystem\n(S'true'\ntR.", made.body + b"x"):
        with pytest.raises(TierError, match="is damaged"):
            unpack(body, made.version)
        with pytest.raises(TierError, match="is damaged"):
            unpack(body[:-1], version_of(body))


def test_half_of_the_first_labels_are_near_the_rubric_and_none_is_asked_twice() -> None:
    texts = [words(i)[0] for i in range(500)]
    chosen = choose(texts, "a prize or a voucher", 60, 1)
    assert len(set(chosen)) == len(chosen) == 60
    assert all(words(i)[1] for i in chosen[:30])
    assert any(not words(i)[1] for i in chosen[30:])
    assert choose(texts, "a prize or a voucher", 60, 1) == chosen
    told = {i: words(i)[1] for i in chosen}
    following = active(texts, "a prize or a voucher", told, 20, 0)
    assert len(following) == 20
    assert not set(following) & set(told)
    assert sum(words(i)[1] for i in following) >= 8  # every other one is likely


def test_a_screen_file_says_what_a_classifier_needs(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "screen.yaml"
    whole = path.read_text()
    path.write_text("\n".join(line for line in whole.splitlines() if "guarantee" not in line))
    with pytest.raises(ScreenError, match="rejects by a promise of recall"):
        load_screen(path)
    path.write_text(whole.replace("recall: 0.9", "precision: 0.9"))
    with pytest.raises(ScreenError, match="rejects by a promise of recall"):
        load_screen(path)
    path.write_text("\n".join(line for line in whole.splitlines() if "large, backend" not in line))
    with pytest.raises(ScreenError, match="is a classifier and the last"):
        load_screen(path)


@pytest.mark.slow
def test_a_classifier_is_admitted_and_then_spares_the_model(folder: Path) -> None:
    definition = write(folder)
    with pytest.raises(TierError, match="never trained; run tamis distil"):
        screened(definition)
    made = distil(definition)
    assert made["status"] == "certified", made["message"]
    assert made["trained"]["asked"] == 200
    assert made["trained"]["labels"] == {"people": 0, "large": 200, "positive": 109}
    assert made["trained_on"] == 200
    assert made["candidates"] == COUNT - 200
    version = made["classifiers"]["zero"]
    labelled = paid(folder)
    assert labelled == 200 + made["labels_used"]

    key = screened(definition)
    with stored() as store:
        run = store.runs.find(made["run"])
        assert run.config["tiers"][0]["version"] == version
        calibration = Calibration(store, run, Screen.model_validate(run.config))
        # Who trained the version certifies nothing of it.
        assert not {*calibration.text_ids.tolist()} & calibration.trained
        assert len(calibration.trained) == 200
        later = store.runs.find(key)
        verdicts = {row["key"]: row["verdict"] for row in store.results.all(later.id)}
        wanted = {f"k{i:04}" for i in range(COUNT) if words(i)[1]}
        assert sum(verdicts[one] == "accepted" for one in wanted) >= 0.9 * len(wanted)
        # Labelled candidates follow their labels: none that trained the version is lost.
        keys = {one.text_id: one.key for one in store.labels.scored(run.id, 0)}
        taught = store.classifiers.texts(calibration.versions[0][1].id)
        assert all(
            verdicts[keys[one]] == ("accepted" if share > 0.5 else "rejected")
            for one, (share, _) in taught.items()
        )
        found = store.classifiers.find("try", "zero")
        assert found is not None
        assert found.state is ClassifierState.ADMITTED
        (row,) = costs_of_runs(store, "try")
        assert row["classifier"] == version
        assert row["removed"] > 0.4 * COUNT
        assert row["asked"] == COUNT - row["removed"]
        assert 200 + row["paid"] == paid(folder) < 0.7 * COUNT
    before = paid(folder)
    again = screened(definition)
    assert paid(folder) == before
    with stored() as store:
        last = costs_of_runs(store, "try")[-1]
        assert (last["run"], last["classifier"], last["paid"]) == (again, version, 0)


@pytest.mark.slow
def test_one_that_learns_nothing_is_refused_by_how_much_and_runs_go_on(folder: Path) -> None:
    definition = write(folder, every=blind)
    made = distil(definition)
    assert made["status"] == "infeasible_budget"
    assert "is not admitted: with it a candidate is expected to cost" in made["message"]
    assert "more" in made["message"] or "chance alone" in made["message"]
    assert paid(folder) == 200  # it was refused before a label was drawn
    key = screened(definition)
    with stored() as store:
        run = store.runs.find(key)
        assert [tier["name"] for tier in run.config["tiers"]] == ["large"]
        found = store.classifiers.find("try", "zero")
        assert found is not None
        assert found.state is ClassifierState.REFUSED
        assert store.runs.account(run.id).accepted == sum(blind(i)[1] for i in range(COUNT))
    with pytest.raises(StoreError, match="nothing to calibrate"):
        calibrate.fn(definition)


@pytest.mark.slow
@pytest.mark.slow
def test_one_that_may_reject_nobody_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    definition = write(folder)
    idle = (Thresholds(),)
    monkeypatch.setattr(
        Calibration, "result", lambda self: replace(self._calibrator.result(), thresholds=idle)
    )
    made = distil(definition)
    assert made["status"] == "infeasible_budget"
    assert "it may reject only 0.0%" in made["message"]
    with stored() as store:
        found = store.classifiers.find("try", "zero")
        assert found is not None
        assert (found.state, found.reason) == (ClassifierState.REFUSED, made["message"])


@pytest.mark.slow
def test_too_few_labels_are_counted_before_any_is_drawn(folder: Path) -> None:
    promise = "{recall: 0.95, against: large, labels: 60, prevalence: 0.02}"
    definition = write(folder, promise)
    made = distil(definition, labels=100)
    assert made["status"] == "infeasible_budget"
    assert "labels needed at" in made["message"]
    assert "budget 60" in made["message"]
    assert paid(folder) == 100


def test_a_version_that_is_gone_is_named(folder: Path) -> None:
    definition = write(folder, section=", version: 0123456789abcdef")
    with pytest.raises(StoreError, match="version 0123456789abcdef of it is not in this database"):
        screened(definition)


@pytest.mark.slow
def test_a_run_keeps_its_version_and_a_new_one_has_another_judge(folder: Path) -> None:
    definition = write(folder)
    first = distil(definition)
    second = distil(definition, labels=300)
    one, other = first["classifiers"]["zero"], second["classifiers"]["zero"]
    assert one != other
    assert first["run"] != second["run"]
    with stored() as store:
        judges = [store.tiers.judges(store.runs.find(made["run"]).id) for made in (first, second)]
        assert judges[0][0] != judges[1][0]
        assert judges[0][1] == judges[1][1]
        # All that the last tier said so far has taught the second one.
        assert second["trained"]["labels"]["large"] >= 200 + first["labels_used"]
    url = Settings().database()
    newest, kept = (fitted(definition, url, key=key) for key in (None, first["run"]))
    assert [each.tiers[0].version for each in (newest, kept)] == [other, one]  # type: ignore[union-attr]


@pytest.mark.slow
def test_labels_in_active_order_train_and_never_certify(folder: Path) -> None:
    promise = PROMISE.replace("against: large", "against: people")
    definition = write(folder, promise)
    train(definition, labels=40)
    made = calibrate.fn(definition)
    assert made["status"] == "waiting"
    said: list[str] = []
    with stored() as store:
        run = store.runs.find(made["run"])
        calibration = Calibration(store, run, Screen.model_validate(run.config))
        wanted = calibration.missing()

        def answer(_prompt: str) -> str:
            number = int(said[-1].strip().rpartition("number")[2])
            return "q" if len(said) > 61 else "yes" if words(number)[1] else "no"

        told = ask_in_turn(store, run, "ada", answer, said.append, active=True)
        assert told >= 50
        rubric = rubric_digest(definition.rubric)
        assert store.labels.all(rubric, LabelSource.PERSON) == []
        labels = store.labels.all(rubric, LabelSource.ACTIVE)
        assert len(labels) == told
        assert sum(bool(one.answer) for one in labels) > told / 4
        again = Calibration(store, run, Screen.model_validate(run.config))
        assert again.missing() == wanted  # not one of them was answered by that
    trained = train(definition, teacher="people")
    assert trained.labels == {"people": told, "large": 0, "positive": trained.labels["positive"]}
    assert trained.asked == 0


@pytest.mark.slow
def test_equal_words_stay_in_one_split_of_the_training_set(folder: Path) -> None:
    definition = write(folder)
    distil(definition)
    key = screened(definition)
    output = folder / "train.jsonl"
    with stored() as store:
        counts = write_training_set(store, store.runs.find(key), output)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == sum(counts.values())
    assert min(counts.values()) > 0
    for row in rows:
        asked, answered = row["messages"]
        assert (asked["role"], answered["role"]) == ("user", "assistant")
        assert answered["content"] == ("yes" if words(int(row["key"][1:]))[1] else "no")
        assert asked["content"].startswith("a prize or a voucher")
    assert split_of("One  text\n") == split_of("one text")


def test_a_teacher_that_is_none_is_told(folder: Path) -> None:
    definition = write(folder)
    with pytest.raises(TierError, match="no tier that teaches; write one of: large, people"):
        train(definition, teacher="small")
    with pytest.raises(TierError, match="no label is there"):
        train(definition, teacher="people")
    bare = definition.model_copy(update={"tiers": definition.tiers[1:]})
    with pytest.raises(TierError, match="has no tier to train"):
        train(bare)


def test_labels_of_one_class_are_told_from_none(folder: Path) -> None:
    definition = write(folder, every=lambda i: (words(i)[0], False), count=60)
    with pytest.raises(TierError, match="all 60 training labels are no"):
        train(definition)
    with stored() as store, store.engine.connect() as connection:
        assert connection.execute(text("SELECT COUNT(*) FROM classifier")).scalar() == 0


def test_a_classifier_needs_its_weights(tmp_path: Path) -> None:
    tier = ClassifierTier(name="zero", backend="classifier")
    with pytest.raises(TierError, match="no trained version here"):
        Classifier(Job("any", tier))
    made = fit([words(i)[0] for i in range(50)], [float(words(i)[1]) for i in range(50)], ())
    opened = Classifier(Job("any", tier.fitted(made.version, made.body)))
    (judged,) = opened.judge([Candidate(7, "a free voucher, claim the prize")])
    assert judged.id == 7
    assert judged.score is not None
    assert judged.score > 0.5


def fenced(language: str) -> list[str]:
    page = (HERE.parent / "docs" / "tier-zero.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def test_the_page_runs_from_top_to_bottom(project: Project) -> None:
    folder = project.folder
    first, scheduled = fenced("yaml")
    # Some are hard for words, and where they lie low, tier 0 may reject nobody: not on this page.
    write(folder, every=lambda i: words(i + 1 if i % 100 == 0 else i))
    own = "".join((folder / "screen.yaml").read_text().splitlines(keepends=True)[-1:])
    shutil.copy(folder / "in.jsonl", folder / "letters.jsonl")
    models = "  - name: large\n    backend: llama\n    model: gemma-2-9b\n"
    assert models in first
    assert scheduled.replace(", distil: auto", "").count("backend: classifier") == 1
    (folder / "screen.yaml").write_text(first.replace(models, own))
    (commands,) = fenced("sh")
    told = [line.split() for line in commands.splitlines()]
    assert [line[0] for line in told] == ["tamis"] * 4
    for _, *arguments in told:
        trusted = ["--allow-code"] if arguments[0] in ("distil", "run") else []
        code, out, err = project.tamis(*arguments, *trusted, "--database", project.database)
        assert code == 0, (arguments, out, err)
        if "--history" in arguments:
            assert out.count("letters-") in (1, 2)  # a run that was calibrated may be over by then
    assert (folder / "train.jsonl").read_text().count('"split"') >= 200


def test_the_demo_models_teach_and_words_alone_do_not_do(folder: Path) -> None:
    """Tier 0 switches itself off where a rubric turns on numbers, and the promise is as before."""
    models = HERE.parent / "demo" / "models"
    with (folder / "applicants.jsonl").open("w") as file:
        write_jsonl(islice(applicants(260, 5), 260), file)
    screen = yaml.safe_load((HERE.parent / "demo" / "screen.yaml").read_text())
    small = {**screen["tiers"][0], "model": str(models / "applicants-small.gguf")}
    small["policy"] = {"accept_above": 0.5}
    screen["candidates"]["from"] = "applicants.jsonl"
    screen["tiers"] = [{"name": "zero", "backend": "classifier"}, small]
    screen["guarantee"] = {"recall": 0.95, "against": "small", "labels": 120}
    (folder / "screen.yaml").write_text(yaml.safe_dump(screen))
    definition = load_screen(folder / "screen.yaml")
    made = distil(definition, labels=100)
    assert made["trained"]["labels"]["small"] == 100
    assert made["status"] == "infeasible_budget", made["message"]
    screened(definition)
    with stored() as store:
        run = store.runs.find()
        assert [tier["name"] for tier in run.config["tiers"]] == ["small"]
        assert store.runs.account(run.id).pending == 0


@pytest.mark.slow
def test_a_scheduled_run_trains_once_labels_have_grown(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    definition = write(folder, section=", distil: auto")
    with stored() as store:
        assert due(definition, store)
        _distil(definition, store)
        first = store.classifiers.find("try", "zero")
        assert first is not None
        assert f"version {first.version}" in capsys.readouterr().err
        assert due(definition, store)  # what was drawn to certify teaches, too
        by_hand = (
            load_screen(folder / "screen.yaml").tiers[0].model_copy(update={"distil": "by_hand"})
        )
        assert not due(
            definition.model_copy(update={"tiers": (by_hand, *definition.tiers[1:])}), store
        )
        train(definition)
        assert not due(definition, store)
        newest = store.classifiers.find("try", "zero")
        assert newest is not None
        assert newest.labels["large"] >= 1.25 * first.labels["large"]
