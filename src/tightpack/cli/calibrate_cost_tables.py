"""What `tightpack calibrate-cost` prints: the fit, and predicted beside measured."""

from __future__ import annotations

import dataclasses

from rich import box
from rich.console import Console
from rich.table import Table

from tightpack.benchmarking.prediction import Prediction
from tightpack.simulated.fitted import FittedCostModel

# What a prediction should keep to.
_AIM = 0.1


def show_fit(console: Console, fitted: FittedCostModel) -> None:
    manifest, error = fitted.manifest, fitted.error
    where = ", ".join(f"{key} {value}" for key, value in manifest["executor"].items())
    console.print(f"[bold]{manifest['model']}[/bold]: {where}")
    table = Table(box=box.ROUNDED, title="Step time by tokens in the step, ms", title_style="bold")
    for count in fitted.token_counts:
        table.add_column(str(count), justify="right")
    table.add_row(*(f"{seconds * 1e3:.1f}" for seconds in fitted.step_s))
    console.print(table)
    console.print(
        f"and {fitted.sampling_s * 1e3:.2f} ms to sample at all, {fitted.sample_s * 1e3:.2f} ms a row; "
        f"{fitted.decoding_s * 1e3:.2f} ms to decode at all, {fitted.decode_s * 1e3:.2f} ms a decode; "
        f"{fitted.prompt_s * 1e3:.2f} ms a prompt chunk"
    )
    for cost in fitted.attention:
        window = "" if cost.window is None else f" (window {cost.window})"
        console.print(
            f"attention{window}: {cost.decode_position_s * 1e6:.2f} us a position that a decode reads, "
            f"{cost.own_pair_s * 1e9:.0f} ns a pair within a prompt chunk, "
            f"{cost.cached_pair_s * 1e9:.0f} ns a pair with what was cached"
        )
    if error is not None:
        console.print(
            f"{error.steps} steps that were not fitted: off by {error.mean:.1%} on average, "
            f"{error.p90:.1%} at the 90th percentile, their sum by {error.total:+.1%}"
        )


def show_check(console: Console, predictions: list[Prediction]) -> None:
    # Title, factor and decimals of each figure.
    names = {
        "output_tokens_per_s": ("output\ntokens/s", 1.0, 0),
        "ttft_p50_s": ("TTFT p50\ns", 1.0, 2),
        "ttft_p99_s": ("TTFT p99\ns", 1.0, 2),
        "tpot_p50_s": ("TPOT p50\nms", 1e3, 1),
        "tpot_p99_s": ("TPOT p99\nms", 1e3, 1),
    }
    title = "Predicted / measured, and the error"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_style="bold")
    table.add_column("policy", no_wrap=True)
    for column in ("rate\n1/s", "slower", *(column for column, *_ in names.values())):
        table.add_column(column, justify="right", no_wrap=True, vertical="top")
    for one in predictions:
        cells = []
        errors = one.errors()
        for name, (_, factor, decimals) in names.items():
            if name not in errors:
                cells.append("–")
                continue
            both = (getattr(figures, name) * factor for figures in (one.predicted, one.measured))
            shown = "/".join(f"{value:.{decimals}f}" for value in both)
            cells.append(f"{shown}\n{errors[name]:+.0%}")
        table.add_row(one.policy, f"{one.rate:.3g}", f"{one.slowdown - 1:+.0%}", *cells)
    console.print(table)
    off = [abs(error) for one in predictions for error in one.errors().values()]
    unadjusted = [
        abs(error)
        for one in predictions
        for error in dataclasses.replace(one, predicted=one.unadjusted).errors().values()
    ]
    console.print(
        f"slower: the machine's steps around the run against its calibration, which the prediction allows"
        f" for. {sum(error <= _AIM for error in off)} of {len(off)} figures within {_AIM:.0%}, the"
        f" largest error {max(off):.0%}; without that allowance"
        f" {sum(error <= _AIM for error in unadjusted)} within {_AIM:.0%}."
    )
