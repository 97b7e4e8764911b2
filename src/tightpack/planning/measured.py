"""This machine as `tightpack calibrate-cost` measured it: one deployment, whose step times are a fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tightpack.planning.deployments import BLOCK_SIZE, Deployment
from tightpack.planning.models import PlannedModel
from tightpack.planning.weight_choices import WeightChoice
from tightpack.simulated.fitted import FittedCostModel
from tightpack.simulated.hardware import Precision

NAME = "this-machine"

# Arguments of the measurement that decide how the engine computes: a server must be started with the same.
_ENGINE = ("dtype", "device", "executor", "activation_dtype", "quantization", "kv_cache_dtype", "num_threads")
_DEFAULTS = {"dtype": "auto", "device": "auto", "executor": "auto", "activation_dtype": "auto"} | {
    "kv_cache_dtype": "auto"
}


def measured(fit: FittedCostModel, model: PlannedModel, usd_per_hour: float | None) -> Deployment:
    """Raises ValueError where the fit is of another model, or says nothing of its limits."""
    manifest = fit.manifest
    arguments: Mapping[str, Any] = manifest.get("arguments", {})
    limits = manifest.get("limits")
    if not isinstance(limits, Mapping):
        raise ValueError(
            "the cost model says nothing of its limits; measure anew with `tightpack calibrate-cost`"
        )
    of = manifest.get("model")
    if of not in (model.name, model.served):
        raise ValueError(f"the cost model was measured on {of!r}, and the plan is for {model.name!r}")
    kv = str(arguments.get("kv_cache_dtype") or "auto")
    kv_bits = 8.0 if kv in ("fp8", "fp8_e4m3", "int8") else 16.0
    quantization = arguments.get("quantization")
    precision = model.stored or Precision(name=str(quantization or "bf16"))
    spec = model.spec
    return Deployment(
        hardware=NAME,
        weights=WeightChoice(precision.name, precision, 0.0, "the model as it was measured"),
        kv_cache_dtype=kv,
        kl=0.0,
        tensor_parallel_size=1,
        cost_model=fit,
        weights_bytes=model.weights_bytes(precision),
        kv_bytes_per_token=2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * kv_bits / 8,
        cache_tokens=int(limits["num_blocks"]) * int(limits.get("block_size", BLOCK_SIZE)),
        usd_per_hour=usd_per_hour,
        max_num_seqs=int(limits["max_num_seqs"]),
        max_num_batched_tokens=int(limits["max_num_batched_tokens"]),
        options=tuple(_options(arguments)),
    )


def longest_context(fit: FittedCostModel) -> int | None:
    """Positions of a request that were measured."""
    limits = fit.manifest.get("limits")
    return int(limits["positions"]) if isinstance(limits, Mapping) and "positions" in limits else None


def _options(arguments: Mapping[str, Any]) -> list[str]:
    options = []
    for name in _ENGINE:
        value = arguments.get(name)
        if value is not None and value != _DEFAULTS.get(name):
            options += [f"--{name.replace('_', '-')}", str(value)]
    return options
