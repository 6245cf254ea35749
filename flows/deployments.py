"""Screens as deployments of a Prefect server: forms, schedules, and a process that serves them.

A deployment's form is made for its screen, because its tiers have thresholds of their own.
"""

import asyncio
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple
from uuid import UUID

import httpx
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.exceptions import ObjectNotFound
from prefect.runner import Runner
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from flows import served
from flows.collect import collect
from flows.server import ServerError
from tiers.screenfile.file import Screen
from tiers.screenfile.tiers import OpenAIBatchTier

TAG = "tamis"
COLLECT_SECONDS = 600
POLL_SECONDS = 5.0


class Served(NamedTuple):
    """A screen and the file that holds it, absolute."""

    definition: Screen
    file: Path

    @property
    def name(self) -> str:
        return self.definition.screen


class Deployed(NamedTuple):
    """A deployment that the server has, as a runner wants to have it."""

    id: UUID
    name: str
    storage: None = None

    async def aapply(self) -> UUID:
        return self.id


class Registered(NamedTuple):
    """A deployment as the server has it."""

    id: UUID
    flow: str
    name: str
    pool: str | None
    schedule: str | None
    paused: bool


def register(
    screens: Iterable[tuple[Screen, Path]],
    *,
    cron: str | None = None,
    timezone: str = "UTC",
    pool: str | None = None,
) -> list[Deployed]:
    """Make or change the deployments of screens.

    Args:
        screens: what is deployed, each with its file, absolute.
        cron: when each screen is to run by itself; None for only when somebody asks.
        timezone: of the cron, such as Europe/Berlin.
        pool: the work pool whose workers run them; None where this process does.

    Raises:
        ServerError: the cron is none, or the pool is not there.
    """
    many = [Served(*each) for each in screens]
    check_names(many)
    files = [str(one.file) for one in many]
    schedule = _cron(cron, timezone)
    made = []
    with _server() as client:
        if pool is not None:
            _require_pool(client, pool)
        for one in many:
            served.keep(one.definition, one.file)
            form = _screen_form(one, files)
            made.append(_deploy(client, served.screen, one.name, form, schedule, pool))
            if one.definition.guarantee is not None:
                form = _calibrate_form(one, files)
                made.append(_deploy(client, served.calibrate, one.name, form, None, pool))
        if any(isinstance(tier, OpenAIBatchTier) for one in many for tier in one.definition.tiers):
            often = IntervalSchedule(interval=timedelta(seconds=COLLECT_SECONDS))
            made.append(_deploy(client, collect, "batches", _CollectForm, often, pool))
    return made


async def run_what_is_asked(deployments: Iterable[Deployed]) -> None:
    """Run what people and schedules ask of these deployments, until SIGTERM or Ctrl-C.

    Schedules stay on when this process ends: the next one finds them.
    """
    runner = _Runner(name="tamis", pause_on_shutdown=False, query_seconds=POLL_SECONDS)
    for each in deployments:
        await runner.aadd_deployment(each)  # type: ignore[arg-type]  # it asks for no more
    runner.loop = asyncio.get_running_loop()
    signal.signal(signal.SIGINT, runner.handle_sigterm)
    await runner.start()


class _Runner(Runner):
    """Prefect's runner, which in 3.8 does not hear its own SIGTERM: it awaits nothing."""

    loop: asyncio.AbstractEventLoop

    def handle_sigterm(self, *_: object) -> None:
        """Cancel what runs, which keeps what was judged, and end."""
        self.loop.call_soon_threadsafe(lambda: self.loop.create_task(self.astop()))


def check_names(screens: Iterable[Served]) -> None:
    """Refuse two screens of one name, whose deployments would be one.

    Raises:
        ServerError: two are called the same.
    """
    files: dict[str, Path] = {}
    for one in screens:
        if (other := files.setdefault(one.name, one.file)) != one.file:
            raise ServerError(
                f"{other} and {one.file} are both called '{one.name}'; write another name after "
                "screen: in one of them"
            )


def registered() -> list[Registered]:
    """All deployments of ours that the server has."""
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags

    ours = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG]))
    with _server() as client:
        found = client.read_deployments(deployment_filter=ours)
        flows = {one.flow_id: client.read_flow(one.flow_id).name for one in found}
        return [
            Registered(
                one.id,
                flows[one.flow_id],
                one.name,
                one.work_pool_name,
                "; ".join(_words(each.schedule) for each in one.schedules if each.active) or None,
                one.paused,
            )
            for one in found
        ]


