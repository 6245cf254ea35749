"""Running a screen in this process, for the commands that do."""

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from flows.commands.console import DONE, INTERRUPTED, UNFINISHED, UNKEPT, err, open_store, settings

if TYPE_CHECKING:
    from flows.report.summary import Summary
    from tiers.screenfile.file import Screen


def screen_once(
    definition: "Screen",
    database: str | None,
    *,
    key: str | None = None,
    limit: int | None = None,
    read: bool = True,
    allow_shrink: bool = False,
) -> "Summary":
    """Run the flow in this process and return its summary, finished or stopped.

    `seconds` in it are those that the run was worked on, over all resumes; `whole_seconds` what
    this call took, start and Prefect included.

    Raises:
        TierError: a tier could not be found before anything was done.
    """
    began = time.monotonic()
    from flows.recorder import recorded
    from flows.report.summary import summary
    from flows.run.screening import prepare, screen_candidates
    from tiers.types import TierError

    url = settings().database(database)
    os.environ["TAMIS_DATABASE_URL"] = url  # not a parameter: Prefect would store the password
    chosen = prepare(definition, key, read=read)
    name, tags = f"{definition.screen} {chosen}", [definition.screen]
    with recorded("screen", name, tags=tags, key=chosen, limit=limit) as record:
        try:
            screen_candidates(
                definition, key=chosen, limit=limit, read=read, allow_shrink=allow_shrink
            )
        except TierError as error:
            err.print(str(error))
        except (KeyboardInterrupt, SystemExit) as stop:
            how = "cancelled in the Prefect UI" if record.cancelled else "stopped"
            err.print(
                f"\n{how}; what was judged is kept. Go on with the same command, run {chosen}"
            )
            raise SystemExit(stop.code if isinstance(stop, SystemExit) else INTERRUPTED) from None
    store = open_store(url)
    finished = summary(store, store.runs.find(chosen))
    return replace(finished, whole_seconds=round(time.monotonic() - began, 3))


def exit_code(finished: "Summary") -> int:
    """The exit code of `tamis run` for a run's summary."""
    unfinished = finished.failed or finished.pending or finished.state in ("stopped", "paused")
    if finished.state == "alarm":
        return UNKEPT
    return UNFINISHED if unfinished else DONE
