"""Accepted candidates whose texts speak to the judge: noted, or sent to a person."""

from collections import Counter
from typing import Literal

from db.store import Store
from tiers.suspicion import suspicions
from tiers.types import Outcome

PAGE = 1_000


def mark_suspicious(store: Store, run_id: int, how: Literal["review", "note", "off"]) -> str | None:
    """Mark the accepted whose text meets a rule of `tiers.suspicion`; what was done, in words.

    Verdicts that are decided anew lose their marks, so it follows every deciding.
    """
    if how == "off":
        return None
    outcome = Outcome.REVIEW if how == "review" else Outcome.ACCEPT
    met: Counter[str] = Counter()
    marked = after = 0
    while page := store.verdicts.accepted(run_id, after, PAGE):
        after = page[-1][0]
        found = {number: rules for number, text in page if (rules := suspicions(text))}
        met.update(rule for rules in found.values() for rule in rules)
        marked += len(found)
        reasons = {number: ", ".join(rules) for number, rules in found.items()}
        store.verdicts.mark(run_id, reasons, outcome)
    if not marked:
        return None
    told = ", ".join(f"{rule} {count:,}" for rule, count in met.most_common())
    done = "sent to review" if how == "review" else "accepted, with a note"
    return f"{marked:,} accepted candidates speak to the judge ({told}): {done}"
