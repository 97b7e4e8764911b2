"""What the tour found, in sentences made from the numbers alone."""

from __future__ import annotations

from collections.abc import Sequence

from tightpack.benchmarking.tour.precision_runs import PrecisionRuns, attained, with_targets
from tightpack.benchmarking.tour.recommendation import ATTAINMENT, Candidate, Choice


def choice_in_words(choice: Choice, max_kl: float) -> list[str]:
    """Why the winner, what stood beside it, and what the quality bound left out."""
    winner = choice.winner
    if choice.meets_targets:
        said = [
            f"{_name(winner)}: {winner.attained:.0%} of the interactive requests met their targets (asked:"
            f" {ATTAINMENT:.0%}), at KL {winner.kl:.2g} (bound {max_kl:g}), {winner.goodput_per_s:.1f}"
            f" requests/s in time, {1000 * winner.busy_s:.0f} ms of the machine for each."
        ]
    else:
        said = [
            f"Nothing within KL {max_kl:g} met the targets of {ATTAINMENT:.0%} of the interactive requests at"
            f" this load. {_name(winner)} came nearest, with {winner.attained:.0%}; give it less load."
        ]
    if choice.runner_up is not None:
        other = choice.runner_up
        said.append(
            f"Next: {_name(other)}, {other.attained:.0%} in time, {other.goodput_per_s:.1f} requests/s,"
            f" {1000 * other.busy_s:.0f} ms each."
        )
    if choice.too_lossy:
        said.append(
            f"Left out for quality: {', '.join(choice.too_lossy)}. Calibration lowers the price: tightpack"
            " quantize."
        )
    return said


def both_levers(found: Sequence[PrecisionRuns]) -> list[str]:
    """What each lever did: batching at the original's precision, then precision."""
    original, *others = found
    runs = {run.policy: run for run in original.runs}
    said = []
    if {"static", "slo"} <= runs.keys():
        said.append(
            f"{original.name}: {attained(runs['static']):.0%} of the interactive requests were in time under"
            f" static, {attained(runs['slo']):.0%} under slo: the same weights, the same load."
        )
    if {"continuous", "chunked-prefill"} <= runs.keys():
        whole, cut = (with_targets(runs[name]).itl_s.p99 for name in ("continuous", "chunked-prefill"))
        if whole and cut:
            said.append(
                f"{original.name}: the p99 gap between two tokens was {1000 * whole:.0f} ms where prompts are"
                f" computed whole, {1000 * cut:.0f} ms where they are cut into chunks."
            )
    said += [
        f"{other.name} serves {other.served_per_s:.1f} requests/s of this mix at the most, {original.name}"
        f" {original.served_per_s:.1f} ({other.served_per_s / original.served_per_s:.1f} x); its price is KL"
        f" {other.kl:.2g}."
        for other in others
    ]
    return said


def _name(one: Candidate) -> str:
    return f"{one.precision} under {one.policy}"
