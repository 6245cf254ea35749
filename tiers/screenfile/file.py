"""The screen file: what to compute. Closed to unknown keys, frozen, hashed into the run.

Where things are kept, and every secret, is `flows.settings`' business.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import (
    BaseModel,
    Discriminator,
    Field,
    ModelWrapValidatorHandler,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from tiers.policy import Policy
from tiers.screenfile.faults import (
    MOST_VALUES,
    ScreenError,
    faults_between_tiers,
    problem_of,
    repeated_keys,
    unfolded,
)
from tiers.screenfile.limits import AfterSection, BudgetSection, GuaranteeSection, PriceSection
from tiers.screenfile.section import Section, VariableName, shape_of
from tiers.screenfile.template import check_template
from tiers.screenfile.tiers import (
    BACKENDS,
    HttpTier,
    PythonTier,
    Tier,
)
from tiers.screenfile.trust import advice, overreach, trusted

STDIN = "-"


class SqlSource(Section):
    """A query whose rows are candidates."""

    sql: str = Field(min_length=1)
    """One SELECT, in the words of that database."""
    url_variable: VariableName
    """The environment variable that holds the database's address, such as WAREHOUSE_URL."""


class Candidates(Section):
    """Where the candidates come from and what of them is read."""

    source: Annotated[
        Annotated[str, Field(min_length=1), Tag("@word")] | Annotated[SqlSource, Tag("@mapping")],
        Discriminator(shape_of),
    ] = Field(alias="from")
    """A CSV, JSONL, Parquet or XLSX file, a pattern such as `parts/*.parquet`, an address such as
    `s3://bucket/file.csv`, `-` for JSON lines on standard input, or a query."""
    key: str = Field(min_length=1)
    """The column that names a candidate."""
    text: str | None = None
    """Jinja2 template of what a judge reads; without it, every column but the key, as
    `name: value`."""

    shard: str | None = Field(None, pattern=r"^[0-9]{1,4}/[0-9]{1,4}$")
    """Only a part of them, by a hash of the key: `2/8` is the second of eight parts."""

    @field_validator("source")
    @classmethod
    def _no_password(cls, source: Any) -> Any:
        if isinstance(source, str) and "@" in urlsplit(source).netloc:
            raise ValueError(
                "the address holds a user or a password; a screen file holds no secrets: leave it "
                "out, and give it to the driver by its own configuration"
            )
        return source

    @field_validator("shard")
    @classmethod
    def _part(cls, shard: str | None) -> str | None:
        if shard is not None:
            part, parts = map(int, shard.split("/"))
            if not 1 <= part <= parts:
                raise ValueError(
                    f"'{shard}' is no part of the whole; write a number from 1 to {parts} before "
                    "the slash, such as 1/8"
                )
        return shard

    @field_validator("text")
    @classmethod
    def _template(cls, text: str | None) -> str | None:
        return text if text is None else check_template(text)

    @property
    def address(self) -> str:
        """Where they come from, for messages."""
        return self.source.sql if isinstance(self.source, SqlSource) else self.source


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
    after: AfterSection | None = None
    """Where results go once a run is done."""
    suspicious: Literal["review", "note", "off"] = "note"
    """What becomes of an accepted candidate whose text speaks to the judge: a person looks, or its
    reason says so."""

    traces: Literal["none", "errors", "sample", "all"] = "none"
    """Which prompts and replies are kept as files."""

    @field_validator("suspicious", mode="before")
    @classmethod
    def _off_is_a_word(cls, how: Any) -> Any:
        return "off" if how is False else how  # YAML takes a bare off for false

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
                    type=PydanticCustomError(
                        fault["type"], "{said}", {**fault.get("ctx", {}), "said": fault["msg"]}
                    ),
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
        for name in ("after", "budget", "guarantee", "suspicious", "traces"):
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
    "from": SqlSource,
    "after": AfterSection,
    "policy": Policy,
    "budget": BudgetSection,
    "guarantee": GuaranteeSection,
    "price": PriceSection,
    **BACKENDS,
}


def load_screen(path: Path | str, *, allow_code: bool = False) -> Screen:
    """Read a screen file; names of files in it are relative to its folder.

    Args:
        path: the file.
        allow_code: trust it: it may run code, and read and write outside its folder. Files in
            folders of `TAMIS_TRUSTED_FOLDERS` may do so anyway.

    Raises:
        ScreenError: with every fault of the file, each with its line and what to write instead.
    """
    path = Path(path)
    tree, value = _yaml_of(path)
    problems = list(repeated_keys(tree))
    try:
        screen = Screen.model_validate(value)
    except ValidationError as error:
        found = (problem_of(fault, tree, SECTIONS) for fault in error.errors())
        problems += dict.fromkeys(found)  # of a choice of types each tells the same
        raise ScreenError(str(path), problems) from error
    folder = path.resolve().parent
    if allow_code:
        screen = _allowing_code(screen)
    elif not trusted(path):
        faults = (
            {"loc": place, "msg": f"{does}, which {advice(folder)}", "type": "trust"}
            for place, does in overreach(screen, folder)
        )
        problems += [problem_of(fault, tree, SECTIONS) for fault in faults]
    anchored = _anchored(screen, folder)
    after = anchored.after
    if after is not None and after.results == anchored.candidates.source:
        problems.append("after.results: would write over the candidates' own file; name another")
    if problems:
        raise ScreenError(str(path), problems)
    return anchored


def _yaml_of(path: Path) -> tuple[yaml.Node | None, dict[str, Any]]:
    """A YAML file as nodes, which know their lines, and as values."""
    if path.is_dir():
        raise ScreenError(str(path), [f"is a folder; write {path}/screen.yaml"])
    if path.suffix.lower() in (".csv", ".tsv", ".jsonl", ".parquet", ".xlsx"):
        said = "holds candidates; name it under candidates.from: of a screen file"
        raise ScreenError(str(path), [f"{said}. 'tamis init' writes one to start from"])
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ScreenError(str(path), [f"cannot be read: {error}"]) from error
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        if unfolded(tree) > MOST_VALUES:
            raise ScreenError(str(path), [f"holds more than {MOST_VALUES:,} values"])
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ScreenError(str(path), [f"is not YAML: {' '.join(str(error).split())}"]) from error
    except RecursionError as error:
        raise ScreenError(str(path), ["is nested too deeply, or a value holds itself"]) from error
    if not isinstance(value, dict):
        raise ScreenError(str(path), ["holds no screen; `tamis init` writes one to start from"])
    return tree, value


def _allowing_code(screen: Screen) -> Screen:
    tiers = (
        tier.allowing_code() if isinstance(tier, PythonTier) else tier for tier in screen.tiers
    )
    return screen.model_copy(update={"tiers": tuple(tiers)})


def _anchored(screen: Screen, folder: Path) -> Screen:
    """The screen with its relative file names made absolute."""
    source = screen.candidates.source
    is_file = isinstance(source, str) and source != STDIN and "://" not in source
    if is_file and not Path(str(source)).is_absolute():
        source = str(folder / str(source))
    after = screen.after
    if after is not None and after.results is not None:
        after = after.model_copy(update={"results": str(folder / after.results)})
    return screen.model_copy(
        update={
            "after": after,
            "candidates": screen.candidates.model_copy(update={"source": source}),
            "tiers": tuple(tier.anchored(folder) for tier in screen.tiers),
        }
    )
