"""The same workloads under several policies, one after the other against one target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

from tightpack.benchmarking.outcomes import Progress
from tightpack.benchmarking.policy_run import PolicyRun
from tightpack.benchmarking.target import Target
from tightpack.benchmarking.workload import Workload, WorkloadRequest

WARM_UP_REQUESTS = 8
WARM_UP_TOKENS = 8


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
    target: Target,
    policies: Sequence[str],
    workloads: Sequence[Workload],
    *,
    observer: Observer | None = None,
) -> list[list[PolicyRun]]:
    """For each policy, its runs, one a workload.

    workloads: the repeats. Every policy gets each of them, and they take turns, so that a machine that slows
        down slows all of them.
    """
    watcher = observer or Silent()
    runs: dict[str, list[PolicyRun]] = {policy: [] for policy in policies}
    for workload in workloads:
        for policy in policies:
            watcher.started(policy, len(workload.requests))
            drive = target.run(policy, workload, on_progress=partial(watcher.progressed, policy))
            run = PolicyRun.of(policy, drive)
            runs[policy].append(run)
            watcher.ended(run)
    return list(runs.values())


def warm_up(target: Target, policy: str, workload: Workload) -> None:
    """Run the beginning of a workload, so that first-use costs (allocation, kernels) are not measured."""
    requests = tuple(map(_shortened, workload.requests[:WARM_UP_REQUESTS]))
    target.run(policy, replace(workload, requests=requests))


def _shortened(request: WorkloadRequest) -> WorkloadRequest:
    output_len = min(request.shape.output_len, WARM_UP_TOKENS)
    return replace(request, shape=replace(request.shape, arrival_s=0.0, output_len=output_len))
