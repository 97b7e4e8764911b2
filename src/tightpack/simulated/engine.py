"""A serving loop as in production, over the simulated executor."""

from __future__ import annotations

from tightpack.scheduling.limits import SchedulerLimits
from tightpack.scheduling.registry import make_policy
from tightpack.serving_loop.loop import ServingLoop
from tightpack.simulated.cost_model import CostModel
from tightpack.simulated.executor import SimulatedExecutor
from tightpack.simulated.virtual_clock import VirtualClock


def make_simulated_loop(
    cost_model: CostModel, limits: SchedulerLimits, policy: str, clock: VirtualClock
) -> ServingLoop:
    """A fresh loop under the named policy. Whoever waits for it calls `clock.sleep`.

    Raises ValueError for an unknown policy or unfit limits.
    """
    executor = SimulatedExecutor(
        cost_model, clock, num_blocks=limits.num_blocks, block_size=limits.block_size
    )
    return ServingLoop(make_policy(policy, limits), executor, clock)
