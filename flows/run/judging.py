"""One tier of a run at work: what waits there is judged in blocks and stored as it comes."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice

from db.judgements import NOWHERE
from db.store import Run, Store, TierState
from flows.progress import Display, Step, say
from flows.recorder import current
from flows.report.artifacts import ProgressArtifact
from flows.run.addresses import AddressWatch
from flows.run.budget import Admission, Budgets
from flows.run.evidence import check_quotes, quoted_fields
from flows.run.hold import Paused
from flows.run.meters import Meter
from flows.watch.telemetry import count, span
from flows.watch.traces import TierTraces
from tiers.placing import open_tier
from tiers.screenfile.tiers import EngineTier
from tiers.tier import Addressed, Interruptible, Job, Tier
from tiers.types import Candidate, Judgement, TierError

PAGE = 1_000
"""Candidates read from the database at once."""
FIRST_BLOCK = 256
BLOCK_SECONDS = 15.0
CLUSTER_BLOCK_SECONDS = 120.0
"""On a cluster each worker has blocks of its own, and all of them wait for the end of ours."""
BLOCKS = 300
"""Task runs that a tier may take at most: Prefect's server needs 23 ms for each."""
FLUSH_ROWS = 12
MOST_ROWS = 128
FLUSH_SECONDS = 0.2
"""What a kill can cost: 12 answers, or more where writing them would take over half of the time;
never more than 128, nor than those of 0.2 seconds."""
MASS_NEEDED = 0.5
COUNT_SECONDS = 1.0
COUNT_SHARE = 50
"""Counting what waits may take a fiftieth of the time."""


@dataclass(frozen=True)
class TierWork:
    """A tier of a run and what is needed to judge in it."""

    store: Store
    run: Run
    position: int
    job: Job
    judge_id: int
    price_id: int | None = None
    by_tokens: bool = False
    """Whether the price is one of tokens, which a server may fail to tell."""
    admission: Admission | None = field(default=None, repr=False)
    budgets: Budgets | None = field(default=None, repr=False)
    stop: Callable[[], bool] = field(default=lambda: False, repr=False)
    """Whether something else went wrong, so that no new candidate is to be begun."""
    pausing: Callable[[], bool] = field(default=lambda: False, repr=False)
    """Whether a person asked for a pause: no new candidate is begun, and then the run ends."""
    traces: TierTraces | None = field(default=None, repr=False)
    """Where prompts and replies are kept."""
    meter: Meter = field(default_factory=Meter, repr=False)
    """Where answers and seconds are counted, for whoever looks."""
    follows: bool = False
    """Whether the tier before works at the same time, so that more comes in meanwhile."""

    @property
    def name(self) -> str:
        return self.job.config.name

    @cached_property
    def quoted(self) -> Mapping[str, str]:
        """The fields of a reply that have to stand in the text."""
        return quoted_fields(self.job.config)

    def beside(self, stop: Callable[[], bool], *, follows: bool) -> "TierWork":
        """The same work beside other tiers: it begins no new candidate once `stop` says so."""
        return replace(self, stop=stop, follows=follows)

    def waiting(self) -> int:
        """How many texts wait here without an answer."""
        return self.store.judgements.count_unjudged(self.run.id, self.position, self.judge_id)


@dataclass(frozen=True)
class Block:
    """A stretch of a tier's candidates: `size` of them after one id. `last` is None at the end."""

    judged: int
    last: int | None
    seconds: float


