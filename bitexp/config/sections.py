"""What the sections of a config are made of: numbers and their ranges, no key too many, things by name."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
NotNegativeCount = Annotated[int, Field(ge=0)]
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class Section(BaseModel):
    """A part of the config: no other keys, no silent conversion, no change afterwards."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Named(Section):
    """A registered thing by name, with its own keyword arguments beside the name."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    name: str

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments that go to the registered class."""
        return dict(self.model_extra or {})
