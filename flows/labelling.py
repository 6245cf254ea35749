"""Labels from people: sheets to hand out and take in, one at a time, and how far they agree."""

import csv
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from db.store import Label, LabelSource, Run, Store, StoreError, rubric_digest
from flows.calibration import Calibration, disputes
from tiers.config import Screen
from tiers.reliability import cohen_kappa

ANSWERS: dict[str, bool | None] = {
    **dict.fromkeys(("yes", "y", "1", "true"), True),
    **dict.fromkeys(("no", "n", "0", "false"), False),
    **dict.fromkeys(("unknown", "u", "?"), None),
}
COLUMNS = ("key", "text", "rubric", "label")
KEYS = "y yes, n no, u unknown, b back, q stop"


def definition_of(run: Run) -> Screen:
    """The screen as the run last had it."""
    return Screen.model_validate(run.config)


def sheet(
    store: Store, run: Run, *, count: int | None = None, labelled_by: str | None = None
) -> Iterator[dict[str, str]]:
    """Rows to hand out, blind: no score, no outcome, nobody's answer.

    Args:
        store: memory.
        run: a run of a screen with a guarantee.
        count: at least so many in the order of the draw, as far as they may be needed; by default
            what is needed next.
        labelled_by: instead, what this reviewer has labelled, for a second one.
    """
    definition = definition_of(run)
    if labelled_by is not None:
        labels = _people(store, definition)
        wanted = [one.text_id for one in labels if one.reviewer == labelled_by]
    else:
        calibration = Calibration(store, run, definition)
        wanted = calibration.missing() if count is None else calibration.ahead(count)
    texts, keys = store.labels.texts(wanted), _keys(store, run)
    for text_id in wanted:
        if text_id in keys:
            values = (keys[text_id], texts[text_id], definition.rubric, "")
            yield dict(zip(COLUMNS, values, strict=True))


def take_in(store: Store, run: Run, file: Path, reviewer: str, *, replace: bool) -> tuple[int, int]:
    """Store a sheet's answers; how many are new, and how many lines were left empty.

    Raises:
        StoreError: a line cannot be used, or answers otherwise than before; nothing is stored.
    """
    definition = definition_of(run)
    rows = _read(file)
    text_ids = {
        one.key: one.text_id
        for one in store.labels.scored(run.id, 0, [row["key"] for _, row in rows])
    }
    problems: list[str] = []
    answers: dict[int, bool | None] = {}
    empty = 0
    for line, row in rows:
        said = (row["label"] or "").strip().lower()
        if row.get("rubric", definition.rubric) != definition.rubric:
            problems.append(f"line {line}: the rubric is not that of run '{run.key}'")
        elif row["key"] not in text_ids:
            problems.append(f"line {line}: run '{run.key}' has no candidate '{row['key']}'")
        elif not said:
            empty += 1
        elif said not in ANSWERS:
            problems.append(f"line {line}: '{said}' is no answer; write yes, no or unknown")
        elif answers.setdefault(text_ids[row["key"]], ANSWERS[said]) is not ANSWERS[said]:
            problems.append(f"line {line}: '{row['key']}' is answered twice, yes and no")
    if problems:
        more = f"\n... and {len(problems) - 10:,} more" if len(problems) > 10 else ""
        raise StoreError("\n".join([f"{file}: nothing was stored", *problems[:10]]) + more)
    rubric = rubric_digest(definition.rubric)
    told = store.labels.tell(rubric, LabelSource.PERSON, reviewer, answers, replace=replace)
    return told, empty


def ask_in_turn(
    store: Store,
    run: Run,
    reviewer: str,
    ask: Callable[[str], str],
    say: Callable[[str], None],
) -> int:
    """Ask one person for one label after the other, until all are told or they stop.

    Args:
        store: memory.
        run: a run of a screen with a guarantee against people.
        reviewer: the person.
        ask: shows a prompt and returns what was typed.
        say: shows a text.

    Returns:
        How many labels were told.
    """
    definition = definition_of(run)
    rubric = rubric_digest(definition.rubric)
    say(definition.rubric)
    told: list[int] = []
    queue: list[int] = []
    while queue := queue or _queue(Calibration(store, run, definition), reviewer):
        text_id, total = queue[0], len(queue)
        say(f"\n{store.labels.texts([text_id])[text_id]}\n")
        said = ask(f"{len(told):,} told, {total:,} left in this round ({KEYS})").strip().lower()
        if said in ("q", "quit"):
            break
        if said in ("b", "back"):
            queue = [told.pop(), *queue] if told else queue
        elif said in ANSWERS:
            answer = {text_id: ANSWERS[said]}
            store.labels.tell(rubric, LabelSource.PERSON, reviewer, answer, replace=True)
            told.append(queue.pop(0))
        else:
            say(f"'{said}' is no answer; type one of: {KEYS}")
    return len(told)


def agreement(store: Store, run: Run) -> dict[str, Any]:
    """How far reviewers agree, pair by pair, and whom they disagree about."""
    labels = _people(store, definition_of(run))
    keys = _keys(store, run)
    by_text: dict[int, dict[str, bool]] = {}
    for label in labels:
        if label.answer is not None and label.text_id in keys:
            by_text.setdefault(label.text_id, {})[label.reviewer] = label.answer
    undecided = set(disputes(labels))
    words = {True: "yes", False: "no"}
    return {
        "reviewers": {
            name: sum(label.reviewer == name for label in labels)
            for name in sorted({label.reviewer for label in labels})
        },
        "pairs": list(_pairs(by_text.values())),
        "disputes": [
            {
                "key": keys[text_id],
                "settled": "no" if text_id in undecided else "by majority",
                **{name: words[answer] for name, answer in sorted(answers.items())},
            }
            for text_id, answers in by_text.items()
            if len(set(answers.values())) > 1
        ],
    }


def _pairs(answers: Iterable[dict[str, bool]]) -> Iterator[dict[str, Any]]:
    rows = list(answers)
    for first, second in combinations(sorted({name for row in rows for name in row}), 2):
        both = [(row[first], row[second]) for row in rows if first in row and second in row]
        if both:
            one, other = (np.array(column, np.bool_) for column in zip(*both, strict=True))
            yield {
                "first": first,
                "second": second,
                "common": len(both),
                "agree": float(np.mean(one == other)),
                "kappa": cohen_kappa(one, other),
            }


def _queue(calibration: Calibration, reviewer: str) -> list[int]:
    """What is wanted next and this person has not answered."""
    labels = calibration.store.labels.all(calibration.rubric, LabelSource.PERSON, reviewer)
    answered = {label.text_id for label in labels}
    return [text_id for text_id in calibration.missing() if text_id not in answered]


def _people(store: Store, definition: Screen) -> list[Label]:
    return store.labels.all(rubric_digest(definition.rubric), LabelSource.PERSON)


def _keys(store: Store, run: Run) -> dict[int, str]:
    """The first key of each text of the run."""
    found: dict[int, str] = {}
    for one in store.labels.scored(run.id, 0):
        found.setdefault(one.text_id, one.key)
    return found


def _read(file: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            missing = {"key", "label"} - set(reader.fieldnames or ())
            if missing:
                raise StoreError(
                    f"{file} has no column '{min(missing)}'; 'tamis label export' writes one"
                )
            return [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{file} cannot be read: {error}") from error
