"""What a workload can be run against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from tightpack.benchmarking.driver import drive
from tightpack.benchmarking.outcomes import Drive, Progress, Watch
from tightpack.benchmarking.workload import Workload
from tightpack.serving_loop.loop import ServingLoop


class Target(Protocol):
    def run(
        self,
        policy: str,
        workload: Workload,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        watch: Watch | None = None,
    ) -> Drive:
        """The workload under a policy, from empty queues to the last answer; a server has the one it has."""


class MakeLoop(Protocol):
    def __call__(self, policy: str, **limits: Any) -> ServingLoop:
        """A fresh loop under the named policy and these engine arguments: empty queues, empty KV cache."""


@dataclass(frozen=True, slots=True)
class InProcess:
    """Serving loops in this process, on a real executor or a simulated one, without HTTP.

    limits: policy to the engine arguments that it runs under.
    """

    make_loop: MakeLoop
    limits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def run(
        self,
        policy: str,
        workload: Workload,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        watch: Watch | None = None,
    ) -> Drive:
        loop = self.make_loop(policy, **self.limits.get(policy, {}))
        return drive(loop, workload, on_progress=on_progress, watch=watch)
