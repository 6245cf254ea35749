"""Which alternative serves a goal: what meets the limits, what nothing else beats, and why."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tiers.planning.alternatives import Alternative
from tiers.planning.measured import Range

Goal = Literal["speed", "cost", "balance", "quality"]
MANY = 1e6
CENT = 0.01
SLACK = 0.01
"""Agreement and recall may be so much below those of the screen as configured."""


class NothingToRank(ValueError):
    """A goal cannot be served, because what it goes by is not known."""


@dataclass(frozen=True)
class Limits:
    """What a user sets."""

    seconds: float | None = None
    usd: float | None = None
    recall: float | None = None
    """At least so much of what the last tier accepts is not rejected."""


@dataclass(frozen=True)
class Choice:
    """The alternative for a goal, with its reason."""

    chosen: Alternative | None
    """None where nothing meets the limits."""
    reason: str
    nearest: Alternative | None = None
    """What comes nearest to a deadline or a budget that nothing meets."""


def judged(rows: Sequence[Alternative], limits: Limits) -> list[Alternative]:
    """The alternatives with the limit that binds those which do not fit, and the Pareto set."""
    fitted = [replace(row, infeasible=row.infeasible or _misses(row, limits)) for row in rows]
    return [replace(row, pareto=_unbeaten(row, fitted)) for row in fitted]


def choose(rows: Sequence[Alternative], goal: Goal, limits: Limits) -> Choice:
    """The best of the alternatives that were measured and meet the limits.

    Args:
        rows: from `judged`; the first is the screen as configured.
        goal: what is wanted most.
        limits: of the user.

    Raises:
        NothingToRank: no price is known and the goal is cost, or nothing was measured.
    """
    measured = [row for row in rows if row.ours and row.estimate.agreement is not None]
    if not measured:
        raise NothingToRank(
            "nothing was measured, so no alternative can be chosen; run tamis pilot first"
        )
    able = [row for row in measured if _as_good(row, rows[0], limits)]
    fitting = [row for row in able if row.infeasible is None]
    if not fitting:
        return _nothing(rows, able, limits)
    if goal == "cost" and all(row.estimate.usd.high is None for row in fitting):
        raise NothingToRank(
            "no alternative's cost is known, because tiers have no price; write "
            "price: {input: 0.10, output: 0.40}, price: {hour: 0.50}, or price: 0 into them, or "
            "plan with --optimize speed"
        )
    chosen = min(fitting, key=lambda row: _rank(row, goal, fitting))
    return Choice(chosen, _reason(chosen, rows[0], goal, len(fitting), len(rows), limits))


def _misses(row: Alternative, limits: Limits) -> str | None:
    """Which limit of the user an alternative may miss, going by the end of its range."""
    found = row.estimate
    words = []
    for limit, range_, unit in ((limits.seconds, found.seconds, "s"), (limits.usd, found.usd, "$")):
        if limit is None:
            continue
        shown = duration(limit) if unit == "s" else f"${limit:,.2f}"
        if range_.high is None:
            words.append(f"{'time' if unit == 's' else 'cost'} not known, so {shown} is not sure")
        elif range_.high > limit:
            high = duration(range_.high) if unit == "s" else f"${range_.high:,.2f}"
            words.append(f"up to {high} of {shown}")
            if unit == "s":
                words.append(found.limit)
    if limits.recall is not None and found.recall is not None and found.recall < limits.recall:
        words.append(f"recall {found.recall:.3f} of {limits.recall:g}")
    return "; ".join(words) or None


def _as_good(row: Alternative, configured: Alternative, limits: Limits) -> bool:
    """Whether quality is no reason against an alternative."""
    if limits.recall is not None:
        return (row.estimate.recall or 0.0) >= limits.recall
    pairs = (
        (row.estimate.agreement, configured.estimate.agreement),
        (row.estimate.recall, configured.estimate.recall),
    )
    return all((own or 0.0) >= (wanted or 0.0) - SLACK for own, wanted in pairs)


def _figures(row: Alternative) -> tuple[float, float, float]:
    """Time, money and disagreement, all to be small; infinite where not known."""
    found = row.estimate
    wrong = float("inf") if found.agreement is None else 1 - found.agreement
    return found.likely_seconds, found.likely_usd, wrong


def _unbeaten(row: Alternative, rows: Sequence[Alternative]) -> bool:
    """Whether no alternative is as good in all figures and better in one."""
    mine = _figures(row)
    if row.infeasible is not None or mine[2] == float("inf"):
        return False
    others = [_figures(each) for each in rows if each.infeasible is None]
    return not any(
        all(a <= b for a, b in zip(other, mine, strict=True)) and other != mine for other in others
    )


def _rank(row: Alternative, goal: Goal, rows: Sequence[Alternative]) -> tuple[float, ...]:
    seconds, usd, wrong = _figures(row)
    match goal:
        case "speed":
            return (seconds, usd, wrong)
        case "cost":
            return (usd, seconds, wrong)
        case "quality":
            return (wrong, seconds, usd)
        case _:
            least = [min(_figures(each)[i] for each in rows) for i in range(3)]
            most = [max(_figures(each)[i] for each in rows) for i in range(3)]
            return (sum(map(_scaled, (seconds, usd, wrong), least, most)), seconds)


def _scaled(value: float, least: float, most: float) -> float:
    """From 0 for the best alternative to 1 for the worst; 0 where none differ, or none is known."""
    if most == least or least == float("inf"):
        return 0.0
    return 1.0 if value == float("inf") else min(1.0, (value - least) / (most - least or 1.0))


def _nothing(rows: Sequence[Alternative], able: Sequence[Alternative], limits: Limits) -> Choice:
    if not able:
        best = max(
            (row for row in rows if row.estimate.recall is not None),
            key=lambda row: row.estimate.recall or 0.0,
        )
        recall = best.estimate.recall or 0.0
        why = f"no alternative keeps recall {limits.recall:g}; the nearest, '{best.name}', keeps"
        return Choice(None, f"{why} {recall:.3f}", best)
    by_time = limits.seconds is not None
    nearest = min(able, key=lambda row: _figures(row)[0 if by_time else 1])
    others = [row for row in rows if row.infeasible is None and not row.ours]
    words = f"nothing that was measured meets it; the nearest is '{nearest.name}'"
    words += f" ({nearest.infeasible})"
    if others:
        best = min(others, key=lambda row: _figures(row)[:2])
        words += f"; not measured here, but by its {best.basis}: '{best.name}', {told(best)}"
    return Choice(None, words, nearest)


def _reason(
    chosen: Alternative,
    configured: Alternative,
    goal: Goal,
    fitting: int,
    count: int,
    limits: Limits,
) -> str:
    most = {
        "speed": "the fastest",
        "cost": "the cheapest",
        "quality": "the one that agrees most with the last tier",
        "balance": "the best sum of time, money and agreement",
    }[goal]
    floor = (
        f"recall {limits.recall:g} or more"
        if limits.recall is not None
        else f"agreement and recall at most {SLACK:g} below those as configured"
    )
    words = f"{most} of {fitting} measured alternatives with {floor} (of {count} in all)"
    for tier in configured.estimate.tiers:
        if tier.tier in chosen.drops:
            cost = [duration_range(tier.seconds)]
            cost += [usd_range(tier.usd)] if tier.usd.high else []
            words += f"; drops '{tier.tier}', which would have cost {', '.join(cost)}"
    return words


def told(row: Alternative) -> str:
    """Time and money of an alternative."""
    return f"{duration_range(row.estimate.seconds)}, {usd_range(row.estimate.usd)}"


def duration(seconds: float) -> str:
    """A stretch of time in the unit that people would use."""
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:,.1f} s"


def duration_range(found: Range) -> str:
    """Times in words."""
    return _in_words(found, duration)


def usd_range(found: Range) -> str:
    """Money in words."""
    return _in_words(
        found, lambda dollars: f"${dollars:,.4f}" if 0 < dollars < CENT else f"${dollars:,.2f}"
    )


def count_range(found: Range) -> str:
    """Counts in words, millions in short."""
    return _in_words(
        found, lambda count: f"{count:,.0f}" if count < MANY else f"{count / MANY:,.1f} M"
    )


def _in_words(found: Range, shown: Callable[[float], str]) -> str:
    """The expected figure and its range; what is not known is said to be so."""
    low, expected, high = found
    if high is None:
        return "unknown" if not low else f"{shown(low)} or more"
    span = f"{shown(low or 0.0)} to {shown(high)}"
    if shown(low or 0.0) == shown(high):
        return shown(high)
    if expected is None:
        return f"not measured, {span}"
    return f"{shown(expected)} ({span})"
