"""Tiers that work at the same time, because they work on different machines."""

import contextvars
import threading
import time

from flows.progress import Display
from flows.run.judging import TierRun, TierWork
from flows.watch.telemetry import span
from tiers.screenfile.file import Screen
from tiers.screenfile.tiers import AnyTier, HttpTier, OpenAIBatchTier
from tiers.types import TierError

DECIDE_SECONDS = 0.5
DECIDE_SHARE = 20
"""Deciding may take a twentieth of the time."""
LOOK_SECONDS = 0.25
LOOK_SHARE = 50
LONGEST_PAUSE = 15.0
GRACE_SECONDS = 2.0
"""For answers that are under way when a run is stopped."""


class Overlap:
    """Tiers that work at the same time, each in a thread; the main thread hears Ctrl-C."""

    def __init__(self, works: list[TierWork], shown: Display) -> None:
        self._stop = threading.Event()
        self._works = [
            work.beside(self._stop.is_set, follows=work is not works[0]) for work in works
        ]
        self._shown = shown
        self._over = [threading.Event() for _ in works]
        self._errors: list[BaseException] = []
        self._tiers: list[TierRun] = []

    def run(self) -> None:
        threads = [
            threading.Thread(target=contextvars.copy_context().run, args=(self._tier, number))
            for number in range(len(self._works))
        ]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads):
                for thread in threads:
                    thread.join(0.2)
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(GRACE_SECONDS)
            for tier in self._tiers:
                tier.interrupt()
            for thread in threads:
                thread.join()
        if self._errors:
            raise next((e for e in self._errors if isinstance(e, TierError)), self._errors[0])

    def _tier(self, number: int) -> None:
        name = self._works[number].name
        try:
            with span(f"tier {name}", tier=name):
                self._follow(number)
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            self._errors.append(error)
            self._stop.set()
        finally:
            self._over[number].set()

    def _follow(self, number: int) -> None:
        """Judge what waits, until nothing more can come from the tier before."""
        work = self._works[number]
        tier = TierRun(work, self._shown)
        self._tiers.append(tier)
        decide = _Decider(tier) if number < len(self._works) - 1 else None
        began = time.monotonic()
        try:
            while not self._stop.is_set():
                ended = number == 0 or self._over[number - 1].is_set()
                judged = tier.judge_waiting(decide.now_and_then if decide else lambda: None)
                if ended or (work.admission is not None and work.admission.closed):
                    break
                if not judged:
                    pause = (time.monotonic() - began) / LOOK_SHARE
                    self._over[number - 1].wait(min(max(pause, LOOK_SECONDS), LONGEST_PAUSE))
            if decide is not None and not self._stop.is_set():
                decide.all()
            tier.finish()
        finally:
            tier.close()


class _Decider:
    """Decides what a tier has judged so far, often enough for the next and seldom enough for us."""

    def __init__(self, tier: TierRun) -> None:
        self._tier = tier
        self._next = time.monotonic() + DECIDE_SECONDS

    def now_and_then(self) -> None:
        # Before the first block has shown that the judge answers, nothing is decided by it.
        if self._tier.trusted and time.monotonic() >= self._next:
            self.all()

    def all(self) -> None:
        began = time.monotonic()
        self._tier.work.store.verdicts.decide(self._tier.work.run.id, self._tier.work.position)
        ended = time.monotonic()
        self._next = ended + max(DECIDE_SECONDS, DECIDE_SHARE * (ended - began))


def groups(definition: Screen) -> list[list[int]]:
    """The positions of the tiers, those together that may run at the same time."""
    found: list[list[int]] = [[0]]
    for position in range(1, len(definition.tiers)):
        before = definition.tiers[position - 1]
        apart = all(
            _apart(definition.tiers[other], definition.tiers[position]) for other in found[-1]
        )
        barrier = definition.policy(position - 1).ranks or isinstance(before, OpenAIBatchTier)
        if apart and not barrier:
            found[-1].append(position)
        else:
            found.append([position])
    return found


def _apart(one: AnyTier, other: AnyTier) -> bool:
    """Whether two tiers use different machines."""
    if isinstance(one, OpenAIBatchTier) or isinstance(other, OpenAIBatchTier):
        return False
    if isinstance(one, HttpTier) and isinstance(other, HttpTier):
        return not set(one.urls) & set(other.urls)
    return isinstance(one, HttpTier) or isinstance(other, HttpTier)
