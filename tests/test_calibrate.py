"""A screen is calibrated, runs, keeps its promise, and is not paid for twice: whole flows."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from db.engine import open_engine
from db.store import Change, Label, LabelSource, Run, Store, StoreError, rubric_digest
from flows.calibrate import calibrate
from flows.guarantee.certificate import Certificate, certificate_in_use, markdown
from flows.guarantee.certifying import differences
from flows.guarantee.state import Calibration, disputes, not_covered, truth
from flows.guarantee.thresholds import as_certified, certified_now, standing
from flows.run import judging
from flows.run.screening import prepare
from flows.settings import Settings
from tiers.opening import open_backend
from tiers.screenfile.file import Screen, load_screen
from tiers.types import TierError

from .project import screened

HERE = Path(__file__).parent
COUNT = 900
PROMISE = "{recall: 0.9, confidence: 0.9, against: large, labels: 200, seed: 3}"


def write(folder: Path, promise: str = PROMISE, every: int = 5, last: str = "") -> Screen:
    """Three tiers of growing knowledge over candidates of which every fifth is positive."""
    with (folder / "in.jsonl").open("w") as file:
        for i in range(COUNT):
            said = "yes" if i % every == 0 else "no"
            file.write(json.dumps({"id": f"k{i:04}", "text": f"text number {i}: {said}"}) + "\n")
    lines = [
        "screen: try",
        "candidates: {from: in.jsonl, key: id, text: '{{ text }}'}",
        "rubric: any",
        f"guarantee: {promise}",
        "tiers:",
    ]
    for name, noise in (("small", 0.7), ("medium", 0.6), ("large", 0.2)):
        blind = "" if name == "large" else ", blind: hidden"
        options = f'{{noise: {noise}, salt: {name}, paid: "{folder}/{name}"{blind}}}'
        lines.append(
            f"  - {{name: {name}, backend: python, path: 'own_tiers:Knowing', folder: {HERE}, "
            f"options: {options}{last if name == 'large' else ''}}}"
        )
    (folder / "screen.yaml").write_text("\n".join(lines) + "\n")
    return load_screen(folder / "screen.yaml")


def paid(folder: Path, tier: str) -> int:
    path = folder / tier
    return path.stat().st_size if path.exists() else 0


@contextmanager
def stored() -> Iterator[tuple[Store, Run]]:
    engine = open_engine(Settings().database())
    store = Store(engine)
    try:
        yield store, store.runs.find()
    finally:
        engine.dispose()


def positives() -> set[str]:
    return {f"k{i:04}" for i in range(0, COUNT, 5)}


def counted(calibration: Calibration) -> set[str]:
    """Whom the certificate counts as kept: the promise is about them."""
    assert calibration.missing() == []
    kept = calibration.result().accepted
    return {key for key, one in zip(calibration.keys, kept, strict=True) if one}


def test_a_calibrated_run_keeps_its_promise_and_pays_once(folder: Path) -> None:
    definition = write(folder)
    made = calibrate.fn(definition)
    assert made["status"] == "certified", made["message"]
    assert made["certified_bound"] >= 0.9
    assert (paid(folder, "small"), paid(folder, "medium")) == (COUNT, COUNT)
    labelled = paid(folder, "large")
    assert labelled == made["labels_used"] <= 200

    again = calibrate.fn(definition)
    assert again["thresholds"] == made["thresholds"]
    assert again["labels_digest"] == made["labels_digest"]
    assert paid(folder, "large") == labelled

    key = screened(definition)
    assert key == made["run"]
    assert (paid(folder, "small"), paid(folder, "medium")) == (COUNT, COUNT)
    with stored() as (store, run):
        rows = list(store.results.all(run.id))
        accepted = {row["key"] for row in rows if row["verdict"] == "accepted"}
        assert {row["verdict"] for row in rows} == {"accepted", "rejected"}
        assert not accepted - positives()
        reached = store.results.funnel(run.id)[-1].reached
        assert paid(folder, "large") == reached < COUNT / 2
        # Who has a label is judged by it, whatever the cheaper tiers said.
        calibration = Calibration(store, run, definition)
        assert counted(calibration) & positives() == accepted
        told = calibration.labels()
        texts = dict(zip(calibration.keys, calibration.text_ids.tolist(), strict=True))
        assert all(key in accepted for key in texts if told.get(texts[key]))
        certificate = certificate_in_use(store, run)
        assert certificate is not None
        assert differences(calibration, certificate) == []
        assert "| small |" in markdown(certificate)
        # A changed label shows.
        some = next(text_id for text_id in told if told[text_id])
        arguments = (calibration.rubric, LabelSource.TIER, calibration.reviewer)
        store.labels.record(*arguments, {some: False}, replace=True)
        assert any("labels_digest" in one for one in differences(calibration, certificate)) or any(
            "labels that the draw" in one
            for one in differences(Calibration(store, run, definition), certificate)
        )


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_killed_calibration_ends_as_one_that_was_not(folder, monkeypatch, after) -> None:
    definition = write(folder)
    asked = 0
    tell_scores = Calibration.tell_scores

    def dying(self: Calibration, scores: Any) -> None:
        nonlocal asked
        asked += 1
        if asked == after:
            raise Killed
        tell_scores(self, scores)

    with monkeypatch.context() as patched:
        patched.setattr(Calibration, "tell_scores", dying)
        with pytest.raises(Killed):
            calibrate.fn(definition)
    made = calibrate.fn(definition)
    assert paid(folder, "large") == made["labels_used"]
    assert paid(folder, "small") == COUNT
    other = folder / "other"
    other.mkdir()
    whole = calibrate.fn(write(other), key="whole")
    for name in ("thresholds", "labels_digest", "certified_bound", "labels_used", "status"):
        assert made[name] == whole[name]


def test_too_few_labels_are_refused_before_anything_is_spent(folder: Path) -> None:
    few = PROMISE.replace("200", "40")
    definition = write(folder, few.replace("seed", "prevalence: 0.2, seed"))
    made = calibrate.fn(definition)
    assert made["status"] == "infeasible_budget"
    assert "labels needed at 20 % positives, budget 40: with 40 the best" in made["message"]
    assert "Nothing was spent" in made["message"]
    assert paid(folder, "small") == 0

    made = calibrate.fn(definition, anyway=True)
    assert made["status"] == "infeasible_budget"
    assert "budget 40: with these labels the best certificate is recall >= 0." in made["message"]
    assert paid(folder, "large") == 40
    with stored() as (store, run):
        assert store.policies.certificate(run.id) is None
        assert store.runs.account(run.id).pending == COUNT


def test_a_promise_is_not_run_without_its_calibration(folder: Path) -> None:
    definition = write(folder)
    with pytest.raises(TierError, match=r"promises recall >= 0\.9 .* but run 'try-1' is not calib"):
        screened(definition, key="try-1")
    assert paid(folder, "small") == 0


def test_a_promise_without_its_calibration_is_told_before_a_run_begins(folder: Path) -> None:
    definition = write(folder)
    with pytest.raises(TierError, match=r"promises recall >= 0\.9 .* but no run of it is calibr"):
        prepare(definition, None)
    with pytest.raises(StoreError, match="holds no run"), stored():
        pass
    made = calibrate.fn(definition, key=prepare(definition, None, to_calibrate=True))
    assert prepare(definition, made["run"]) == made["run"]
    assert prepare(definition, "later") == "later"
    other = write(folder, PROMISE.replace("0.9,", "0.8,", 1))
    with pytest.raises(
        TierError, match=r"calibrated for recall >= 0\.9 .* promises recall >= 0\.8"
    ):
        prepare(other, made["run"])
    with pytest.raises(TierError, match="run 'later' is not calibrated for that"):
        prepare(other, "later")


def test_thresholds_wait_for_approval_where_that_is_wanted(folder: Path) -> None:
    definition = write(folder, PROMISE.replace("}", ", approval: true}"))
    made = calibrate.fn(definition)
    assert made["status"] == "waiting"
    assert "tamis calibrate FILE --approve" in made["message"]
    labelled = paid(folder, "large")
    with pytest.raises(TierError, match="is not calibrated"):
        screened(definition)
    approved = calibrate.fn(definition, approve=True, author="ada")
    assert (approved["status"], approved["run"]) == ("certified", made["run"])
    assert "| approved by | ada |" in markdown(Certificate.model_validate(approved))
    assert screened(definition) == made["run"]
    # The word holds for this certificate, however often it is made; another label is another one.
    assert calibrate.fn(definition, key=made["run"])["status"] == "certified"
    assert labelled < paid(folder, "large") < COUNT
    with stored() as (store, run):
        calibration = Calibration(store, run, definition)
        some = next(text_id for text_id, answer in calibration.labels().items() if answer)
        arguments = (calibration.rubric, LabelSource.TIER, calibration.reviewer)
        store.labels.record(*arguments, {some: False}, replace=True)
    assert calibrate.fn(definition, key=made["run"])["status"] == "waiting"


def test_the_next_run_takes_the_thresholds_over(folder: Path) -> None:
    definition = write(folder)
    made = calibrate.fn(definition)
    screened(definition)
    with (folder / "in.jsonl").open("a") as file:
        file.write('{"id": "new", "text": "one more: yes"}\n')
    key = screened(definition)
    assert key != made["run"]
    assert paid(folder, "small") == COUNT + 1
    with stored() as (store, run):
        assert certificate_in_use(store, run).run == made["run"]


def test_another_promise_is_not_run_by_the_old_certificate(folder: Path) -> None:
    calibrate.fn(write(folder))
    higher = write(folder, PROMISE.replace("0.9,", "0.99,", 1))
    with pytest.raises(
        TierError, match=r"calibrated for recall >= 0\.9 .* promises recall >= 0\.99"
    ):
        screened(higher)
    made = calibrate.fn(higher, anyway=True)
    if made["status"] != "certified":
        with pytest.raises(TierError, match="the screen promises"):
            screened(higher)
    # A run that begins anew takes over nothing of another promise either.
    with pytest.raises(TierError, match="is not calibrated for that"):
        screened(write(folder, PROMISE.replace("0.9,", "0.8,", 1)), key="anew")
    # What the promise does not hang on may change.
    audited = write(folder, PROMISE.replace("seed", "audit: 10 %, seed"))
    key = screened(audited, key=made["run"])
    assert key == made["run"]


def test_candidates_that_a_tier_failed_on_are_judged_before_anything_is_certified(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    definition = write(folder)
    away = ["medium"]
    real = open_backend

    def opened(job: Any) -> Any:
        tier = real(job)
        judge = tier.judge

        def failing(candidates: Any) -> Any:
            for one in judge(candidates):
                down = job.config.name in away and one.id % 3 == 0
                yield one._replace(score=None, failed=True, error="away") if down else one

        monkeypatch.setattr(tier, "judge", failing)
        return tier

    monkeypatch.setattr(judging, "open_tier", opened)
    made = calibrate.fn(definition)
    assert made["status"] == "waiting"
    assert "tier 'medium' has still to judge 300 texts, those that it failed on" in made["message"]
    away[:] = ["large"]
    made = calibrate.fn(definition)
    assert made["status"] == "waiting"
    assert "tier 'large' has still to answer" in made["message"]
    away.clear()
    made = calibrate.fn(definition)
    assert made["status"] == "certified"
    assert made["unscored"] == len(made["unlabelled"]) == 0


def test_candidates_that_come_later_are_not_covered_and_that_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    definition = write(folder)
    made = calibrate.fn(definition, limit=700)
    assert made["candidates"] == 700
    screened(definition)
    said = capsys.readouterr().err
    assert "the 700 candidates that were calibrated: of them 0 went since, and 200 others" in said
    with stored() as (store, run):
        assert certified_now(store, run) is None
    again = calibrate.fn(definition, key=made["run"])
    assert again["candidates"] == COUNT
    with stored() as (store, run):
        assert certified_now(store, run) == again["certified_bound"]


def replaced(folder: Path, first: int, count: int, **fields: Any) -> None:
    """Other candidates in the place of some."""
    file = folder / "in.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for i in range(first, first + count):
        rows[i] = {"id": f"n{i:04}", "text": f"another hidden number {i}: yes", **fields}
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_as_many_others_do_not_pass_for_those_that_were_calibrated(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    definition = write(folder)
    made = calibrate.fn(definition)
    screened(definition)
    replaced(folder, 1, 3)
    capsys.readouterr()
    screened(definition, key=made["run"])
    told = "the 900 candidates that were calibrated: of them 3 went since, and 3 others came"
    assert told in capsys.readouterr().err
    with stored() as (store, run):
        assert len(list(store.results.all(run.id))) == made["candidates"] == COUNT
        assert certified_now(store, run) is None
        assert any(told in line for line in standing(store, run))
        assert not_covered(store, run, Certificate.model_validate(made)) == standing(store, run)[0]
        certificate = certificate_in_use(store, run)
        assert certificate is not None
        assert any(
            "candidates_digest" in line or "labels that the draw" in line
            for line in differences(Calibration(store, run, definition), certificate)
        )
    # A later run that takes the thresholds over is told the same, and of whose they are.
    screened(definition, key="later")
    said = capsys.readouterr().err
    assert f"took its thresholds over from run {made['run']}" in said
    assert told in said
    again = calibrate.fn(definition, key=made["run"])
    assert again["candidates_digest"] != made["candidates_digest"]
    with stored() as (store, run):
        first = store.runs.find(made["run"])
        assert certified_now(store, first) == again["certified_bound"]
        assert standing(store, first) == []


def test_who_comes_back_or_has_other_fields_is_the_one_that_was_calibrated(folder: Path) -> None:
    definition = write(folder)
    made = calibrate.fn(definition)
    original = (folder / "in.jsonl").read_text()
    replaced(folder, 1, 3)
    screened(definition, key=made["run"])
    (folder / "in.jsonl").write_text(original.replace('"}', '", "remark": "seen"}'))
    screened(definition, key=made["run"])
    with stored() as (store, run):
        assert standing(store, run) == []
        assert certified_now(store, run) == made["certified_bound"]


def test_a_text_that_changed_is_another_candidate(folder: Path) -> None:
    definition = write(folder)
    made = calibrate.fn(definition)
    file = folder / "in.jsonl"
    file.write_text(file.read_text().replace("text number 1: no", "text number 1: hidden yes"))
    screened(definition, key=made["run"])
    with stored() as (store, run):
        assert store.policies.came_and_went(run.id, made["candidates_digest"]) == (1, 1)
        assert certified_now(store, run) is None


def test_the_digest_of_the_candidates_can_be_computed_by_anybody(folder: Path) -> None:
    made = calibrate.fn(write(folder))
    rows = [json.loads(line) for line in (folder / "in.jsonl").read_text().splitlines()]
    texts = {row["id"]: hashlib.blake2b(row["text"].encode(), digest_size=16) for row in rows}
    lines = "".join(f"{key}\t{text.hexdigest()}\n" for key, text in sorted(texts.items()))
    assert made["candidates_digest"] == hashlib.sha256(lines.encode()).hexdigest()


def test_a_certificate_of_an_earlier_version_goes_by_the_count_and_says_so(folder: Path) -> None:
    definition = write(folder)
    made = calibrate.fn(definition)
    with stored() as (store, run):
        older = {
            name: value
            for name, value in made.items()
            if name not in ("candidates_digest", "last_tier")
        }
        engine = open_engine(Settings().database())
        with engine.begin() as connection:
            connection.execute(
                text("UPDATE policy SET certificate = :older WHERE certificate IS NOT NULL"),
                {"older": json.dumps(older)},
            )
        engine.dispose()
        assert "does not tell who was calibrated, only how many" in standing(store, run)[0]
        assert len(standing(store, run)) == 1
        assert certified_now(store, run) == made["certified_bound"]
        certificate = certificate_in_use(store, run)
        assert certificate is not None
        assert differences(Calibration(store, run, definition), certificate) == []
        assert "| SHA-256 of the candidates | not told |" in markdown(certificate)
    with (folder / "in.jsonl").open("a") as file:
        file.write('{"id": "new", "text": "one more: yes"}\n')
    screened(definition, key=made["run"])
    with stored() as (store, run):
        run = store.runs.find(made["run"])
        assert "calibrated, and the run has 901; calibrate again" in standing(store, run)[1]
        assert certified_now(store, run) is None
        last = Change(None, 1.0)
        store.policies.move(run.id, 2, last, author="ada", reason="try")
        assert not as_certified(store, run, certificate)


def test_the_last_tiers_bar_moved_by_hand_ends_the_promise(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    definition = write(folder)
    made = calibrate.fn(definition)
    screened(definition)
    with stored() as (store, run):
        was = next(
            one for one in store.policies.versions(run.id) if one.in_use and one.position == 2
        )
        assert was.thresholds == (
            made["last_tier"]["reject_below"],
            made["last_tier"]["accept_above"],
        )
        store.policies.move(run.id, 2, Change(None, 1.0), author="ada", reason="try")
        assert certified_now(store, run) is None
        certificate = certificate_in_use(store, run)
        assert certificate is not None
        assert not as_certified(store, run, certificate)
        assert "thresholds were changed" in standing(store, run)[0]
        assert "certified for nothing" in standing(store, run)[0]
    capsys.readouterr()
    screened(definition, key=made["run"])
    assert "certified for nothing" in capsys.readouterr().err
    with stored() as (store, run):
        store.policies.use(run.id, was.id, author="ada", reason="back")
        assert standing(store, run) == []
        assert certified_now(store, run) == made["certified_bound"]


def test_an_older_certificate_that_is_put_back_is_the_one_that_is_shown(folder: Path) -> None:
    calibrate.fn(write(folder, PROMISE.replace("0.9,", "0.6,", 1)))
    calibrate.fn(write(folder))
    with stored() as (store, run):
        newest = certificate_in_use(store, run)
        assert newest is not None
        assert newest.target == 0.9
        assert as_certified(store, run, newest)
        old = {one.tier: one for one in reversed(store.policies.versions(run.id)) if one.certified}
        store.policies.use(run.id, old["small"].id, author="ada", reason="try")
        mixed = certificate_in_use(store, run)
        assert mixed is not None
        assert not as_certified(store, run, mixed)
        assert not store.audits.same_promise(run.id)


@pytest.mark.parametrize(("kind", "target"), [("precision", 0.6), ("accuracy", 0.9)])
def test_what_nobody_has_promised_for_people_goes_to_people(
    folder: Path, kind: str, target: float
) -> None:
    promise = f"{{{kind}: {target}, confidence: 0.9, against: people, labels: 300, seed: 3}}"
    definition = write(folder, promise)
    for _ in range(80):
        made = calibrate.fn(definition, anyway=True)
        if made["status"] != "waiting":
            break
        with stored() as (store, run):
            calibration = Calibration(store, run, definition)
            texts = store.labels.texts(calibration.missing())
            answers = {text_id: body.endswith("yes") for text_id, body in texts.items()}
            store.labels.record(calibration.rubric, LabelSource.PERSON, "ada", answers)
    assert made["status"] == "certified", made["message"]
    screened(definition)
    with stored() as (store, run):
        rows = list(store.results.all(run.id))
        known = {
            label.text_id for label in store.labels.all(rubric_digest("any"), LabelSource.PERSON)
        }
        calibration = Calibration(store, run, definition)
        labelled = {
            key
            for key, text_id in zip(calibration.keys, calibration.text_ids.tolist(), strict=True)
            if text_id in known
        }
    by_last = {
        row["verdict"] for row in rows if row["tier"] == "large" and row["key"] not in labelled
    }
    assert by_last == {"review"}


def test_people_are_asked_until_they_have_said_enough(folder: Path) -> None:
    by_people = PROMISE.replace("large", "people")
    definition = write(folder, by_people, last=", policy: {accept_above: 0.99}")
    for _ in range(60):
        made = calibrate.fn(definition)
        if made["status"] != "waiting":
            break
        assert "labels are wanted from people next: 'tamis label --run try-1'" in made["message"]
        with stored() as (store, run):
            calibration = Calibration(store, run, definition)
            texts = store.labels.texts(calibration.missing())
            answers = {text_id: body.endswith("yes") for text_id, body in texts.items()}
            store.labels.record(calibration.rubric, LabelSource.PERSON, "ada", answers)
    assert made["status"] == "certified"
    assert paid(folder, "large") == 0
    screened(definition)
    with stored() as (store, run):
        kept = {
            r["key"] for r in store.results.all(run.id) if r["verdict"] in ("accepted", "review")
        }
        by_last = [r for r in store.results.all(run.id, "rejected") if r["tier"] == "large"]
        labels = store.labels.all(rubric_digest("any"), LabelSource.PERSON)
        assert counted(Calibration(store, run, definition)) & positives() <= kept
    # The last tier rejects whom people have rejected, and nobody else.
    no = {label.text_id for label in labels if not label.answer}
    assert 0 < len(by_last) <= len(no)


def test_the_majority_tells_the_truth() -> None:
    def label(text_id: int, reviewer: str, answer: bool | None) -> Label:
        return Label(text_id, reviewer, answer, None)  # type: ignore[arg-type]

    labels = [
        *(label(1, name, answer) for name, answer in zip("abc", (True, True, False), strict=True)),
        *(label(2, name, answer) for name, answer in zip("ab", (True, False), strict=True)),
        label(3, "a", None),
        *(label(4, name, answer) for name, answer in zip("ab", (None, False), strict=True)),
    ]
    assert truth(labels) == {1: True, 3: None, 4: False}
    assert disputes(labels) == [2]
