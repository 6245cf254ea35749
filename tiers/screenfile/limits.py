"""Prices, budgets, and the guarantee: the sections that move no score."""

import re
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tiers.screenfile.section import Section, VariableName

_RESULTS = (".csv", ".json", ".jsonl", ".parquet")
_NAME = "[A-Za-z_][A-Za-z0-9_]{0,62}"


class PriceSection(Section):
    """What a tier costs, in US dollars: per million tokens, or per hour of one machine."""

    input: float | None = Field(None, ge=0)
    cached_input: float | None = Field(None, ge=0)
    """Tokens served from the server's cache; by default they cost what others do."""
    output: float | None = Field(None, ge=0)
    hour: float | None = Field(None, ge=0)
    """One machine for an hour; each address counts as one. 0 if it costs nothing."""

    @model_validator(mode="after")
    def _whole(self) -> "PriceSection":
        by_tokens = self.input is not None and self.output is not None
        some_tokens = not (self.input is self.output is self.cached_input is None)
        if some_tokens != by_tokens or by_tokens == (self.hour is not None):
            raise ValueError("write either input and output, or hour: {input: 0.1, output: 0.4}")
        return self


class BudgetSection(Section):
    """What may be spent. At a limit the work stops, and goes on when the limit is raised."""

    usd: float | None = Field(None, ge=0)
    hours: float | None = Field(None, ge=0)
    """Working time over all resumes."""
    tokens: int | None = Field(None, ge=0)
    """Of prompts and replies together."""

    @model_validator(mode="after")
    def _some(self) -> "BudgetSection":
        if self.usd is self.hours is self.tokens is None:
            raise ValueError("sets nothing; write usd, hours or tokens")
        return self


class GuaranteeSection(Section):
    """What `tamis calibrate` has to promise, against whose answers, for how many labels."""

    recall: float | None = Field(None, gt=0, lt=1)
    """Share of what `against` would accept that is not rejected. Or write one of the next two."""
    precision: float | None = Field(None, gt=0, lt=1)
    """Share of all that is accepted that `against` would accept."""
    accuracy: float | None = Field(None, gt=0, lt=1)
    """Share of all answers that agree with `against`."""
    confidence: float = Field(0.9, gt=0, lt=1)
    """Probability with which the promise is kept."""
    against: str
    """The last tier's name, or `people`."""
    labels: int = Field(gt=0)
    """How many candidates may be labelled."""
    prevalence: float | None = Field(None, gt=0, lt=1)
    """Guess of the share of positives, for the plan alone; stored labels know better."""
    costs: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """Of one candidate at each tier, in any unit; by default each tier is four times as dear."""
    seed: int = Field(0, ge=0)
    """Draws the sample. Trying several until the result pleases voids the promise."""
    audit: float | None = Field(None, gt=0, lt=1)
    """Share of the rejects that the last tier is asked about all the same: 0.5 % or 0.005."""
    approval: bool = False
    """Whether a person has to approve of certified thresholds before they take effect."""

    @field_validator("recall", "precision", "accuracy", "confidence", "audit", mode="before")
    @classmethod
    def _percent(cls, share: Any) -> Any:
        written = re.fullmatch(r"([0-9.]+) ?%", share) if isinstance(share, str) else None
        return share if written is None else float(Fraction(written[1]) / 100)

    @model_validator(mode="after")
    def _one_promise(self) -> "GuaranteeSection":
        promises = (self.recall, self.precision, self.accuracy)
        if sum(each is not None for each in promises) != 1:
            raise ValueError("write one of recall, precision and accuracy, such as recall: 0.95")
        if self.audit is not None and (self.recall is None or self.by_people):
            raise ValueError(
                "audit asks the last tier what a recall has lost; leave it out, or write recall "
                "and against: with the last tier's name"
            )
        return self

    @property
    def kind(self) -> str:
        """What is promised: recall, precision or accuracy."""
        kinds = ("recall", "precision", "accuracy")
        return next(kind for kind in kinds if getattr(self, kind) is not None)

    @property
    def target(self) -> float:
        """What is at least kept of it."""
        return float(getattr(self, self.kind))

    @property
    def delta(self) -> float:
        """Probability with which the promise may fail: as written, 1 - 0.9 is 0.1."""
        return float(1 - Fraction(str(self.confidence)))

    @property
    def by_people(self) -> bool:
        return self.against == "people"


class AfterSection(Section):
    """Where the results of a run go once it is done: to a file, or to a table."""

    results: str | None = None
    """A .csv, .json, .jsonl or .parquet file; `{run}` and `{screen}` stand for their names."""
    table: str | None = Field(None, pattern=rf"^{_NAME}(\.{_NAME})?$")
    """A table, made if it is missing; the run's rows of before are replaced in one transaction."""
    url_variable: VariableName | None = None
    """The environment variable that holds the address of the table's database."""
    verdict: Literal["accepted", "rejected", "review", "failed"] | None = None
    """Only these; all by default."""

    @model_validator(mode="after")
    def _one_place(self) -> "AfterSection":
        if (self.results is None) == (self.table is None):
            raise ValueError("write either results: out/{run}.csv, or table: accepted")
        if (self.table is None) != (self.url_variable is None):
            raise ValueError("table and url_variable go together: {table: t, url_variable: URL}")
        if self.results is not None and not self.results.endswith(_RESULTS):
            raise ValueError(f"results: '{self.results}' is none of {', '.join(_RESULTS)}")
        unknown = set(re.findall(r"\{(\w*)\}", self.results or "")) - {"run", "screen"}
        if unknown:
            raise ValueError(
                f"results: '{{{min(unknown)}}}' stands for nothing; write {{run}} or {{screen}}"
            )
        return self
