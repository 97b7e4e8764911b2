"""Precisions and policies in one table for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tightpack.benchmarking.policy_run import PolicyRun
from tightpack.benchmarking.tour.precision_runs import PrecisionRuns, attained, with_targets
from tightpack.benchmarking.tour.recommendation import Candidate

_WIDTH = 8


@dataclass(frozen=True, slots=True)
class _Column:
    """value: None where a run has none. best: max or min, whichever is good."""

    title: str
    value: Callable[[PolicyRun], float | None]
    decimals: int
    best: Callable[..., float]


_COLUMNS = (
    _Column("output\ntokens/s", lambda run: run.output_tokens_per_s, 0, max),
    _Column("TTFT p99\ns", lambda run: with_targets(run).ttft_s.p99, 2, min),
    _Column("TPOT p50\nms", lambda run: _gap(run, with_targets(run).tpot_s.p50), 0, min),
    _Column("ITL p99\nms", lambda run: _gap(run, with_targets(run).itl_s.p99), 0, min),
    _Column("in time\n%", lambda run: 100 * attained(run), 0, max),
    _Column("goodput\nreq/s", lambda run: run.goodput_per_s, 2, max),
)


def tour_table(found: Sequence[PrecisionRuns], chosen: Candidate | None = None) -> RenderableType:
    """A line for each precision with its size and price, and under it one for each policy, in 70 columns.

    Latencies are those of the class with targets. The best of each column is starred where they differ;
    `chosen` has an arrow.
    """
    runs = [run for precision in found for run in precision.runs]
    columns = [_cells(column, runs) for column in _COLUMNS]
    rows = iter(zip(*columns, strict=True))
    # A precision's line is wider than any column: tables of the same widths, one below the other.
    parts: list[RenderableType] = [_table(with_titles=True)]
    for precision in found:
        table = _table(with_titles=False)
        for run in precision.runs:
            is_chosen = chosen is not None and (precision.name, run.policy) == (
                chosen.precision,
                chosen.policy,
            )
            name = Text(f"{'→' if is_chosen else ' '} {run.policy}", style="bold" if is_chosen else "")
            table.add_row(name, *next(rows))
        parts += [_heading(precision), table]
    return Group(*parts)


def _table(*, with_titles: bool) -> Table:
    """The titles, or the rows below them."""
    table = Table(
        box=box.SIMPLE_HEAD if with_titles else None,
        show_header=with_titles,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("", no_wrap=True, width=17)
    for column in _COLUMNS:
        table.add_column(column.title, justify="right", no_wrap=True, vertical="bottom", width=_WIDTH)
    return table


def price_in_words(precision: PrecisionRuns) -> str:
    """ "92 MiB of weights · KL 0.0041 · same first choice 97.8%"."""
    parts = []
    if precision.weight_bytes is not None:
        parts.append(f"{precision.weight_bytes / 2**20:.0f} MiB of weights")
    if precision.quality is None:
        parts.append("the original")
    else:
        parts.append(f"KL {precision.kl:.2g} · same first choice {precision.quality.top1_agreement:.1%}")
    return " · ".join(parts)


def _heading(precision: PrecisionRuns) -> Text:
    return Text.assemble((precision.name, "bold cyan"), f"  {price_in_words(precision)}")


def _cells(column: _Column, runs: Sequence[PolicyRun]) -> list[Text]:
    texts = [None if (value := column.value(run)) is None else f"{value:.{column.decimals}f}" for run in runs]
    # Compared as shown: what reads the same is equally good.
    values = {float(text) for text in texts if text is not None}
    best = column.best(values) if len(values) > 1 else None
    return [
        Text("– ")
        if text is None
        else Text(f"{text}*", style="bold green")
        if float(text) == best
        else Text(f"{text} ")
        for text in texts
    ]


def _gap(run: PolicyRun, seconds: float | None) -> float | None:
    """Milliseconds between tokens; None for a run that hands over all tokens of a request together."""
    return None if seconds is None or run.releases_at_once else 1000 * seconds
