"""What a run leaves in the Prefect UI: progress, the funnel, a report."""

import re
import time
from dataclasses import asdict

import orjson

from db.store import Run, Store
from flows.guarantee.audit import alarm_of, alarm_page
from flows.recorder import current
from flows.report.summary import account_line, cost_words, markdown, summary
from tiers.screenfile.file import Screen

UPDATE_SECONDS = 5.0


def publish_screen(run: Run, definition: Screen) -> None:
    """Leave the whole definition with the flow run, for who has its form alone."""
    told = definition.model_dump(mode="json", by_alias=True, exclude_none=True)
    shown = orjson.dumps(told, option=orjson.OPT_INDENT_2).decode()
    # A fence longer than any in the screen's own words.
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", shown)), default=0))
    page = f"# {run.screen}: the screen of run {run.key}\n\n{fence}json\n{shown}\n{fence}"
    current().page(f"{run.screen}-{run.key}-screen", f"Screen of {run.key}", page)


def publish(store: Store, run: Run) -> None:
    """Leave the funnel, the report and the account of a run with its flow run."""
    record = current()
    finished = summary(store, run)
    record.say(f"{account_line(finished)}; {cost_words(finished)}")
    record.table(
        f"{run.screen}-{run.key}-funnel",
        f"Funnel of {run.key}",
        [asdict(tier) for tier in finished.tiers],
    )
    record.page(f"{run.screen}-{run.key}-report", f"Report of {run.key}", markdown(finished))
    if (alarm := alarm_of(store, run)) is not None:
        page = alarm_page(store, run, alarm)
        record.page(f"{run.screen}-{run.key}-alarm", f"Alarm of {run.key}", page)


def address_rows(store: Store, run: Run) -> list[dict[str, object]]:
    """How the addresses of a run are, as a table for people."""
    return [
        {
            "tier": one.tier,
            "address": one.url,
            "state": one.state,
            "since": f"{one.since:%Y-%m-%d %H:%M:%S} UTC",
            "in flight": one.in_flight,
            "judged": one.judged,
            "last error": one.error or "",
        }
        for one in store.addresses.all(run.id)
    ]


class ProgressArtifact:
    """A tier's progress in the Prefect UI, written at most every five seconds."""

    def __init__(self, run: Run, tier: str) -> None:
        self._written = time.monotonic()
        self._key, self._description = f"{run.screen}-{run.key}-{tier}", f"{tier} of {run.key}"
        current().progress(self._key, self._description, 0.0)

    def update(self, done: int, total: int, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if now - self._written < UPDATE_SECONDS and not at_once:
            return
        self._written = now
        percent = min(100.0, 100 * done / max(total, 1))
        current().progress(self._key, self._description, percent)
