"""The faults of a screen file, each with its place, its line and what to write instead."""

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import InitErrorDetails, PydanticCustomError

from tiers.screenfile.tiers import BACKENDS

MOST_VALUES = 100_000
"""Of a screen file, each alias written out."""

Sections = Mapping[str, type[BaseModel]]
"""The sections of a screen file by the step of a place that leads into them."""


class ScreenError(Exception):
    """A screen file that cannot be used. `problems` holds every fault, each with its place."""

    def __init__(self, source: str, problems: list[str]) -> None:
        self.source = source
        self.problems = problems
        faults = "1 fault" if len(problems) == 1 else f"{len(problems)} faults"
        super().__init__("\n".join([f"{source}: {faults}", *(f"  {line}" for line in problems)]))


def unfolded(node: yaml.Node | None, known: dict[int, int] | None = None) -> int:
    """How many values a YAML file has with each alias written out: ten lines can make billions.

    Raises:
        RecursionError: a value holds itself, or values are nested too deeply.
    """
    known = {} if known is None else known
    if id(node) not in known:
        below: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            below = [each for pair in node.value for each in pair]
        elif isinstance(node, yaml.SequenceNode):
            below = node.value
        known[id(node)] = 1 + sum(unfolded(each, known) for each in below)
    return known[id(node)]


