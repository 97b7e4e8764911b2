"""Logits of a checkpoint whose layers are read one at a time: for models larger than memory.

All sequences pass a layer before the next is read, so that each weight is read once; what is held is one
layer, the hidden states of all sequences, and one batch's logits.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tightpack.calibration.applied_linear import applied_linear
from tightpack.calibration.layer_linears import linear_of, routers, stored_bias
from tightpack.calibration.layer_walk import RoundKV, Walk
from tightpack.calibration.sites import sites_of
from tightpack.checkpoints.checkpoint import Checkpoint
from tightpack.schemes.quantized import KVCacheFormat
from tightpack.torch_backend.arrays import as_tensor
from tightpack.torch_backend.input_rounding import to_codes
from tightpack.torch_backend.norm import rms_norm


def streamed_logits(
    checkpoint: Checkpoint,
    sequences: NDArray[np.int64],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Iterator[Tensor]:
    """Float32 [length, vocabulary] for each of `sequences` [count, length], in order.

    Rounds activations and the cache as the checkpoint says, as the torch executor does. Nothing is computed
    until the first is asked for.
    """
    walk = Walk(checkpoint, sequences.shape[1], dtype, device or torch.device("cpu"))
    spec = walk.spec
    with torch.inference_mode():
        x = walk.embed(sequences)
        for index in range(spec.num_layers):
            _pass_layer(walk, index, x)
        norm = as_tensor(checkpoint.read("model.norm.weight")).to(dtype)
        if spec.norm_weight_offset:
            norm = norm.float() + spec.norm_weight_offset
        norm = norm.to(walk.device)
        linear = checkpoint.read_linear("lm_head")
        head = applied_linear(linear, None, dtype=dtype, device=walk.device)
    for hidden in x:
        with torch.inference_mode():
            logits = head(rms_norm(hidden.to(walk.device), norm, spec.norm_eps)).float()
            cap = spec.logit_softcap
            if cap is not None:
                logits = logits.div_(cap).tanh_().mul_(cap)
        yield logits


def _pass_layer(walk: Walk, index: int, x: Tensor) -> None:
    """Replace hidden states before the layer by those after it."""
    checkpoint = walk.checkpoint
    prefix = f"model.layers.{index}."
    linears = routers(walk, index)
    for site in sites_of(walk.spec, index):
        for name in site.names(index):
            linear = checkpoint.read_linear(name)
            linears[name.removeprefix(prefix)] = linear_of(walk, name, linear, stored_bias(walk, name))
    layer = walk.layer(index)
    round_kv = _kv_rounding(checkpoint.kv_cache_format, index)
    for rows, (part,) in walk.batches(x):
        x[rows] = layer.forward(part, linears, round_kv).cpu()


def _kv_rounding(form: KVCacheFormat | None, index: int) -> RoundKV | None:
    if form is None or form.precision not in ("fp8", "int8"):
        return None

    def rounded(values: Tensor, scale: float) -> Tensor:
        codes = to_codes(values.float() / scale, form.precision)
        return codes.float().mul_(scale).to(values.dtype)

    return lambda keys, values: (
        rounded(keys, form.key_scales[index]),
        rounded(values, form.value_scales[index]),
    )
