"""A checkpoint's tensors as the step program wants them: packed, the linears of one input fused."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from types import MappingProxyType
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from tightpack import _native
from tightpack.architectures.model_spec import ExpertsSpec
from tightpack.checkpoints.checkpoint import BlockSource, Checkpoint, CheckpointError
from tightpack.native_cpu.formats import (
    IntegerGrid,
    RowRounding,
    beside_integers,
    dequantized,
    layout_key,
    row_rounding,
    runs_as_integers,
)
from tightpack.schemes import gguf_blocks
from tightpack.schemes.quantized import DenseWeight, Fp8Weight, IntWeight, QuantizedLinear

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]

_BLOCK_GRIDS = MappingProxyType(
    {
        "q4_0": IntegerGrid(4, gguf_blocks.BLOCK, symmetric=True),
        "q4_1": IntegerGrid(4, gguf_blocks.BLOCK, symmetric=False),
        "q8_0": IntegerGrid(8, gguf_blocks.BLOCK, symmetric=True),
    }
)


@dataclass(frozen=True, slots=True)
class PackedRun:
    """Outputs [first_output, first_output + weight.outputs) of a fused linear. bias: float32, or None."""

    weight: _native.PackedLinear
    rounding: RowRounding
    first_output: int
    bias: Floats | None


@dataclass(frozen=True, slots=True)
class FusedLinear:
    """Linears of one input, their outputs one after the other; several runs where their formats differ."""

    runs: tuple[PackedRun, ...]

    @property
    def outputs(self) -> int:
        return sum(run.weight.outputs for run in self.runs)

    @property
    def inputs(self) -> int:
        return self.runs[0].weight.inputs


@dataclass(frozen=True, slots=True)
class MlpWeights:
    """gate_up: the gate's outputs, then up's."""

    gate_up: FusedLinear
    down: FusedLinear

    @property
    def linears(self) -> tuple[FusedLinear, ...]:
        return (self.gate_up, self.down)


@dataclass(frozen=True, slots=True)
class MixtureWeights:
    """router: a score an expert."""

    router: FusedLinear
    experts: tuple[MlpWeights, ...]

    @property
    def linears(self) -> tuple[FusedLinear, ...]:
        return (self.router, *(linear for expert in self.experts for linear in expert.linears))


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """queries, keys_values: apart in the last layer, whose queries are computed for fewer rows; elsewhere
    `queries` holds all three and keys_values is None. Norm weights are float32, any offset added."""

    attention_norm: Floats
    queries: FusedLinear
    keys_values: FusedLinear | None
    query_norm: Floats | None
    key_norm: Floats | None
    output: FusedLinear
    attention_post_norm: Floats | None
    mlp_norm: Floats
    mlp: MlpWeights | MixtureWeights
    mlp_post_norm: Floats | None

    @property
    def linears(self) -> tuple[FusedLinear, ...]:
        attention = (self.queries, self.output, *(() if self.keys_values is None else (self.keys_values,)))
        return attention + self.mlp.linears


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """embedding: the head's own where they are tied."""

    embedding: _native.PackedLinear
    layers: tuple[LayerWeights, ...]
    final_norm: Floats
    head: FusedLinear

    @property
    def linears(self) -> list[FusedLinear]:
        return [self.head, *(linear for layer in self.layers for linear in layer.linears)]

    def packed(self) -> list[_native.PackedLinear]:
        """Every packed weight once."""
        each = [self.embedding, *(run.weight for linear in self.linears for run in linear.runs)]
        return list({id(weight): weight for weight in each}.values())

    @property
    def num_bytes(self) -> int:
        return sum(weight.num_bytes for weight in self.packed())


def load_weights(checkpoint: Checkpoint, activation_dtype: str, threads: int) -> ModelWeights:
    """Read and pack every tensor, one a thread at a time: the peak is the packed model and a few tensors.

    Raises CheckpointError naming the tensor that cannot be read, ValueError for one that cannot be packed.
    """
    spec, packer = checkpoint.spec, _Packer(checkpoint, activation_dtype)
    embedding = "model.embed_tokens"
    head = embedding if spec.tied_embeddings else "lm_head"
    with ThreadPoolExecutor(threads, thread_name_prefix="pack") as pool:
        # The largest first, so that no thread is left alone with it at the end.
        packed_head = pool.submit(packer.fused, [head])
        packed_embedding = packed_head if head == embedding else pool.submit(packer.fused, [embedding])
        layers = pool.map(packer.layer, range(spec.num_layers))
        weights = ModelWeights(
            embedding=packed_embedding.result().runs[0].weight,
            layers=tuple(layers),
            final_norm=packer.norm("model.norm"),
            head=packed_head.result(),
        )
    packer.report()
    return weights


@dataclass(frozen=True, slots=True)
class _Part:
    """A linear still in the checkpoint's form. blocks: as GGUF holds them, where kernels take those."""

    name: str
    rounding: RowRounding
    layout: tuple[object, ...]
    linear: QuantizedLinear | None
    blocks: NDArray[np.uint8] | None

    @property
    def group(self) -> tuple[object, ...]:
        return (self.rounding, self.layout)


