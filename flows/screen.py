"""The flow: ingest, then tier by tier in blocks, then a verdict on everybody.

Prefect carries ids and counts; the database carries data. Resume is a query: what has no
judgement is judged, whoever stopped before and however.
"""

import _thread
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext

from db.engine import check_ready, open_engine
from db.store import DatabaseError, Run, RunState, Store, StoreError, TierPlan, TierState
from flows.ingest import ingest, source_files
from flows.progress import Display, display
from flows.report import ProgressArtifact, publish
from flows.settings import Settings
from tiers.base import Job, Tier, identity, inspect, job_of, open_tier
from tiers.config import Screen
from tiers.types import Candidate, Judgement, Outcome, TierError

PAGE = 1_000
"""Candidates read from the database at once."""
FIRST_BLOCK = 256
BLOCK_SECONDS = 15.0
BLOCKS = 300
"""Task runs that a tier may take at most: Prefect's server needs 23 ms for each."""
FLUSH_ROWS = 1_000
FLUSH_SECONDS = 0.02
LOCK_SECONDS = 300.0
MASS_NEEDED = 0.5


@flow(
    name="screen",
    flow_run_name="{definition.screen} {key}",
    persist_result=False,
    validate_parameters=True,
)
def screen(definition: Screen, key: str | None = None, limit: int | None = None) -> str:
    """Screen all candidates of a definition; go on where an earlier run of the same key stopped.

    Args:
        definition: the screen.
        key: names the run; by default the newest unfinished run of this definition, or a new one.
        limit: read only so many candidates.

    Returns:
        The run's key.

    Raises:
        TierError: a tier could not go on; what was judged is kept.
    """
    url = Settings().database()
    check_ready(url)
    jobs = [job_of(definition, position) for position in range(len(definition.tiers))]
    identities = [identity(job) for job in jobs]
    engine = open_engine(url)
    try:
        store = Store(engine)
        run = open_run(store, definition, key)
        with working(store, run), display() as shown:
            _tell(f"run {run.key} of screen {run.screen}", shown)
            # Before anything is decided anew: a run keeps the judges that it began with.
            judges = [store.set_judge(run.id, i, each) for i, each in enumerate(identities)]
            if (context := FlowRunContext.get()) and context.flow_run:
                store.set_flow_run(run.id, str(context.flow_run.id))
            shown.start("reading", None)
            read = ingest(store, run.id, definition.candidates, limit=limit)
            shown.advance(read.added)
            _tell(f"read: {read.added:,} new, {read.duplicate:,} repeated, {read.bad:,} bad", shown)
            store.undecide(run.id)
            for position, job in enumerate(jobs):
                work = TierWork(store, run, position, job, judges[position])
                judge_tier(work, shown)
                decided = store.decide(run.id, position)
                _tell(f"{work.name}: {_in_words(decided)}", shown)
            publish(store, run)
        return run.key
    finally:
        engine.dispose()


def _in_words(decided: Mapping[Outcome, int]) -> str:
    return ", ".join(f"{count:,} {outcome}" for outcome, count in decided.items() if count) or "-"


def _tell(text: str, shown: Display) -> None:
    """Say something in the terminal and in the flow run's log."""
    shown.say(text)
    if FlowRunContext.get() is not None:
        get_run_logger().info(text)


def prepare(definition: Screen, key: str | None) -> str:
    """Check what can be checked before anything is done, and open the run; return its key.

    Raises:
        DatabaseError: the database cannot be used.
        ScreenError: the candidates' files are not there.
        TierError: a model is not there.
    """
    url = Settings().database()
    check_ready(url)
    source_files(definition.candidates.source)
    for position in range(len(definition.tiers)):
        inspect(job_of(definition, position), "")
    engine = open_engine(url)
    try:
        return open_run(Store(engine), definition, key).key
    finally:
        engine.dispose()


def open_run(store: Store, definition: Screen, key: str | None) -> Run:
    """The run of this definition to work on: the key's, the newest unfinished one, or a new one."""
    plans = [_plan(definition, position) for position in range(len(definition.tiers))]
    config = definition.model_dump(mode="json", by_alias=True, exclude_none=True)
    return store.open_run(definition.screen, config, definition.digest, plans, key=key)


@contextmanager
def working(store: Store, run: Run) -> Iterator[None]:
    """Hold the run's lock; write down how the work on it ended, whatever ended it."""
    began = time.monotonic()
    holder = store.status(run.id).lock_owner
    if holder is not None and _is_dead(holder):
        store.unlock(run.id, holder)
    store.lock(run.id, lock_owner(), seconds=LOCK_SECONDS)
    over = threading.Event()
    keeper = threading.Thread(target=_keep_lock, args=(store, run, over), daemon=True)
    keeper.start()
    state, reason = RunState.FAILED, None
    try:
        yield
        account = store.account(run.id)
        state = RunState.INCOMPLETE if account.failed or account.pending else RunState.DONE
    except TierError as error:
        state, reason = RunState.STOPPED, str(error)
        raise
    except (KeyboardInterrupt, SystemExit):
        state = RunState.CANCELLED
        raise
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        raise
    finally:
        over.set()
        keeper.join()
        store.finish(run.id, state, reason=reason, seconds=time.monotonic() - began)
        store.unlock(run.id, lock_owner())


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


