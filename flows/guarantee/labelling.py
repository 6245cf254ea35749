"""Labels from people: sheets to hand out and take in, one at a time, and how far they agree."""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from db.store import PEOPLE, Label, LabelSource, Run, Store, StoreError, rubric_digest
from flows.files.writing import as_it_was
from flows.guarantee.state import Calibration, disputes, guarantee_of, truth
from tiers.calibration import cohen_kappa
from tiers.screenfile.file import Screen

ANSWERS: dict[str, bool | None] = {
    **dict.fromkeys(("yes", "y", "1", "true"), True),
    **dict.fromkeys(("no", "n", "0", "false"), False),
    **dict.fromkeys(("unknown", "u", "?"), None),
}
WORDS = {True: "yes", False: "no", None: "unknown"}
COLUMNS = ("key", "text", "rubric", "label")
READ = ("key", "rubric", "label")
SEPARATORS = ",;\t"
ACTIVE_AMONG = 5_000
"""Candidates among which the next to ask about are looked for."""
KEYS = "y yes, n no, u unknown, b back, q stop, ? help"
HELP = (
    "Does the rubric fit the text above? y or yes, n or no. u or unknown: nobody can tell from the "
    "text, so that it is promoted and left out of the promise. b or back: give the answer before "
    "this one anew. q or quit: stop; what was told is kept"
)


def definition_of(run: Run) -> Screen:
    """The screen as the run last had it."""
    return Screen.model_validate(run.config)


def sheet(
    store: Store, run: Run, *, count: int | None = None, labelled_by: str | None = None
) -> Iterator[dict[str, str]]:
    """Rows to hand out, blind: no score, no outcome, nobody's answer.

    Args:
        store: the database.
        run: a run of a screen with a guarantee.
        count: at least so many in the order of the draw, as far as they may be needed; by default
            what is needed next. Where a tier gives the labels, as if people gave them.
        labelled_by: instead, what this reviewer has labelled, for a second one.

    Raises:
        StoreError: nobody would use the labels, or this reviewer has labelled nothing.
    """
    definition = definition_of(run)
    keys = _keys(store, run)
    if labelled_by is not None:
        labels = [one for one in _people(store, definition) if one.text_id in keys]
        wanted = [one.text_id for one in labels if one.reviewer == labelled_by]
        if not wanted:
            raise StoreError(_has_labelled_nothing(run, labelled_by, labels))
    elif count is None:
        _require_people(run, definition)
        wanted = Calibration(store, run, definition).missing()
    else:
        wanted = Calibration(store, run, _against_people(definition)).ahead(count)
    texts = store.labels.texts(wanted)
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
    first_keys: dict[int, str] = {}
    empty = 0
    for line, row in rows:
        key, said = row["key"], row["label"].strip().lower()
        if "fault" in row:
            problems.append(f"line {line}: {row['fault']}")
        elif _plain(row.get("rubric", definition.rubric)) != _plain(definition.rubric):
            problems.append(f"line {line}: the rubric is not that of run '{run.key}'")
        elif key not in text_ids:
            problems.append(f"line {line}: run '{run.key}' has no candidate '{key}'")
        elif not said:
            empty += 1
        elif said not in ANSWERS:
            problems.append(f"line {line}: '{said}' is no answer; write yes, no or unknown")
        else:
            text_id, answer = text_ids[key], ANSWERS[said]
            first = first_keys.setdefault(text_id, key)
            if answers.setdefault(text_id, answer) is not answer:
                both = f"{WORDS[answers[text_id]]} and {WORDS[answer]}"
                problems.append(
                    f"line {line}: '{key}' is answered twice, {both}"
                    if first == key
                    else f"line {line}: '{first}' and '{key}' are one text answered twice, {both}"
                )
    if problems:
        more = f"\n... and {len(problems) - 10:,} more" if len(problems) > 10 else ""
        raise StoreError("\n".join([f"{file}: nothing was stored", *problems[:10]]) + more)
    rubric = rubric_digest(definition.rubric)
    told = store.labels.record(rubric, LabelSource.PERSON, reviewer, answers, replace=replace)
    return told, empty


