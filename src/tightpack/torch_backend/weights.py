"""A checkpoint's tensors as the decoder wants them: cast, fused, and on the device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tightpack.architectures.model_spec import ModelSpec
from tightpack.checkpoints.checkpoint import Checkpoint
from tightpack.schemes.part import Part, Span
from tightpack.schemes.quantized import DenseWeight, QuantizedLinear
from tightpack.torch_backend.arrays import as_tensor
from tightpack.torch_backend.grouped_linear import GroupedLinear, build_grouped_linear
from tightpack.torch_backend.linear import Linear, LinearLayer
from tightpack.torch_backend.mlp import GatedMlp, MixtureOfExperts, Mlp
from tightpack.torch_backend.quantized_weights import build_linear, stack_rows
from tightpack.torch_backend.rank_group import ALONE, RankGroup
from tightpack.torch_backend.rotary import interleave_heads, pair_order
from tightpack.torch_backend.row_order import RowOrder, as_it_is
from tightpack.torch_backend.saturation_guard import GuardedLinear
from tightpack.torch_backend.split import Split
from tightpack.torch_backend.summed_linear import SummedLinear
from tightpack.torch_backend.triton_kernels import KernelContext


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
    """guarded: the layers with static input scales, by name (see `saturation_guard`)."""

    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor
    head: LinearLayer
    guarded: Mapping[str, GuardedLinear]


def load_weights(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    group: RankGroup = ALONE,
    context: KernelContext | None = None,
) -> DecoderWeights:
    """Read, cast and fuse every tensor, one at a time: the peak is the model and one source tensor.

    group: of several ranks, each reads its part of what is divided among them (see `split`) and no more,
    where the file allows. context: of the kernels that linears run on, packed for them; None for PyTorch's.
    """
    spec = checkpoint.spec
    loader = _Loader(checkpoint, dtype, device, group, context)
    embedding = loader.embedding()
    layers = tuple(_load_layer(loader, spec, index) for index in range(spec.num_layers))
    if spec.tied_embeddings:
        head: LinearLayer = Linear(embedding, keep_plain=True)
    else:
        head = loader.linear(["lm_head"], [Part(rows=loader.split.vocabulary)], bias=False)
    return DecoderWeights(embedding, layers, loader.norm("model.norm"), head, loader.guarded)


def _load_layer(loader: _Loader, spec: ModelSpec, index: int) -> LayerWeights:
    prefix = f"model.layers.{index}."
    attention, split = prefix + "self_attn.", loader.split
    qk_norm = None
    if spec.qk_norm:
        order = pair_order(spec.head_dim)
        query, key = (loader.norm(f"{attention}{name}_norm").cpu()[order] for name in "qk")
        local = split.local_spec
        heads = [query.expand(local.num_heads, -1), key.expand(local.num_kv_heads, -1)]
        qk_norm = torch.cat(heads).to(loader.device)
    sandwich = spec.sandwich_norms
    return LayerWeights(
        attention_norm=loader.norm(prefix + "input_layernorm"),
        qkv=loader.linear(
            [attention + "q_proj", attention + "k_proj", attention + "v_proj"],
            [split.query_rows, split.key_value_rows, split.key_value_rows],
            bias=spec.qkv_bias,
            interleave=(spec.head_dim, 2),
        ),
        qk_norm=qk_norm,
        output=loader.linear([attention + "o_proj"], [split.attention_columns], bias=spec.output_bias),
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
        names = [prefix + "mlp.gate_proj", prefix + "mlp.up_proj"], prefix + "mlp.down_proj"
        inner = loader.inner(*names, spec.intermediate_size)
        gate_up = loader.linear(names[0], [Part(rows=inner)] * 2, bias=spec.mlp_bias)
        down = loader.linear([names[1]], [Part(columns=inner)], bias=spec.mlp_bias)
        return GatedMlp(gate_up, down, spec.activation, loader.context)
    of_each = [
        ([prefix + role.format(n) for role in (experts.gate, experts.up)], prefix + experts.down.format(n))
        for n in range(experts.count)
    ]
    inner = loader.inner(*of_each[0], experts.intermediate_size)
    return MixtureOfExperts(
        experts,
        loader.linear([prefix + experts.router], [Part()], bias=False),
        loader.grouped([names for names, _ in of_each], Part(rows=inner)),
        loader.grouped([[down] for _, down in of_each], Part(columns=inner)),
        spec.activation,
        loader.group,
    )


class _Loader:
    """Reads this rank's part of everything. Parts of a linear by its inputs give part of a sum: those are
    followed by the sum over the ranks."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
        group: RankGroup,
        context: KernelContext | None,
    ) -> None:
        self.checkpoint = checkpoint
        self.dtype = dtype
        self.device = device
        self.group = group
        self.context = context
        self.split = Split(checkpoint.spec, group.rank, group.size)
        self.guarded: dict[str, GuardedLinear] = {}

    def embedding(self) -> Tensor:
        name = "model.embed_tokens"
        if self.group.size == 1:
            source = as_tensor(self.checkpoint.read(f"{name}.weight"))
        else:
            weight = self.checkpoint.read_part(name, Part(rows=self.split.vocabulary)).weight
            source = as_tensor(weight.values if isinstance(weight, DenseWeight) else weight.dequantize())
        return stack_rows([source], self.dtype, self.device)

    def inner(self, before: Sequence[str], after: str, width: int) -> Span:
        """This rank's part of what lies between linears, in grains of all of them."""
        rows = [self.checkpoint.grain(name)[0] for name in before]
        return self.split.inner(width, math.lcm(*rows, self.checkpoint.grain(after)[1]))

    def linear(
        self,
        names: Sequence[str],
        parts: Sequence[Part],
        *,
        bias: bool,
        interleave: tuple[int, int] = (0, 0),
    ) -> LinearLayer:
        """Linears of one input, and this rank's part of each.

        interleave: (head_dim, n) reorders the head dimensions of the first n.
        """
        head_dim, count = interleave
        orders: list[RowOrder] = [
            partial(interleave_heads, head_dim=head_dim) if i < count else as_it_is for i in range(len(names))
        ]
        summed = self._is_part_of_a_sum(parts[0])
        linear = build_linear(
            [self._read(name, part) for name, part in zip(names, parts, strict=True)],
            orders,
            # Of a sum, one rank adds the bias.
            self._bias(names, parts, orders) if bias and not (summed and self.group.rank) else None,
            dtype=self.dtype,
            device=self.device,
            context=self.context,
            names=names,
            guarded=self.guarded,
        )
        return SummedLinear(linear, self.group) if summed else linear

    def grouped(self, names: Sequence[Sequence[str]], part: Part) -> GroupedLinear:
        """names: for each expert, its linears of one input; part: this rank's of each."""
        experts = [[self._read(name, part) for name in of_one] for of_one in names]
        return build_grouped_linear(
            experts,
            dtype=self.dtype,
            device=self.device,
            context=self.context,
            names=names,
            guarded=self.guarded,
        )

    def _is_part_of_a_sum(self, part: Part) -> bool:
        return self.group.size > 1 and part.columns is not None

    def _read(self, name: str, part: Part) -> QuantizedLinear:
        if self.group.size == 1:
            return self.checkpoint.read_linear(name)
        return self.checkpoint.read_part(name, part)

    def _bias(self, names: Sequence[str], parts: Sequence[Part], orders: Sequence[RowOrder]) -> Tensor:
        sources = []
        for name, part, order in zip(names, parts, orders, strict=True):
            source = as_tensor(self.checkpoint.read(f"{name}.bias"))
            sources.append(order(source if part.rows is None else source[slice(*part.rows)]))
        return stack_rows(sources, self.dtype, self.device)

    def norm(self, name: str) -> Tensor:
        """The effective weight; float32 where an offset would otherwise be lost to rounding."""
        stored = as_tensor(self.checkpoint.read(f"{name}.weight"))
        offset = self.checkpoint.spec.norm_weight_offset
        if offset:
            # The stored number is rounded to the decoder's dtype first: that is the model that runs.
            return (stored.to(self.dtype).float() + offset).to(self.device)
        return stored.to(self.device, self.dtype, copy=True)
