"""The flow: ingest, then tier by tier in blocks, then a verdict on everybody.

Prefect carries ids and counts; the database carries data. Resume is a query: what has no
judgement is judged, whoever stopped before and however.
"""

import _thread
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect import flow
from prefect.context import FlowRunContext

from db.engine import check_ready, open_engine
from db.store import (
    DatabaseError,
    InputRefused,
    Run,
    RunState,
    Store,
    StoreError,
    TierPlan,
)
from flows.audit import alarm_of
from flows.budget import Budgets, check_prices
from flows.calibration import check_calibration, require_calibration
from flows.ingest import in_words, ingest, require_candidates
from flows.judging import TierWork, tell
from flows.moving import standing
from flows.overlap import Cascade
from flows.progress import Display, display
from flows.report import publish
from flows.settings import Settings, load_keys
from tiers.base import identity, inspect, job_of
from tiers.config import Screen, ScreenError
from tiers.prices import Price, price_of
from tiers.profiles import PROFILES
from tiers.remote import hide
from tiers.sections import RemoteTier
from tiers.types import TierError

LOCK_SECONDS = 300.0
ROUNDS = 4
"""How often a budget that left something over is spent on more candidates."""


@flow(
    name="screen",
    flow_run_name="{definition.screen} {key}",
    persist_result=False,
    validate_parameters=True,
)
def screen(
    definition: Screen,
    key: str | None = None,
    limit: int | None = None,
    read: bool = True,
    allow_shrink: bool = False,
) -> str:
    """Screen all candidates of a definition; go on where an earlier run of the same key stopped.

    Args:
        definition: the screen.
        key: names the run; by default the newest unfinished run of this definition, or a new one.
        limit: read only so many candidates; nobody leaves the run then.
        read: read the input; without it, the run goes on with the candidates that it has.
        allow_shrink: let more than half of the run's candidates leave it.

    Returns:
        The run's key.

    Raises:
        InputRefused: more than half would leave it; the run stands as before.
        ScreenError: the input holds no candidate, or cannot be read; likewise.
        TierError: a tier could not go on; what was judged is kept.
    """
    with opened(definition, key) as (store, run, judges, shown):
        if (context := FlowRunContext.get()) and context.flow_run:
            store.set_flow_run(run.id, str(context.flow_run.id))
        require_calibration(store, run, definition)
        if read:
            read_candidates(definition, store, run, limit, shown, allow_shrink=allow_shrink)
        for line in standing(store, run):
            tell(line, shown)
        for _ in range(ROUNDS):
            works = tier_works(definition, store, run, judges)
            if not Cascade(definition, works, shown).run():
                break
        publish(store, run)
    return run.key


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
        with working(store, run), display() as shown:
            store.resume(run.id, as_config(definition))
            tell(f"{doing}run {run.key} of screen {run.screen}", shown)
            # Before anything is decided anew: a run keeps the judges that it began with.
            judges = [store.set_judge(run.id, i, each) for i, each in enumerate(identities)]
            yield store, run, judges, shown
    finally:
        engine.dispose()


def read_candidates(
    definition: Screen,
    store: Store,
    run: Run,
    limit: int | None,
    shown: Display,
    *,
    allow_shrink: bool,
) -> None:
    """Read the input, and say what came of it."""
    step = shown.start("reading", None)
    read = ingest(store, run.id, definition.candidates, limit=limit, allow_shrink=allow_shrink)
    step.advance(read.new + read.changed + read.known)
    tell(in_words(read), shown)


def tier_works(definition: Screen, store: Store, run: Run, judges: list[int]) -> list[TierWork]:
    """The tiers with their prices and budgets as they stand now."""
    prices = [price_of(tier) for tier in definition.tiers]
    price_ids = [store.set_price(run.id, i, price) for i, price in enumerate(prices)]
    budgets = Budgets(definition, store, run.id)
    return [
        TierWork(
            store,
            run,
            position,
            job_of(definition, position),
            judge_id,
            price_ids[position],
            by_tokens=_by_tokens(definition, position, price),
            gate=budgets.gate(position),
            budgets=budgets,
        )
        for position, (judge_id, price) in enumerate(zip(judges, prices, strict=True))
    ]


def _by_tokens(definition: Screen, position: int, price: Price | None) -> bool:
    """Whether a price or a budget goes by the tokens that a server tells, or fails to."""
    tier = definition.tiers[position]
    if price is not None and not price.hour and max(price[:3]) > 0:
        return True
    budgets = [each for each in (definition.budget, tier.budget) if each is not None]
    return isinstance(tier, RemoteTier) and any(each.tokens for each in budgets)