def repeated_keys(node: yaml.Node | None) -> Iterator[str]:
    """YAML would quietly take the last of two equal keys."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, child in node.value:
            if str(key.value) in seen:
                yield f"{key.value} (line {key.start_mark.line + 1}): stands twice; keep one"
            seen.add(str(key.value))
            yield from repeated_keys(child)
    elif isinstance(node, yaml.SequenceNode):
        for child in node.value:
            yield from repeated_keys(child)


def faults_between_tiers(value: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
    """What is wrong with the tiers beside each other, and with the guarantee beside the tiers."""
    given = value.get("tiers")
    if not isinstance(given, list | tuple):
        return
    if not given:
        yield _fault(("tiers",), "names no tier; write at least one")
    tiers = [tier for tier in given if isinstance(tier, Mapping)]
    names = [str(tier.get("name")) for tier in tiers if tier.get("name") is not None]
    for name, count in Counter(names).items():
        if count > 1:
            yield _fault(("tiers",), f"{count} tiers are called '{name}'; give each its own name")
    for position, tier in enumerate(tiers[:-1]):
        if not tier.get("policy") and not value.get("guarantee"):
            yield _fault(
                ("tiers", position),
                f"tier '{tier.get('name')}' has no policy, so it would promote everybody; "
                "write policy: {reject_below: 0.2} or policy: {top: 10000}",
            )
        yield from _unpaid_promotion(value, position, tier, tiers[position + 1])
    yield from _unguarded_classifier(value, tiers)
    if tiers and isinstance(value.get("guarantee"), Mapping):
        yield from _unkept_promise(value["guarantee"], tiers)


def _unguarded_classifier(
    value: Mapping[str, Any], tiers: list[Mapping[str, Any]]
) -> Iterator[InitErrorDetails]:
    """A classifier that nothing teaches, or that would reject without a promise."""
    promised = value.get("guarantee")
    for position, tier in enumerate(tiers):
        if tier.get("backend") != "classifier":
            continue
        if position == len(tiers) - 1:
            yield _fault(
                ("tiers", position),
                f"tier '{tier.get('name')}' is a classifier and the last, so that nobody could "
                "teach or check it; write a tier after it that asks a model",
            )
        elif not isinstance(promised, Mapping) or not promised.get("recall"):
            yield _fault(
                ("tiers", position),
                f"tier '{tier.get('name')}' is a classifier, which rejects by a promise of recall "
                "alone; write guarantee: {recall: 0.95, against: "
                f"{tiers[-1].get('name')}, labels: 1000}}",
            )


def _unkept_promise(
    promised: Mapping[str, Any], tiers: list[Mapping[str, Any]]
) -> Iterator[InitErrorDetails]:
    """What of a guarantee does not fit the tiers."""
    last, against = tiers[-1], promised.get("against")
    if against not in (None, "people", last.get("name")):
        yield _fault(
            ("guarantee", "against"),
            f"'{against}' is not the last tier; write against: {last.get('name')}, or people",
        )
    if len(tiers) == 1:
        yield _fault(
            ("guarantee",), "needs a cheaper tier whose thresholds it can set; write one before"
        )
    policy = last.get("policy")
    if isinstance(policy, Mapping) and (policy.get("top") or policy.get("budget")):
        yield _fault(
            ("tiers", len(tiers) - 1, "policy"),
            "ranks, so that nobody knows what the last tier would accept alone; write "
            "policy: {accept_above: 0.5}",
        )
    costs = promised.get("costs")
    if isinstance(costs, list | tuple) and len(costs) != len(tiers):
        yield _fault(
            ("guarantee", "costs"), f"{len(costs)} costs for {len(tiers)} tiers; write one a tier"
        )


def _unpaid_promotion(
    value: Mapping[str, Any], position: int, tier: Mapping[str, Any], following: Mapping[str, Any]
) -> Iterator[InitErrorDetails]:
    policy = tier.get("policy")
    by_budget = isinstance(policy, Mapping) and policy.get("budget")
    if by_budget and not (following.get("budget") or value.get("budget")):
        yield _fault(
            ("tiers", position, "policy", "budget"),
            f"promotes as many as the budget of tier '{following.get('name')}' pays for, which has "
            "none; write budget: {usd: 5} there",
        )


def _fault(place: tuple[str | int, ...], said: str) -> InitErrorDetails:
    return InitErrorDetails(
        type=PydanticCustomError("screen", "{said}", {"said": said}), loc=place, input=None
    )


def problem_of(fault: Any, tree: yaml.Node | None, sections: Sections) -> str:
    """One fault as `tiers[1].policy.top (line 12): what is wrong; what to write`."""
    place, line = _locate(fault["loc"], tree)
    said = fault["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    match fault["type"]:
        case "extra_forbidden":
            said = _unknown_key(str(fault["loc"][-1]), _known_keys(fault["loc"], sections))
        case "missing":
            said = "is missing; write it"
        case "union_tag_not_found":
            said = f"backend is missing; write one of: {', '.join(BACKENDS)}"
        case "union_tag_invalid":
            given = fault["input"].get("backend") if isinstance(fault["input"], dict) else None
            said = f"backend '{given}' is unknown; write one of: {', '.join(BACKENDS)}"
        case "string_pattern_mismatch" if fault["loc"][-1] in ("screen", "name"):
            said = (
                f"'{fault['input']}' is no name; write letters from A to Z, digits, '_' and '-', a "
                "letter first"
            )
        case "literal_error":
            said = _unknown_word(fault["input"], fault["ctx"]["expected"])
        case "float_parsing" | "int_parsing" | "float_type" | "int_type":
            said = f"'{fault['input']}' is no number; write digits alone, such as 1000 or 0.95"
    return f"{place} (line {line}): {said}"


def _unknown_word(given: Any, expected: str) -> str:
    """What pydantic expects reads `'a', 'b' or 'c'`."""
    known = re.findall(r"'([^']*)'", expected)
    near = difflib.get_close_matches(str(given), known, n=1)
    advice = f"did you mean '{near[0]}'?" if near else f"write one of: {', '.join(known)}"
    return f"'{given}' is unknown; {advice}"


def _unknown_key(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    advice = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
    return f"unknown key; {advice}"


def _known_keys(place: tuple[str | int, ...], sections: Sections) -> list[str]:
    near = (sections[str(step)] for step in reversed(place[:-1]) if step in sections)
    section = next(near, sections["screen"])
    return [field.alias or name for name, field in section.model_fields.items()]


def _locate(place: tuple[str | int, ...], tree: yaml.Node | None) -> tuple[str, int]:
    """The path as a reader writes it, and its line; pydantic's union tags are left out."""
    node, path = tree, ""
    line = 1
    for step in place:
        below = _child(node, step)
        absent = below is None and not (step == place[-1] and isinstance(node, yaml.MappingNode))
        if absent or str(step).startswith("@"):
            continue
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else str(step)
        if below is not None:
            node, line = below[0], below[1]
    return path or "file", line


def _child(node: yaml.Node | None, step: str | int) -> tuple[yaml.Node, int] | None:
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        child = node.value[step]
        return child, child.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, child in node.value:
            if key.value == step:
                return child, key.start_mark.line + 1
    return None
