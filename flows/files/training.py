"""A run's answers as chats, for those who fine-tune a small model of their own."""

import hashlib
import json
from collections import Counter
from pathlib import Path

from db.store import LabelSource, Run, Store, StoreError, rubric_digest
from tiers.policy import outcomes
from tiers.prompt import compose, question_for
from tiers.screenfile.file import Screen
from tiers.screenfile.tiers import ModelTierSection
from tiers.types import Outcome

SPLITS = {"train": 80, "valid": 10, "test": 10}
PAGE = 500


def write_training_set(store: Store, run: Run, output: Path) -> dict[str, int]:
    """Write a line for each text that people or the last tier answered; how many of each split.

    Equal texts are one line, and texts that differ in white space alone are in one split.

    Raises:
        OSError: the file cannot be written.
        StoreError: nobody has answered anything.
    """
    definition = Screen.model_validate(run.config)
    answers = _answers(store, run, definition)
    if not answers:
        raise StoreError(
            f"run '{run.key}' has no answer of its last tier and no label of a person, so that "
            "there is nothing to train on; finish the run, or label some: tamis label"
        )
    last = definition.tiers[-1]
    layout = last.prompt if isinstance(last, ModelTierSection) else None
    prompt = compose(definition.rubric, question_for("yes_no"), layout)
    counts: Counter[str] = Counter(dict.fromkeys(SPLITS, 0))
    ids = list(answers)
    with output.open("w", encoding="utf-8") as stream:
        for start in range(0, len(ids), PAGE):
            page = ids[start : start + PAGE]
            texts = store.labels.texts(page)
            for text_id in page:
                key, said, source = answers[text_id]
                split = split_of(texts[text_id])
                counts[split] += 1
                turns = [
                    {"role": "user", "content": f"{prompt.head}{texts[text_id]}{prompt.tail}"},
                    {"role": "assistant", "content": "yes" if said else "no"},
                ]
                line = {"messages": turns, "split": split, "key": key, "source": source}
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")
    return dict(counts)


def split_of(text: str) -> str:
    """train, valid or test, by the words of the text alone: the same in every run."""
    digest = hashlib.sha256(" ".join(text.lower().split()).encode("utf-8", "replace")).digest()
    place = int.from_bytes(digest[:8]) % 100
    for name, share in SPLITS.items():
        if place < share:
            return name
        place -= share
    raise AssertionError("the splits do not sum to 100")


def _answers(store: Store, run: Run, definition: Screen) -> dict[int, tuple[str, bool, str]]:
    """By text: its first key, the answer, and who gave it; people go before the last tier."""
    tiers = definition.tiers
    votes: Counter[int] = Counter()
    rubric = rubric_digest(definition.rubric)
    for source in (LabelSource.PERSON, LabelSource.ACTIVE):
        for label in store.labels.all(rubric, source):
            votes[label.text_id] += {True: 1, False: -1, None: 0}[label.answer]
    policy = definition.policy(len(tiers) - 1)
    found: dict[int, tuple[str, bool, str]] = {}
    for one in store.labels.scored(run.id, len(tiers)):
        score = one.scores[-1]
        if votes[one.text_id]:
            found.setdefault(one.text_id, (one.key, votes[one.text_id] > 0, "people"))
        elif score is not None and not policy.ranks:
            kept = outcomes([score], [""], policy, last=True)[0] is not Outcome.REJECT
            found.setdefault(one.text_id, (one.key, kept, tiers[-1].name))
    return found
