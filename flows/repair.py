"""Runs whose process is gone without a word: marked so, here and in Prefect; their locks freed."""

from db.store import Run, RunState, Store
from flows.owner import state_of
from flows.server import answering_server, prefect_home, running_server
from flows.settings import Settings

GONE = "its process is gone; what was judged is kept. Go on with: tamis resume {key}"
LIVELY = ("RUNNING", "PENDING", "PAUSED", "CANCELLING")
"""Types of state in which Prefect leaves a flow run whose process it does not miss."""


def repair(store: Store) -> list[Run]:
    """Mark every run whose process is gone as interrupted; which they were."""
    return [
        status.run
        for status in store.runs.running()
        if state_of(status) is RunState.INTERRUPTED
        and store.runs.interrupt(
            status.run.id, GONE.format(key=status.run.key), attempt=status.attempt
        )
    ]


def crash_in_prefect(runs: list[Run]) -> int | None:
    """Mark the flow runs of these runs as crashed; how many, or None where no server answers."""
    url = answering_server() or running_server(prefect_home(Settings()))
    if url is None:
        return None
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.client.schemas.objects import State, StateType
    from prefect.settings import PREFECT_API_URL, temporary_settings

    marked = 0
    with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
        for run in runs:
            wanted = {
                "name": {"any_": [f"{run.screen} {run.key}"]},
                "state": {"type": {"any_": LIVELY}},
            }
            for one in client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(wanted)):
                state = State(type=StateType.CRASHED, message=GONE.format(key=run.key))
                client.set_flow_run_state(one.id, state, force=True)
                marked += 1
    return marked