def ask_in_turn(
    store: Store,
    run: Run,
    reviewer: str,
    ask: Callable[[str], str],
    say: Callable[[str], None],
    *,
    active: bool = False,
) -> int:
    """Ask one person for one label after the other, until all are told or they stop.

    Args:
        store: the database.
        run: a run of a screen with a guarantee against people.
        reviewer: the person.
        ask: shows a prompt and returns what was typed.
        say: shows a text.
        active: likely and uncertain candidates in turn, to train a classifier: such labels never
            certify anything, and no promise is needed for them.

    Returns:
        How many labels were told.

    Raises:
        StoreError: nobody would use the labels.
    """
    definition = definition_of(run)
    if not active:
        _require_people(run, definition)
    source = LabelSource.ACTIVE if active else LabelSource.PERSON
    rubric = rubric_digest(definition.rubric)
    say(definition.rubric)
    told: list[int] = []
    queue: list[int] = []

    def wanted() -> list[int]:
        if active:
            return _active_queue(store, run, definition)
        return _queue(Calibration(store, run, definition), reviewer)

    while queue := queue or wanted():
        text_id, total = queue[0], len(queue)
        say(f"\n{store.labels.texts([text_id])[text_id]}\n")
        said = ask(f"{len(told):,} told, {total:,} left in this round ({KEYS})").strip().lower()
        if said in ("q", "quit"):
            break
        if said == "?":
            say(HELP)
        elif said in ("b", "back"):
            queue = [told.pop(), *queue] if told else queue
        elif said in ANSWERS:
            answer = {text_id: ANSWERS[said]}
            store.labels.record(rubric, source, reviewer, answer, replace=True)
            told.append(queue.pop(0))
        else:
            say(f"'{said}' is no answer; type one of: {KEYS}")
    return len(told)


@dataclass(frozen=True)
class PairAgreement:
    """How far two reviewers agree."""

    first: str
    second: str
    common: int
    """Candidates that both have answered with yes or no."""
    agree: float
    """The share of them with equal answers."""
    kappa: float


@dataclass(frozen=True)
class Agreement:
    """How far the reviewers of a run agree: the JSON of `tamis label agreement`."""

    reviewers: dict[str, int]
    """How many labels each has given."""
    pairs: list[PairAgreement]
    disputes: list[dict[str, str]]
    """Candidates with different answers: key, how it was settled, and each reviewer's answer."""


def agreement(store: Store, run: Run) -> Agreement:
    """How far reviewers agree, pair by pair, and which candidates they disagree about."""
    labels = _people(store, definition_of(run))
    keys = _keys(store, run)
    by_text: dict[int, dict[str, bool]] = {}
    for label in labels:
        if label.answer is not None and label.text_id in keys:
            by_text.setdefault(label.text_id, {})[label.reviewer] = label.answer
    undecided = set(disputes(labels))
    return Agreement(
        reviewers=dict(sorted(Counter(label.reviewer for label in labels).items())),
        pairs=list(_pairs(by_text.values())),
        disputes=[
            {
                "key": keys[text_id],
                "settled": "no" if text_id in undecided else "by majority",
                **{name: WORDS[answer] for name, answer in sorted(answers.items())},
            }
            for text_id, answers in by_text.items()
            if len(set(answers.values())) > 1
        ],
    )


def _pairs(answers: Iterable[dict[str, bool]]) -> Iterator[PairAgreement]:
    rows = list(answers)
    for first, second in combinations(sorted({name for row in rows for name in row}), 2):
        both = [(row[first], row[second]) for row in rows if first in row and second in row]
        if both:
            one, other = (np.array(column, np.bool_) for column in zip(*both, strict=True))
            agree = float(np.mean(one == other))
            yield PairAgreement(first, second, len(both), agree, cohen_kappa(one, other))


def _queue(calibration: Calibration, reviewer: str) -> list[int]:
    """What is wanted next and this person has not answered."""
    labels = calibration.store.labels.all(calibration.rubric, LabelSource.PERSON, reviewer)
    answered = {label.text_id for label in labels}
    return [text_id for text_id in calibration.missing() if text_id not in answered]


def _active_queue(store: Store, run: Run, definition: Screen) -> list[int]:
    """The next ten to train a classifier on, of some thousand that nobody has labelled."""
    from tiers.backends.classifier.fit import active  # scikit-learn takes seconds

    rubric = rubric_digest(definition.rubric)
    both = (LabelSource.PERSON, LabelSource.ACTIVE)
    labels = truth([one for source in both for one in store.labels.all(rubric, source)])
    ids = sorted(_keys(store, run))
    lot = np.random.default_rng(0).permutation(len(ids))[:ACTIVE_AMONG]
    there = set(ids)
    pool = [one for one in labels if one in there]
    pool += [ids[place] for place in lot if ids[place] not in labels]
    texts = store.labels.texts(pool)
    told = {
        place: bool(labels[one]) for place, one in enumerate(pool) if labels.get(one) is not None
    }
    unsure = {place for place, one in enumerate(pool) if one in labels and labels[one] is None}
    order = active([texts[one] for one in pool], definition.rubric, told, 10 + len(unsure), 0)
    return [pool[place] for place in order if place not in unsure][:10]


