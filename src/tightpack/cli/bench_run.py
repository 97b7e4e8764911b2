"""Runs what `tightpack bench` planned, shows it in the terminal, and makes its report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tightpack.benchmarking.capacity import (
    Capacity,
    Probe,
    capacity_to_json,
    find_capacity,
    probe_rate,
    requests_for,
)
from tightpack.benchmarking.comparison import WARM_UP_REQUESTS, compare_policies, warm_up
from tightpack.benchmarking.manifest import Conditions, manifest
from tightpack.benchmarking.outcomes import Progress
from tightpack.benchmarking.policy_run import PolicyRun, median_run
from tightpack.benchmarking.report import to_json
from tightpack.benchmarking.results_table import class_table, interval_notes, results_table, table_notes
from tightpack.benchmarking.workload import Workload, build_workload
from tightpack.cli.bench_plan import CapacitySearch, Plan
from tightpack.cli.bench_target import Opened

if TYPE_CHECKING:
    from tightpack.progress import Advance


def measure(
    console: Console, status: Console, opened: Opened, plan: Plan, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything planned; returns the report. console: for results. status: for what passes."""
    where = ", ".join(f"{key} {value}" for key, value in opened.executor.items())
    console.print(f"[bold]{opened.name}[/bold]: {where}", highlight=False, soft_wrap=True)
    workloads = _Workloads(opened, plan, arguments["seed"])
    warmed = 0
    if opened.warms_up and not arguments["no_warmup"]:
        with status.status("warming up"):
            workload = workloads.at(plan.rates[0], 0, purpose="warm-up")
            warm_up(opened.target, plan.policies[0], workload)
            warmed = min(WARM_UP_REQUESTS, len(workload.requests))
    head = manifest(
        model=opened.name,
        label=arguments["label"] or opened.label,
        executor=opened.executor,
        arguments={**arguments, "limits": {name: dict(one) for name, one in plan.limits.items()}},
        where=opened.where,
    )
    kv_cache = "unknown" if opened.fresh_prompts else "empty"
    conditions = Conditions(warmed, opened.prefix_caching, kv_cache)
    bars = Bars(hidden=status.quiet)
    if plan.capacity is not None:
        return _search(console, opened, plan, plan.capacity, workloads, arguments["repeats"], bars) | {
            **head,
            "conditions": asdict(conditions),
        }
    shown: list[Workload] = []
    runs: list[list[PolicyRun]] = []
    for rate in plan.rates:
        repeats = [workloads.at(rate, repeat) for repeat in range(arguments["repeats"])]
        found = compare_policies(opened.target, plan.policies, repeats, observer=bars)
        _show(console, repeats[0], found, opened.max_model_len)
        shown.append(repeats[0])
        runs += found
    return to_json(head, conditions, shown, runs)


class _Workloads:
    """Makes them; each with prompts of its own for a target that may remember those it has seen."""

    def __init__(self, opened: Opened, plan: Plan, seed: int) -> None:
        self._opened = opened
        self._plan = plan
        self._seed = seed
        self._made = 0

    def at(
        self, rate: float | None, repeat: int, *, purpose: str = "", coming: str = "", at_least: int = 1
    ) -> Workload:
        """purpose: of a workload beside the measured ones. coming: how requests come, if not at the rate.

        at_least: of so many requests.
        """
        opened, plan = self._opened, self._plan
        self._made += 1
        seed = self._seed + repeat
        named = f"{seed}/{purpose}/{self._made}" if opened.fresh_prompts or purpose else seed
        if not coming:
            coming = plan.traffic.own_arrivals if rate is None else f"{rate:g} a second"
        if plan.clients is not None:
            coming = f"{plan.clients} clients in closed loop"
        description = ", ".join(filter(None, (plan.traffic.describe(), coming)))
        return build_workload(
            description,
            plan.traffic.shapes(rate, repeat, at_least),
            opened.vocabulary,
            opened.max_model_len,
            named,
            clients=plan.clients,
            rate=rate,
        )


