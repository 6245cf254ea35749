"""The addresses of a tier at work: how they are is told, and a person may change them."""

import contextvars
import threading
import time
from contextlib import suppress

from db.store import DatabaseError, Run, Store
from flows.progress import Display, say
from flows.recorder import current
from flows.report.artifacts import address_rows
from flows.run.retune import urls_of
from tiers.tier import Addressed
from tiers.types import Health, TierError

LOOK_SECONDS = 1.0
TABLE_SECONDS = 60.0
"""How often Prefect is told how much each address has judged, where nothing else happens."""


class AddressWatch:
    """Looks after a tier's addresses once a second, in a thread, until it is closed."""

    def __init__(
        self, store: Store, run: Run, position: int, tier: Addressed, shown: Display
    ) -> None:
        self._store, self._run, self._position = store, run, position
        self._tier, self._shown = tier, shown
        self._told: dict[str, Health] = {}
        self._table_next = 0.0
        self._urls = urls = tuple(health.url for health in tier.healths)
        self.ids = store.addresses.ids(run.id, position, urls)
        """By which judgements name the addresses."""
        self._over = threading.Event()
        context = contextvars.copy_context()  # which Prefect is told belongs to the run
        self._thread = threading.Thread(target=context.run, args=(self._watch,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Say how the addresses were in the end."""
        self._over.set()
        self._thread.join()
        with suppress(DatabaseError):
            self._tell([health._replace(in_flight=0) for health in self._tier.healths], last=True)

    def _watch(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            with suppress(DatabaseError):  # the main thread meets the same trouble, and tells it
                self._move()
                self._tell(list(self._tier.healths))

    def _move(self) -> None:
        """Hear where a person wants the tier to ask."""
        urls = urls_of(self._store.runs.config(self._run.id), self._position)
        if urls == self._urls:
            return
        self._urls = urls
        self.ids |= self._store.addresses.ids(self._run.id, self._position, urls)
        try:
            self._tier.move(urls)
        except TierError as error:
            say(f"the addresses stay as they were: {error}", self._shown)

    def _tell(self, healths: list[Health], *, last: bool = False) -> None:
        """Tell what is new: each address to the database, what a person has to know to Prefect."""
        new = [health for health in healths if self._told.get(health.url) != health]
        turned = any(_turned(self._told.get(health.url), health) for health in new)
        self._told |= {health.url: health for health in new}
        if new:
            self._store.addresses.record(self._run.id, self._position, new)
        if turned or last or time.monotonic() >= self._table_next:
            self._table_next = time.monotonic() + TABLE_SECONDS
            key = f"{self._run.screen}-{self._run.key}-addresses"
            rows = address_rows(self._store, self._run)
            current().table(key, f"Addresses of {self._run.key}", rows)


def _turned(before: Health | None, now: Health) -> bool:
    return before is None or before.state != now.state
