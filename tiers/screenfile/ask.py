"""What a tier asks its model for."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from tiers.prompt import field_schema
from tiers.screenfile.section import Section, shape_of


class JsonAsk(Section):
    """A reply in JSON: the verdict, its confidence, and the fields named here."""

    fields: dict[str, str] = Field({"reasons": "list of str"}, alias="json")

    @field_validator("fields")
    @classmethod
    def _kinds(cls, fields: dict[str, str]) -> dict[str, str]:
        for name, kind in fields.items():
            if name in ("verdict", "confidence"):
                raise ValueError(f"'{name}' is always part of the reply; leave it out")
            field_schema(kind)
        return fields


class Criterion(Section):
    """One of several questions about a candidate, each answered by yes or no."""

    text: str = Field(min_length=1)
    """What is asked for, in words."""
    weight: float = Field(1.0, gt=0)
    """Its part in the score."""
    must: bool = False
    """Whether a candidate without it is out, whatever else it has."""


class CriteriaAsk(Section):
    """Several criteria, read in one pass: a position each, and nothing is written."""

    criteria: dict[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,39}$")], Criterion] = (
        Field(min_length=1, max_length=40)
    )

    def listed(self) -> str:
        """The criteria as the prompt shows them, before the candidate."""
        lines = (
            f"{number}. {name}: {one.text.strip()}" + " (a must)" * one.must
            for number, (name, one) in enumerate(self.criteria.items(), 1)
        )
        return "\n".join(("The criteria:", *lines))

    def total(self, chances: Mapping[str, float]) -> tuple[float, str | None]:
        """The score, and which must-have fails.

        The mean of the chances of yes by weight; 0 where a must-have is rather not met.
        """
        failed = [name for name, one in self.criteria.items() if one.must and chances[name] < 0.5]
        if failed:
            return 0.0, f"must-have not met: {', '.join(failed)}"
        whole = sum(one.weight for one in self.criteria.values())
        score = sum(one.weight * chances[name] for name, one in self.criteria.items()) / whole
        return min(max(score, 0.0), 1.0), None


def _kind(value: Any) -> str:
    """Which kind of question it is."""
    asks = isinstance(value, CriteriaAsk) or (isinstance(value, Mapping) and "criteria" in value)
    return "@criteria" if asks else shape_of(value)


Ask = Annotated[
    Annotated[Literal["yes_no", "score"], Tag("@word")]
    | Annotated[JsonAsk, Tag("@mapping")]
    | Annotated[CriteriaAsk, Tag("@criteria")],
    Discriminator(_kind),
]
