"""A run of `tightpack quantize` on the terminal: how far it is, and what came of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from tightpack.calibration.config import QuantizationRecipe
    from tightpack.calibration.estimate import Estimate
    from tightpack.calibration.report import QuantizationReport
    from tightpack.calibration.resume import LayerResult


class QuantizationBars:
    """Shows a run on standard error: what it expects to take, then a bar a layer with error and time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task: TaskID | None = None
        self._phase: TaskID | None = None
        self._started = 0.0
        self._first: int | None = None
        self.began = False

    def __enter__(self) -> QuantizationBars:
        return self

    def __exit__(self, kind: type[BaseException] | None, *unused: object) -> None:
        if kind is None:
            self._end_phase()
        self.stop()

    def stop(self) -> None:
        if self._progress.live.is_started:  # one that never was would end with an empty line
            self._progress.stop()

    def phase(self, what: str) -> None:
        self._end_phase()
        self._task, self._started = None, time.monotonic()
        self._progress.start()  # not before there is something to show: what is refused at once shows nothing
        self._phase = self._progress.add_task(what, total=None, note="")

    def note(self, what: str) -> None:
        self._end_phase()
        self._task, self._started = None, time.monotonic()
        self._console.print(what, highlight=False, soft_wrap=True)

    def planned(self, recipe: QuantizationRecipe, expected: Estimate) -> None:
        self._end_phase()
        self._console.print(
            f"{recipe.label}: about {_duration(expected.seconds)}, {_gib(expected.memory_bytes)} of memory "
            f"and {_gib(expected.disk_bytes)} of disk for progress",
            highlight=False,
            soft_wrap=True,
        )
        self._started = time.monotonic()
        self.began = True

    def sensitivity(self, index: int, count: int) -> None:
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task("each layer's sensitivity", total=count, note="")
        # A layer is passed once for each site before it that was rounded alone: the last ones take longest.
        share = (index + 1) * (index + 2) / (count * (count + 1))
        left = (time.monotonic() - self._started) * (1 / share - 1)
        self._progress.update(self._task, completed=index + 1, note=f"{_duration(left)} left" if left else "")
        if index + 1 == count:
            self._task, self._started = None, time.monotonic()

    def layer(self, index: int, count: int, result: LayerResult) -> None:
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task("layers", total=count, note="")
            self._first = index
        assert self._first is not None
        done = index + 1 - self._first
        left = (time.monotonic() - self._started) / done * (count - index - 1)
        errors = list(result.errors.values())
        mean = sum(errors) / len(errors)
        note = f"error {mean:.4f}, {_duration(left)} left" if left else f"error {mean:.4f}"
        self._progress.update(self._task, completed=index + 1, note=note)

    def _end_phase(self) -> None:
        if self._phase is not None:
            self._progress.update(self._phase, total=1, completed=1)
            self._phase = None


def show_report(console: Console, report: QuantizationReport, output: Path) -> None:
    table = Table(box=box.ROUNDED, title=f"{report.model}: {report.recipe}", title_style="bold")
    table.add_column("layer", justify="right")
    table.add_column("scheme")
    table.add_column("relative error", justify="right")
    table.add_column("worst linear")
    for layer, schemes, error, worst in report.by_layer():
        table.add_row(str(layer), " / ".join(schemes), f"{error:.4f}", worst)
    console.print(table)
    quality = report.quality
    summary = Table(box=box.ROUNDED, show_header=False)
    summary.add_column(style="cyan", no_wrap=True)
    summary.add_column()
    original = f"(original {quality['reference_perplexity']:.3f})"
    summary.add_row("perplexity", f"{quality['perplexity']:.3f} {original}")
    summary.add_row("KL(original‖quantized)", f"{quality['kl']:.5f} nats a token")
    summary.add_row("top-1 agreement", f"{quality['top1_agreement']:.2%}")
    summary.add_row("measured on", f"{quality['tokens']:,} tokens, {report.held_out_text}")
    summary.add_row("bits a weight", f"{report.bits_per_weight:.2f}")
    took = ", ".join(f"{name} {_duration(value)}" for name, value in report.seconds.items())
    summary.add_row("time", took)
    if report.peak_memory_bytes is not None:
        summary.add_row("peak memory", _gib(report.peak_memory_bytes))
    if "continuation" in report.smoke_test:
        summary.add_row("it says", report.smoke_test["prompt"] + report.smoke_test["continuation"])
    else:
        summary.add_row("not generated from", report.smoke_test["skipped"])
    console.print(summary)
    console.print(f"wrote {output}; try: tightpack serve {output}", highlight=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**29 else f"{num_bytes / 2**20:.0f} MiB"
