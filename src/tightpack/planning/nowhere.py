"""What to say of a model that does not fit where it was asked for: where it would."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tightpack.planning.fits import Fit
from tightpack.planning.models import PlannedModel, known_models, open_model
from tightpack.planning.weight_choices import WeightChoice
from tightpack.simulated.hardware import Hardware

_SUGGESTIONS = 4


def require_somewhere(
    asked: Sequence[Fit],
    everywhere: Iterable[Fit],
    model: PlannedModel,
    devices: Sequence[Hardware],
    choices: Sequence[WeightChoice],
    max_model_len: int,
) -> None:
    """Raise ValueError unless some of `asked` fits, with what would: of `everywhere`, the fewest devices."""
    if not asked and choices:
        needed = ", ".join(sorted({choice.precision.arithmetic for choice in choices}))
        has = "; ".join(f"{one.name} has {', '.join(one.rates)}" for one in devices)
        raise ValueError(
            f"none of these precisions can be computed there: {needed} arithmetic is needed, and {has}"
        )
    if any(fit.devices is not None for fit in asked):
        return
    least = min(asked, key=lambda fit: fit.weights_bytes)
    largest = max(devices, key=lambda one: one.memory_bytes * one.machine)
    raise ValueError(
        f"{model.name} does not fit: its weights take {least.weights_bytes / 1e9:,.0f} GB in "
        f"{least.precision}, and a request of {max_model_len:,} tokens "
        f"{least.kv_bytes_per_token * max_model_len / 1e9:,.1f} GB of cache, while {largest.machine} x "
        f"{largest.name} hold {largest.memory_bytes * largest.machine / 1e9:,.0f} GB in all. "
        f"{_remedy(list(everywhere), model)}"
    )


def _remedy(everywhere: Sequence[Fit], model: PlannedModel) -> str:
    fitting = [fit for fit in everywhere if fit.devices is not None and fit.kv_cache_dtype == "auto"]
    if fitting:
        fitting.sort(key=lambda fit: (fit.devices or 0, fit.weights_bytes))
        first = {fit.hardware: fit for fit in reversed(fitting)}
        shown = sorted(first.values(), key=lambda fit: (fit.devices or 0, fit.weights_bytes))[:_SUGGESTIONS]
        return "What would fit: " + ", ".join(
            f"{fit.precision} on {fit.devices} x {fit.hardware}" for fit in shown
        )
    smaller = [open_model(name) for name in known_models()]
    smaller = [one for one in smaller if one.parameters < model.parameters / 2]
    if not smaller:
        return "A shorter context (--max-model-len) or --kv-cache-dtype fp8 needs less"
    largest = max(smaller, key=lambda one: one.parameters)
    return f"No machine of the catalogue holds it; the next smaller model that is known is {largest.name}"