def _search(
    console: Console,
    opened: Opened,
    plan: Plan,
    search: CapacitySearch,
    workloads: _Workloads,
    repeats: int,
    bars: Bars,
) -> dict[str, Any]:
    level = search.level
    console.print(
        f"the largest rate, kept up for {search.probe_s:g} s, at which {100 * level.attainment:.4g} % of"
        f" requests meet the targets of their class, every first token comes within {level.max_ttft_s:g} s"
        f" and {100 * level.batch_tokens:.4g} % of the tokens of requests without targets are served",
        highlight=False,
    )
    found: list[list[Capacity]] = []
    for policy in plan.policies:
        found.append([])
        for repeat in range(repeats):

            def probe(rate: float, policy: str = policy, repeat: int = repeat) -> Probe:
                workload = workloads.at(rate, repeat, at_least=requests_for(rate, search.probe_s))
                bars.started(f"{policy} at {rate:.3g}/s", len(workload.requests))
                one = probe_rate(opened.target, policy, workload, rate, level, bars.advance)
                bars.stop()
                _show_probe(console, one)
                return one

            start = found[-1][0].rate or search.start if found[-1] else search.start
            capacity = find_capacity(policy, probe, start, resolution=search.resolution)
            found[-1].append(capacity)
            console.print(f"[bold]{policy}: {capacity.rate:.3g} requests/s[/bold]", highlight=False)
    shown = workloads.at(search.start, 0, coming="at the rates tried")
    return capacity_to_json(level, search.resolution, search.probe_s, shown, found)


def _show_probe(console: Console, probe: Probe) -> None:
    run, verdict = probe.run, probe.verdict
    found = "meets the level" if verdict.met else f"no: {'; '.join(verdict.reasons)}"
    dropped = f" (given up after {run.completed} of {run.requests} requests)" if probe.given_up else ""
    tried = f"  {run.policy} at {probe.rate:.3g}/s: {verdict.attained:.1%} met their targets"
    console.print(f"{tried}; {found}{dropped}", highlight=False, soft_wrap=True)


def _show(console: Console, workload: Workload, runs: Sequence[Sequence[PolicyRun]], max_len: int) -> None:
    shown = [median_run(repeated) for repeated in runs]
    console.print(
        f"{workload.description}; in all {workload.num_input_tokens} prompt tokens,"
        f" {workload.num_output_tokens} output tokens",
        highlight=False,
    )
    if workload.num_clipped:
        clipped = f"{workload.num_clipped} of {len(workload.requests)} requests were clipped"
        console.print(f"{clipped} to the context of {max_len} tokens.", style="yellow")
    console.print(results_table(shown))
    if len(shown[0].classes) > 1:
        console.print(class_table(shown))
    for note in (*table_notes(workload, shown), *interval_notes(runs)):
        console.print(note, highlight=False)


# Steps of a simulation follow each other faster than a bar can be drawn.
_REDRAWN_EVERY_S = 0.05


class Bars:
    """A progress bar a run."""

    def __init__(self, *, hidden: bool) -> None:
        self._hidden = hidden
        self._stack = ExitStack()
        self._advance: Advance | None = None
        self._seen = (0, 0)
        self._drawn = 0.0

    def started(self, policy: str, total: int) -> None:
        from tightpack.progress import progress_bar

        self._seen = (0, 0)
        self._advance = self._stack.enter_context(progress_bar(total, f"{policy:15}", hidden=self._hidden))

    def progressed(self, policy: str, progress: Progress) -> None:
        del policy
        self.advance(progress)

    def advance(self, progress: Progress) -> None:
        now = time.monotonic()
        too_soon = progress.ended < progress.total and now < self._drawn + _REDRAWN_EVERY_S
        if self._advance is None or too_soon:
            return
        ended, tokens = self._seen
        self._advance(progress.ended - ended, progress.output_tokens - tokens)
        self._seen = (progress.ended, progress.output_tokens)
        self._drawn = now

    def ended(self, run: PolicyRun) -> None:
        del run
        self.stop()

    def stop(self) -> None:
        self._stack.close()