class _Packer:
    def __init__(self, checkpoint: Checkpoint, activation_dtype: str) -> None:
        self._checkpoint = checkpoint
        self._activation_dtype: str = activation_dtype
        self._dequantized: list[str] = []
        self._arena = _native.Arena()

    def layer(self, index: int) -> LayerWeights:
        spec = self._checkpoint.spec
        prefix = f"model.layers.{index}."
        attention = prefix + "self_attn."
        queries, keys_values = [attention + "q_proj"], [attention + "k_proj", attention + "v_proj"]
        last = index == spec.num_layers - 1
        sandwich = spec.sandwich_norms
        before_mlp = "pre_feedforward_layernorm" if sandwich else "post_attention_layernorm"
        return LayerWeights(
            attention_norm=self.norm(prefix + "input_layernorm"),
            queries=self.fused(queries if last else queries + keys_values, bias=spec.qkv_bias),
            keys_values=self.fused(keys_values, bias=spec.qkv_bias) if last else None,
            query_norm=self.norm(attention + "q_norm") if spec.qk_norm else None,
            key_norm=self.norm(attention + "k_norm") if spec.qk_norm else None,
            output=self.fused([attention + "o_proj"], bias=spec.output_bias),
            attention_post_norm=self.norm(prefix + "post_attention_layernorm") if sandwich else None,
            mlp_norm=self.norm(prefix + before_mlp),
            mlp=self.mlp(prefix, spec.layers[index].experts),
            mlp_post_norm=self.norm(prefix + "post_feedforward_layernorm") if sandwich else None,
        )

    def mlp(self, prefix: str, experts: ExpertsSpec | None) -> MlpWeights | MixtureWeights:
        if experts is None:
            bias = self._checkpoint.spec.mlp_bias
            return MlpWeights(
                gate_up=self.fused([prefix + "mlp.gate_proj", prefix + "mlp.up_proj"], bias=bias),
                down=self.fused([prefix + "mlp.down_proj"], bias=bias),
            )
        return MixtureWeights(
            router=self.fused([prefix + experts.router]),
            experts=tuple(
                MlpWeights(
                    gate_up=self.fused(
                        [prefix + experts.gate.format(expert), prefix + experts.up.format(expert)]
                    ),
                    down=self.fused([prefix + experts.down.format(expert)]),
                )
                for expert in range(experts.count)
            ),
        )

    def norm(self, name: str) -> Floats:
        """The effective weight."""
        stored = self._checkpoint.read(f"{name}.weight").astype(np.float32)
        return stored + np.float32(self._checkpoint.spec.norm_weight_offset)

    def fused(self, names: Sequence[str], *, bias: bool = False) -> FusedLinear:
        runs, first = [], 0
        for _, group in groupby(map(self._part, names), key=lambda part: part.group):
            parts = list(group)
            weight = _pack(parts, self._arena)
            biases = [self._checkpoint.read(f"{p.name}.bias").astype(np.float32) for p in parts if bias]
            runs.append(PackedRun(weight, parts[0].rounding, first, np.concatenate(biases) if bias else None))
            first += weight.outputs
        return FusedLinear(tuple(runs))

    def report(self) -> None:
        """One line for all that lost its integers."""
        if self._dequantized:
            logger.warning(
                "%d linears of %s run in bfloat16, dequantized: their groups are not of neighbouring inputs "
                "(desc_act), or of no multiple of 8; the first is %s",
                len(self._dequantized),
                self._checkpoint.name,
                min(self._dequantized),
            )

    def _part(self, name: str) -> _Part:
        tensors = self._checkpoint.tensors
        if isinstance(tensors, BlockSource):
            info = tensors.infos[f"{name}.weight"]
            if info.precision in _BLOCK_GRIDS:
                grid = _BLOCK_GRIDS[info.precision]
                rounding = beside_integers(info.shape[1], grid, None, self._activation_dtype)
                blocks = tensors.read_blocks(f"{name}.weight")
                return _Part(name, rounding, ("blocks", info.precision), None, blocks)
        linear = self._checkpoint.read_linear(name)
        if isinstance(linear.weight, IntWeight) and not runs_as_integers(linear.weight):
            self._dequantized.append(name)
            linear = dequantized(linear)
        try:
            rounding = row_rounding(linear, self._activation_dtype)
        except ValueError as error:
            raise CheckpointError(f"{self._checkpoint.name}: {name}: {error}") from error
        return _Part(name, rounding, layout_key(linear), linear, None)


def _pack(parts: Sequence[_Part], arena: _native.Arena) -> _native.PackedLinear:
    """Parts of one layout, one below the other. On one thread: parts are packed side by side."""
    blocks = [part.blocks for part in parts if part.blocks is not None]
    if blocks:
        precision = str(parts[0].layout[1])
        return _native.pack_gguf(blocks, precision=precision, inputs=parts[0].rounding.width, arena=arena)
    weights = [part.linear.weight for part in parts if part.linear is not None]
    integers = [weight for weight in weights if isinstance(weight, IntWeight)]
    if integers:
        first = integers[0]
        return _native.pack_int(
            [(_whole(w.codes), _whole(w.scales), _whole(w.zeros), _whole(w.minimums)) for w in integers],
            bits=first.bits,
            group_size=min(first.group_size, first.shape[1]),
            arena=arena,
        )
    eights = [weight for weight in weights if isinstance(weight, Fp8Weight)]
    if eights:
        return _native.pack_fp8(
            [(_whole(w.codes).view(np.uint8), _whole(w.scales), w.block) for w in eights], arena=arena
        )
    dense = [_plain(w.values) for w in weights if isinstance(w, DenseWeight)]
    return _native.pack_dense(dense, arena=arena)


@overload
def _whole(array: NDArray[Any]) -> NDArray[Any]: ...
@overload
def _whole(array: None) -> None: ...
def _whole(array: NDArray[Any] | None) -> NDArray[Any] | None:
    """Contiguous, as the extension reads it."""
    return None if array is None else np.ascontiguousarray(array)


def _plain(values: NDArray[Any]) -> NDArray[Any]:
    """bfloat16 as its bits in uint16, which is how the extension knows it."""
    values = np.ascontiguousarray(values)
    return values.view(np.uint16) if values.dtype.name == "bfloat16" else values
