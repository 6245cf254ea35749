"""A record's fields to the text that a judge reads."""

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateError, UndefinedError, meta, nodes

from tiers.sandbox import BoundedSandbox

Render = Callable[[Mapping[str, Any]], str]


def _shown(value: Any) -> Any:
    return "" if value is None else value


# Templates are shared between people, so they run in Jinja's sandbox; a field that a record
# lacks is an error and never an empty string, because the judge would decide without it.
def _sandbox() -> BoundedSandbox:
    return BoundedSandbox(undefined=StrictUndefined, finalize=_shown)


_SANDBOX = _sandbox()
"""To parse with; whoever renders has one of its own."""


def check_template(template: str) -> str:
    """Return the template.

    Raises:
        ValueError: it is no Jinja2, or names no field.
    """
    try:
        names = meta.find_undeclared_variables(_SANDBOX.parse(template))
        _SANDBOX.from_string(template)
    except RecursionError as error:
        raise ValueError("the template is nested too deeply") from error
    except (TemplateError, SyntaxError, ValueError) as error:
        raise ValueError(f"the template is no Jinja2: {error}") from error
    if not names:
        raise ValueError('the template names no field; write it as "{{ name }}\\n{{ resume }}"')
    return template


def named_fields(template: str | None) -> set[str]:
    """The fields that a template reads; empty without a template."""
    return set() if template is None else meta.find_undeclared_variables(_SANDBOX.parse(template))


def renderer(template: str | None, key: str) -> Render:
    """The function from a record's fields to its text.

    It raises jinja2.TemplateError for a record that lacks a named field, or of which the template
    makes more than any text needs.
    """
    if template is None:
        return _every_field_but(key)
    return _plain(template) or _bounded(template)


def _bounded(template: str) -> Render:
    sandbox = _sandbox()
    filled = sandbox.from_string(template)

    def bounded(fields: Mapping[str, Any]) -> str:
        sandbox.start()
        return filled.render(fields)

    return bounded


def _every_field_but(key: str) -> Render:
    def every_field(fields: Mapping[str, Any]) -> str:
        return "\n".join(
            f"{name}: {value}"
            for name, value in fields.items()
            if name != key and value is not None and value != ""
        )

    return every_field


def _plain(template: str) -> Render | None:
    """The template without Jinja, if it only names fields: 1 us a record instead of 35."""
    parts: list[tuple[str, bool]] = []
    for output in _SANDBOX.parse(template).body:
        for node in output.nodes if isinstance(output, nodes.Output) else [output]:
            match node:
                case nodes.TemplateData():
                    parts.append((node.data, False))
                case nodes.Name():
                    parts.append((node.name, True))
                case _:
                    return None

    def plain(fields: Mapping[str, Any]) -> str:
        try:
            return "".join([str(_shown(fields[part])) if named else part for part, named in parts])
        except KeyError as error:
            raise UndefinedError(f"{error} is undefined") from error

    return plain
