"""A run that is worked on: opened, held by one process, and how the work on it ended."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import FrameType
from typing import Literal

from db.engine import check_ready, open_engine
from db.store import DatabaseError, InputRefused, Run, RunState, Store
from flows import recorder
from flows.guarantee.audit import alarm_of
from flows.progress import Display, display, say
from flows.run.hold import Hold, Paused, held
from flows.settings import Settings, load_keys
from flows.watch import events
from tiers.backends.openai.account import hide, key_route
from tiers.opening import identity
from tiers.prices import check_prices
from tiers.screenfile.faults import ScreenError
from tiers.screenfile.file import Screen
from tiers.screenfile.profiles import PROFILES
from tiers.screenfile.tiers import RemoteTier
from tiers.tier import job_of
from tiers.types import TierError


@contextmanager
def opened(
    definition: Screen,
    key: str | None,
    doing: str = "",
    kind: Literal["screen", "pilot"] = "screen",
) -> Iterator[tuple[Store, Run, list[int], Display, Hold]]:
    """Hold a run while it is worked on: its store, itself, its tiers' judges, display and hold.

    A pause that a person asked for leaves the block and goes on after it.

    Raises:
        TierError: a model, a key or a price is not there.
    """
    url = Settings().database()
    check_ready(url)
    load_keys(tier.key_name for tier in definition.tiers if isinstance(tier, RemoteTier))
    check_prices(definition)
    identities = [identity(job_of(definition, i)) for i in range(len(definition.tiers))]
    engine = open_engine(url)
    try:
        store = Store(engine)
        run = open_run(store, definition, key, kind)
        with (
            ending_on_signals(),
            working(store, run, definition) as hold,
            display(run.key) as shown,
        ):
            run = replace(run, attempt=hold.attempt)
            say(f"{doing}run {run.key} of screen {run.screen}", shown)
            for tier in definition.tiers:
                if isinstance(tier, RemoteTier) and (route := key_route(tier)) is not None:
                    say(f"{tier.name}: the key in {route}", shown)
            # Before anything is decided anew: a run keeps the judges that it began with.
            judges = [store.tiers.set_judge(run.id, i, each) for i, each in enumerate(identities)]
            yield store, run, judges, shown, hold
    finally:
        engine.dispose()


def open_run(
    store: Store,
    definition: Screen,
    key: str | None,
    kind: Literal["screen", "pilot"] = "screen",
) -> Run:
    """The run of this definition to work on: the key's, the newest unfinished one, or a new one."""
    tiers = [(tier.name, definition.policy(i)) for i, tier in enumerate(definition.tiers)]
    return store.runs.open(
        definition.screen, as_config(definition), definition.digest, tiers, key=key, kind=kind
    )


def as_config(definition: Screen) -> dict[str, object]:
    """The definition as a run keeps it."""
    return definition.model_dump(mode="json", by_alias=True, exclude_none=True)


@contextmanager
def working(store: Store, run: Run, definition: Screen) -> Iterator[Hold]:
    """Hold the run's lock; write down how the work on it ended, whatever ended it.

    A pause ends the work without an exception.
    """
    began = time.monotonic()
    with held(store, run) as hold:
        before = store.runs.status(run.id)
        store.runs.resume(run.id, as_config(definition), attempt=hold.attempt)
        state, reason = RunState.FAILED, None
        as_before = False
        try:
            yield hold
            state, reason = how_it_stands(store, run)
        except BaseException as error:
            state, reason = _how_it_ended(error, hold)
            taken_back = isinstance(error, InputRefused | ScreenError)
            as_before = taken_back and before.run.state is not RunState.RUNNING
            if hold.lost is not None and isinstance(error, KeyboardInterrupt):
                raise hold.lost from None
            if state is not RunState.PAUSED:
                raise
        finally:
            hold.over.set()
            with suppress(DatabaseError):  # it is told as why the work ended
                events.emit_end(run, state, reason, store.runs.account(run.id))
            recorder.current().end(state, reason)
            if as_before:
                store.runs.put_back(before, attempt=hold.attempt)
            else:
                seconds = time.monotonic() - began
                store.runs.finish(
                    run.id, state, reason=reason, seconds=seconds, attempt=hold.attempt
                )


def _how_it_ended(error: BaseException, hold: Hold) -> tuple[RunState, str | None]:
    """The state of a run whose work was broken off, and why."""
    match error:
        case TierError():
            return RunState.STOPPED, _without_keys(str(error), hold.run)
        case KeyboardInterrupt() if hold.lost is not None:
            return RunState.STOPPED, str(hold.lost)
        case Paused():
            return RunState.PAUSED, _as_asked(hold.run)
        case KeyboardInterrupt() if hold.pause_forced:
            return RunState.PAUSED, _as_asked(hold.run)
        case KeyboardInterrupt() | SystemExit():
            return RunState.CANCELLED, None
        case _:
            return RunState.FAILED, _without_keys(f"{type(error).__name__}: {error}", hold.run)


def _as_asked(run: Run) -> str:
    return f"as asked for; go on with: tamis resume {run.key}"


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """End as by Ctrl-C on SIGTERM and SIGHUP, which service managers and closed terminals send.

    Set after Prefect's own handler, whose exception an event loop may swallow. A second signal
    ends the process at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}

    def end(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise SystemExit(128 + number)

    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def how_it_stands(store: Store, run: Run) -> tuple[RunState, str | None]:
    """The state of a run that nobody works on any more, and why."""
    account = store.runs.account(run.id)
    if not account.failed and not account.pending:
        alarm = alarm_of(store, run)
        return (RunState.DONE, None) if alarm is None else (RunState.ALARM, alarm)
    if store.batches.all(run.id, open_only=True):
        return RunState.WAITING, "for the answers of a batch"
    reasons = store.tiers.reasons(run.id)
    if reasons:
        return RunState.STOPPED, "; ".join(reasons)
    return RunState.INCOMPLETE, None


def keys_of(run: Run) -> list[str]:
    """The keys that we know, which servers and libraries may repeat."""
    names = {profile.key_variable for profile in PROFILES.values()}
    names |= {tier.get("key_variable") for tier in run.config.get("tiers", ())}
    found = [os.environ.get(str(name), "").strip() for name in names - {None}]
    return [key for key in found if key]


def _without_keys(text: str, run: Run) -> str:
    for key in keys_of(run):
        text = hide(text, key)
    return text
