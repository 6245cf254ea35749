"""What a person may want to hear of at once, as events of Prefect: automations send them on."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

from db.store import Account, Run, RunState
from flows.recorder import current
from flows.settings import Settings

DRIFT = "tamis.drift.alarm"
BUDGET = "tamis.budget.reached"
REVIEW = "tamis.review.high"
MASS = "tamis.mass.low"
ERRORS = "tamis.errors.high"
PAUSED = "tamis.run.paused"
FAILED = "tamis.run.failed"
EVENTS = (DRIFT, BUDGET, REVIEW, MASS, ERRORS, PAUSED, FAILED)

# A tier says in words why it stopped, and these are its words: flows.run.budget, flows.run.judging.
_USED_UP = "is used up"
_NO_ANSWER = "does not answer the question"


class Limits(NamedTuple):
    """From where on people are told."""

    review: int
    """Candidates in review."""
    errors: float
    """Share of candidates that failed, in [0, 1]."""


def events_of(
    state: RunState, reason: str | None, account: Account, limits: Limits
) -> Iterator[tuple[str, str]]:
    """Name and message of each event with which the work on a run ends."""
    said = reason or f"the run is {state}"
    stopped = state in (RunState.STOPPED, RunState.FAILED)
    if state is RunState.ALARM:
        yield DRIFT, said
    if stopped and _USED_UP in said:
        yield BUDGET, said
    elif stopped and _NO_ANSWER in said:
        yield MASS, said
    elif stopped:
        yield FAILED, said
    if state is RunState.PAUSED:
        yield PAUSED, said
    if account.review >= limits.review:
        yield REVIEW, f"{account.review:,} of {account.candidates:,} candidates wait for a person"
    if account.candidates and account.failed / account.candidates >= limits.errors:
        yield ERRORS, f"{account.failed:,} of {account.candidates:,} candidates failed"


def emit_end(run: Run, state: RunState, reason: str | None, account: Account) -> None:
    """Tell Prefect how the work on a run ended, where a person may want to hear of it."""
    settings = Settings()
    limits = Limits(settings.alert_review, settings.alert_errors)
    for name, message in events_of(state, reason, account, limits):
        emit(run, name, message, state=str(state), **asdict(account))


def emit(run: Run, name: str, message: str, **figures: Any) -> None:
    """Tell one event."""
    told = {"run": run.key, "screen": run.screen, "message": message}
    current().event(name, {**told, **figures})
