"""What a run will take, foretold before it starts: peak memory, disk, time."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import torch

from tightpack.architectures.model_spec import ModelSpec
from tightpack.calibration.config import QuantizationRecipe
from tightpack.calibration.effort import forward, judging, sensitivity, solving
from tightpack.calibration.site_quantizer import wants_hessian

# Work beside the products of the forward passes that are counted: attention, statistics, copies.
_OVERHEAD = 1.6
# Writing, reading back, loading the engine and a few tokens of it, whatever the model.
_ROUND_OFF_S = 3.0
# What Python, PyTorch and its libraries hold before any tensor.
_BASE_BYTES = 400 * 2**20


@dataclass(frozen=True, slots=True)
class Estimate:
    """memory_bytes: of this process, at the peak. disk_bytes: of progress kept in DIR.partial."""

    memory_bytes: int
    disk_bytes: int
    seconds: float


def estimate(
    spec: ModelSpec,
    recipe: QuantizationRecipe,
    evaluation_samples: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Estimate:
    """Good to a factor of about two: the machine's speed is measured in a tenth of a second, on a product and
    on sums."""
    config = recipe.config
    layers = _parameters_of_layers(spec)
    largest, every = max(layers), sum(layers)
    wide = max(spec.intermediate_size, spec.num_heads * spec.head_dim)
    tokens = config.samples * config.sequence_length if recipe.needs_text else 0
    beside = recipe.corrected_samples * config.sequence_length
    judged = evaluation_samples * config.sequence_length
    hessians = 3 * 4 * wide**2 if recipe.needs_text and wants_hessian(config) else 0
    logits = 6 * config.sequence_length * spec.vocab_size * 4
    head = spec.vocab_size * spec.hidden_size * (4 + 4 + dtype.itemsize)
    # Of hidden states a copy too, that is being saved.
    activations = (tokens + beside) * (2 * spec.hidden_size + wide) * dtype.itemsize
    states = 2 * judged * spec.hidden_size * dtype.itemsize
    memory = _BASE_BYTES + max(activations + 4 * 4 * largest + hessians, states + 2 * head + logits)
    disk = (tokens + beside) * spec.hidden_size * dtype.itemsize * 2 + 2 * every
    seconds = _ROUND_OFF_S + _seconds(spec, recipe, evaluation_samples, dtype, device)
    return Estimate(int(memory), int(disk), seconds)


def _seconds(
    spec: ModelSpec,
    recipe: QuantizationRecipe,
    evaluation_samples: int,
    dtype: torch.dtype,
    device: torch.device,
) -> float:
    exact = _operations_per_second(torch.float32, device)
    fast = exact if dtype == torch.float32 else _operations_per_second(dtype, device)
    alone = solving(spec, recipe) + sensitivity(spec, recipe)
    walked = forward(spec, recipe).operations / fast
    walked += judging(spec, evaluation_samples, recipe.config.sequence_length).operations / exact
    return _OVERHEAD * walked + alone.operations / exact + alone.passes / _passes_per_second(device)


def _parameters_of_layers(spec: ModelSpec) -> list[int]:
    """Of each layer's linears, all experts' included."""
    sizes = [0] * spec.num_layers
    for name, shape in spec.tensor_shapes().items():
        if name.startswith("model.layers.") and len(shape) == 2:
            sizes[int(name.split(".")[2])] += shape[0] * shape[1]
    return sizes


def _operations_per_second(dtype: torch.dtype, device: torch.device) -> float:
    size = 4096 if device.type == "cuda" else 768
    a = torch.ones(size, size, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best


def _passes_per_second(device: torch.device) -> float:
    """Elements read and written a second, of a matrix that the caches hold."""
    a = torch.ones(1024, 512, device=device)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        for _ in range(8):
            a.mul_(1.0)
        a[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return 8 * a.numel() / best


def peak_memory() -> int | None:
    """Bytes that this process has held in memory at the most so far; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024
