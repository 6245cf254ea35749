"""The screen file: what to compute. Closed to unknown keys, frozen, hashed into the run.

Where things are kept, and every secret, is `flows.settings`' business.
"""

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import (
    BaseModel,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from tiers.policy import Policy
from tiers.screenfile.template import check_template
from tiers.screenfile.tiers import (
    BACKENDS,
    AnyTier,
    BudgetSection,
    GuaranteeSection,
    HttpTier,
    LlamaTier,
    PriceSection,
    PythonTier,
    Section,
    Tier,
    VllmTier,
)


class ScreenError(Exception):
    """A screen file that cannot be used. `problems` holds every fault, each with its place."""

    def __init__(self, source: str, problems: list[str]) -> None:
        self.source = source
        self.problems = problems
        faults = "1 fault" if len(problems) == 1 else f"{len(problems)} faults"
        super().__init__("\n".join([f"{source}: {faults}", *(f"  {line}" for line in problems)]))


class Candidates(Section):
    """Where the candidates come from and what of them is read."""

    source: str = Field(alias="from", min_length=1)
    """A CSV, JSONL or Parquet file, or a pattern such as `parts/*.parquet`."""
    key: str = Field(min_length=1)
    """The column that names a candidate."""
    text: str | None = None
    """Jinja2 template of what a judge reads; without it, every column but the key, as
    `name: value`."""

    @field_validator("text")
    @classmethod
    def _template(cls, text: str | None) -> str | None:
        return text if text is None else check_template(text)


class Screen(Section):
    """The whole definition of a screen."""

    screen: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,79}$")
    candidates: Candidates
    rubric: str = Field(min_length=1)
    tiers: tuple[Tier, ...]
    budget: BudgetSection | None = None
    """For the whole run; a tier can have one of its own."""
    guarantee: GuaranteeSection | None = None
    """What `tamis calibrate` has to promise; then tiers may leave their policies to it."""

    @model_validator(mode="wrap")
    @classmethod
    def _all_faults_at_once(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Report what joins fields beside what is wrong inside them, not after it."""
        joined = list(_faults_between_tiers(value)) if isinstance(value, Mapping) else []
        try:
            screen = handler(value)
        except ValidationError as error:
            inside = [
                InitErrorDetails(
                    type=PydanticCustomError(fault["type"], "{said}", {"said": fault["msg"]}),
                    loc=fault["loc"],
                    input=fault["input"],
                )
                for fault in error.errors()
            ]
            raise ValidationError.from_exception_data(cls.__name__, inside + joined) from error
        if joined:
            raise ValidationError.from_exception_data(cls.__name__, joined)
        return screen

    @property
    def digest(self) -> str:
        """Names this definition: two runs with equal digests compute the same."""
        defined = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        for name in ("budget", "guarantee"):
            defined.pop(name, None)
        for tier, section in zip(self.tiers, defined["tiers"], strict=True):
            for name in tier.operational:
                section.pop(name, None)
            if isinstance(tier, HttpTier) and tier.version is not None:
                section.pop("base_url")
        canonical = json.dumps(defined, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def policy(self, position: int) -> Policy:
        """A tier's policy; the last tier, if it has none, accepts above one half.

        One that is left to the guarantee rejects nobody.
        """
        if self.tiers[position].policy is None and position < len(self.tiers) - 1:
            return Policy(reject_below=0.0)
        return self.tiers[position].policy or Policy(accept_above=0.5)


def load_screen(path: Path) -> Screen:
    """Read a screen file; names of files in it are relative to its folder.

    Raises:
        ScreenError: with every fault of the file, each with its line and what to write instead.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ScreenError(str(path), [f"cannot be read: {error}"]) from error
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ScreenError(str(path), [f"is not YAML: {' '.join(str(error).split())}"]) from error
    if not isinstance(value, dict):
        raise ScreenError(str(path), ["holds no screen; `tamis init` writes one to start from"])
    problems = list(_repeated_keys(tree))
    try:
        screen = Screen.model_validate(value)
    except ValidationError as error:
        problems += [_problem(fault, tree) for fault in error.errors()]
        raise ScreenError(str(path), problems) from error
    if problems:
        raise ScreenError(str(path), problems)
    return _anchored(screen, path.resolve().parent)


def _repeated_keys(node: yaml.Node | None) -> Iterator[str]:
    """YAML would quietly take the last of two equal keys."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, child in node.value:
            if str(key.value) in seen:
                yield f"{key.value} (line {key.start_mark.line + 1}): stands twice; keep one"
            seen.add(str(key.value))
            yield from _repeated_keys(child)
    elif isinstance(node, yaml.SequenceNode):
        for child in node.value:
            yield from _repeated_keys(child)


def _faults_between_tiers(value: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
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
    if tiers and isinstance(value.get("guarantee"), Mapping):
        yield from _unkept_promise(value["guarantee"], tiers)


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


def _problem(fault: Any, tree: yaml.Node | None) -> str:
    """One fault as `tiers[1].policy.top (line 12): what is wrong; what to write`."""
    place, line = _locate(fault["loc"], tree)
    said = fault["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    match fault["type"]:
        case "extra_forbidden":
            said = _unknown_key(str(fault["loc"][-1]), _known_keys(fault["loc"]))
        case "missing":
            said = "is missing; write it"
        case "union_tag_not_found":
            said = f"backend is missing; write one of: {', '.join(BACKENDS)}"
        case "union_tag_invalid":
            given = fault["input"].get("backend") if isinstance(fault["input"], dict) else None
            said = f"backend '{given}' is unknown; write one of: {', '.join(BACKENDS)}"
    return f"{place} (line {line}): {said}"


def _unknown_key(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    advice = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
    return f"unknown key; {advice}"


def _known_keys(place: tuple[str | int, ...]) -> list[str]:
    sections: dict[str, type[BaseModel]] = {
        "candidates": Candidates,
        "policy": Policy,
        "budget": BudgetSection,
        "guarantee": GuaranteeSection,
        "price": PriceSection,
        **BACKENDS,
    }
    section = next((sections[str(p)] for p in reversed(place[:-1]) if p in sections), Screen)
    return [field.alias or name for name, field in section.model_fields.items()]


def _locate(place: tuple[str | int, ...], tree: yaml.Node | None) -> tuple[str, int]:
    """The path as a reader writes it, and its line; pydantic's union tags are left out."""
    node, path = tree, ""
    line = 1
    for step in place:
        below = _child(node, step)
        if (below is None and step != place[-1]) or str(step).startswith("@"):
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


def _anchored(screen: Screen, folder: Path) -> Screen:
    """The screen with its relative file names made absolute."""

    def anchor(tier: AnyTier) -> AnyTier:
        if isinstance(tier, PythonTier):
            return tier.model_copy(update={"folder": str(folder / tier.folder)})
        if isinstance(tier, VllmTier) and (folder / tier.model).is_dir():
            return tier.model_copy(update={"model": str(folder / tier.model)})
        if (
            isinstance(tier, LlamaTier)
            and isinstance(tier.model, str)
            and (folder / tier.model).is_file()
        ):
            return tier.model_copy(update={"model": str(folder / tier.model)})
        return tier

    source = screen.candidates.source
    if not Path(source).is_absolute():
        source = str(folder / source)
    return screen.model_copy(
        update={
            "candidates": screen.candidates.model_copy(update={"source": source}),
            "tiers": tuple(anchor(tier) for tier in screen.tiers),
        }
    )
