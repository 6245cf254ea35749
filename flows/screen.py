"""The flow that Prefect runs: from a deployment, on a schedule, or called from Python.

`tamis run` does the same without waiting for Prefect, and has it told (`flows.recorder`).
"""

from prefect import flow

from db.engine import open_engine
from db.store import RunState, Store
from flows.run.screening import screen_candidates
from flows.settings import Settings
from tiers.screenfile.file import Screen
from tiers.types import TierError


@flow(
    name="screen",
    flow_run_name="{definition.screen}",
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
        TierError: the run could not be finished; what was judged is kept.
    """
    run = screen_candidates(definition, key=key, limit=limit, read=read, allow_shrink=allow_shrink)
    engine = open_engine(Settings().database())
    try:
        status = Store(engine).runs.status(run.id)
    finally:
        engine.dispose()
    if status.run.state not in (RunState.DONE, RunState.WAITING):
        raise TierError(f"run {run.key} is {status.run.state}: {status.reason or 'run it again'}")
    return run.key
