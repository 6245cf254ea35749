"""The order of the tiers: one after the other, or together where they do not need each other's end.

A tier whose policy looks at one score at a time can be decided while it runs, so that the next
tier, if it works elsewhere, need not wait for its last candidate.
"""

from collections.abc import Mapping

from flows.progress import Display, say
from flows.run.batch import BatchRun
from flows.run.judging import TierRun, TierWork
from flows.run.overlap import Overlap, groups
from flows.run.suspicion import mark_suspicious
from flows.watch.telemetry import span
from tiers.screenfile.file import Screen
from tiers.screenfile.tiers import OpenAIBatchTier
from tiers.types import Outcome

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
        self._store.verdicts.undecide(self._run.id)
        last = len(self._works) - 1
        for group in groups(self._definition):
            if group == [last]:
                self._store.audits.draw(self._run.id)
            if len(group) > 1:
                Overlap([self._works[i] for i in group], self._shown).run()
                for position in group:
                    self._store.verdicts.decide(self._run.id, position)
                self._say_funnel(group)
            else:
                self._one(group[0])
        if len(group) > 1 and self._store.audits.draw(self._run.id):
            self._one(last)
        self._store.audits.record_answers(self._run.id)
        marked = mark_suspicious(self._store, self._run.id, self._definition.suspicious)
        if marked is not None:
            say(marked, self._shown)
        return any(self._pays_for_more(position) for position in self._affordable)

    def _one(self, position: int) -> None:
        work = self._works[position]
        if isinstance(work.job.config, OpenAIBatchTier):
            BatchRun(work, self._shown).run()
        else:
            tier = TierRun(work, self._shown)
            try:
                with span(f"tier {work.name}", tier=work.name):
                    tier.judge_waiting()
                    tier.finish()
            finally:
                tier.close()
        policy = self._definition.policy(position)
        if policy.ranks and self._is_part(work):
            return  # the best of a part are not the best of all
        if policy.budget:
            self._afford(position)
        self._say_decided(position, self._store.verdicts.decide(self._run.id, position))

    def _is_part(self, work: TierWork) -> bool:
        """Whether some of the tier's candidates are still to be asked in this run."""
        closed = work.admission is not None and work.admission.closed is not None
        return closed or bool(self._store.batches.all(self._run.id, work.position, open_only=True))

    def _afford(self, position: int) -> None:
        count = self._count(position)
        if count is not None:
            self._affordable[position] = count
            self._store.tiers.set_affordable(self._run.id, position, count)

    def _count(self, position: int) -> int | None:
        """How many the tier may promote by the next one's budget."""
        budgets = self._works[position].budgets
        if budgets is None:
            return None
        spent = self._store.tiers.spent(self._run.id)[position + 1]
        characters = self._store.candidates.mean_characters(self._run.id)
        return budgets.affordable(position + 1, spent, characters)

    def _pays_for_more(self, position: int) -> bool:
        """Whether the next tier was cheaper than thought, and somebody was left out."""
        before, now = self._affordable[position], self._count(position)
        if now is None or now < max(before * MORE, before + 1):
            return False
        tier = self._store.results.funnel(self._run.id)[position]
        following = self._works[position + 1]
        closed = following.admission is not None and following.admission.closed
        return tier.rejected > 0 and tier.promoted >= before and not closed

    def _say_funnel(self, group: list[int]) -> None:
        """Tiers that were decided bit by bit, told in sums."""
        rows = self._store.results.funnel(self._run.id)
        for row in (rows[position] for position in group):
            outcomes = (Outcome.ACCEPT, Outcome.REJECT, Outcome.PROMOTE, Outcome.REVIEW)
            counts = (row.accepted, row.rejected, row.promoted, row.review)
            self._say_decided(row.position, dict(zip(outcomes, counts, strict=True)))

    def _say_decided(self, position: int, decided: Mapping[Outcome, int]) -> None:
        words = ", ".join(f"{count:,} {outcome}" for outcome, count in decided.items() if count)
        if words:
            say(f"{self._works[position].name}: {words}", self._shown)