def prepare(definition: Screen, key: str | None, *, to_calibrate: bool = False) -> str:
    """Check what can be checked before anything is done, and open the run; return its key.

    Raises:
        DatabaseError: the database cannot be used.
        ScreenError: the candidates' files are not there, or hold no candidate.
        TierError: a model, a key or a price is not there, or a promise is not calibrated.
    """
    load_keys(tier.key_name for tier in definition.tiers if isinstance(tier, RemoteTier))
    check_prices(definition)
    url = Settings().database()
    check_ready(url)
    require_candidates(definition.candidates)
    for position in range(len(definition.tiers)):
        inspect(job_of(definition, position), "")
    engine = open_engine(url)
    try:
        store = Store(engine)
        if not to_calibrate:
            check_calibration(store, definition, key)
        return open_run(store, definition, key).key
    finally:
        engine.dispose()


def open_run(store: Store, definition: Screen, key: str | None) -> Run:
    """The run of this definition to work on: the key's, the newest unfinished one, or a new one."""
    plans = [_plan(definition, position) for position in range(len(definition.tiers))]
    return store.open_run(
        definition.screen, as_config(definition), definition.digest, plans, key=key
    )


def as_config(definition: Screen) -> dict[str, Any]:
    """The screen as a run keeps it."""
    return definition.model_dump(mode="json", by_alias=True, exclude_none=True)


@contextmanager
def working(store: Store, run: Run) -> Iterator[None]:
    """Hold the run's lock; write down how the work on it ended, whatever ended it."""
    began = time.monotonic()
    before = store.status(run.id)
    holder = before.lock_owner
    if holder is not None and _is_dead(holder):
        store.unlock(run.id, holder)
    store.lock(run.id, lock_owner(), seconds=LOCK_SECONDS)
    over = threading.Event()
    keeper = threading.Thread(target=_keep_lock, args=(store, run, over), daemon=True)
    keeper.start()
    state, reason = RunState.FAILED, None
    as_before = False
    try:
        yield
        state, reason = _how_it_ended(store, run)
    except TierError as error:
        state, reason = RunState.STOPPED, _without_keys(str(error), run)
        raise
    except (KeyboardInterrupt, SystemExit):
        state = RunState.CANCELLED
        raise
    except BaseException as error:
        taken_back = isinstance(error, InputRefused | ScreenError)
        as_before = taken_back and before.run.state is not RunState.RUNNING
        reason = _without_keys(f"{type(error).__name__}: {error}", run)
        raise
    finally:
        over.set()
        keeper.join()
        if as_before:
            store.put_back(before)
        else:
            store.finish(run.id, state, reason=reason, seconds=time.monotonic() - began)
        store.unlock(run.id, lock_owner())


def _without_keys(text: str, run: Run) -> str:
    """The text without any key that we know, which servers and libraries may repeat."""
    names = {profile.key_variable for profile in PROFILES.values()}
    names |= {tier.get("key_variable") for tier in run.config.get("tiers", ())}
    for name in names - {None}:
        text = hide(text, os.environ.get(str(name), "").strip())
    return text


def _how_it_ended(store: Store, run: Run) -> tuple[RunState, str | None]:
    account = store.account(run.id)
    if not account.failed and not account.pending:
        alarm = alarm_of(store, run)
        return (RunState.DONE, None) if alarm is None else (RunState.ALARM, alarm)
    if store.batches.all(run.id, open_only=True):
        return RunState.WAITING, "for the answers of a batch"
    reasons = store.tier_reasons(run.id)
    if reasons:
        return RunState.STOPPED, "; ".join(reasons)
    return RunState.INCOMPLETE, None


def _keep_lock(store: Store, run: Run, over: threading.Event) -> None:
    """Renew the lock however long a block, a model's loading or a reading takes."""
    while not over.wait(LOCK_SECONDS / 10):
        try:
            store.renew(run.id, lock_owner(), seconds=LOCK_SECONDS)
        except DatabaseError:
            continue  # the main thread meets the same trouble, and tells it
        except StoreError:
            _thread.interrupt_main()  # another process took the run over: leave it to that one
            return


def lock_owner() -> str:
    """Names this process, so that a lock left behind by a dead one can be told from a live one."""
    return f"{socket.gethostname()}:{os.getpid()}"


def _is_dead(owner: str) -> bool:
    """Whether a lock's owner was a process of this machine that is gone."""
    host, _, pid = owner.rpartition(":")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _plan(definition: Screen, position: int) -> TierPlan:
    policy = definition.policy(position)
    share = isinstance(policy.top, float)
    return TierPlan(
        definition.tiers[position].name,
        policy.reject_below,
        policy.accept_above,
        None if policy.top is None or share else int(policy.top),
        float(policy.top) if policy.top is not None and share else None,
        policy.budget,
    )
