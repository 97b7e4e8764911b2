"""One decoder layer at a time over many sequences: what calibration and streamed evaluation walk.

The arithmetic is the decoder's own (`torch_backend`); what differs is that a layer's weights come and go,
and that sequences of one length attend together without a cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tightpack.architectures.model_spec import ExpertsSpec, ModelSpec
from tightpack.calibration.prompt_attention import prompt_attention
from tightpack.calibration.sites import SITES
from tightpack.checkpoints.checkpoint import Checkpoint
from tightpack.torch_backend.arrays import as_tensor
from tightpack.torch_backend.grouped_linear import OneByOne
from tightpack.torch_backend.mlp import MixtureOfExperts
from tightpack.torch_backend.norm import rms_norm
from tightpack.torch_backend.rotary import pair_order, rotate_, rotation_table
from tightpack.torch_backend.rounded_linear import SideBySide

Apply = Callable[[Tensor], Tensor]

# Tokens computed together: products are as fast as with more, and what lies between them stays small.
_BATCH_TOKENS = 2048


class DecoderLayer:
    """What lies between the linears of one layer. Tensors are [sequences, tokens, width].

    norms: the layer's norm weights by their names inside it, as stored; `set_norm` replaces one.
    rotation: complex64 [tokens, head_dim / 2].
    """

    def __init__(
        self,
        spec: ModelSpec,
        index: int,
        norms: Mapping[str, NDArray[Any]],
        rotation: Tensor,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.spec = spec
        self._window = spec.layers[index].window
        self._experts = spec.layers[index].experts
        self._rotation = rotation.unsqueeze(1)
        self._dtype = dtype
        self._device = device
        self._norms: dict[str, Tensor] = {}
        for name, stored in norms.items():
            self.set_norm(name, stored)
        self._mask = self._visible(len(rotation))

    def set_norm(self, name: str, stored: NDArray[Any]) -> None:
        values = as_tensor(stored)
        offset = self.spec.norm_weight_offset
        weight = values.to(self._dtype)
        if offset:
            weight = weight.float() + offset  # in float32: the offset would swallow the stored number
        if name in ("self_attn.q_norm", "self_attn.k_norm"):
            weight = weight[pair_order(self.spec.head_dim)]
        self._norms[name] = weight.to(self._device)

    def attention_input(self, x: Tensor) -> Tensor:
        return self._normed(x, "input_layernorm")

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, round_kv: RoundKV | None = None
    ) -> Tensor:
        """Projections with head dimensions of queries and keys in the order of `pair_order`; they are
        rotated in place. Returns the output projection's input, [sequences, tokens, num_heads * head_dim]."""
        spec, width = self.spec, self.spec.head_dim
        count, length = queries.shape[:2]
        split = (count, length, -1, width)
        q, k, v = (t.reshape(split) for t in (queries, keys, values))
        if spec.qk_norm:
            q = self._normed(q, "self_attn.q_norm")
            k = self._normed(k, "self_attn.k_norm")
        rotate_(q, self._rotation)
        rotate_(k, self._rotation)
        if round_kv is not None:
            k, v = round_kv(k, v)
        # Heads of a group share keys and values through a stride of 0: [sequences * kv heads, group, tokens,
        # width].
        heads = count * spec.num_kv_heads
        q = q.transpose(1, 2).reshape(heads, -1, length, width)
        k, v = (t.transpose(1, 2).reshape(heads, 1, length, width).expand_as(q) for t in (k, v))
        if spec.attention_softcap is not None:
            scores = torch.matmul(q, k.transpose(-1, -2)).float().mul_(spec.attention_scale)
            scores = scores.div_(spec.attention_softcap).tanh_().mul_(spec.attention_softcap)
            scores = scores.masked_fill_(~self._visible_or_causal(length), -torch.inf)
            mixed = torch.matmul(scores.softmax(-1).to(q.dtype), v)
        elif q.device.type == "cpu" and q.dtype == torch.bfloat16:
            mixed = prompt_attention(
                q, k[:, 0], v[:, 0], scale=spec.attention_scale, window=self._window or length
            )
        else:
            if q.is_cuda:
                k, v = k.contiguous(), v.contiguous()
            mixed = functional.scaled_dot_product_attention(
                q, k, v, attn_mask=self._mask, is_causal=self._mask is None, scale=spec.attention_scale
            )
        return mixed.reshape(count, -1, length, width).transpose(1, 2).reshape(count, length, -1)

    def after_attention(self, x: Tensor, projected: Tensor) -> Tensor:
        if self.spec.sandwich_norms:
            projected = self._normed(projected, "post_attention_layernorm")
        return x + projected

    def mlp_input(self, x: Tensor) -> Tensor:
        return self._normed(x, mlp_norm(self.spec))

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        if self.spec.activation == "silu":
            return functional.silu(gate).mul_(up)
        return functional.gelu(gate, approximate="tanh").mul_(up)

    def after_mlp(self, x: Tensor, projected: Tensor) -> Tensor:
        if self.spec.sandwich_norms:
            projected = self._normed(projected, "post_feedforward_layernorm")
        return x + projected

    def forward(self, x: Tensor, linears: Mapping[str, Apply], round_kv: RoundKV | None = None) -> Tensor:
        """The whole layer; linears: by their names inside it (see `sites_of`), and a mixture's router."""
        q, k, v = (linears[name] for name in SITES[0].linears)
        normed = self.attention_input(x)
        mixed = self.attend(q(normed), k(normed), v(normed), round_kv)
        x = self.after_attention(x, linears["self_attn.o_proj"](mixed))
        normed = self.mlp_input(x)
        if self._experts is not None:
            return self.after_mlp(x, self._mixed(self._experts, normed, linears))
        hidden = self.gated(linears["mlp.gate_proj"](normed), linears["mlp.up_proj"](normed))
        return self.after_mlp(x, linears["mlp.down_proj"](hidden))

    def _mixed(self, experts: ExpertsSpec, normed: Tensor, linears: Mapping[str, Apply]) -> Tensor:
        numbers = range(experts.count)
        mixture = MixtureOfExperts(
            experts,
            linears[experts.router],
            OneByOne(
                [SideBySide([linears[n.format(e)] for n in (experts.gate, experts.up)]) for e in numbers]
            ),
            OneByOne([linears[experts.down.format(e)] for e in numbers]),
            self.spec.activation,
        )
        return mixture(normed.flatten(0, -2)).view(normed.shape)

    def _normed(self, x: Tensor, name: str) -> Tensor:
        return rms_norm(x, self._norms[name], self.spec.norm_eps)

    def _visible(self, length: int) -> Tensor | None:
        """bool [tokens, tokens] where a window hides something, else None."""
        if self._window is None or length <= self._window:
            return None
        places = torch.arange(length, device=self._device)
        behind = places[:, None] - places
        return (behind >= 0) & (behind < self._window)

    def _visible_or_causal(self, length: int) -> Tensor:
        if self._mask is not None:
            return self._mask
        return torch.ones(length, length, dtype=torch.bool, device=self._device).tril_()