@contextmanager
def _server() -> Iterator[Any]:
    """The server, asked.

    Raises:
        ServerError: it does not answer any more, or refuses.
    """
    try:
        with get_client(sync_client=True) as client:
            yield client
    except httpx.HTTPError as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ServerError(
            f"Prefect's server did not do what it was asked: {said}; look whether it runs, and "
            "then write the same command again"
        ) from error


def delete(name: str) -> list[str]:
    """Take the deployments of a screen from the server; return their flows.

    Raises:
        ServerError: it has none.
    """
    found = [one for one in registered() if one.name == name]
    if not found:
        known = ", ".join(sorted({one.name for one in registered()})) or "none"
        raise ServerError(f"no deployment of screen '{name}'; the server has: {known}")
    with _server() as client:
        for one in found:
            client.delete_deployment(one.id)
    return [one.flow for one in found]


class _CollectForm(BaseModel):
    run: str | None = Field(None, title="Run", description="Only this run, by its key.")
    wait: bool = Field(False, title="Wait", description="Until nothing is out any more.")


def _screen_form(one: Served, files: list[str]) -> type[BaseModel]:
    """The form of a screen: flat, but for the thresholds of its tiers."""
    bounds: dict[str, Any] = {}
    for position, tier in enumerate(one.definition.tiers):
        policy = one.definition.policy(position)
        for bound, now, said in (
            ("reject_below", policy.reject_below, "Scores strictly below are rejected."),
            ("accept_above", policy.accept_above, "Scores strictly above are accepted at once."),
        ):
            as_now = "no such threshold" if now is None else f"{now:g}"
            bounds[f"{tier.name}_{bound}"] = (
                float | None,
                Field(
                    None,
                    ge=0,
                    le=1,
                    title=f"{tier.name}: {bound.replace('_', ' ')}",
                    description=f"{said} From 0 to 1. In the screen file: {as_now}.",
                ),
            )
    closed = ConfigDict(extra="forbid")
    thresholds = create_model("Thresholds", __config__=closed, **bounds)
    return create_model(
        "ScreenForm",
        **_common(one, files),
        allow_shrink=(
            bool,
            Field(
                False,
                title="Allow shrink",
                description="Let more than half of the run's candidates leave it.",
            ),
        ),
        calibrate_first=(
            bool,
            Field(
                False,
                title="Calibrate first",
                description="Have thresholds set that keep the screen's guarantee. It needs one.",
            ),
        ),
        budget_usd=(
            float | None,
            Field(
                None,
                ge=0,
                title="Budget, US dollars",
                description="What the run may cost in all. By default as the screen file says.",
            ),
        ),
        thresholds=(
            thresholds,
            Field(
                default_factory=dict,
                title="Thresholds",
                description="Kept as a new version of the tier's policy. Empty: as they are.",
            ),
        ),
    )


def _calibrate_form(one: Served, files: list[str]) -> type[BaseModel]:
    return create_model(
        "CalibrateForm",
        **_common(one, files),
        anyway=(
            bool,
            Field(
                False,
                title="Anyway",
                description="Go on where the plan says that labels are too few.",
            ),
        ),
        author=(
            str | None,
            Field(None, title="By", description="Who has it made. By default the server's user."),
        ),
        approve=(
            bool,
            Field(
                False,
                title="Approve",
                description="Approve of the thresholds, where the guarantee wants that.",
            ),
        ),
    )


def _common(one: Served, files: list[str]) -> dict[str, Any]:
    choices: Any = Literal[tuple(files)]
    return {
        "file": (
            choices,
            Field(str(one.file), title="Screen file", description="One of those served."),
        ),
        "key": (
            str | None,
            Field(
                None,
                max_length=200,
                title="Run key",
                description="The same key goes on with the same run. Empty: the newest unfinished "
                "run, or a new one.",
            ),
        ),
        "limit": (
            int | None,
            Field(
                None,
                ge=1,
                title="Limit, rows",
                description="Read only so many rows of the input. Empty: all.",
            ),
        ),
        "read": (
            bool,
            Field(
                True,
                title="Read the input",
                description="Without it the run goes on with the candidates that it has.",
            ),
        ),
    }


