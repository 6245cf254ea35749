"""A run that is worked on: opened, held by one process, and how the work on it ended."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

from db.engine import check_ready, open_engine
from db.errors import RunHeld
from db.store import DatabaseError, InputRefused, Run, RunState, Store, StoreError
from flows import recorder
from flows.guarantee.audit import alarm_of
from flows.owner import is_dead, owner
from flows.progress import Display, display, say
from flows.settings import Settings, load_keys
from tiers.backends.openai.account import hide, key_route
from tiers.opening import identity
from tiers.prices import check_prices
from tiers.screenfile.faults import ScreenError
from tiers.screenfile.file import Screen
from tiers.screenfile.profiles import PROFILES
from tiers.screenfile.tiers import RemoteTier
from tiers.tier import job_of
from tiers.types import TierError

LOCK_SECONDS = 300.0
"""Renewed at a third of them; at two thirds without, the holder ends; then others may take over."""
LOOK_SECONDS = 1.0
"""How often a holder looks whether its lock is fresh."""


class Hold:
    """A run that this process holds: which attempt at it this is, and whether it has to end."""

    def __init__(self, run: Run, attempt: int) -> None:
        self.run = run
        self.attempt = attempt
        self.renewed = time.monotonic()
        """When the lock was last seen to be ours: taken before the database was asked."""
        self.lost: StoreError | None = None
        """Why the run is no longer ours, or may not be."""


@contextmanager
def opened(
    definition: Screen, key: str | None, doing: str = ""
) -> Iterator[tuple[Store, Run, list[int], Display]]:
    """Hold a run while it is worked on: its store, itself, its tiers' judges and what is shown.

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
        run = open_run(store, definition, key)
        with (
            ending_on_signals(),
            working(store, run, definition) as hold,
            display() as shown,
        ):
            run = replace(run, attempt=hold.attempt)
            say(f"{doing}run {run.key} of screen {run.screen}", shown)
            for tier in definition.tiers:
                if isinstance(tier, RemoteTier) and (route := key_route(tier)) is not None:
                    say(f"{tier.name}: the key in {route}", shown)
            # Before anything is decided anew: a run keeps the judges that it began with.
            judges = [store.tiers.set_judge(run.id, i, each) for i, each in enumerate(identities)]
            yield store, run, judges, shown
    finally:
        engine.dispose()


def open_run(store: Store, definition: Screen, key: str | None) -> Run:
    """The run of this definition to work on: the key's, the newest unfinished one, or a new one."""
    tiers = [(tier.name, definition.policy(i)) for i, tier in enumerate(definition.tiers)]
    return store.runs.open(
        definition.screen, as_config(definition), definition.digest, tiers, key=key
    )


def as_config(definition: Screen) -> dict[str, object]:
    """The definition as a run keeps it."""
    return definition.model_dump(mode="json", by_alias=True, exclude_none=True)


@contextmanager
def working(store: Store, run: Run, definition: Screen) -> Iterator[Hold]:
    """Hold the run's lock; write down how the work on it ended, whatever ended it."""
    began = time.monotonic()
    with held(store, run) as hold:
        before = store.runs.status(run.id)
        store.runs.resume(run.id, as_config(definition), attempt=hold.attempt)
        state, reason = RunState.FAILED, None
        as_before = False
        try:
            yield hold
            state, reason = how_it_stands(store, run)
        except TierError as error:
            state, reason = RunState.STOPPED, _without_keys(str(error), run)
            raise
        except (KeyboardInterrupt, SystemExit):
            state = RunState.CANCELLED
            if hold.lost is not None:
                state, reason = RunState.STOPPED, str(hold.lost)
                raise hold.lost from None
            raise
        except BaseException as error:
            taken_back = isinstance(error, InputRefused | ScreenError)
            as_before = taken_back and before.run.state is not RunState.RUNNING
            reason = _without_keys(f"{type(error).__name__}: {error}", run)
            raise
        finally:
            recorder.current().end(state, reason)
            if as_before:
                store.runs.put_back(before, attempt=hold.attempt)
            else:
                seconds = time.monotonic() - began
                store.runs.finish(
                    run.id, state, reason=reason, seconds=seconds, attempt=hold.attempt
                )


@contextmanager
def held(store: Store, run: Run) -> Iterator[Hold]:
    """Keep every other process off the run.

    The main thread is interrupted when the lock could not be renewed in time (`Hold.lost`).

    Raises:
        RunHeld: another process holds it.
    """
    holder = store.runs.status(run.id).lock_owner
    if holder is not None and is_dead(holder):
        store.runs.unlock(run.id, holder)
    hold = Hold(run, store.runs.lock(run.id, owner(), seconds=LOCK_SECONDS))
    over = threading.Event()
    keeper = threading.Thread(target=_keep_lock, args=(store, hold, over), daemon=True)
    watch = threading.Thread(target=_watch, args=(hold, over), daemon=True)
    keeper.start()
    watch.start()
    try:
        yield hold
    finally:
        over.set()
        watch.join()
        if hold.lost is None:  # else the keeper may wait for a database that is away
            keeper.join()
        store.runs.unlock(run.id, owner())


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


def _without_keys(text: str, run: Run) -> str:
    """The text without any key that we know, which servers and libraries may repeat."""
    names = {profile.key_variable for profile in PROFILES.values()}
    names |= {tier.get("key_variable") for tier in run.config.get("tiers", ())}
    for name in names - {None}:
        text = hide(text, os.environ.get(str(name), "").strip())
    return text


def _keep_lock(store: Store, hold: Hold, over: threading.Event) -> None:
    """Renew the lock however long a block, a model's loading or a reading takes."""
    pause = LOCK_SECONDS / 3
    while not over.wait(pause):
        asked = time.monotonic()
        try:
            store.runs.renew(hold.run.id, owner(), seconds=LOCK_SECONDS, attempt=hold.attempt)
        except DatabaseError:
            pause = LOCK_SECONDS / 30  # again soon: the main thread may not need the database
        except StoreError as taken:
            _give_up(hold, taken)
            return
        else:
            hold.renewed, pause = asked, LOCK_SECONDS / 3


def _watch(hold: Hold, over: threading.Event) -> None:
    """End the work before another process may begin it, also where a renewal never comes back."""
    while not over.wait(min(LOOK_SECONDS, LOCK_SECONDS / 30)):
        age = time.monotonic() - hold.renewed
        if age >= LOCK_SECONDS * 2 / 3:
            lost = RunHeld(
                f"run '{hold.run.key}': its lock could not be renewed for {age:,.0f} s (the "
                "database did not answer, or this process stood still), and another process may "
                "take the run over; what was judged is kept, go on with the same command"
            )
            _give_up(hold, lost)
            return


def _give_up(hold: Hold, lost: StoreError) -> None:
    if hold.lost is None:
        hold.lost = lost
        recorder.stop_main()
