"""Rotary position embedding (Su et al. 2021) as a complex product.

Checkpoints keep the two numbers of a rotated pair half a head apart. Attention scores do not change when the
dimensions of queries and keys are permuted alike, so the rows of the query and key projections are permuted
once at load to put the two side by side; a rotation is then one complex multiplication.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tightpack.architectures.model_spec import RotarySpec


def rotation_table(rotary: RotarySpec, num_positions: int, device: torch.device) -> Tensor:
    """magnitude * exp(i * position * frequency): complex64 [num_positions, head_dim / 2].

    Angles are float32 products, as transformers computes them.
    """
    frequencies = torch.tensor(rotary.inverse_frequencies, dtype=torch.float32)
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies)
    return torch.complex(angles.cos() * rotary.magnitude, angles.sin() * rotary.magnitude).to(device)


def pair_order(head_dim: int) -> Tensor:
    """Indices that bring the pairs of a half-split head side by side: [0, d/2, 1, d/2 + 1, ...]."""
    return torch.arange(head_dim).view(2, head_dim // 2).t().reshape(-1)


def interleave_heads(weight: Tensor, head_dim: int) -> Tensor:
    """Permute the rows of a query or key projection [heads * head_dim, ...], or of its bias, head by head."""
    heads = weight.view(-1, head_dim, *weight.shape[1:])
    return heads[:, pair_order(head_dim)].reshape(weight.shape)


def rotate_(heads: Tensor, rotation: Tensor) -> None:
    """Rotate `heads` [tokens, heads, head_dim] in place, in float32.

    rotation: complex64 [tokens, 1, head_dim / 2], rows of `rotation_table`.
    """
    pairs = heads.view(*heads.shape[:-1], heads.shape[-1] // 2, 2)
    if pairs.dtype == torch.float32:
        torch.view_as_complex(pairs).mul_(rotation)
        return
    exact = pairs.float()
    torch.view_as_complex(exact).mul_(rotation)
    pairs.copy_(exact)