@dataclass(frozen=True)
class TierWork:
    """A tier of a run and what is needed to judge in it."""

    store: Store
    run: Run
    position: int
    job: Job
    judge_id: int

    @property
    def name(self) -> str:
        return self.job.config.name


@dataclass(frozen=True)
class Block:
    """A stretch of a tier's candidates: `size` of them after one id. `last` is None at the end."""

    judged: int
    last: int | None
    seconds: float


def judge_tier(work: TierWork, shown: Display) -> None:
    """Judge all that reached a tier and have no judgement; open its engine only if there are some.

    Raises:
        TierError: the engine cannot be opened, or does not answer the question asked.
    """
    store, run, position = work.store, work.run, work.position
    total = store.count_unjudged(run.id, position, work.judge_id)
    _check_mass(work)  # what an earlier attempt stopped for still holds
    if total == 0:
        store.set_tier_state(run.id, position, TierState.DONE)
        return
    shown.start(work.name, total)
    store.set_tier_state(run.id, position, TierState.RUNNING)
    began = time.monotonic()
    artifact = ProgressArtifact(run, work.name, total)
    tier: Tier | None = None
    try:
        tier = open_tier(work.job)
        loaded = time.monotonic() - began
        _judge_blocks(work, tier, total, shown, artifact)
    except BaseException as error:
        reason = str(error) or type(error).__name__
        seconds = time.monotonic() - began
        store.set_tier_state(run.id, position, TierState.STOPPED, reason=reason, seconds=seconds)
        raise
    finally:
        if tier is not None:
            tier.close()
    store.set_tier_state(
        run.id,
        position,
        TierState.DONE,
        seconds=time.monotonic() - began,
        load_seconds=loaded,
        prompt_rate=tier.rates.get("prefill"),
        decode_rate=tier.rates.get("decode"),
    )
    if tier.rates:
        _tell(
            f"{work.name}: model loaded in {loaded:.1f} s; it reads {tier.rates['prefill']:,.0f} "
            f"tokens a second and writes {tier.rates['decode']:,.0f}",
            shown,
        )
    artifact.update(total, at_once=True)


def _judge_blocks(
    work: TierWork,
    tier: Tier,
    total: int,
    shown: Display,
    artifact: ProgressArtifact,
) -> None:
    """Cut the work into blocks, each long enough that Prefect's own cost does not show."""
    after, size, done = 0, FIRST_BLOCK, 0
    while True:
        block = judge_block(work, tier, after, size, shown)
        artifact.update(done)
        if done == 0 or block.last is None:
            _check_mass(work)
        done += block.judged
        if block.last is None:
            return
        after = block.last
        rate = block.judged / max(block.seconds, 1e-3)
        size = max(FIRST_BLOCK, int(rate * BLOCK_SECONDS), total // BLOCKS)


@task(
    name="judge",
    task_run_name="{work.name} after {after}",
    cache_policy=NO_CACHE,
    persist_result=False,
)
def judge_block(work: TierWork, tier: Tier, after: int, size: int, shown: Display) -> Block:
    """Judge one block and store its judgements as they come."""
    began = time.monotonic()
    reader = _Reader(work, after)
    judged = 0
    for judgements in _flushes(tier.judge(islice(reader, size))):
        work.store.record(work.run.id, work.judge_id, judgements)
        judged += len(judgements)
        shown.advance(len(judgements))
    last = reader.last if judged >= size else None
    return Block(judged, last, time.monotonic() - began)


class _Reader:
    """Streams a tier's unjudged candidates, a page at a time."""

    def __init__(self, work: TierWork, after: int) -> None:
        self._work = work
        self.last = after

    def __iter__(self) -> Iterator[Candidate]:
        work, page_end = self._work, self.last
        while page := work.store.unjudged(
            work.run.id, work.position, work.judge_id, after=page_end, limit=PAGE
        ):
            page_end = page[-1].id
            for candidate in page:
                self.last = candidate.id
                yield candidate


def _flushes(judgements: Iterator[Judgement]) -> Iterator[list[Judgement]]:
    """Judgements in groups worth a commit, none of them kept waiting for long."""
    ready: list[Judgement] = []
    flushed = time.monotonic()
    for judgement in judgements:
        ready.append(judgement)
        now = time.monotonic()
        if len(ready) >= FLUSH_ROWS or now - flushed >= FLUSH_SECONDS:
            yield ready
            ready, flushed = [], now
    if ready:
        yield ready


def _check_mass(work: TierWork) -> None:
    """Stop a tier whose model does not answer the question, before anything is decided by it.

    Raises:
        TierError: most judgements gave the answers asked for less than half of the probability.
    """
    low, known, waiting = work.store.low_mass(
        work.judge_id, work.run.id, work.position, below=MASS_NEEDED, sample=FIRST_BLOCK
    )
    if not waiting and known and low > known / 2:
        raise TierError(
            f"tier '{work.name}' stopped: the model gave the answers asked for less than "
            f"{MASS_NEEDED:.0%} of the probability on {low:,} of {known:,} candidates, so it does "
            "not answer the question; nothing was decided by it. See the prompt with "
            "'tamis check', then change ask, prompt or chat"
        )


def _plan(definition: Screen, position: int) -> TierPlan:
    policy = definition.policy(position)
    share = isinstance(policy.top, float)
    return TierPlan(
        definition.tiers[position].name,
        policy.reject_below,
        policy.accept_above,
        None if policy.top is None or share else int(policy.top),
        float(policy.top) if policy.top is not None and share else None,
    )
