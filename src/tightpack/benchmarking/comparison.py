"""The same workload under several policies, one after the other on one executor."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

from tightpack.benchmarking.driver import Progress, drive
from tightpack.benchmarking.report import PolicyRun
from tightpack.benchmarking.workload import Workload, WorkloadRequest
from tightpack.serving_loop.loop import ServingLoop

_WARM_UP_REQUESTS = 8
_WARM_UP_TOKENS = 8


class Observer(Protocol):
    """Told how a comparison goes, to show it."""

    def started(self, policy: str, total: int) -> None: ...

    def progressed(self, policy: str, progress: Progress) -> None: ...

    def ended(self, run: PolicyRun) -> None: ...


class Silent:
    """An observer that shows nothing."""

    def started(self, policy: str, total: int) -> None: ...

    def progressed(self, policy: str, progress: Progress) -> None: ...

    def ended(self, run: PolicyRun) -> None: ...


def compare_policies(
    make_loop: Callable[[str], ServingLoop],
    policies: Sequence[str],
    workload: Workload,
    *,
    repeats: int = 1,
    observer: Observer | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> list[list[PolicyRun]]:
    """For each policy, its runs. Repeats alternate between the policies, so that a machine that slows down
    slows all of them.

    make_loop: a fresh serving loop under the named policy, all over one executor.
    sleep: waits on the loops' clock, as in `drive`.
    """
    watcher = observer or Silent()
    runs: dict[str, list[PolicyRun]] = {policy: [] for policy in policies}
    for _ in range(repeats):
        for policy in policies:
            watcher.started(policy, len(workload.requests))
            watch = partial(watcher.progressed, policy)
            run = PolicyRun.of(policy, drive(make_loop(policy), workload, sleep=sleep, on_progress=watch))
            runs[policy].append(run)
            watcher.ended(run)
    return list(runs.values())


def warm_up(loop: ServingLoop, workload: Workload) -> None:
    """Run the beginning of the workload, so that first-use costs (allocation, kernels) are not measured."""
    drive(loop, replace(workload, requests=tuple(map(_shortened, workload.requests[:_WARM_UP_REQUESTS]))))


def _shortened(request: WorkloadRequest) -> WorkloadRequest:
    output_len = min(request.shape.output_len, _WARM_UP_TOKENS)
    return replace(request, shape=replace(request.shape, arrival_s=0.0, output_len=output_len))
