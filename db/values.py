"""What goes into memory and what comes out of it, as plain values."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from db.models import RunState, TierState
from tiers.types import Outcome


class Row(NamedTuple):
    """One row of input, ready to become a candidate."""

    line: int
    key: str
    text: str
    fields: bytes
    """The record as read: JSON in UTF-8."""
    problem: str | None = None
    """Why it cannot be judged; it is kept, and its verdict is review at once."""


class BadRow(NamedTuple):
    """One row of input that cannot become a candidate."""

    source: str
    line: int
    reason: str
    raw: str
    """The row as it stood; cut to 2,000 characters when stored."""


class Ingested(NamedTuple):
    """What became of one chunk of rows."""

    new: int
    """Under a key that no run of this screen has met."""
    changed: int
    """Under a key that one has met, with content that none has."""
    known: int
    """As a run of this screen has met it, this one or another."""
    duplicate: int
    """Identical to a row met before, since the input was last read from its start."""
    bad: int
    gone: int = 0
    """Candidates that left the run, because the input no longer holds their key."""


class TierPlan(NamedTuple):
    """A tier as a run begins it: its name and its policy in numbers."""

    name: str
    reject_below: float | None
    accept_above: float | None
    top_count: int | None
    top_share: float | None
    budget: bool = False
    """As many as the next tier's budget pays for."""


@dataclass(frozen=True)
class Run:
    """One execution of a screen."""

    id: int
    key: str
    screen: str
    state: RunState
    config: dict[str, Any]
    config_hash: str
    created: datetime


@dataclass(frozen=True)
class Account:
    """Where the candidates of a run are. Rows that could not be read count as failed."""

    candidates: int
    accepted: int
    rejected: int
    review: int
    failed: int
    pending: int
    bad_rows: int
    """Of the failed: rows of input that could not become candidates."""


@dataclass(frozen=True)
class RunStatus:
    """A run and how it stands."""

    run: Run
    reason: str | None
    started: datetime | None
    finished: datetime | None
    seconds: float
    """Working time over all resumes."""
    rows_read: int
    rows_duplicate: int
    account: Account
    lock_owner: str | None
    locked: bool
    """Whether the lock has not expired."""


class Difference(NamedTuple):
    """A candidate that two runs do not agree about; `was` is in the first, `is_now` in the second.

    Verdicts are named as in the view `result`; None where the run does not have the candidate.
    """

    key: str
    was: str | None
    is_now: str | None
    text: str
    """Which the second run has: new, gone, changed or same."""


class FunnelRow(NamedTuple):
    """One tier of a run: the view `funnel`."""

    run: str
    position: int
    tier: str
    reached: int
    judged: int
    """Paid by this run."""
    reused: int
    """Answered without paying: by another run, or for a candidate with the same text."""
    promoted: int
    accepted: int
    rejected: int
    review: int
    failed: int
    pending: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    seconds: float
    state: TierState
    reasoning_tokens: int
    """Of the completion's."""
    usd: float | None
    """None where a price is not known; never 0 for that."""


class Spent(NamedTuple):
    """What a tier of a run has used up so far."""

    tokens: int
    """Of prompts and replies."""
    usd: float | None
    """None where a price is not known."""
    seconds: float
    judged: int


class Cost(NamedTuple):
    """What the answers that a tier gave in a run took, whichever run paid for them."""

    tier: str
    texts: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    seconds: float
    """Of the model alone."""


class JudgementDetail(NamedTuple):
    """What one tier said about one candidate, and the policy that decided by it."""

    position: int
    tier: str
    outcome: Outcome | None
    """None while pending."""
    score: float | None
    reading: str | None
    mass: float | None
    error: str | None
    note: str | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    seconds: float
    reused: bool
    judged: datetime
    judge: dict[str, Any]
    policy: TierPlan
    reasoning_tokens: int
    usd: float | None
    """Of the tokens; None where the price is not known or goes by the hour."""


@dataclass(frozen=True)
class Explanation:
    """Everything that a run remembers about one candidate."""

    key: str
    fields: dict[str, Any]
    text: str | None
    """None where the row had no text to judge; `why` then says so."""
    verdict: str
    """As in the view `result`."""
    tier: str
    why: str | None
    judgements: list[JudgementDetail]
    """In the order of the tiers, those that the candidate reached and that answered."""
    audited: str | None = None
    """The tier that had rejected it, where an audit asked the last tier all the same."""
