"""The order of the tiers: one after the other, or together where they do not need each other's end.

A tier whose policy looks at one score at a time can be decided while it runs, so that the next
tier, if it works elsewhere, need not wait for its last candidate.
"""

import contextvars
import threading
import time
from collections.abc import Mapping

from flows.progress import Display
from flows.run.batch import BatchRun
from flows.run.judging import TierRun, TierWork, tell
from tiers.policy import Policy
from tiers.screenfile.file import Screen
from tiers.screenfile.tiers import AnyTier, HttpTier, OpenAIBatchTier
from tiers.types import Outcome, TierError

DECIDE_SECONDS = 0.5
DECIDE_SHARE = 20
"""Deciding may take a twentieth of the time."""
LOOK_SECONDS = 0.25
LOOK_SHARE = 50
LONGEST_PAUSE = 15.0
GRACE_SECONDS = 2.0
"""For answers that are under way when a run is stopped."""
MORE = 1.02
"""A budget that pays for so much more than before is worth another round."""


class Cascade:
    """The tiers of a run, from the first to the last."""

    def __init__(self, definition: Screen, works: list[TierWork], shown: Display) -> None:
        self._definition = definition
        self._works = works
        self._shown = shown
        self._store, self._run = works[0].store, works[0].run
        self._affordable: dict[int, int] = {}

    def run(self) -> bool:
        """Judge and decide from the first tier on; whether budgets now pay for more.

        Raises:
            TierError: a tier could not go on; what was judged is kept.
        """
        self._store.undecide(self._run.id)
        last = len(self._works) - 1
        for group in groups(self._definition):
            if group == [last]:
                self._store.audits.draw(self._run.id)
            if len(group) > 1:
                _Overlap([self._works[i] for i in group], self._shown).run()
                for position in group:
                    self._store.decide(self._run.id, position)
                self._tell_funnel(group)
            else:
                self._one(group[0])
        if len(group) > 1 and self._store.audits.draw(self._run.id):
            self._one(last)
        self._store.audits.settle(self._run.id)
        return any(self._pays_for_more(position) for position in self._affordable)

    def _one(self, position: int) -> None:
        work = self._works[position]
        if isinstance(work.job.config, OpenAIBatchTier):
            BatchRun(work, self._shown).run()
        else:
            tier = TierRun(work, self._shown)
            try:
                tier.judge_waiting()
                tier.finish()
            finally:
                tier.close()
        policy = self._definition.policy(position)
        if _ranks(policy) and self._is_part(work):
            return  # the best of a part are not the best of all
        if policy.budget:
            self._afford(position)
        self._tell_decided(position, self._store.decide(self._run.id, position))

    def _is_part(self, work: TierWork) -> bool:
        """Whether some of the tier's candidates are still to be asked in this run."""
        closed = work.gate is not None and work.gate.closed is not None
        return closed or bool(self._store.batches.all(self._run.id, work.position, open_only=True))

    def _afford(self, position: int) -> None:
        count = self._count(position)
        if count is not None:
            self._affordable[position] = count
            self._store.set_affordable(self._run.id, position, count)

    def _count(self, position: int) -> int | None:
        """How many the tier may promote by the next one's budget."""
        budgets = self._works[position].budgets
        if budgets is None:
            return None
        spent = self._store.spent(self._run.id)[position + 1]
        characters = self._store.mean_characters(self._run.id)
        return budgets.affordable(position + 1, spent, characters)

    def _pays_for_more(self, position: int) -> bool:
        """Whether the next tier was cheaper than thought, and somebody was left out."""
        before, now = self._affordable[position], self._count(position)
        if now is None or now < max(before * MORE, before + 1):
            return False
        tier = self._store.funnel(self._run.id)[position]
        following = self._works[position + 1]
        closed = following.gate is not None and following.gate.closed
        return tier.rejected > 0 and tier.promoted >= before and not closed

    def _tell_funnel(self, group: list[int]) -> None:
        """Tiers that were decided bit by bit, told in sums."""
        rows = self._store.funnel(self._run.id)
        for row in (rows[position] for position in group):
            outcomes = (Outcome.ACCEPT, Outcome.REJECT, Outcome.PROMOTE, Outcome.REVIEW)
            counts = (row.accepted, row.rejected, row.promoted, row.review)
            self._tell_decided(row.position, dict(zip(outcomes, counts, strict=True)))

    def _tell_decided(self, position: int, decided: Mapping[Outcome, int]) -> None:
        words = ", ".join(f"{count:,} {outcome}" for outcome, count in decided.items() if count)
        if words:
            tell(f"{self._works[position].name}: {words}", self._shown)


class _Overlap:
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
        try:
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
                if ended or (work.gate is not None and work.gate.closed):
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
        if self._tier.settled and time.monotonic() >= self._next:
            self.all()

    def all(self) -> None:
        began = time.monotonic()
        self._tier.work.store.decide(self._tier.work.run.id, self._tier.work.position)
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
        barrier = _ranks(definition.policy(position - 1)) or isinstance(before, OpenAIBatchTier)
        if apart and not barrier:
            found[-1].append(position)
        else:
            found.append([position])
    return found


def _ranks(policy: Policy) -> bool:
    """Whether a policy needs all scores of its tier before it can decide one."""
    return policy.top is not None or policy.budget


def _apart(one: AnyTier, other: AnyTier) -> bool:
    """Whether two tiers use different machines."""
    if isinstance(one, OpenAIBatchTier) or isinstance(other, OpenAIBatchTier):
        return False
    if isinstance(one, HttpTier) and isinstance(other, HttpTier):
        return not set(one.urls) & set(other.urls)
    return isinstance(one, HttpTier) or isinstance(other, HttpTier)
