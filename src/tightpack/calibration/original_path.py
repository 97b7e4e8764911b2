"""The original model's activations, walked beside those of the model that is being quantized."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from tightpack.calibration.layer_linears import original_linears
from tightpack.calibration.layer_walk import Walk
from tightpack.calibration.sites import SITES


def original_inputs(walk: Walk, index: int, x: Tensor) -> Iterator[Tensor]:
    """What each site of layer `index` reads, in the order of SITES: [sequences, tokens, width], host memory.

    x: [sequences, tokens, hidden_size] before the layer, which is what it makes of them once all four are
        taken and the iterator is exhausted. What is yielded holds until the next is asked for.
    """
    layer, linears = walk.layer(index), original_linears(walk, index)
    q, k, v = (linears[name] for name in SITES[0].linears)
    o, down = linears["self_attn.o_proj"], linears["mlp.down_proj"]
    gate, up = linears["mlp.gate_proj"], linears["mlp.up_proj"]

    spec = walk.spec
    normed = walk.room("original, normed", *x.shape)
    for rows, (part,) in walk.batches(x):
        normed[rows] = layer.attention_input(part).cpu()
    yield normed
    mixed = walk.room("original, between linears", *x.shape[:2], spec.num_heads * spec.head_dim)
    for rows, (part,) in walk.batches(normed):
        mixed[rows] = layer.attend(q(part), k(part), v(part)).cpu()
    yield mixed
    for rows, (part, inputs) in walk.batches(x, mixed):
        x[rows] = layer.after_attention(part, o(inputs)).cpu()
        normed[rows] = layer.mlp_input(x[rows].to(walk.device)).cpu()
    yield normed
    hidden = walk.room("original, between linears", *x.shape[:2], spec.intermediate_size)
    for rows, (part,) in walk.batches(normed):
        hidden[rows] = layer.gated(gate(part), up(part)).cpu()
    yield hidden
    for rows, (part, inputs) in walk.batches(x, hidden):
        x[rows] = layer.after_mlp(part, down(inputs)).cpu()
