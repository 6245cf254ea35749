"""Metrics for Prometheus: a query at each scrape, so that judging knows nothing of it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from db.engine import check_ready
from db.errors import EmptyDatabase
from db.store import DatabaseError, RunState, RunStatus, Store, opened_store
from flows.owner import state_of
from flows.server import ServerError

HOST = "127.0.0.1"
RUNS = 20
"""The newest ones are shown."""
_VERDICTS = ("accepted", "rejected", "review", "failed", "pending")


@contextmanager
def served_metrics(database: str, port: int) -> Iterator[None]:
    """Answer Prometheus on a port of loopback meanwhile.

    Raises:
        ServerError: the port is taken.
    """
    registry = CollectorRegistry()
    registry.register(_Runs(database))
    try:
        server, thread = start_http_server(port, addr=HOST, registry=registry)
    except OSError as error:
        raise ServerError(
            f"port {port} is taken: {error.strerror}; write another one: --metrics-port {port + 1}"
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Runs(Collector):
    """The newest runs as they stand; of those at work, their tiers as well."""

    def __init__(self, database: str) -> None:
        self._database = database

    def describe(self) -> Iterable[Any]:
        return []  # else the first scrape would be made at the start, when no database may be there

    def collect(self) -> Iterator[GaugeMetricFamily]:
        up = GaugeMetricFamily("tamis_database_up", "Whether the database answered")
        try:
            check_ready(self._database, create=False)
            with opened_store(self._database) as store:
                families = [*_of_runs(store, store.runs.newest(RUNS))]
            answered = True
        except EmptyDatabase:  # before the first run
            answered, families = True, []
        except DatabaseError:
            answered, families = False, []
        up.add_metric([], float(answered))
        yield up
        yield from families


def _of_runs(store: Store, runs: Iterable[RunStatus]) -> Iterator[GaugeMetricFamily]:
    candidates = _family("candidates", "Candidates by verdict", "verdict")
    state = _family("run_state", "1 for the state of a run", "state")
    seconds = _family("run_seconds", "Working time over all attempts")
    judged = _family("tier_judged", "Texts that a tier was asked about and paid for", "tier")
    tokens = _family("tier_tokens", "Tokens of a tier", "tier", "kind")
    usd = _family("tier_usd", "US dollars of a tier", "tier")
    for status in runs:
        names = [status.run.key, status.run.screen]
        account = asdict(status.account)
        for verdict in _VERDICTS:
            candidates.add_metric([*names, verdict], account[verdict])
        now = state_of(status)
        state.add_metric([*names, str(now)], 1)
        seconds.add_metric(names, status.seconds)
        if now is not RunState.RUNNING:
            continue  # a large run takes a second to be counted
        for row in store.results.funnel(status.run.id):
            judged.add_metric([*names, row.tier], row.judged)
            tokens.add_metric([*names, row.tier, "prompt"], row.prompt_tokens)
            tokens.add_metric([*names, row.tier, "cached"], row.cached_tokens)
            tokens.add_metric([*names, row.tier, "completion"], row.completion_tokens)
            if row.usd is not None:
                usd.add_metric([*names, row.tier], row.usd)
    yield from (candidates, state, seconds, judged, tokens, usd)


def _family(name: str, meaning: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"tamis_{name}", meaning, labels=["run", "screen", *labels])
