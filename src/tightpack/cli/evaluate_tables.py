"""What `tightpack evaluate` found, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from tightpack.evaluation.comparison import Quality


def show_tasks(console: Console, name: str, found: Mapping[str, Mapping[str, float]]) -> None:
    table = Table("task", "metric", title=name, title_style="bold", box=box.ROUNDED)
    table.add_column("value", justify="right")
    for task, metrics in found.items():
        for metric, value in metrics.items():
            if metric.endswith("_stderr") or metric in ("alias", "sample_len"):
                continue
            error = metrics.get(f"{metric}_stderr")
            table.add_row(task, metric, f"{value:.4f}" + ("" if error is None else f" ± {error:.4f}"))
    console.print(table)


def show_quality(console: Console, name: str, quality: Quality) -> None:
    table = Table(title=name, title_style="bold", box=box.ROUNDED, show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(justify="right")
    table.add_row("perplexity", f"{quality.perplexity:.3f}")
    if quality.kl is not None:
        table.add_row("reference's perplexity", f"{quality.reference_perplexity:.3f}")
        table.add_row("KL(reference‖model), nats", f"{quality.kl:.5f}")
        table.add_row("top-1 agreement", f"{quality.top1_agreement:.4f}")
    table.add_row("tokens", f"{quality.tokens:,}")
    table.add_row("seconds", f"{quality.seconds:.1f}")
    console.print(table)
