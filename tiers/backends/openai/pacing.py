"""How fast a server may be asked: a window that finds its size, and rates that are kept.

Pure: times come in as arguments, in seconds of any one clock.
"""

import random

FIRST_WINDOW = 8.0
PAYS = 1.02
"""Growth that raises the rate by less than this does not pay."""
SLOWER = 1.2
HOLD_ROUNDS = 10
FORGET = 0.98
"""A server may have become slower for good: what was best once fades."""


class Window:
    """How many requests may be under way at one address.

    It doubles each round trip at first, is halved when the server says that it is too much, and
    stops where a larger window only makes replies slower.
    """

    def __init__(self, most: int) -> None:
        self.size = min(FIRST_WINDOW, float(most))
        self._most = float(most)
        self._doubling = True
        self._cut = 0.0
        self._hold = 0
        self._round = _Round(self.size)
        self._best: _Round | None = None

    def answered(self, began: float, now: float) -> None:
        """A request that began then was answered well now."""
        if not self._hold:
            self.size += 1.0 if self._doubling else 1.0 / self.size
            self.size = min(self.size, self._most)
        if self._round.add(now - began, now):
            self._close_round()

    def refused(self, began: float, now: float) -> None:
        """The server is too busy. Requests that began before the last cut do not cut again."""
        if began < self._cut:
            return
        self._cut = now
        self._doubling = False
        self.size = max(self.size / 2, 1.0)

    def _close_round(self) -> None:
        """Where more only waits longer than in the best round, go back to that one's size."""
        this, best = self._round, self._best
        self._hold = max(self._hold - 1, 0)
        if best is None or this.rate > PAYS * best.rate:
            self._best = this
        elif this.window > best.window and this.latency > SLOWER * best.latency:
            self._doubling = False
            self._hold = HOLD_ROUNDS
            self.size = max(min(best.window, self.size), 1.0)
            best.rate *= FORGET
        self._round = _Round(self.size)


class _Round:
    """As many replies as the window was large when it began, and at least so many."""

    LEAST = 32

    def __init__(self, window: float) -> None:
        self.window = window
        self.latency = 0.0
        self.rate = 0.0
        self._count = 0
        self._began: float | None = None

    def add(self, latency: float, now: float) -> bool:
        """Count a reply; whether the round is over."""
        if self._began is None:
            self._began = now - latency
        self._count += 1
        self.latency += (latency - self.latency) / self._count
        self.rate = self._count / max(now - self._began, 1e-9)
        return self._count >= max(self.window, self.LEAST)


class Rate:
    """So much per minute, evenly: what may be spent at once is a second's worth, or one piece."""

    def __init__(self, per_minute: float | None) -> None:
        self._per_second = None if per_minute is None else per_minute / 60
        self._free_at = 0.0

    def wait(self, now: float) -> float:
        """Seconds until the next piece may begin."""
        return 0.0 if self._per_second is None else max(self._free_at - now, 0.0)

    def spend(self, amount: float, now: float) -> None:
        """A piece of this size begins now."""
        if self._per_second is not None:
            self._free_at = max(self._free_at, now - 1.0) + amount / self._per_second


def backoff(attempt: int, *, first: float = 0.25, most: float = 30.0) -> float:
    """Seconds to wait before attempt number `attempt` (1 is the first repetition), with jitter.

    Full jitter over the upper half: clients that failed together do not come back together.
    """
    whole = min(first * 2.0 ** (attempt - 1), most)
    return whole * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