def _schema(form: type[BaseModel]) -> dict[str, Any]:
    """The form as Prefect keeps it: its own word for `$defs`, and the order of the fields."""
    found = _plain(form.model_json_schema(ref_template="#/definitions/{model}"))
    properties = {
        name: {**described, "position": position}
        for position, (name, described) in enumerate(found["properties"].items())
    }
    return {
        "title": "Parameters",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "required": found.get("required", []),
        "definitions": found.get("$defs", {}),
    }


def _plain(schema: Any) -> Any:
    """A schema whose form has a field, and not a choice of types, where nothing may be written."""
    if isinstance(schema, list):
        return [_plain(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {name: _plain(value) for name, value in schema.items()}
    kinds = [each for each in plain.get("anyOf", []) if each != {"type": "null"}]
    if len(kinds) == 1:
        plain |= kinds[0]
        del plain["anyOf"], plain["default"]
    if "const" in plain:
        plain["enum"] = [plain.pop("const")]
    return plain


def _deploy(
    client: Any,
    flow: Flow[..., Any],
    name: str,
    form: type[BaseModel],
    schedule: CronSchedule | IntervalSchedule | None,
    pool: str | None,
) -> Deployed:
    schema = _schema(form)
    defaults = {
        field: described["default"]
        for field, described in schema["properties"].items()
        if described.get("default") is not None
    }
    before = _before(client, f"{flow.name}/{name}", defaults.get("file"))
    kept = [] if before is None else before.schedules
    made = client.create_deployment(
        flow_id=client.create_flow_from_name(flow.name),
        name=name,
        entrypoint=f"{flow.fn.__module__}.{flow.fn.__name__}",
        path=".",
        parameters=defaults,
        parameter_openapi_schema=schema,
        enforce_parameter_schema=True,
        description=flow.description,
        tags=[TAG, name],
        work_pool_name=pool,
        pull_steps=[] if pool is not None else None,
        schedules=[
            DeploymentScheduleCreate(schedule=each.schedule, active=each.active) for each in kept
        ]
        if schedule is None
        else [DeploymentScheduleCreate(schedule=schedule, active=True)],
        paused=False,
    )
    return Deployed(made, f"{flow.name}/{name}")


def _before(client: Any, name: str, file: str | None) -> Any:
    """The deployment of this name that the server has; None where it has none.

    Raises:
        ServerError: it is another screen file's.
    """
    try:
        before = client.read_deployment_by_name(name)
    except ObjectNotFound:
        return None
    other = before.parameters.get("file")
    if file is not None and other not in (None, file) and Path(other).exists():
        screen = name.partition("/")[2]
        raise ServerError(
            f"screen '{screen}' is deployed for {other}; write another name after screen: in "
            f"{file}, or take the other away: tamis deploy --delete {screen}"
        )
    return before


def _cron(cron: str | None, timezone: str) -> CronSchedule | None:
    if cron is None:
        return None
    try:
        return CronSchedule(cron=cron, timezone=timezone)
    except (ValidationError, ValueError) as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        why = why.removeprefix("Value error, ")
        write = (
            "write its name, such as --timezone Europe/Berlin"
            if "timezone" in why.lower()
            else "write five fields, minute hour day month weekday, such as --cron '0 6 * * *' for "
            "six in the morning"
        )
        raise ServerError(
            f"--cron '{cron}' in time zone '{timezone}' is no schedule: {why}; {write}"
        ) from error


def _require_pool(client: Any, pool: str) -> None:
    try:
        client.read_work_pool(pool)
    except ObjectNotFound as error:
        known = ", ".join(one.name for one in client.read_work_pools()) or "none"
        raise ServerError(
            f"the server has no work pool '{pool}'; it has: {known}. Make one with: "
            f"prefect work-pool create {pool} --type process"
        ) from error


def _words(schedule: Any) -> str:
    if isinstance(schedule, CronSchedule):
        return f"{schedule.cron} ({schedule.timezone or 'UTC'})"
    interval = getattr(schedule, "interval", None)
    return f"every {interval}" if interval is not None else str(schedule)
