"""The flows that people start in the Prefect UI, and schedules: a short form for a screen file.

Nothing in here raises: what went wrong is the state's message, which says what to do.
"""

import re
import signal
import sys
import threading
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from pydantic import ValidationError

from db.engine import check_ready
from db.errors import RunHeld
from db.store import Change, RunState, Store, StoreError, opened_store
from flows import distil
from flows.calibrate import calibrate as calibrate_flow
from flows.files.writing import WritingError
from flows.owner import state_of
from flows.recorder import Recorder, recorded
from flows.report.summary import reuse_line, summary
from flows.run.screening import prepare, screen_candidates
from flows.settings import Settings
from flows.terminal import visible
from tiers.screenfile.faults import ScreenError
from tiers.screenfile.file import Screen, load_screen
from tiers.screenfile.limits import BudgetSection
from tiers.types import TierError

EXPECTED = (ScreenError, StoreError, TierError, WritingError)
OVER = (RunState.DONE, RunState.ALARM, RunState.INCOMPLETE)
STOPPED = "stopped; what was judged is kept. Start the same run again to go on"


def _tell(record: Recorder, fault: str | None) -> None:
    """Say what is wrong with the screen file, in Prefect and where the serving process does."""
    if fault is not None:
        record.say(fault)
        print(visible(fault), file=sys.stderr, flush=True)  # noqa: T201


def _stopped() -> State[Any]:
    """Cancelled, also where the runner's own signal comes after the word of the server.

    Prefect would take it for a crash of a flow that is over.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # this process ends with this flow run
    return Cancelled(message=STOPPED)


def _named() -> str:
    """What a flow run is called until its run's key is known."""
    parameters = flow_run.parameters or {}
    return f"{Path(str(parameters.get('file', 'screen'))).stem} {parameters.get('key') or 'run'}"


@flow(name="screen", flow_run_name=_named, persist_result=False)
def screen(
    file: str,
    key: str | None = None,
    limit: int | None = None,
    read: bool = True,
    allow_shrink: bool = False,
    calibrate_first: bool = False,
    budget_usd: float | None = None,
    thresholds: dict[str, float | None] | None = None,
) -> State[Any]:
    """Screen all candidates of a screen file; go on where an earlier run of the same key stopped.

    Args:
        file: the screen file.
        key: names the run; by default the newest unfinished run of the screen, or a new one.
        limit: read only so many candidates; nobody leaves the run then.
        read: read the input; without it, the run goes on with the candidates that it has.
        allow_shrink: let more than half of the run's candidates leave it.
        calibrate_first: have the thresholds calibrated for this run before it screens.
        budget_usd: what the run may cost in all, in place of the screen file's budget.
        thresholds: `<tier>_reject_below` and `<tier>_accept_above`, in [0, 1]; kept as a new
            version of the tier's policy.

    Returns:
        Completed, with the account as its message; also where another process works on the run, or
        where a run that began after this one was due has done its work. Failed, with what to do.
    """
    try:
        definition, fault = definition_of(Path(file))
        definition = _with_budget(definition, budget_usd)
        moves = _moves(definition, thresholds or {})
        check_ready(Settings().database())
        with opened_store(Settings().database()) as store:
            if (due := _due()) is not None:
                if (done := _done_since(store, definition, due)) is not None:
                    said = f"nothing to do: run {done} began after this was due"
                    return Completed(message=said)
                if (busy := _at_work(store, definition)) is not None:
                    return Completed(name="Already running", message=f"already running: {busy}")
                key = key or _key_of(definition, due)
            _distil(definition, store)
            if calibrate_first:
                made = calibrate_flow.fn(definition, key=key, limit=limit, read=read)
                if made["status"] != "certified":
                    return _of_calibration(made)
                key, read = made["run"], False
            chosen = prepare(definition, key, read=read)
            _move(store, chosen, moves)
            name = f"{definition.screen} {chosen}"
            with recorded("screen", name, tags=[definition.screen]) as record:
                _tell(record, fault)
                screen_candidates(
                    definition, key=chosen, limit=limit, read=read, allow_shrink=allow_shrink
                )
                return _how_it_stands(store, chosen)
    except RunHeld as held:
        return Completed(name="Already running", message=f"already running: {held}")
    except EXPECTED as wrong:
        return Failed(message=str(wrong))
    except (KeyboardInterrupt, SystemExit):
        return _stopped()


