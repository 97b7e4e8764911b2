from __future__ import annotations

from typing import ClassVar

import pytest

from tightpack.scheduling.plan import StepPlan
from tightpack.serving_loop.executor import StepResult
from tightpack.simulated.designed_steps import Rows, StepTimer
from tightpack.simulated.machine_speed import MachineSpeed, reference_steps
from tightpack.simulated.scaled import ScaledCostModel


class Machine:
    """An executor that says what it takes: a millisecond a token, times `factor`."""

    num_blocks, block_size = 64, 4

    def __init__(self) -> None:
        self.factor = 1.0
        self.steps = 0

    def execute(self, plan: StepPlan) -> StepResult:
        self.steps += 1
        return StepResult({}, 1e-3 * plan.num_tokens * self.factor)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr("tightpack.simulated.machine_speed._SHORTEST_S", 0.0)
    return Machine()


def test_a_machine_is_held_against_itself(machine: Machine) -> None:
    rows = Rows(count=4, positions=32)
    speed = MachineSpeed(StepTimer(machine, rows, 50, 64), rows, 64)  # type: ignore[arg-type]
    speed.calibrated()
    machine.factor = 1.2
    speed.calibrated()
    machine.factor = 2.2
    assert speed.slowdown() == pytest.approx(2.0)
    machine.factor = 1.1
    assert speed.slowdown() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("count", "positions", "budget"), [(8, 2048, 64), (1, 16, 17), (4, 8, 4), (2, 64, 66)]
)
def test_reference_steps_fit(count: int, positions: int, budget: int) -> None:
    steps = reference_steps(Rows(count, positions), budget)
    assert len(steps[0]) == min(count, budget)
    for step in steps:
        assert sum(part.count for part in step) <= budget
        assert all(part.first >= 0 and part.first + part.count <= positions for part in step)
        assert len({part.row for part in step}) == len(step)


def test_a_scaled_cost_model() -> None:
    class Flat:
        description: ClassVar[dict[str, str]] = {"cost_model": "flat"}

        def step_seconds(self, plan: StepPlan) -> float:
            return 0.5

    scaled = ScaledCostModel(Flat(), 1.5)
    assert scaled.step_seconds(StepPlan(())) == 0.75
    assert scaled.description == {"cost_model": "flat", "scaled by": "1.500"}
    with pytest.raises(ValueError, match="above 0"):
        ScaledCostModel(Flat(), 0)
