"""What every section of a screen file is."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Closed to unknown keys, and never changed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def shape_of(value: Any) -> str:
    """Which of the two forms of a setting was meant, so that a fault is told once."""
    return "@word" if isinstance(value, str) else "@mapping"
