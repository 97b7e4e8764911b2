"""The commands that make a candidate real."""

from __future__ import annotations

import shlex

from tightpack.planning.candidate import Candidate
from tightpack.planning.load import Load
from tightpack.planning.models import PlannedModel
from tightpack.requests.service_class import ServiceClass


def serve_command(candidate: Candidate, model: PlannedModel, load: Load) -> str:
    """For one replica; each of several is started so."""
    deployment, limits = candidate.deployment, candidate.limits
    words = ["tightpack", "serve", _checkpoint(candidate, model), *deployment.options]
    if deployment.weights.option is not None:
        words += ["--quantization", deployment.weights.option]
    if deployment.kv_cache_dtype != "auto" and "--kv-cache-dtype" not in words:
        words += ["--kv-cache-dtype", deployment.kv_cache_dtype]
    if deployment.tensor_parallel_size > 1:
        words += ["--tensor-parallel-size", str(deployment.tensor_parallel_size)]
    words += ["--policy", candidate.policy, "--max-num-seqs", str(limits.max_num_seqs)]
    if candidate.policy in ("chunked-prefill", "slo"):
        words += ["--max-num-batched-tokens", str(limits.max_num_batched_tokens)]
    words += ["--max-model-len", str(load.max_model_len)]
    if candidate.policy == "slo":
        words += ["--service-class", _targets(load.promise)]
    return shlex.join(words)


def prepare_command(candidate: Candidate, model: PlannedModel) -> str | None:
    """What makes the checkpoint first, where weights must be calibrated."""
    method = candidate.deployment.weights.method
    if method is None:
        return None
    words = ["tightpack", "quantize", model.served, "-o", _checkpoint(candidate, model), "--method", method]
    return shlex.join([*words, "--calibration", "wikitext"])


def _checkpoint(candidate: Candidate, model: PlannedModel) -> str:
    weights = candidate.deployment.weights
    if weights.checkpoint is not None:
        return weights.checkpoint
    return model.served if weights.method is None else f"{model.name}-{weights.name}"


def _targets(promise: ServiceClass) -> str:
    given = (("ttft", promise.ttft_s), ("tpot", promise.tpot_s))
    listed = ",".join(f"{key}={'none' if value is None else f'{value:g}'}" for key, value in given)
    return f"{promise.name}:{listed}"
