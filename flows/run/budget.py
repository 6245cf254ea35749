"""Budgets: what may still be spent, asked before each candidate, with what is under way counted in.

A candidate's cost is not known before it is answered: it is reserved at the dearest rate seen so
far, and settled by the tokens that the judge tells.
"""

import threading
import time
from collections.abc import Iterable
from typing import NamedTuple

from db.store import Spent, Store
from tiers.prices import price_of
from tiers.screenfile.ask import JsonAsk
from tiers.screenfile.file import Screen
from tiers.screenfile.limits import BudgetSection
from tiers.screenfile.tiers import ModelTierSection, OpenAIBatchTier
from tiers.types import Candidate, Judgement, Price

FIRST_TOKENS_PER_CHARACTER = 0.5
"""Twice what English takes, until a reply has told."""
MARGIN = 1.05
PROMOTED_MARGIN = 1.1
"""Candidates that are promoted by budget are taken to cost so much more than the mean."""
PROMPT_CHARACTERS = 400
"""Of a prompt beside rubric and text."""


class Budget:
    """One budget, of a run or of a tier, and what is left of it. Shared by threads."""

    def __init__(self, limits: BudgetSection, whose: str, spent: Iterable[Spent]) -> None:
        self._limits = limits
        self._whose = whose
        self._lock = threading.Lock()
        before = list(spent)
        self._usd = sum(one.usd or 0.0 for one in before)
        self._tokens = sum(one.tokens for one in before)
        self._seconds = sum(one.seconds for one in before)
        self._working: list[tuple[float, float]] = []
        """Tiers at work: since when, and what their machines cost an hour."""
        self._since = 0.0
        """When the first of them began: hours at the same time count once."""

    def start(self, usd_an_hour: float) -> tuple[float, float]:
        """A tier works from now on, on machines at this price."""
        meter = (time.monotonic(), usd_an_hour)
        with self._lock:
            if not self._working:
                self._since = meter[0]
            self._working.append(meter)
        return meter

    def stop(self, meter: tuple[float, float]) -> None:
        """That tier works no more."""
        now = time.monotonic()
        with self._lock:
            self._working.remove(meter)
            self._usd += (now - meter[0]) * meter[1] / 3600
            if not self._working:
                self._seconds += now - self._since

    def reserve(self, usd: float, tokens: int) -> str | None:
        """Take so much out, or say which limit does not allow it."""
        limits, now = self._limits, time.monotonic()
        with self._lock:
            spent = self._usd + sum((now - since) * each / 3600 for since, each in self._working)
            hours = (self._seconds + (now - self._since if self._working else 0.0)) / 3600
            if limits.usd is not None and spent + usd > limits.usd:
                return f"{self._whose} of {limits.usd:,.2f} USD is used up ({spent:,.4f} spent)"
            if limits.tokens is not None and self._tokens + tokens > limits.tokens:
                return f"{self._whose} of {limits.tokens:,} tokens is used up"
            if limits.hours is not None and hours >= limits.hours:
                return f"{self._whose} of {limits.hours:g} hours is used up"
            self.take(usd, tokens)
            return None

    def take(self, usd: float, tokens: int) -> None:
        """Take out; give back with negative numbers."""
        self._usd += usd
        self._tokens += tokens

    def settle(self, usd: float, tokens: int) -> None:
        """As `take`, from any thread."""
        with self._lock:
            self.take(usd, tokens)

    def pays_for(
        self, usd: float, tokens: float, reserved: tuple[float, int] = (0.0, 0)
    ) -> int | None:
        """How many pieces of this cost are left; None for as many as one likes.

        Args:
            usd: of one piece.
            tokens: of one piece.
            reserved: dollars and tokens that were taken out for such pieces and are left, too.
        """
        counts = []
        if self._limits.usd is not None and usd > 0:
            counts.append((self._limits.usd - self._usd + reserved[0]) / usd)
        if self._limits.tokens is not None and tokens > 0:
            counts.append((self._limits.tokens - self._tokens + reserved[1]) / tokens)
        return max(int(min(counts)), 0) if counts else None


class _Reservation(NamedTuple):
    """What was taken out for one text, and the price at which it is sent."""

    characters: int
    usd: float
    tokens: int
    price: Price | None


_NOTHING = _Reservation(0, 0.0, 0, None)


