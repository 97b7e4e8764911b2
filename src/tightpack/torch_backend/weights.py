"""A checkpoint's tensors as the decoder wants them: cast, fused, and on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tightpack.architectures.model_spec import ModelSpec
from tightpack.checkpoints.checkpoint import Checkpoint
from tightpack.torch_backend.arrays import as_tensor
from tightpack.torch_backend.grouped_linear import GroupedLinear, build_grouped_linear
from tightpack.torch_backend.linear import Linear, LinearLayer
from tightpack.torch_backend.mlp import GatedMlp, MixtureOfExperts, Mlp
from tightpack.torch_backend.quantized_weights import RowOrder, build_linear, stack_rows
from tightpack.torch_backend.rotary import interleave_heads, pair_order


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """qkv: queries, keys and values in one linear. Head dimensions of queries and keys are in the order of
    `rotary.pair_order`. qk_norm: [num_heads + num_kv_heads, head_dim].
    """

    attention_norm: Tensor
    qkv: LinearLayer
    qk_norm: Tensor | None
    output: LinearLayer
    attention_post_norm: Tensor | None
    mlp_norm: Tensor
    mlp: Mlp
    mlp_post_norm: Tensor | None


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor
    head: LinearLayer


def load_weights(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> DecoderWeights:
    """Read, cast and fuse every tensor, one at a time: the peak is the model and one source tensor."""
    spec = checkpoint.spec
    loader = _Loader(checkpoint, dtype, device)
    embedding = loader.stacked(["model.embed_tokens.weight"])
    layers = tuple(_load_layer(loader, spec, index) for index in range(spec.num_layers))
    if spec.tied_embeddings:
        head: LinearLayer = Linear(embedding, keep_plain=True)
    else:
        head = loader.linear(["lm_head"], bias=False)
    return DecoderWeights(embedding, layers, loader.norm("model.norm"), head)


def _load_layer(loader: _Loader, spec: ModelSpec, index: int) -> LayerWeights:
    prefix = f"model.layers.{index}."
    attention = prefix + "self_attn."
    qk_norm = None
    if spec.qk_norm:
        order = pair_order(spec.head_dim)
        query, key = (loader.norm(f"{attention}{name}_norm").cpu()[order] for name in "qk")
        heads = [query.expand(spec.num_heads, -1), key.expand(spec.num_kv_heads, -1)]
        qk_norm = torch.cat(heads).to(loader.device)
    sandwich = spec.sandwich_norms
    return LayerWeights(
        attention_norm=loader.norm(prefix + "input_layernorm"),
        qkv=loader.linear(
            [attention + "q_proj", attention + "k_proj", attention + "v_proj"],
            bias=spec.qkv_bias,
            interleave=(spec.head_dim, 2),
        ),
        qk_norm=qk_norm,
        output=loader.linear([attention + "o_proj"], bias=spec.output_bias),
        attention_post_norm=loader.norm(prefix + "post_attention_layernorm") if sandwich else None,
        mlp_norm=loader.norm(
            prefix + ("pre_feedforward_layernorm" if sandwich else "post_attention_layernorm")
        ),
        mlp=_load_mlp(loader, spec, index),
        mlp_post_norm=loader.norm(prefix + "post_feedforward_layernorm") if sandwich else None,
    )


def _load_mlp(loader: _Loader, spec: ModelSpec, index: int) -> Mlp:
    prefix = f"model.layers.{index}."
    experts = spec.layers[index].experts
    if experts is None:
        gate_up = loader.linear([prefix + "mlp.gate_proj", prefix + "mlp.up_proj"], bias=spec.mlp_bias)
        down = loader.linear([prefix + "mlp.down_proj"], bias=spec.mlp_bias)
        return GatedMlp(gate_up, down, spec.activation)
    numbers = range(experts.count)
    return MixtureOfExperts(
        experts,
        loader.linear([prefix + experts.router], bias=False),
        loader.grouped([[prefix + role.format(n) for role in (experts.gate, experts.up)] for n in numbers]),
        loader.grouped([[prefix + experts.down.format(n)] for n in numbers]),
        spec.activation,
    )


def _as_it_is(rows: Tensor) -> Tensor:
    return rows


class _Loader:
    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
        self.checkpoint = checkpoint
        self.dtype = dtype
        self.device = device

    def stacked(self, names: Sequence[str], orders: Sequence[RowOrder] = (_as_it_is,)) -> Tensor:
        """The tensors one below the other, cast to the decoder's dtype."""
        sources = [as_tensor(self.checkpoint.read(name)) for name in names]
        ordered = [order(source) for order, source in zip(orders, sources, strict=True)]
        return stack_rows(ordered, self.dtype, self.device)

    def linear(
        self, names: Sequence[str], *, bias: bool, interleave: tuple[int, int] = (0, 0)
    ) -> LinearLayer:
        """Linears of one input. interleave: (head_dim, n) reorders the head dimensions of the first n."""
        head_dim, count = interleave
        orders = [
            partial(interleave_heads, head_dim=head_dim) if i < count else _as_it_is
            for i in range(len(names))
        ]
        return build_linear(
            [self.checkpoint.read_linear(name) for name in names],
            orders,
            self.stacked([f"{name}.bias" for name in names], orders) if bias else None,
            dtype=self.dtype,
            device=self.device,
        )

    def grouped(self, names: Sequence[Sequence[str]]) -> GroupedLinear:
        """names: for each expert, its linears of one input."""
        experts = [[self.checkpoint.read_linear(name) for name in of_one] for of_one in names]
        return build_grouped_linear(experts, dtype=self.dtype, device=self.device)

    def norm(self, name: str) -> Tensor:
        """The effective weight; float32 where an offset would otherwise be lost to rounding."""
        stored = as_tensor(self.checkpoint.read(f"{name}.weight"))
        offset = self.checkpoint.spec.norm_weight_offset
        if offset:
            # The stored number is rounded to the decoder's dtype first: that is the model that runs.
            return (stored.to(self.dtype).float() + offset).to(self.device)
        return stored.to(self.device, self.dtype, copy=True)
