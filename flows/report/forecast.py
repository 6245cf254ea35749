"""What a resume of a run would do, and cost, before it does it."""

from collections.abc import Sequence
from dataclasses import dataclass

from db.store import FunnelRow, Run, Store
from flows.terminal import number


@dataclass(frozen=True)
class Waiting:
    """What waits for one tier."""

    tier: str
    candidates: int
    """Without an answer, those that it failed on included; what is out in a batch is not."""
    usd: float | None
    """At what the tier's candidates have cost so far; None where that is not known."""


@dataclass(frozen=True)
class Forecast:
    """What would be asked now; whom these promote comes on top."""

    candidates: int
    usd: float | None
    tiers: list[Waiting]


def forecast(store: Store, run: Run, funnel: Sequence[FunnelRow]) -> Forecast:
    """What a resume of the run as it stands would ask; `funnel` is the run's, which costs most."""
    judges = store.tiers.judges(run.id)
    tiers = []
    for row in funnel:
        count = _waiting(store, run, row, judges[row.position])
        each = None if row.usd is None or not row.judged else row.usd / row.judged
        usd = 0.0 if not count else None if each is None else round(count * each, 6)
        tiers.append(Waiting(row.tier, count, usd))
    costs = [one.usd for one in tiers if one.usd is not None]
    return Forecast(
        sum(one.candidates for one in tiers),
        round(sum(costs), 6) if len(costs) == len(tiers) else None,
        tiers,
    )


def in_words(found: Forecast) -> str:
    """The forecast as one sentence."""
    if not found.candidates:
        return "a resume would ask nobody"
    parts = ", ".join(f"{one.tier} {one.candidates:,}" for one in found.tiers if one.candidates)
    cost = "at an unknown cost" if found.usd is None else f"about ${number(round(found.usd, 4))}"
    return f"a resume would ask {found.candidates:,} candidates ({parts}), {cost}"


def _waiting(store: Store, run: Run, row: FunnelRow, judge_id: int | None) -> int:
    if judge_id is None:
        return row.pending + row.failed
    out = sum(batch.lines for batch in store.batches.all(run.id, row.position, open_only=True))
    unjudged = store.judgements.count_unjudged(run.id, row.position, judge_id)
    return max(unjudged - out, 0) + row.failed