class Admission:
    """Lets a tier's candidates through as long as every budget concerned pays for them."""

    def __init__(
        self,
        budgets: list[Budget],
        price: Price | None,
        config: ModelTierSection | None,
        rubric: str,
    ) -> None:
        self._budgets = budgets
        self._price = price
        self._shared = len(rubric) + PROMPT_CHARACTERS
        writes = config is not None and isinstance(config.ask, JsonAsk)
        self._completion = config.max_tokens if config is not None and writes else 1
        self._rate = FIRST_TOKENS_PER_CHARACTER
        self._told = False
        self._reserved: dict[int, _Reservation] = {}
        self.closed: str | None = None
        """Why nobody is let through any more."""
        self._meters: list[tuple[float, float]] = []

    def start(self) -> None:
        """The tier's machines work from now on."""
        hour = self._price.hour or 0.0 if self._price is not None else 0.0
        self._meters = [budget.start(hour) for budget in self._budgets]

    def stop(self) -> None:
        """The tier's machines are no longer at work."""
        for budget, meter in zip(self._budgets, self._meters, strict=False):
            budget.stop(meter)
        self._meters = []

    def admit(self, candidate: Candidate) -> bool:
        """Reserve what a candidate will cost; False once a budget does not allow it."""
        if self.closed is not None:
            return False
        wanted = self._reservation(len(candidate.text), self._price)
        for number, budget in enumerate(self._budgets):
            if (reason := budget.reserve(wanted.usd, wanted.tokens)) is not None:
                for earlier in self._budgets[:number]:
                    earlier.settle(-wanted.usd, -wanted.tokens)
                self.closed = reason
                return False
        self._reserved[candidate.id] = wanted
        return True

    def hold(self, text_id: int, characters: int, price: Price | None) -> None:
        """Reserve for a text that was sent by another process, whatever is left."""
        held = self._reserved[text_id] = self._reservation(characters, price)
        for budget in self._budgets:
            budget.settle(held.usd, held.tokens)

    def release(self, text_ids: Iterable[int]) -> None:
        """Give back what was reserved for texts that get no answer."""
        for text_id in text_ids:
            held = self._reserved.pop(text_id, _NOTHING)
            for budget in self._budgets:
                budget.settle(-held.usd, -held.tokens)

    @property
    def reserved(self) -> tuple[float, int]:
        """Dollars and tokens of all that is under way."""
        held = self._reserved.values()
        return sum(one.usd for one in held), sum(one.tokens for one in held)

    def reopen(self) -> bool:
        """Let people through again if it closed for what was reserved and cost less in the end."""
        closed, self.closed = self.closed, None
        return closed is not None

    def settle(self, judgements: Iterable[Judgement]) -> None:
        """Replace reservations by what was charged."""
        for judgement in judgements:
            held = self._reserved.pop(judgement.id, _NOTHING._replace(price=self._price))
            used = judgement.prompt_tokens + judgement.completion_tokens
            paid = _usd(
                held.price,
                judgement.prompt_tokens,
                judgement.cached_tokens,
                judgement.completion_tokens,
            )
            for budget in self._budgets:
                budget.settle(paid - held.usd, used - held.tokens)
            if judgement.prompt_tokens and held.characters:
                rate = judgement.prompt_tokens / held.characters
                self._rate = max(self._rate, rate) if self._told else rate
                self._told = True
            self._completion = max(self._completion, judgement.completion_tokens)

    def _reservation(self, characters: int, price: Price | None) -> _Reservation:
        """What a text of so many characters will cost at most, as far as is known."""
        characters += self._shared
        prompt = int(characters * self._rate * MARGIN)
        usd = _usd(price, prompt, 0, self._completion)
        return _Reservation(characters, usd, prompt + self._completion, price)


def _usd(price: Price | None, prompt: int, cached: int, completion: int) -> float:
    return price.of(prompt, cached, completion) if price is not None else 0.0


class Budgets:
    """All budgets of a run."""

    def __init__(self, definition: Screen, store: Store, run_id: int) -> None:
        spent = store.tiers.spent(run_id)
        self._definition = definition
        self._store, self._run_id = store, run_id
        self._admissions: dict[int, Admission] = {}
        self._run = self._budget(definition.budget, "the run's budget", spent)
        self._tiers = [
            self._budget(tier.budget, f"the budget of tier '{tier.name}'", [one])
            for tier, one in zip(definition.tiers, spent, strict=True)
        ]

    def admission(self, position: int) -> Admission | None:
        """The admission of a tier; None where nothing limits it."""
        budgets = [each for each in (self._run, self._tiers[position]) if each is not None]
        if not budgets:
            return None
        tier = self._definition.tiers[position]
        model = tier if isinstance(tier, ModelTierSection) else None
        admission = Admission(budgets, price_of(tier), model, self._definition.rubric)
        if isinstance(tier, OpenAIBatchTier):
            self._hold_what_is_out(admission, position)
        self._admissions[position] = admission
        return admission

    def _hold_what_is_out(self, admission: Admission, position: int) -> None:
        """Reserve for the batches that earlier processes sent and nobody has collected."""
        for text_id, characters, price in self._store.batches.outstanding(self._run_id, position):
            admission.hold(text_id, characters, price)

    def affordable(self, position: int, spent: Spent, characters: float) -> int | None:
        """How many candidates in all a tier's budget pays for, those it has judged included.

        Args:
            position: the tier that judges them.
            spent: what it has used up.
            characters: mean length of a text, for the first guess.
        """
        tier, price = self._definition.tiers[position], price_of(self._definition.tiers[position])
        if spent.judged:
            usd, tokens = (spent.usd or 0.0) / spent.judged, spent.tokens / spent.judged
        else:
            prompt = int((len(self._definition.rubric) + PROMPT_CHARACTERS + characters) / 3)
            writes = isinstance(tier, ModelTierSection) and isinstance(tier.ask, JsonAsk)
            reply = tier.max_tokens if isinstance(tier, ModelTierSection) and writes else 1
            usd, tokens = (price.of(prompt, 0, reply) if price else 0.0), prompt + reply
        usd, tokens = usd * PROMOTED_MARGIN, tokens * PROMOTED_MARGIN
        admission = self._admissions.get(position)
        reserved = admission.reserved if admission is not None else (0.0, 0)
        counts = [
            count
            for budget in (self._run, self._tiers[position])
            if budget is not None and (count := budget.pays_for(usd, tokens, reserved)) is not None
        ]
        return None if not counts else spent.judged + min(counts)

    @staticmethod
    def _budget(limits: BudgetSection | None, whose: str, spent: Iterable[Spent]) -> Budget | None:
        return None if limits is None else Budget(limits, whose, spent)