def _people(store: Store, definition: Screen) -> list[Label]:
    return store.labels.all(rubric_digest(definition.rubric), LabelSource.PERSON)


def _keys(store: Store, run: Run) -> dict[int, str]:
    """The first key of each text of the run."""
    found: dict[int, str] = {}
    for one in store.labels.scored(run.id, 0):
        found.setdefault(one.text_id, one.key)
    return found


def _require_people(run: Run, definition: Screen) -> None:
    """Refuse to ask people for labels that a tier gives.

    Raises:
        StoreError: it does.
    """
    section = guarantee_of(definition)
    if not section.by_people:
        raise StoreError(
            f"screen '{definition.screen}' has its labels from its tier '{section.against}', and a "
            "calibration uses no others; write against: people under guarantee to have people "
            f"asked. For a sheet to compare with: tamis label export {run.key} --count 100"
        )


def labels_from(run: Run) -> str | None:
    """The tier that gives the labels of the run's promise; None where people give them."""
    section = guarantee_of(definition_of(run))
    return None if section.by_people else section.against


def _against_people(definition: Screen) -> Screen:
    people = guarantee_of(definition).model_copy(update={"against": PEOPLE})
    return definition.model_copy(update={"guarantee": people})


def _has_labelled_nothing(run: Run, reviewer: str, labels: list[Label]) -> str:
    counts = Counter(label.reviewer for label in labels)
    who = ", ".join(f"{name} ({count:,})" for name, count in sorted(counts.items()))
    known = f"write one of: {who}" if who else "nor has anybody else"
    return f"'{reviewer}' has labelled nothing of run '{run.key}'; {known}"


def _plain(words: str) -> str:
    """Without what editors change: ends of lines, and space at either end."""
    return " ".join(words.split())


def _read(file: Path) -> list[tuple[int, dict[str, str]]]:
    """Lines by number; one that cannot be used holds `fault`, and empty ones are left out."""
    try:
        content = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise StoreError(f"{file} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise StoreError(f"{file} is not UTF-8; save it as CSV UTF-8") from error
    if "\0" in content:  # UTF-16 without its mark
        raise StoreError(f"{file} is not UTF-8; save it as CSV UTF-8")
    before = csv.field_size_limit(max(csv.field_size_limit(), len(content)))
    try:
        return list(_rows(file, content))
    except csv.Error as error:
        raise StoreError(f"{file} is no table: {error}; save it as CSV UTF-8") from error
    finally:
        csv.field_size_limit(before)


def _rows(file: Path, content: str) -> Iterator[tuple[int, dict[str, str]]]:
    names, separator = _header(file, content)
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator)
    next(reader)
    for cells in reader:
        named = zip(names, cells, strict=False)
        row = {
            "key": "",
            "label": "",
            **{name: as_it_was(cell) for name, cell in named if name in READ},
        }
        if not row["key"].strip() and not row["label"].strip():
            continue
        if len(cells) < len(names):
            row["fault"] = f"{len(cells):,} columns, and the first line has {len(names):,}"
        elif any(cell.strip() for cell in cells[len(names) :]):
            row["fault"] = (
                f"{len(cells):,} columns, and the first line has {len(names):,}; a text that holds "
                f"{separator!r} needs quotes"
            )
        elif not row["key"].strip():
            row["fault"] = "an answer without a key"
        yield reader.line_num, row


def _header(file: Path, content: str) -> tuple[list[str], str]:
    """Names of the columns, in small letters, and what stands between them."""
    missing = set[str]()
    for separator in reversed(SEPARATORS):
        reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator)
        names = [name.strip().lower() for name in next(reader, [])]
        missing = {"key", "label"} - set(names)
        if not missing:
            break
    else:
        raise StoreError(f"{file} has no column '{min(missing)}'; 'tamis label export' writes one")
    for name in READ:
        if names.count(name) > 1:
            raise StoreError(f"{file} has more than one column '{name}'; leave one of them")
    return names, separator
