"""The screen file: what to compute. Closed to unknown keys, frozen, hashed into the run.

Where things are kept, and every secret, is `flows.settings`' business.
"""

import hashlib
import json
from collections.abc import Mapping
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
from tiers.screenfile.faults import ScreenError, faults_between_tiers, problem_of, repeated_keys
from tiers.screenfile.limits import BudgetSection, GuaranteeSection, PriceSection
from tiers.screenfile.section import Section
from tiers.screenfile.template import check_template
from tiers.screenfile.tiers import (
    BACKENDS,
    HttpTier,
    Tier,
)


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
        joined = list(faults_between_tiers(value)) if isinstance(value, Mapping) else []
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


SECTIONS: dict[str, type[BaseModel]] = {
    "screen": Screen,
    "candidates": Candidates,
    "policy": Policy,
    "budget": BudgetSection,
    "guarantee": GuaranteeSection,
    "price": PriceSection,
    **BACKENDS,
}


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
    problems = list(repeated_keys(tree))
    try:
        screen = Screen.model_validate(value)
    except ValidationError as error:
        problems += [problem_of(fault, tree, SECTIONS) for fault in error.errors()]
        raise ScreenError(str(path), problems) from error
    if problems:
        raise ScreenError(str(path), problems)
    return _anchored(screen, path.resolve().parent)


def _anchored(screen: Screen, folder: Path) -> Screen:
    """The screen with its relative file names made absolute."""
    source = screen.candidates.source
    if not Path(source).is_absolute():
        source = str(folder / source)
    return screen.model_copy(
        update={
            "candidates": screen.candidates.model_copy(update={"source": source}),
            "tiers": tuple(tier.anchored(folder) for tier in screen.tiers),
        }
    )
