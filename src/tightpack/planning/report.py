"""A plan as JSON.

{"model", "fits": [{"hardware", "precision", "kv_cache_dtype", "weights_bytes", "kv_bytes_per_token",
"devices", "max_tokens_in_cache"}], "candidates": [{"hardware", "precision", "kv_cache_dtype", "policy",
"tensor_parallel_size", "replicas", "goodput_rps", "attainment", "usd_per_million_output_tokens",
"meets_slo", ...}], "best": {the same, "serve_command", ...} or null, ...}; docs/planning.md has every field.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tightpack.benchmarking.report import rounded
from tightpack.planning.bounds import Pruned
from tightpack.planning.candidate import Candidate
from tightpack.planning.commands import prepare_command, serve_command
from tightpack.planning.fits import Fit
from tightpack.planning.load import Load
from tightpack.planning.models import PlannedModel
from tightpack.planning.search import Found
from tightpack.simulated.hardware import Hardware


@dataclass(frozen=True, slots=True)
class Plan:
    """devices: those of the catalogue that were considered."""

    model: PlannedModel
    load: Load
    fits: Sequence[Fit]
    found: Found
    devices: Sequence[Hardware]


def to_json(plan: Plan) -> dict[str, Any]:
    model, load, found = plan.model, plan.load, plan.found
    spec = model.spec
    best = found.best
    return {
        "model": model.name,
        "parameters": model.parameters,
        "active_parameters": model.active_parameters,
        "layers": spec.num_layers,
        "load": {
            "description": load.description,
            "rate_rps": load.rate,
            "mean_input_tokens": rounded(load.mean_input),
            "mean_output_tokens": rounded(load.mean_output),
            "max_model_len": load.max_model_len,
        },
        "slo": {
            "ttft_s": load.promise.ttft_s,
            "tpot_s": load.promise.tpot_s,
            "attainment": load.level.attainment,
        },
        "hardware": [_device(one) for one in plan.devices],
        "fits": [asdict(one) for one in plan.fits],
        "candidates": [_candidate(one) for one in (*found.settled, *found.failed)],
        "pruned": [_pruned(one) for one in found.pruned],
        "unsettled": found.unsettled,
        "best": None
        if best is None
        else {
            **_candidate(best),
            "capacity_rps": rounded(found.capacity_rps),
            "serve_command": serve_command(best, model, load),
            "prepare_command": prepare_command(best, model),
        },
    }


def _device(hardware: Hardware) -> dict[str, Any]:
    return {
        "name": hardware.name,
        "usd_per_hour": hardware.usd_per_hour,
        "price": hardware.price,
        "data_sheet": hardware.data_sheet,
        "note": hardware.note,
    }


def _candidate(one: Candidate) -> dict[str, Any]:
    deployment, limits = one.deployment, one.limits
    return {
        "hardware": deployment.hardware,
        "precision": deployment.weights.name,
        "kv_cache_dtype": deployment.kv_cache_dtype,
        "policy": one.policy,
        "tensor_parallel_size": deployment.tensor_parallel_size,
        "replicas": one.replicas,
        "goodput_rps": rounded(one.goodput_rps),
        "attainment": rounded(one.attainment),
        "usd_per_million_output_tokens": rounded(one.usd_per_million),
        "meets_slo": one.meets_slo,
        "usd_per_hour": rounded(one.usd_per_hour),
        "ttft_p99_s": rounded(one.ttft_p99_s),
        "tpot_p99_s": rounded(one.tpot_p99_s),
        "binds": one.binds,
        "kl": rounded(deployment.kl),
        "kl_source": deployment.weights.source,
        "on_pareto_front": one.on_front,
        "max_num_seqs": limits.max_num_seqs,
        "max_num_batched_tokens": limits.max_num_batched_tokens,
        "max_tokens_in_cache": deployment.cache_tokens,
        "preemptions": one.preemptions,
    }


def _pruned(one: Pruned) -> dict[str, Any]:
    deployment = one.deployment
    return {
        "hardware": deployment.hardware,
        "precision": deployment.weights.name,
        "kv_cache_dtype": deployment.kv_cache_dtype,
        "tensor_parallel_size": deployment.tensor_parallel_size,
        "binds": one.binds,
        "reason": one.reason,
    }
