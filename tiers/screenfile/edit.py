"""A screen file changed as text, so that all that its writer said in it stays."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import yaml

from tiers.policy import Policy


class Change(NamedTuple):
    """What becomes of one tier."""

    why: str
    """Written above it, as a comment."""
    policy: Policy | None = None
    """Its new policy; None to leave the tier out."""


def edited(text: str, changes: Mapping[str, Change]) -> str:
    """The file with tiers left out or given other policies; what was there stays as a comment.

    Args:
        text: of a screen file that can be loaded.
        changes: by the tier's name.

    Raises:
        ValueError: the tiers are written in one line, where there is no place for a comment.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    lines = text.splitlines()
    tiers = _value(root, "tiers")
    if not isinstance(tiers, yaml.SequenceNode) or tiers.flow_style:
        raise ValueError("its tiers stand in one line; write each one on lines of its own")
    for item in reversed(tiers.value):
        name = _value(item, "name")
        change = changes.get(name.value) if isinstance(name, yaml.ScalarNode) else None
        if change is None:
            continue
        if change.policy is None:
            _leave_out(lines, item, tiers.start_mark.column, f"tamis plan: {change.why}")
        else:
            _set_policy(lines, item, change.policy, f"tamis plan: {change.why}")
    return "\n".join(lines) + "\n"


def _leave_out(lines: list[str], item: yaml.Node, dash: int, why: str) -> None:
    start, end = item.start_mark.line, _last_line(item)
    while lines[start][dash : dash + 1] != "-":
        start -= 1
    indent = " " * dash
    gone = [f"{indent}# {line[len(indent) :]}".rstrip() for line in lines[start : end + 1]]
    lines[start : end + 1] = [f"{indent}# {why}", *gone]


def _set_policy(lines: list[str], item: yaml.Node, policy: Policy, why: str) -> None:
    """Raises ValueError for a tier that is written in a way that has no place for it."""
    indent = " " * item.start_mark.column
    values = policy.model_dump(exclude_none=True, exclude_defaults=True)
    said = ", ".join(f"{name}: {value}" for name, value in values.items())
    new = [f"{indent}# {why}", f"{indent}policy: {{{said}}}"]
    was_set = _value(item, "policy")
    if getattr(item, "flow_style", False):
        if was_set is None or was_set.start_mark.line != was_set.end_mark.line:
            raise ValueError("a tier in braces needs its policy on one line; write it there")
        at, line = was_set.start_mark.line, lines[was_set.start_mark.line]
        start, end = was_set.start_mark.column, was_set.end_mark.column
        lines[at] = f"{line[:start]}{{{said}}}{line[end:]}"
        lines[at + 1 : at + 1] = [f"{indent}# {why}; it was {line[start:end]}"]
        return
    for key, value in item.value:
        if key.value == "policy":
            start, end = key.start_mark.line, _last_line(value)
            if start == item.start_mark.line:
                raise ValueError("a tier begins with its policy; write its name first")
            was = [f"{indent}# {line.strip()}" for line in lines[start : end + 1]]
            lines[start : end + 1] = [*new, *was]
            return
    end = _last_line(item)
    lines[end + 1 : end + 1] = new


def _last_line(node: yaml.Node) -> int:
    return max(
        leaf.end_mark.line - (leaf.end_mark.column == 0 and leaf.end_mark.line > 0)
        for leaf in _leaves(node)
    )


def _leaves(node: yaml.Node) -> Iterator[yaml.Node]:
    """Scalars, and what is closed by a bracket: they end where they are written to end."""
    if isinstance(node, yaml.ScalarNode) or getattr(node, "flow_style", False):
        yield node
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _leaves(key)
            yield from _leaves(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _leaves(value)


def _value(node: yaml.Node | None, key: str) -> yaml.Node | None:
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next((value for name, value in pairs if name.value == key), None)
