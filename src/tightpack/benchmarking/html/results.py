"""Result files as the page reads them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Scene:
    """A workload and the runs on it, those of every rate."""

    workload: Record
    runs: Sequence[Record]


@dataclass(frozen=True, slots=True)
class Result:
    """One result file. label: its name beside the others. scenes: the first is what was asked for."""

    label: str
    report: Record
    scenes: Sequence[Scene]

    @property
    def runs(self) -> Sequence[Record]:
        return self.scenes[0].runs

    @property
    def shown(self) -> list[Record]:
        """A run a policy: each at its capacity where that was searched, else all at the best rate."""
        return list(self.runs) if "capacity" in self.report else at_best_rate(self.runs)

    @property
    def shown_workload(self) -> Record:
        """That of the runs shown; the first where each is of its own rate."""
        workloads = self.report.get("workloads", [self.report["workload"]])
        rate = self.shown[0].get("rate") if self.runs else None
        return next((one for one in workloads if one.get("rate") == rate), workloads[0])


def read_reports(paths: Iterable[Path]) -> list[Record]:
    """Raises FileNotFoundError, and ValueError for what is no result of `tightpack bench`."""
    return [_read(path) for path in paths]


def as_results(reports: Sequence[Record]) -> list[Result]:
    """The reports under labels of their own: where two are the same, a number tells them apart."""
    results: list[Result] = []
    for report in (one for given in reports for one in given.get("tour", (given,))):
        name = label = str(report.get("label") or report["executor"].get("dtype", "result"))
        taken = [result.label for result in results]
        copies = 2
        while label in taken:
            label, copies = f"{name} ({copies})", copies + 1
        scenes = [Scene(report["workload"], report["runs"])]
        if "long_prompt" in report:
            scenes.append(Scene(report["long_prompt"]["workload"], report["long_prompt"]["runs"]))
        results.append(Result(label, report, scenes))
    return results


def at_best_rate(runs: Sequence[Record]) -> list[Record]:
    """Of runs at several rates, those at the one where some policy's goodput was largest."""
    if not runs:
        return []
    best = max(runs, key=lambda run: float(run["goodput_requests_per_s"] or 0.0))
    return [run for run in runs if run.get("rate") == best.get("rate")]


def gap(run: Record, latency: str, which: str) -> float | None:
    """A latency between tokens; None for a run that handed over all tokens of a request together."""
    if run["itl_s"]["max"] == 0 or latency not in run:
        return None
    return mean(run, f"{latency}.{which}")


def interval(run: Record, metric: str) -> tuple[float, float] | None:
    """The 95 % confidence interval of a metric over repeats."""
    found = run.get("intervals", {}).get(metric)
    if found is None or found["low"] is None:
        return None
    return float(found["low"]), float(found["high"])


def mean(run: Record, metric: str) -> float | None:
    """A metric's mean over repeats, or the run's own value. metric: a path such as ttft_s.p99."""
    found = run.get("intervals", {}).get(metric)
    if found is not None:
        return float(found["mean"])
    value: Any = run
    for name in metric.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return None if value is None else float(value)


def _read(path: Path) -> Record:
    if not path.is_file():
        raise FileNotFoundError(f"no result file at {path}")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if "tour" in report:
        return dict(report)
    missing = [name for name in ("model", "executor", "workload", "runs") if name not in report]
    if missing:
        raise ValueError(f"{path} is not a result of tightpack bench: it has no {missing[0]!r}")
    return dict(report)
