"""A cost model of a machine that has become faster or slower as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tightpack.scheduling.plan import StepPlan
from tightpack.simulated.cost_model import CostModel


@dataclass(frozen=True, slots=True)
class ScaledCostModel:
    """factor: what a step takes now over what `model` says. Raises ValueError for one that is not above 0."""

    model: CostModel
    factor: float

    def __post_init__(self) -> None:
        if not self.factor > 0:
            raise ValueError(f"a step's time is scaled by a factor above 0, got {self.factor}")

    @property
    def description(self) -> Mapping[str, str]:
        return {**self.model.description, "scaled by": f"{self.factor:.3f}"}

    def step_seconds(self, plan: StepPlan) -> float:
        return self.factor * self.model.step_seconds(plan)
