"""What a run leaves in the Prefect UI: progress, the funnel, a report."""

import re
import time
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.context import FlowRunContext

from db.store import Run, Store
from flows.audit import alarm_of, alarm_page
from flows.summary import markdown, summary

UPDATE_SECONDS = 5.0


def publish(store: Store, run: Run) -> None:
    """Leave the funnel and the report with the flow run, if there is one."""
    if FlowRunContext.get() is None:
        return
    finished = summary(store, run)
    create_table_artifact(
        finished["tiers"], key=slug(f"{run.screen}-funnel"), description=f"Funnel of {run.key}"
    )
    create_markdown_artifact(
        markdown(finished), key=slug(f"{run.screen}-report"), description=f"Report of {run.key}"
    )
    if (alarm := alarm_of(store, run)) is not None:
        create_markdown_artifact(
            alarm_page(store, run, alarm),
            key=slug(f"{run.screen}-alarm"),
            description=f"Alarm of {run.key}",
        )


class ProgressArtifact:
    """A tier's progress in the Prefect UI, written at most every five seconds."""

    def __init__(self, run: Run, tier: str) -> None:
        self._written = time.monotonic()
        self._id: UUID | None = None
        if FlowRunContext.get() is not None:
            made = create_progress_artifact(
                0.0, key=slug(f"{run.screen}-{tier}"), description=f"{tier} of {run.key}"
            )
            self._id = made if isinstance(made, UUID) else None

    def update(self, done: int, total: int, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if self._id is None or (now - self._written < UPDATE_SECONDS and not at_once):
            return
        self._written = now
        update_progress_artifact(self._id, min(100.0, 100 * done / max(total, 1)))


def slug(name: str) -> str:
    """A name as the key of an artifact may be."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
