"""Schedules: any numeric setting may be `{from: 1.0, to: 0.2, over: 200, shape: cosine}` instead of a number."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Schedule(BaseModel):
    """A number that moves with the step: `start` until `after`, then to `to` over `over` steps, constant from there.

    `from` may be a schedule itself, a warm-up before the decay for example.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True, allow_inf_nan=False)

    start: float | Schedule = Field(alias="from")
    to: float
    over: int = Field(gt=0, description="steps the move takes")
    after: int = Field(0, ge=0, description="steps before the move starts")
    shape: Literal["linear", "cosine", "exponential", "step"] = "linear"

    @property
    def lowest(self) -> float:
        """The least it comes to."""
        return min(self.start.lowest if isinstance(self.start, Schedule) else self.start, self.to)

    def at(self, step: int) -> float:
        start = resolve(self.start, step)
        x = min(max((step - self.after) / self.over, 0.0), 1.0)
        if self.shape == "cosine":
            x = 0.5 - 0.5 * math.cos(math.pi * x)
        elif self.shape == "step":
            x = math.floor(x)
        elif self.shape == "exponential" and start > 0 and self.to > 0:
            return start * (self.to / start) ** x
        return start + (self.to - start) * x


def resolve(value: Any, step: int) -> Any:
    """The value of a setting at a step: a Schedule is evaluated, anything else is itself."""
    return value.at(step) if isinstance(value, Schedule) else value


def looks_like_schedule(value: Any) -> bool:
    return isinstance(value, dict) and "from" in value