class TierRun:
    """A tier while it works: its engine is opened when the first candidate waits."""

    def __init__(self, work: TierWork, shown: Display) -> None:
        self.work = work
        self._shown = shown
        self._began: float | None = None
        self._tier: Tier | None = None
        self._step: Step | None = None
        self._artifact: ProgressArtifact | None = None
        self._addresses: AddressWatch | None = None
        self._loaded = 0.0
        self._done = self._total = 0
        self._count_next = 0.0
        self._told = 0
        self.trusted = False
        """Whether the judge has been seen to answer the question."""

    def judge_waiting(self, stored: Callable[[], None] = lambda: None) -> int:
        """Judge all that waits; `stored` is called after each group that was written.

        Raises:
            Paused: a person asked for it; what was under way is in.
            TierError: the engine cannot be opened, or does not answer the question asked.
        """
        self._heed_pause()
        check_mass(self.work)  # what an earlier attempt stopped for still holds
        waiting = self.work.waiting()
        if waiting == 0:
            return 0
        try:
            return self._judge(waiting, stored)
        except BaseException as error:
            self._set(TierState.STOPPED, str(error) or type(error).__name__)
            raise

    def finish(self) -> None:
        """Close the engine and write down how the tier stands."""
        tier, closed = self._tier, self.work.admission and self.work.admission.closed
        self.close()
        self._say_remarks(tier)
        state = TierState.STOPPED if closed else TierState.DONE
        self._set(state, closed or None, tier.rates if tier is not None else {})
        if closed:
            say(f"{self.work.name} stopped: {closed}", self._shown)
        if tier is not None and tier.rates:
            say(
                f"{self.work.name}: model loaded in {self._loaded:.1f} s; it reads "
                f"{tier.rates['prefill']:,.0f} tokens a second and writes "
                f"{tier.rates['decode']:,.0f}",
                self._shown,
            )
        if self._artifact is not None:
            self._artifact.update(self._done, self._total, at_once=True)

    def close(self) -> None:
        """End the engine."""
        self.work.meter.at_work = False
        if self._addresses is not None:
            self._addresses.close()
            self._addresses = None
        if self._tier is not None:
            self._tier.close()
            self._tier = None
            if self.work.admission is not None:
                self.work.admission.stop()

    def interrupt(self) -> None:
        """Have the engine, which works in another thread, leave what is under way."""
        if isinstance(self._tier, Interruptible):
            self._tier.interrupt()

    def _judge(self, waiting: int, stored: Callable[[], None]) -> int:
        admission = self.work.admission
        if admission is not None and admission.closed:
            return 0
        tier = self._open(waiting)
        ids = NOWHERE if self._addresses is None else self._addresses.ids
        after, judged = 0, 0
        size, block_seconds = FIRST_BLOCK, BLOCK_SECONDS
        if isinstance(config := self.work.job.config, EngineTier) and config.workers is not None:
            size, block_seconds = FIRST_BLOCK * config.machines, CLUSTER_BLOCK_SECONDS

        def kept() -> None:
            self._count_anew()
            stored()

        while True:
            first = f"{self.work.name} {self._done + 1:,}.."
            with current().block(first) as called, span(first, tier=self.work.name) as told:
                block = judge_block(self.work, tier, after, size, self._step, kept, ids)
                called(f"{first}{self._done + block.judged:,}")
                told["judged"] = block.judged
            count(self.work.run.screen, self.work.name, block.judged, block.seconds)
            self._say_remarks(tier)
            self._heed_pause()
            if judged == 0 or block.last is None:
                check_mass(self.work)
                self.trusted = True
            judged += block.judged
            self._done += block.judged
            self._total = max(self._total, self._done)
            self._shown.block(self.work.name, block.judged, self._done, self._total, block.seconds)
            if self._artifact is not None:
                self._artifact.update(self._done, self._total)
            stored()
            if block.last is None and not (
                admission is not None and block.judged and admission.reopen()
            ):
                return judged
            after = block.last or 0
            rate = block.judged / max(block.seconds, 1e-3)
            size = max(FIRST_BLOCK, int(rate * block_seconds), waiting // BLOCKS)

    def _heed_pause(self) -> None:
        if self.work.pausing():
            raise Paused("paused")

    def _open(self, waiting: int) -> Tier:
        self._total = self._done + waiting
        if self._step is None:
            self._step = self._shown.start(self.work.name, self._total)
            self._artifact = ProgressArtifact(self.work.run, self.work.name)
        self._expect(waiting)
        self._count_next = time.monotonic() + COUNT_SECONDS
        if self._tier is None:
            began = time.monotonic()
            self._began = self._began or began
            work = self.work
            work.store.tiers.set_state(
                work.run.id, work.position, TierState.RUNNING, attempt=work.run.attempt
            )
            if self.work.admission is not None:
                self.work.admission.start()
            self.work.meter.at_work = True
            self._tier = tier = open_tier(self.work.job)
            self._loaded = time.monotonic() - began
            self.work.meter.loading += self._loaded
            if isinstance(tier, Addressed):
                self._addresses = AddressWatch(
                    work.store, work.run, work.position, tier, self._shown
                )
        return self._tier

    def _count_anew(self) -> None:
        """Have the total follow what the tier before promotes meanwhile."""
        began = time.monotonic()
        if self.work.follows and self._step is not None and began >= self._count_next:
            waiting = self.work.waiting()
            self._expect(waiting)
            self._total = max(self._total, self._done + waiting)
            ended = time.monotonic()
            self._count_next = ended + max(COUNT_SECONDS, COUNT_SHARE * (ended - began))

    def _expect(self, waiting: int) -> None:
        if self._step is not None:
            self._step.expect(waiting)
        self.work.meter.expected = self.work.meter.judged + waiting

    def _say_remarks(self, tier: Tier | None) -> None:
        for remark in tier.remarks[self._told :] if tier is not None else ():
            say(f"{self.work.name}: {remark}", self._shown)
            self._told += 1

    def _set(self, state: TierState, reason: str | None, rates: object = None) -> None:
        began = self._began
        measured = rates if isinstance(rates, dict) else {}
        self.work.store.tiers.set_state(
            self.work.run.id,
            self.work.position,
            state,
            reason=reason,
            attempt=self.work.run.attempt,
            seconds=0.0 if began is None else time.monotonic() - began,
            load_seconds=self._loaded if began and state is TierState.DONE else None,
            prompt_rate=measured.get("prefill"),
            decode_rate=measured.get("decode"),
        )


def judge_block(
    work: TierWork,
    tier: Tier,
    after: int,
    size: int,
    step: Step | None,
    stored: Callable[[], None],
    addresses: Mapping[str, int] = NOWHERE,
) -> Block:
    """Judge one block and store its judgements as they come."""
    began = time.monotonic()
    reader = _Reader(work, after)
    judged, meter, before, answered = 0, work.meter, work.meter.reading, began
    for judgements in _flushes(tier.judge(islice(reader, size))):
        arrived = time.monotonic()
        meter.judging += max(0.0, arrived - answered - (meter.reading - before))
        record(work, judgements, addresses)
        judged += len(judgements)
        meter.add(judgements)
        if step is not None:
            step.advance(len(judgements))
        stored()
        before, answered = meter.reading, time.monotonic()
        meter.storing += answered - arrived
    last = reader.last if judged >= size else None
    return Block(judged, last, time.monotonic() - began)


def record(
    work: TierWork, judgements: list[Judgement], addresses: Mapping[str, int] = NOWHERE
) -> None:
    """Store judgements at the tier's price, and settle their reservations.

    Raises:
        TierError: a budget has to be kept and the server does not tell what it charges.
    """
    if work.traces is not None:
        work.traces.answered(judgements)
    if work.quoted:
        judgements = check_quotes(work.store, work.judge_id, work.quoted, judgements)
    untold: list[Judgement] = []
    if work.by_tokens:
        untold = [one for one in judgements if one.score is not None and not one.prompt_tokens]
    if untold:
        known = {one.id for one in judgements} - {one.id for one in untold}
        work.store.judgements.record(work.run.id, work.judge_id, untold, None, addresses)
        judgements = [one for one in judgements if one.id in known]
    if judgements:
        work.store.judgements.record(
            work.run.id, work.judge_id, judgements, work.price_id, addresses
        )
    if work.admission is not None:
        work.admission.settle([*judgements, *untold])
        if untold:
            raise TierError(
                f"tier '{work.name}' stopped: its server does not tell how many tokens it charges, "
                "so that no budget can be kept; leave the budget out, or price it by the hour"
            )


class _Reader:
    """Streams a tier's unjudged candidates, a page at a time, as far as the budget goes."""

    def __init__(self, work: TierWork, after: int) -> None:
        self._work = work
        self.last = after

    def __iter__(self) -> Iterator[Candidate]:
        work, page_end = self._work, self.last
        admit = work.admission.admit if work.admission is not None else None
        while page := self._page(page_end):
            page_end = page[-1].id
            for candidate in page:
                if work.stop() or work.pausing() or (admit is not None and not admit(candidate)):
                    return
                self.last = candidate.id
                if work.traces is not None:
                    work.traces.asked(candidate)
                yield candidate

    def _page(self, after: int) -> list[Candidate]:
        work, began = self._work, time.monotonic()
        page = work.store.judgements.unjudged(
            work.run.id, work.position, work.judge_id, after=after, limit=PAGE
        )
        work.meter.reading += time.monotonic() - began
        return page


def _flushes(judgements: Iterator[Judgement]) -> Iterator[list[Judgement]]:
    """Judgements in groups worth a commit, none of them kept waiting for long."""
    ready: list[Judgement] = []
    flushed, took = time.monotonic(), 0.0
    try:
        for judgement in judgements:
            ready.append(judgement)
            now = time.monotonic()
            worth = len(ready) >= FLUSH_ROWS and now - flushed >= took
            if worth or len(ready) >= MOST_ROWS or now - flushed >= FLUSH_SECONDS:
                yield ready
                ready, flushed = [], time.monotonic()
                took = flushed - now
    except (Exception, KeyboardInterrupt, SystemExit):
        if ready:
            yield ready  # paid for, whatever happened then
        raise
    if ready:
        yield ready


def check_mass(work: TierWork) -> None:
    """Stop a tier whose model does not answer the question, before anything is decided by it.

    Raises:
        TierError: most judgements gave the answers asked for less than half of the probability.
    """
    low, known, waiting = work.store.judgements.low_mass(
        work.judge_id, work.run.id, work.position, below=MASS_NEEDED, sample=FIRST_BLOCK
    )
    if not waiting and known and low > known / 2:
        raise TierError(
            f"tier '{work.name}' stopped: the model gave the answers asked for less than "
            f"{MASS_NEEDED:.0%} of the probability on {low:,} of {known:,} candidates, so it does "
            "not answer the question; nothing was decided by it. See the prompt with "
            "'tamis check', then change ask, prompt or chat"
        )
