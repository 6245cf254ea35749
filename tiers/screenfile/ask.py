"""What a tier asks its model for."""

from typing import Annotated, Literal

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


Ask = Annotated[
    Annotated[Literal["yes_no", "score"], Tag("@word")] | Annotated[JsonAsk, Tag("@mapping")],
    Discriminator(shape_of),
]
