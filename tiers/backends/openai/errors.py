"""How a request fails, and what an HTTP status other than 200 means."""

import email.utils
import math
import time
from dataclasses import KW_ONLY, dataclass

from tiers.backends.openai.chat import AnyRemote
from tiers.types import TierError

PASSING = frozenset({408, 409, 425, 429})
"""Refusals that may be other in a while."""


@dataclass(eq=False)
class Failure(Exception):
    """A request that failed for a reason that may pass."""

    said: str
    _: KW_ONLY
    after: float | None = None
    """Seconds that the server asked to wait; None if it did not say."""
    counts: bool = True
    """Whether it counts against the request, and not against the address alone."""
    slow: bool = False
    """Whether the server had too much to do."""
    lasting: bool = False
    """Whether it is the same every time as long as nobody corrects something."""


class Refusal(Exception):
    """The server will not take this request, however often it is sent."""


class Unfit(Exception):
    """What the server does is no candidate's fault: it is not asked any more."""


def error_of(
    status: int, said: str, config: AnyRemote, *, where: str, to: str, after: float | None = None
) -> Failure | Refusal | TierError:
    """What a status other than 200 means: for now, for this request, or for every one.

    Args:
        status: of HTTP.
        said: the status and the server's words, without the key.
        config: the tier that asked.
        where: the tier and the address, in words.
        to: where a redirect leads.
        after: seconds that the server asked to wait.
    """
    if 300 <= status < 400:
        return TierError(
            f"{where} sends us on to {to}, and the key is not sent there; write the right address "
            "as base_url"
        )
    if status in (401, 403):
        name = config.key_name
        advice = f"check {name}" if name else "write key_variable: NAME in the tier"
        return TierError(f"{where} refuses the key ({said}); {advice}")
    if status in PASSING or status >= 500:
        busy = status == 429
        return Failure(said, after=after, counts=not busy, slow=busy)
    return Refusal(said)


def retry_after(exact: str | None, said: str | None) -> float | None:
    """Seconds to wait, from the headers `retry-after-ms` and `Retry-After` (seconds or a date)."""
    try:
        if exact is not None:
            seconds = max(float(exact) / 1000, 0.0)
            return seconds if math.isfinite(seconds) else None
        if said is None:
            return None
        if said.strip().replace(".", "", 1).isdigit():
            return float(said)
        return max(email.utils.parsedate_to_datetime(said).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError):
        return None
