"""What `tightpack demo` shows while it runs: the results so far, and the run under way."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tightpack.benchmarking.outcomes import Progress
from tightpack.benchmarking.policy_run import PolicyRun
from tightpack.benchmarking.tour.precision_runs import PrecisionRuns
from tightpack.benchmarking.tour.table import tour_table

# A step can be shorter than it takes to draw a line.
_REDRAWN_EVERY_S = 0.08
_BAR = 40
# Lines of a whole table of 3 precisions and 5 policies, and those of the run under way.
_TABLE_LINES, _OWN_LINES = 21, 4
_MOST_DOTS = 36


class DemoDisplay(AbstractContextManager["DemoDisplay"]):
    """An observer of runs. On a terminal the table fills in place; in a log each run is a line.

    found: the precisions so far, to which the caller adds. slots: requests in a batch.
    """

    def __init__(self, console: Console, found: Sequence[PrecisionRuns], *, runs: int, slots: int) -> None:
        self._console = console
        self._found = found
        self._slots = slots
        self._runs, self._done = runs, 0
        self._started = time.monotonic()
        self._drawn = 0.0
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> DemoDisplay:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def say(self, words: str) -> None:
        """What happens between runs."""
        if self._console.is_terminal:
            self._show(Text(words, style="dim"))

    def started(self, policy: str, total: int) -> None:
        self._drawn = 0.0
        self.progressed(policy, Progress(0, 0, total, 0, 0.0))

    def progressed(self, policy: str, progress: Progress) -> None:
        now = time.monotonic()
        if not self._console.is_terminal or now < self._drawn + _REDRAWN_EVERY_S:
            return
        self._drawn = now
        precision = self._found[-1].name
        rate = progress.output_tokens / progress.elapsed_s if progress.elapsed_s > 0 else 0.0
        where = Text.assemble(
            (f"{precision} · {policy}", "bold cyan"),
            (f"   run {self._done + 1} of {self._runs}{self._left(now)}", "dim"),
        )
        line = Table.grid(padding=(0, 1))
        line.add_row(
            ProgressBar(total=progress.total, completed=progress.ended, width=_BAR, complete_style="green"),
            f"{progress.ended}/{progress.total} requests",
            f"{rate:,.0f} tokens/s",
        )
        self._show(where, line, self._queue(progress.arrived - progress.ended))

    def ended(self, run: PolicyRun) -> None:
        self._done += 1
        if not self._console.is_terminal:
            name = self._found[-1].name
            self._console.print(f"{name}, {run.policy}: {run.completed} requests in {run.duration_s:.1f} s")

    def _left(self, now: float) -> str:
        if self._done == 0:
            return ""
        seconds = (now - self._started) / self._done * (self._runs - self._done)
        return f", about {max(seconds, 1):.0f} s left"

    def _queue(self, under_way: int) -> Text:
        """A dot for each request in the machine: filled if there is a place for it, hollow if it waits."""
        places = min(under_way, self._slots)
        waiting = under_way - places
        dots = min(waiting, _MOST_DOTS)
        more = f"+{waiting - dots}" if waiting > dots else ""
        words = [("●" * places, "green"), (" computed", "dim")]
        if waiting:
            words += [("  " + "○" * dots + more, "yellow"), (" waiting", "dim")]
        return Text.assemble(*words) if under_way else Text("idle", style="dim")

    def _show(self, *lines: RenderableType) -> None:
        # A table that does not fit the screen would be cut at its newest lines.
        fits = self._console.size.height >= _TABLE_LINES + _OWN_LINES
        shown = [one for one in self._found if one.runs]
        table = tour_table(shown if fits else shown[-1:])
        parts: list[RenderableType] = [table, ""] if shown else []
        self._live.update(Group(*parts, *lines), refresh=True)
