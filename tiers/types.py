"""The nouns of judging: what a tier reads, what it says, and what becomes of it."""

from enum import StrEnum
from typing import Literal, NamedTuple


class Outcome(StrEnum):
    """What a policy does with a candidate at one tier."""

    ACCEPT = "accept"
    REJECT = "reject"
    PROMOTE = "promote"
    REVIEW = "review"
    """No readable score: a person looks."""
    FAILED = "failed"
    """The judge or the input broke; running again tries again."""


class Candidate(NamedTuple):
    """What a tier sees of a candidate: a number to answer under, and a text."""

    id: int
    text: str


class Answer(NamedTuple):
    """What was read of one reply. Without a score nothing can be read; `note` may then say why."""

    score: float | None = None
    """In [0, 1]."""
    reading: str | None = None
    """The answer as read: yes, no, a digit, or the JSON object."""
    mass: float | None = None
    """Label mass: total probability of the answers asked for, in [0, 1]; None if not known."""
    note: str | None = None


class Judgement(NamedTuple):
    """What one tier said about one text. A named tuple, because 200,000 of them cross a pipe."""

    id: int
    """The `id` of the candidate that was judged."""
    score: float | None
    """In [0, 1]; None where the tier gave no readable answer: `error` then says why."""
    reading: str | None = None
    """As in `Answer`."""
    mass: float | None = None
    """Label mass, as in `Answer`."""
    prompt_tokens: int = 0
    """All tokens of the prompt, those served from the shared prefix's cache included."""
    cached_tokens: int = 0
    completion_tokens: int = 0
    """All tokens of the reply, those of hidden reasoning included."""
    reasoning_tokens: int = 0
    seconds: float = 0.0
    error: str | None = None
    failed: bool = False
    """True where the judge broke, not the candidate: the next run asks again."""
    note: str | None = None
    """What was done to the text before it was read, such as a cut; None for nothing."""
    address: str | None = None
    """The server that answered, where a tier asks servers."""


AddressState = Literal["untried", "answering", "away", "set aside", "removed"]
"""One that is away is tried again now and then, one that is set aside is not."""


class Health(NamedTuple):
    """How one address of a tier is."""

    url: str
    state: AddressState
    since: float
    """When it came to be so, in seconds since 1970."""
    in_flight: int
    """Requests under way there."""
    error: str | None
    """The last one; None where none was seen."""


class Price(NamedTuple):
    """US dollars per million tokens, and per hour of the tier's machines together."""

    input: float
    cached_input: float
    output: float
    hour: float
    source: str
    """Where it stands and of which day."""

    def of(self, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> float:
        """Dollars for these tokens; the cached are part of the prompt's, as servers tell it."""
        fresh = prompt_tokens - cached_tokens
        return (
            fresh * self.input + cached_tokens * self.cached_input + completion_tokens * self.output
        ) / 1e6


class TierError(Exception):
    """A tier cannot go on: what was wrong, where, and what to do. Nothing is decided by it."""


class Refused(TierError):
    """A server does not take a request, so that nothing came of it."""

    def __init__(self, message: str, said: str, status: int) -> None:
        super().__init__(message)
        self.said = said
        """The server's own words."""
        self.status = status
        """Of HTTP."""


class TryLater(Exception):
    """A server does not answer well at the moment."""


class MissingExtra(TierError):
    """A tier needs a package that is not installed; the message holds the install command."""
