"""The original model's activations, walked beside those of the model that is being quantized."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tightpack.calibration.layer_linears import original_linears
from tightpack.calibration.layer_walk import Walk
from tightpack.calibration.sites import SITES


def original_inputs(walk: Walk, index: int, x: Tensor) -> Iterator[Tensor]:
    """What each site of layer `index` reads, in the order of SITES: [sequences, tokens, width], host memory.

    x: [sequences, tokens, hidden_size] before the layer, which is what it makes of them once all four are
        taken and the iterator is exhausted.
    """
    layer, linears = walk.layer(index), original_linears(walk, index)
    q, k, v = (linears[name] for name in SITES[0].linears)
    o, down = linears["self_attn.o_proj"], linears["mlp.down_proj"]
    gate, up = linears["mlp.gate_proj"], linears["mlp.up_proj"]

    normed = torch.cat([layer.attention_input(part).cpu() for _, (part,) in walk.batches(x)])
    yield normed
    mixed = torch.cat([layer.attend(q(part), k(part), v(part)).cpu() for _, (part,) in walk.batches(normed)])
    del normed
    yield mixed
    for rows, (part, inputs) in walk.batches(x, mixed):
        x[rows] = layer.after_attention(part, o(inputs)).cpu()
    del mixed
    normed = torch.cat([layer.mlp_input(part).cpu() for _, (part,) in walk.batches(x)])
    yield normed
    hidden = torch.cat([layer.gated(gate(part), up(part)).cpu() for _, (part,) in walk.batches(normed)])
    del normed
    yield hidden
    for rows, (part, inputs) in walk.batches(x, hidden):
        x[rows] = layer.after_mlp(part, down(inputs)).cpu()
