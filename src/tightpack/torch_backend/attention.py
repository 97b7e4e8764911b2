"""Attention of one layer over a step's rows: decodes in padded batches, prompt parts one by one.

Decodes run as two batched products around a softmax in float32; the heads of a group are the rows of one
small matrix. On a CPU that takes a third of the time of `scaled_dot_product_attention`, whose kernel blocks
for many queries; prompt parts, which have many, use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from tightpack.architectures.model_spec import ModelSpec, RotarySpec
from tightpack.torch_backend.kv_cache import KVCache
from tightpack.torch_backend.norm import rms_norm
from tightpack.torch_backend.rotary import rotate_
from tightpack.torch_backend.step_inputs import AttentionInputs, DecodeGroup, PromptPart, StepInputs

Rotations = Mapping[RotarySpec, Tensor]


class Attention(Protocol):
    """A layer between its qkv and output projections."""

    def rotations(self, tables: Rotations, inputs: StepInputs, /) -> Rotations:
        """What `__call__` takes of each table (`rotary.rotation_table`), made once a step."""

    def __call__(
        self,
        cache: KVCache,
        index: int,
        qkv: Tensor,
        qk_norm: Tensor | None,
        rotation: Tensor,
        inputs: StepInputs,
        /,
    ) -> Tensor:
        """`write`, then `mix`."""

    def write(
        self,
        cache: KVCache,
        index: int,
        qkv: Tensor,
        qk_norm: Tensor | None,
        rotation: Tensor,
        inputs: StepInputs,
        /,
    ) -> None:
        """qkv: [tokens, (num_heads + 2 * num_kv_heads) * head_dim], overwritten; qk_norm: [num_heads +
        num_kv_heads, head_dim]. Normalizes and rotates queries and keys, and writes keys and values to the
        cache: row by row, by `positions` and `slots` of the inputs alone."""

    def mix(self, cache: KVCache, index: int, qkv: Tensor, inputs: StepInputs, /) -> Tensor:
        """What the queries of a written qkv mix, [tokens, num_heads * head_dim]."""


@dataclass(frozen=True, slots=True)
class GatheredAttention:
    """In PyTorch's operators, over keys and values gathered from their blocks. spec: this rank's."""

    spec: ModelSpec

    def rotations(self, tables: Rotations, inputs: StepInputs) -> Rotations:
        return {rotary: table[inputs.positions].unsqueeze(1) for rotary, table in tables.items()}

    def __call__(
        self,
        cache: KVCache,
        index: int,
        qkv: Tensor,
        qk_norm: Tensor | None,
        rotation: Tensor,
        inputs: StepInputs,
    ) -> Tensor:
        self.write(cache, index, qkv, qk_norm, rotation, inputs)
        return self.mix(cache, index, qkv, inputs)

    def write(
        self,
        cache: KVCache,
        index: int,
        qkv: Tensor,
        qk_norm: Tensor | None,
        rotation: Tensor,
        inputs: StepInputs,
    ) -> None:
        spec = self.spec
        rotated = (spec.num_heads + spec.num_kv_heads) * spec.head_dim
        heads = qkv[:, :rotated].view(len(qkv), -1, spec.head_dim)
        if qk_norm is not None:
            heads.copy_(rms_norm(heads, qk_norm, spec.norm_eps))
        rotate_(heads, rotation)
        cache.write(index, inputs.slots, qkv[:, spec.num_heads * spec.head_dim :])

    def mix(self, cache: KVCache, index: int, qkv: Tensor, inputs: StepInputs) -> Tensor:
        window = self.spec.layers[index].window
        return attend(self.spec, cache, index, qkv, inputs.attention[window])


def attend(spec: ModelSpec, cache: KVCache, layer: int, qkv: Tensor, inputs: AttentionInputs) -> Tensor:
    """qkv: [tokens, (num_heads + 2 * num_kv_heads) * head_dim], rotated, the cache already written.

    Returns [tokens, num_heads * head_dim].
    """
    outputs = [_decode(spec, cache, layer, qkv, group) for group in inputs.decodes]
    outputs += [_prompt(spec, cache, layer, qkv, part) for part in inputs.prompts]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _decode(spec: ModelSpec, cache: KVCache, layer: int, qkv: Tensor, group: DecodeGroup) -> Tensor:
    heads, size, width = spec.num_kv_heads, group.size, spec.head_dim
    rows = qkv[group.start : group.start + size, : spec.num_heads * width]
    queries = rows.view(size, heads, -1, width).transpose(0, 1).reshape(heads * size, -1, width)
    keys, values = cache.gather(layer, group.blocks).view(2, heads * size, -1, width)
    weights = _softmax(spec, queries, keys, group.mask)
    mixed = torch.bmm(weights, values).view(heads, size, -1, width)
    return mixed.transpose(0, 1).reshape(size, -1)


def _prompt(spec: ModelSpec, cache: KVCache, layer: int, qkv: Tensor, part: PromptPart) -> Tensor:
    heads, width = spec.num_kv_heads, spec.head_dim
    rows = qkv[part.start : part.start + part.size].view(part.size, -1, width).transpose(0, 1)
    queries = rows[: spec.num_heads]
    if part.blocks is None:
        keys, values = rows[spec.num_heads : -heads], rows[-heads:]
    else:
        keys, values = cache.gather(layer, part.blocks).view(2, heads, -1, width)[:, :, : part.context]
    grouped = queries.reshape(heads, -1, part.size, width)
    # One key head under all queries of its group: a view with stride 0, no copy.
    shared = grouped.shape[:2]
    keys = keys.unsqueeze(1).expand(*shared, -1, -1)
    values = values.unsqueeze(1).expand(*shared, -1, -1)
    if spec.attention_softcap is not None:
        mask = part.mask
        if mask is None:
            mask = torch.full((part.size, part.size), -torch.inf, dtype=qkv.dtype, device=qkv.device).triu_(1)
        weights = _softmax(spec, grouped.flatten(0, 1), keys.flatten(0, 1), mask)
        mixed = torch.bmm(weights, values.flatten(0, 1))
    else:
        if qkv.is_cuda:
            # The fused CUDA kernels want real strides.
            keys, values = keys.contiguous(), values.contiguous()
        mixed = functional.scaled_dot_product_attention(
            grouped,
            keys,
            values,
            attn_mask=part.mask,
            is_causal=part.mask is None,
            scale=spec.attention_scale,
        ).flatten(0, 1)
    return mixed.transpose(0, 1).reshape(part.size, -1)


def _softmax(spec: ModelSpec, queries: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    """Attention weights [batch, queries, keys] in the queries' dtype; exponentials and sums in float32."""
    if spec.attention_softcap is None:
        scores = torch.baddbmm(mask, queries, keys.transpose(1, 2), alpha=spec.attention_scale)
    else:
        scores = torch.bmm(queries, keys.transpose(1, 2)).float().mul_(spec.attention_scale)
        scores = scores.div_(spec.attention_softcap).tanh_().mul_(spec.attention_softcap) + mask
    return scores.softmax(-1, dtype=torch.float32).to(queries.dtype)
