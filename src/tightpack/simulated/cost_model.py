"""The seam between the simulated executor and what predicts how long a step takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from tightpack.scheduling.plan import StepPlan


class CostModel(Protocol):
    """Pure: the same plan always takes the same time."""

    @property
    def description(self) -> Mapping[str, str]:
        """What is simulated, for logs and manifests: device, precision, where the numbers come from."""

    def step_seconds(self, plan: StepPlan) -> float:
        """Seconds that the plan takes."""
