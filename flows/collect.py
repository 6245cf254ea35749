"""The flow that picks up runs that wait for a batch: by hand, or on a schedule."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prefect import flow

from db.batches import BY_HAND
from db.engine import check_ready, open_engine
from db.store import Batch, BatchState, DatabaseError, RunState, Store, StoreError
from flows.owner import state_of
from flows.run.batch import noted
from flows.run.screening import screen_candidates
from flows.settings import Settings, load_keys
from tiers.opening import open_batch
from tiers.screenfile.file import Screen
from tiers.screenfile.tiers import RemoteTier
from tiers.tier import BatchTier, job_of
from tiers.types import TierError, TryLater

POLL_SECONDS = 60.0


@flow(name="collect", persist_result=False)
def collect(run: str | None = None, wait: bool = False) -> list[str]:
    """Collect what is answered of all waiting runs, and go on with them.

    Args:
        run: only this run, by its key.
        wait: look again every minute until nothing is out any more.

    Returns:
        The keys of the runs that went on.

    Raises:
        TierError: some runs could not go on; all others did.
    """
    url = Settings().database()
    check_ready(url)
    engine = open_engine(url)
    went_on: list[str] = []
    troubles: dict[str, str] = {}
    try:
        store = Store(engine)
        while True:
            waiting = [
                key
                for key in store.batches.waiting_runs()
                if run in (None, key) and key not in troubles
            ]
            for key in waiting:
                try:
                    if _go_on(store, key):
                        went_on.append(key)
                except DatabaseError:
                    raise
                except (TierError, StoreError) as error:
                    troubles[key] = str(error)
            if not wait or not waiting:
                break
            time.sleep(POLL_SECONDS)
    finally:
        engine.dispose()
    if troubles:
        raise TierError("\n".join(f"run {key}: {said}" for key, said in troubles.items()))
    return went_on


def _go_on(store: Store, key: str) -> bool:
    """Go on with a run if there is something to do; whether there was."""
    if not _has_news(store, key):
        return False
    screen_candidates(Screen.model_validate(store.runs.find(key).config), key=key, read=False)
    return True


def _has_news(store: Store, key: str) -> bool:
    """Whether a batch of the run has ended, so that there is something to do."""
    found = store.runs.find(key)
    if state_of(store.runs.status(found.id)) is RunState.RUNNING:
        return False
    batches = store.batches.all(found.id, open_only=True)
    return any(look(store, batch) is not BatchState.SUBMITTED for batch in batches)


def look(store: Store, batch: Batch) -> BatchState:
    """Ask the server how a batch stands, and note it."""
    if batch.state is not BatchState.SUBMITTED or batch.remote_id is None:
        return batch.state
    try:
        with _server(store, batch) as server:
            remote = server.look(batch.remote_id)
    except TryLater:
        return batch.state
    return noted(store.batches, batch, remote).state


def cancel(store: Store, batch: Batch, *, forget: bool) -> Batch:
    """Have a batch stopped; what it has answered is collected at the next visit.

    Args:
        store: the database.
        batch: the batch.
        forget: do not ask the server: its candidates are sent again.

    Raises:
        TierError: the server refuses the key, or does not answer.
    """
    if forget or batch.remote_id is None:
        return store.batches.change(
            batch.id,
            state=BatchState.COLLECTED,
            unanswered=batch.lines,
            reason=f"given up {BY_HAND}",
        )
    try:
        with _server(store, batch) as server:
            remote = server.cancel(batch.remote_id)
    except TryLater as trouble:
        raise TierError(f"{trouble}; try again later") from None
    return store.batches.change(batch.id, remote_state=remote.state, reason=f"stopped {BY_HAND}")


@contextmanager
def _server(store: Store, batch: Batch) -> Iterator[BatchTier]:
    """The account that a batch was sent to."""
    definition = Screen.model_validate(store.runs.find(batch.run).config)
    config = definition.tiers[batch.position]
    if isinstance(config, RemoteTier):
        load_keys([config.key_name])
    server = open_batch(job_of(definition, batch.position))
    try:
        yield server
    finally:
        server.close()