@flow(name="calibrate", flow_run_name=_named, persist_result=False)
def calibrate(
    file: str,
    key: str | None = None,
    limit: int | None = None,
    read: bool = True,
    anyway: bool = False,
    author: str | None = None,
    approve: bool = False,
) -> State[Any]:
    """Set the thresholds of a run so that its screen's guarantee holds, and certify them.

    Args:
        file: the screen file, with a guarantee.
        key: names the run; by default the newest unfinished run of the screen, or a new one.
        limit: read only so many candidates.
        read: read the input; without it, the run goes on with the candidates that it has.
        anyway: go on where the plan says that the labels will not do.
        author: who has it made; by default the user of the serving process.
        approve: where the guarantee wants approval, the author gives it here.
    """
    try:
        definition, fault = definition_of(Path(file))
        chosen = prepare(definition, key, to_calibrate=True, read=read)
        with recorded(
            "calibrate", f"{definition.screen} {chosen}", tags=[definition.screen]
        ) as record:
            _tell(record, fault)
            made = calibrate_flow.fn(
                definition,
                key=chosen,
                limit=limit,
                read=read,
                anyway=anyway,
                author=author,
                approve=approve,
            )
        return _of_calibration(made)
    except RunHeld as held:
        return Completed(name="Already running", message=f"already running: {held}")
    except EXPECTED as wrong:
        return Failed(message=str(wrong))
    except (KeyboardInterrupt, SystemExit):
        return _stopped()


def kept_definition(file: Path) -> Path:
    """Where the last definition of a screen file is kept that could be read."""
    mark = blake2b(str(file.resolve()).encode(), digest_size=8).hexdigest()
    return Settings().data_folder.resolve() / "served" / f"{file.stem}-{mark}.json"


def keep(definition: Screen, file: Path) -> None:
    """Keep a definition that could be read, in case its file is edited into one that cannot."""
    path = kept_definition(file)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(definition.model_dump_json(by_alias=True, exclude_none=True), "utf-8")
    part.replace(path)


def definition_of(file: Path) -> tuple[Screen, str | None]:
    """The screen of a file as it is now, else as it last could be read and what is wrong now.

    Raises:
        ScreenError: it cannot be read, and never could.
    """
    try:
        definition = load_screen(file)
    except ScreenError as fault:
        kept = kept_definition(file)
        try:
            definition = Screen.model_validate_json(kept.read_text("utf-8"))
        except (OSError, ValidationError):
            raise fault from None
        return definition, f"the screen file is broken; its last good version is used: {fault}"
    keep(definition, file)
    return definition, None


def _distil(definition: Screen, store: Store) -> None:
    """Train and test a classifier where its section says so; the run goes on in any case."""
    try:
        if distil.due(definition, store):
            made = distil.distil(definition)
            said = f"{made['trained']['said']}: {made['message']}"
            print(visible(said), file=sys.stderr, flush=True)  # noqa: T201
    except EXPECTED as wrong:
        print(visible(f"no classifier was trained: {wrong}"), file=sys.stderr, flush=True)  # noqa: T201


def _with_budget(definition: Screen, usd: float | None) -> Screen:
    if usd is None:
        return definition
    budget = definition.budget or BudgetSection(usd=usd)
    return definition.model_copy(update={"budget": budget.model_copy(update={"usd": usd})})


