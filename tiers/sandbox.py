"""Jinja that ends: templates come from other people, so what they make and do is bounded.

No clock and no thread: work is counted in characters, so that the same record always ends alike.
A value is weighed when it is made; nothing else a template can do takes longer than its values are.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from itertools import chain
from typing import Any

from jinja2 import TemplateRuntimeError, nodes, pass_context
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_CHARACTERS = 10_000_000
"""Of the text that is made, and of every value on the way to it."""
MOST_WORK = 50_000_000
"""Characters that a template may make in one go in all; each step of a loop counts as some."""
STEP = 250
ITEM = 16
"""Characters that an item of a list counts as, beside its own: a list costs more than a text."""
LOOKED_AT = 16
"""Comparing so many characters counts as making one."""
MOST_SOURCE = 100_000
"""Characters of a template: Jinja takes the square of their number to read it."""

_WIDENING = frozenset(
    {"center", "ljust", "rjust", "zfill", "batch", "slice", "truncate", "to_bytes"}
)
"""What grows by a number that it is given."""
_MULTIPLYING = frozenset(
    {"indent", "expandtabs", "translate", "tojson", "urlize", "xmlattr", "join", "wordwrap"}
)
"""What may add something it is given at each place of a text."""
_OF_NAMES = frozenset({"defined", "undefined"})
"""Tests that look at no value."""
_WIDE = re.compile(r"%[^a-zA-Z%]*(?:[0-9]{5}|\*)|:[^{}]*(?:[0-9]{5}|\{)")
"""A width in a format of either kind that is large, or is not told before."""
_LONG_PRECISION = 1_000
_WIDTH = 10_000
_DIGITS = 100
"""Arithmetic with long numbers takes far longer than handling a text of their size."""


class TooMuch(TemplateRuntimeError):
    """A template makes or does more than any text needs."""


class BoundedSandbox(ImmutableSandboxedEnvironment):
    """For one template in one thread: `start` before each rendering."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._left = MOST_WORK
        self.globals.pop("lipsum", None)
        self.filters = {name: self._guarded(name, one) for name, one in self.filters.items()}
        # With a context, so that Jinja does not do it once when it compiles.
        self.filters["_counted"] = pass_context(lambda _, items: self._counted(items))
        self.filters["_looked_at"] = pass_context(lambda _, value: self._looked_at(value))
        self.filters["_weighed"] = self._weighed
        self.filters["_joined"] = self._joined

    def start(self) -> None:
        """Begin a rendering, with all its work before it."""
        self._left = MOST_WORK

    def concat(self, pieces: Iterable[str]) -> str:
        """The pieces of an output as one text."""
        kept, size = [], 0
        for piece in pieces:
            size += len(piece)
            if size > MOST_CHARACTERS:
                raise TooMuch(f"it makes more than {MOST_CHARACTERS:,} characters")
            kept.append(piece)
        self._work(size)
        return "".join(kept)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > MOST_SOURCE:
            raise TooMuch(f"it is longer than {MOST_SOURCE:,} characters")
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = _filtered(loop.iter, "_counted")
        _bound_literals(tree)
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self._work(STEP)
        if operator == "*":
            self._check_product(left, right)
        elif operator == "**":
            if isinstance(left, int) and isinstance(right, int):
                self._check(_DIGITS * left.bit_length() * max(right, 1) // 8)
        elif operator == "%" and isinstance(left, str):
            self._check_format(left, right)
        elif operator == "+" and not isinstance(left, int | float):
            self._check(weight(left) + weight(right))
        return self._weighed(super().call_binop(context, operator, left, right))

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call what a template calls: a method of a text, a macro, the loop it stands in."""
        name = str(getattr(function, "__name__", ""))
        owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
        self._work(STEP)
        if isinstance(function, LoopContext):
            args = (self._counted(args[0]),)
        elif isinstance(owner, str | bytes | int):
            self._check_call(name, owner, args, kwargs)
        return self._weighed(super().call(context, function, *args, **kwargs))

    def _guarded(self, name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
        # Jinja may give a filter its environment or context first, as the filter asks for it.
        given = 1 if hasattr(filter_, "jinja_pass_arg") else 0

        @wraps(filter_)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            self._work(STEP)
            value, *others = args[given:] or (None,)
            self._check_call(name, value, others, kwargs)
            return self._weighed(filter_(*args, **kwargs))

        return guarded

    def _check_call(
        self, name: str, value: Any, args: Iterable[Any], kwargs: Mapping[str, Any]
    ) -> None:
        """Refuse a filter or a method of a text whose result could be too large."""
        others = [*args, *kwargs.values()]
        before = weight(value)
        size = before + sum(map(weight, others))
        number = max((abs(each) for each in others if isinstance(each, int)), default=0)
        if name in _WIDENING:
            size += number
        elif name in _MULTIPLYING:
            added = max(map(weight, others), default=0)
            size += before * (added if name == "wordwrap" else max(added, number))
        elif name == "replace" and len(others) > 1:
            size += str(value).count(str(others[0])) * weight(others[1])
        elif name in ("format", "format_map"):
            self._check_format(str(value), others)
        elif name == "round" and number > _LONG_PRECISION:
            raise TooMuch(f"it rounds to more than {_LONG_PRECISION:,} places")
        self._check(size)
        self._work(size)

    def _check_product(self, left: Any, right: Any) -> None:
        if isinstance(left, int) and isinstance(right, int):
            self._check(_DIGITS * (left.bit_length() + right.bit_length()) // 8)
        elif isinstance(left, int):
            self._check(left * weight(right))
        elif isinstance(right, int):
            self._check(right * weight(left))

    def _check_format(self, text: str, values: Any) -> None:
        """Refuse a wide field, and values that are shown too often."""
        if _WIDE.search(text):
            raise TooMuch(f"a format asks for {_WIDTH:,} places, or leaves their number open")
        places = text.count("%") + text.count("{")
        self._check(len(text) + places * max(weight(values), _WIDTH if places > 1 else 0))

    def _looked_at(self, value: Any) -> Any:
        """One side of a comparison, or what is tested."""
        self._work(STEP + weight(value) // LOOKED_AT)
        return value

    def _counted(self, items: Any) -> Any:
        """The items of a loop, each of them a step."""
        self._work(STEP * len(items))
        return items

    def _steps(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._work(STEP)
            yield item

    def _joined(self, parts: Iterable[Any]) -> str:
        return self.concat(str(part) for part in parts)

    def _weighed(self, value: Any) -> Any:
        if isinstance(value, Iterator):
            value = list(self._steps(value))
        size = weight(value)
        self._check(size)
        self._work(size)
        return value

    @staticmethod
    def _check(size: int) -> None:
        if size > MOST_CHARACTERS:
            raise TooMuch(f"it makes a value of more than {MOST_CHARACTERS:,} characters")

    def _work(self, amount: int) -> None:
        self._left -= amount
        if self._left < 0:
            raise TooMuch("it takes more steps than any text needs")


def weight(value: Any) -> int:
    """About how many characters a value has when it is written out; never much more than needed."""
    match value:
        case str() | bytes():
            return len(value)
        case bool() | float() | None:
            return 1
        case int():
            return 1 + value.bit_length() // 8
        case list() | tuple() | set() | frozenset() | dict():
            size = ITEM * len(value)
            parts = chain(value, value.values()) if isinstance(value, dict) else iter(value)
            for part in parts:
                size += weight(part)
                if size > MOST_CHARACTERS:
                    break
            return size
    return 1


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _bound_literals(node: nodes.Node) -> None:
    """Weigh lists as they are made, for one that holds another twice doubles; join with a bound."""
    for name, value in node.iter_fields():
        if isinstance(value, list):
            value[:] = [_bound(each) for each in value]
        elif isinstance(value, nodes.Node):
            setattr(node, name, _bound(value))


def _bound(node: Any) -> Any:
    if not isinstance(node, nodes.Node):
        return node
    _bound_literals(node)
    if isinstance(node, nodes.Concat):
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "_joined")
    if isinstance(node, nodes.Compare):
        node.expr = _filtered(node.expr, "_looked_at")
        for operand in node.ops:
            operand.expr = _filtered(operand.expr, "_looked_at")
    elif isinstance(node, nodes.Test) and node.name not in _OF_NAMES:
        node.node = _filtered(node.node, "_looked_at")
        node.args = [_filtered(each, "_looked_at") for each in node.args]
    elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        return _filtered(node, "_weighed")
    literal = isinstance(node, nodes.List | nodes.Tuple | nodes.Dict)
    if literal and getattr(node, "ctx", "load") == "load" and not isinstance(node, nodes.Const):
        return _filtered(node, "_weighed")
    return node
