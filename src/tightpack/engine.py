"""An engine from its arguments: the one place that assembles checkpoint, policy and executor."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tightpack.checkpoints.checkpoint import Checkpoint
from tightpack.checkpoints.open import open_checkpoint
from tightpack.engine_args import EngineArgs, resolve_limits, resolve_max_model_len
from tightpack.executors import make_executor
from tightpack.on_load import with_quantization
from tightpack.requests.service_class import ServiceClass
from tightpack.scheduling.limits import SchedulerLimits
from tightpack.scheduling.registry import make_policy
from tightpack.serving_loop.clock import Clock, MonotonicClock
from tightpack.serving_loop.executor import Executor
from tightpack.serving_loop.loop import ServingLoop

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Engine:
    """A loaded model under one policy.

    args: as given; `limits` and `executor.description` hold what their "auto" became.
    load_seconds: phase of loading to the seconds it took.
    """

    args: EngineArgs
    checkpoint: Checkpoint
    executor: Executor
    limits: SchedulerLimits
    loop: ServingLoop
    load_seconds: Mapping[str, float]

    def with_policy(self, policy: str, **changes: Any) -> Engine:
        """The same weights and KV tensors under another policy (and changed arguments), with empty queues."""
        args = replace(self.args, policy=policy, **changes)
        limits = resolve_limits(args, self.limits.max_model_len, self.limits.num_blocks, _kind(self.executor))
        loop = ServingLoop(make_policy(policy, limits), self.executor, self.loop.clock)
        return replace(self, args=args, limits=limits, loop=loop)

    @property
    def max_model_len(self) -> int:
        return self.limits.max_model_len

    def service_class(self, name: str) -> ServiceClass:
        """The class of that name with the targets of `args`."""
        return next(one for one in self.args.service_classes if one.name == name)


def load_engine(
    args: EngineArgs, clock: Clock | None = None, *, checkpoint: Checkpoint | None = None
) -> Engine:
    """Open the checkpoint, load its weights, size the KV cache, and put the policy in front of it.

    checkpoint: takes the place of what `args.model` and `args.quantization` name.

    Raises CheckpointError for the checkpoint, ValueError for arguments that do not go together, and
    ModuleNotFoundError that says what to install where PyTorch is needed and absent.
    """
    started = time.monotonic()
    if checkpoint is None:
        checkpoint = with_quantization(open_checkpoint(args.model), args)
    max_model_len = resolve_max_model_len(args, checkpoint.spec)
    opened = time.monotonic()
    executor = make_executor(checkpoint, args, max_model_len)
    loaded = time.monotonic()
    limits = resolve_limits(args, max_model_len, executor.num_blocks, _kind(executor))
    loop = ServingLoop(make_policy(args.policy, limits), executor, clock or MonotonicClock())
    seconds = {"checkpoint": opened - started, "weights": loaded - opened}
    engine = Engine(args, checkpoint, executor, limits, loop, seconds)
    logger.info(
        "loaded %s: %s, policy %s, %s", checkpoint.name, dict(executor.description), args.policy, limits
    )
    return engine


def _kind(executor: Executor) -> str:
    """ "cpu" or "cuda"."""
    return "cpu" if executor.description["device"] == "cpu" else "cuda"