def _moves(definition: Screen, thresholds: dict[str, float | None]) -> dict[int, dict[str, float]]:
    """Thresholds of the form by position.

    Raises:
        TierError: one names no tier, or lies outside [0, 1].
    """
    names = {
        f"{tier.name}_{bound}": (position, bound)
        for position, tier in enumerate(definition.tiers)
        for bound in ("reject_below", "accept_above")
    }
    moves: dict[int, dict[str, float]] = {}
    for name, value in thresholds.items():
        if value is None:
            continue
        if name not in names or not 0 <= value <= 1:
            raise TierError(
                f"thresholds: {name}: {value:g} is none of this screen; write a number from 0 to 1 "
                f"under one of: {', '.join(names)}"
            )
        position, bound = names[name]
        moves.setdefault(position, {})[bound] = value
    for position, bounds in moves.items():
        _require_order(definition.tiers[position].name, **bounds)
    return moves


def _require_order(
    tier: str, reject_below: float | None = None, accept_above: float | None = None
) -> None:
    if reject_below is not None and accept_above is not None and reject_below > accept_above:
        raise TierError(
            f"thresholds of tier '{tier}': reject below {reject_below:g} lies above accept above "
            f"{accept_above:g}; write the lower number in reject below"
        )


def _move(store: Store, key: str, moves: dict[int, dict[str, float]]) -> None:
    """Set the form's thresholds as new versions of the tiers' policies, where they are others."""
    run = store.runs.find(key)
    in_use = {one.position: one for one in store.policies.versions(run.id) if one.in_use}
    for position, bounds in moves.items():
        change = Change(**{**in_use[position].thresholds._asdict(), **bounds})
        _require_order(in_use[position].tier, *change)
        if change != in_use[position].thresholds:
            store.policies.move(
                run.id, position, change, author="Prefect UI", reason="set in the form of a run"
            )


def _due() -> datetime | None:
    """When a schedule wanted this flow run; None where a person started it."""
    due = flow_run.scheduled_start_time
    scheduled = "auto-scheduled" in (flow_run.tags or [])
    return due if scheduled and isinstance(due, datetime) else None


def _key_of(definition: Screen, due: datetime) -> str:
    """The key of a schedule's run: each time is a run of its own, and nobody else's."""
    return f"{definition.screen}-{due:%Y%m%d-%H%M}"


def _done_since(store: Store, definition: Screen, due: datetime) -> str | None:
    """The key of a schedule's run that was begun after this one was due, and is over.

    A server that was away fires all schedules that it missed: the first of them does their work.
    """
    scheduled = re.compile(rf"{re.escape(definition.screen)}-[0-9]{{8}}-[0-9]{{4}}")
    for status in store.runs.newest(50):
        if scheduled.fullmatch(status.run.key) and status.run.state in OVER:
            began = status.started or status.run.created
            return status.run.key if began > due else None
    return None


def _at_work(store: Store, definition: Screen) -> str | None:
    """The key of a run of this screen that a process works on."""
    for status in store.runs.newest(50):
        if status.run.screen == definition.screen and status.locked:
            return status.run.key if state_of(status) is RunState.RUNNING else None
    return None


def _how_it_stands(store: Store, key: str) -> State[Any]:
    run = store.runs.find(key)
    finished = summary(store, run)
    if run.state is RunState.DONE:
        return Completed(message=reuse_line(finished))
    if run.state is RunState.WAITING:
        return Completed(name="Waiting", message=finished.reason)
    reason = finished.reason or "candidates failed or are pending"
    ended = Cancelled if run.state is RunState.PAUSED else Failed
    return ended(
        name=str(run.state).capitalize(),
        message=f"run {key} is {run.state}: {reason}; start the same run again to go on",
    )


def _of_calibration(made: dict[str, Any]) -> State[Any]:
    message = f"run {made['run']}: {made['message']}"
    if made["status"] == "certified":
        return Completed(name="Certified", message=message)
    if made["status"] == "waiting":
        return Completed(name="Waiting", message=message)
    return Failed(name=str(made["status"]).replace("_", " ").capitalize(), message=message)