RoundKV = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def mlp_norm(spec: ModelSpec) -> str:
    """The name, inside a layer, of the norm before the MLP."""
    return "pre_feedforward_layernorm" if spec.sandwich_norms else "post_attention_layernorm"


def norm_names(spec: ModelSpec) -> list[str]:
    """Names, inside a layer, of its norms."""
    prefix = "model.layers.0."
    return [
        name.removeprefix(prefix).removesuffix(".weight")
        for name, shape in spec.tensor_shapes().items()
        if name.startswith(prefix) and name.endswith("norm.weight") and len(shape) == 1
    ]


class Walk:
    """The pieces of a checkpoint that a walk needs, read when they are due.

    sequence_length: tokens of every sequence. dtype: of activations and dense arithmetic.
    """

    def __init__(
        self, checkpoint: Checkpoint, sequence_length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.checkpoint = checkpoint
        self.spec = checkpoint.spec
        self.dtype = dtype
        self.device = device
        self._rotations = {
            rotary: rotation_table(rotary, sequence_length, device)
            for rotary in dict.fromkeys(layer.rotary for layer in self.spec.layers)
        }
        self.batch = max(1, _BATCH_TOKENS // sequence_length)
        self._rooms: dict[str, Tensor] = {}

    def embed(self, sequences: NDArray[np.int64]) -> Tensor:
        """[count, tokens, hidden_size] in host memory."""
        rows, inverse = np.unique(sequences, return_inverse=True)
        # Only the rows that occur: an embedding may be larger than the rest of a layer's needs.
        table = as_tensor(self.checkpoint.read("model.embed_tokens.weight")[rows]).to(self.dtype)
        x = functional.embedding(torch.from_numpy(inverse.reshape(sequences.shape)), table)
        scale = float(torch.tensor(self.spec.embedding_scale, dtype=self.dtype))
        return x if scale == 1 else x.mul_(scale)

    def layer(self, index: int, norms: Mapping[str, NDArray[Any]] | None = None) -> DecoderLayer:
        """norms: in place of the checkpoint's."""
        prefix = f"model.layers.{index}."
        stored = {name: self.checkpoint.read(f"{prefix}{name}.weight") for name in norm_names(self.spec)}
        rotation = self._rotations[self.spec.layers[index].rotary]
        return DecoderLayer(self.spec, index, {**stored, **(norms or {})}, rotation, self.dtype, self.device)

    def room(self, use: str, *shape: int) -> Tensor:
        """Host memory for activations, the same for every layer and whatever else has this `use`: to touch
        fresh pages takes as long as the linears that fill them."""
        wanted = math.prod(shape)
        held = self._rooms.get(use)
        if held is None or len(held) < wanted:
            held = self._rooms[use] = torch.empty(wanted, dtype=self.dtype)
        return held[:wanted].view(shape)

    def batches(self, *tensors: Tensor) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
        """Slices of the first dimension, and those parts of the tensors on the device."""
        for first in range(0, len(tensors[0]), self.batch):
            rows = slice(first, min(first + self.batch, len(tensors[0])))
            yield rows, tuple(t[rows].to(self.device, non_blocking=True) for t in tensors)
