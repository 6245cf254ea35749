"""What every section of a screen file is."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict


class Section(BaseModel):
    """Closed to unknown keys, and never changed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def shape_of(value: Any) -> str:
    """Which of the two forms of a setting was meant, so that a fault is told once."""
    return "@word" if isinstance(value, str) else "@mapping"


def _variable(name: str) -> str:
    # The value is not repeated: it may be an address that was written here.
    if not re.fullmatch(r"[A-Z][A-Z0-9_]{0,79}", name):
        raise ValueError(
            "is no name of a variable; write url_variable: WAREHOUSE_URL, and put the address "
            "itself into that variable or into .env"
        )
    return name


VariableName = Annotated[str, AfterValidator(_variable)]
"""The name of an environment variable: capitals, digits and underscores."""
