"""A plan on the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from tightpack.planning.candidate import Candidate
from tightpack.planning.commands import prepare_command, serve_command
from tightpack.planning.fits import Fit
from tightpack.planning.report import Plan
from tightpack.planning.weight_choices import WEIGHT_CHOICES

_RUNNERS_UP = 6


def show(console: Console, plan: Plan) -> None:
    _show_model(console, plan)
    _show_fits(console, plan.fits)
    _show_best(console, plan)
    _show_others(console, plan)
    _show_left_out(console, plan)


def _show_model(console: Console, plan: Plan) -> None:
    model, load = plan.model, plan.load
    active = "" if not model.spec.is_mixture else f", {model.active_parameters / 1e9:.1f} B of them active"
    console.print(f"[bold]{model.name}[/]: {model.parameters / 1e9:.2f} B parameters{active}")
    console.print(
        f"{load.rate:g} requests a second of {load.mean_input:,.0f} tokens in and "
        f"{load.mean_output:,.0f} out on average, {load.longest:,} at the most; {_targets(plan)} for "
        f"{100 * load.level.attainment:.4g} % of them"
    )


def _targets(plan: Plan) -> str:
    promise = plan.load.promise
    words = []
    if promise.ttft_s is not None:
        words.append(f"TTFT {promise.ttft_s:g} s")
    if promise.tpot_s is not None:
        words.append(f"TPOT {1e3 * promise.tpot_s:g} ms")
    return " and ".join(words)


def _show_fits(console: Console, fits: Sequence[Fit]) -> None:
    """A row a device, a column a precision, with a 16-bit cache where that was considered."""
    first = fits[0].kv_cache_dtype
    shown = [fit for fit in fits if fit.kv_cache_dtype == first]
    sizes = {fit.precision: fit.weights_bytes for fit in shown}
    ordered = [name for name in WEIGHT_CHOICES if name in sizes]
    weights = {name: sizes[name] for name in ordered or sizes}
    cache = shown[0].kv_bytes_per_token
    table = Table(box=box.ROUNDED, title="Will it fit", title_style="bold")
    table.add_column("hardware", no_wrap=True)
    for name, size in weights.items():
        table.add_column(f"{name}\n{size / 1e9:,.{0 if size > 1e10 else 2}f} GB", justify="right")
    by_device: dict[str, dict[str, Fit]] = {}
    for fit in shown:
        by_device.setdefault(fit.hardware, {})[fit.precision] = fit
    for hardware, row in by_device.items():
        table.add_row(hardware, *(_fit_cell(row.get(name)) for name in weights))
    console.print(table)
    console.print(
        f"devices · tokens that their cache holds, at {cache / 1024:,.4g} KiB a token"
        + ("" if first == "auto" else f" ({first})")
        + "; – does not fit in one machine",
        style="dim",
    )


def _fit_cell(fit: Fit | None) -> str:
    if fit is None:
        return ""
    return "–" if fit.devices is None else f"{fit.devices} · {_thousands(fit.max_tokens_in_cache)}"


def _thousands(tokens: int) -> str:
    return f"{tokens / 1e6:.1f}M" if tokens >= 1e6 else f"{tokens / 1e3:.0f}k"


def _show_best(console: Console, plan: Plan) -> None:
    best = plan.found.best
    if best is None:
        console.print(f"\n[bold red]nothing keeps {_targets(plan)}[/]")
        return
    deployment = best.deployment
    console.print(f"\n[bold green]best[/] [bold]{_named(best)}[/]")
    if best.usd_per_million is not None:
        console.print(
            f"  {best.usd_per_hour:,.2f} USD an hour, "
            f"[bold]{best.usd_per_million:,.3f} USD a million output tokens[/]"
        )
    console.print(
        f"  p99 TTFT {_seconds(best.ttft_p99_s)}, p99 TPOT {_seconds(best.tpot_p99_s)}, "
        f"{best.attainment:.1%} within both; {best.binds} binds first, "
        f"at {plan.found.capacity_rps or 0:.3g} requests a second"
    )
    if deployment.weights.source:
        console.print(f"  KL divergence {deployment.kl:.4f}: {deployment.weights.source}")
    if deployment.note:
        console.print(f"  note: {deployment.note}")
    for command in (prepare_command(best, plan.model), serve_command(best, plan.model, plan.load)):
        if command is not None:
            console.print(f"  {command}", soft_wrap=True, style="cyan")


def _named(candidate: Candidate) -> str:
    replicas = f"{candidate.replicas} replicas of " if candidate.replicas > 1 else ""
    return f"{replicas}{candidate.deployment.label}, {candidate.policy}"


def _show_others(console: Console, plan: Plan) -> None:
    found = plan.found
    others = [*found.settled[:1], *found.settled[1 : 1 + _RUNNERS_UP]]
    if not others:
        others = sorted(found.failed, key=lambda one: -one.attainment)[:_RUNNERS_UP]
    if not others:
        return
    table = Table(box=box.SIMPLE_HEAD, title_style="bold", padding=0, pad_edge=False)
    table.title = "Candidates that keep the promise" if found.settled else "The nearest"
    table.add_column("n", justify="right", no_wrap=True)
    for name in ("replica", "policy"):
        table.add_column(name, no_wrap=True)
    for name in ("USD/h", "USD/M\nout", "TTFT\np99", "TPOT\np99", "KL"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in others:
        table.add_row(
            str(one.replicas),
            f"{one.deployment.label}{' *' if one.on_front else ''}",
            one.policy,
            "–" if one.usd_per_hour is None else f"{one.usd_per_hour:,.2f}",
            "–" if one.usd_per_million is None else f"{one.usd_per_million:.3f}",
            _seconds(one.ttft_p99_s),
            _seconds(one.tpot_p99_s),
            f"{one.deployment.kl:.3f}",
        )
    console.print(table)
    if found.settled:
        console.print("n: replicas; * none is better in price, divergence and latency together", style="dim")


def _show_left_out(console: Console, plan: Plan) -> None:
    found = plan.found
    reasons = Counter(one.binds for one in found.pruned)
    if reasons:
        listed = ", ".join(f"{count} by {name}" for name, count in reasons.most_common())
        console.print(f"left out without simulation: {listed}", style="dim")
    if found.best is None:
        for binds in reasons:
            nearest = next(one for one in reversed(found.pruned) if one.binds == binds)
            console.print(f"  {nearest.deployment.label}: {nearest.reason}")
    elif found.unsettled:
        console.print(f"{found.unsettled} others are not cheaper and were not looked at", style="dim")


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f} s" if value >= 0.1 else f"{1e3 * value:.0f} ms"
