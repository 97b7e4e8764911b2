"""A GGUF file's tensors under Hugging Face's names, in Hugging Face's order of rows."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tightpack.architectures.model_spec import ExpertsSpec
from tightpack.checkpoints.checkpoint import CheckpointError, QuantizationInfo, TensorInfo
from tightpack.checkpoints.gguf_dequantize import dequantize
from tightpack.checkpoints.gguf_file import GgufFile, GgufTensor
from tightpack.schemes import gguf_blocks
from tightpack.schemes.layout import LayoutError
from tightpack.schemes.part import Part, cut
from tightpack.schemes.quantized import DenseWeight, QuantizedLinear

_TOP = MappingProxyType(
    {
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "output": "lm_head",
    }
)
_IN_LAYER = MappingProxyType(
    {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
)
# One tensor for the experts of a layer, each a slice of it.
_EXPERTS = MappingProxyType({"ffn_gate_exps": "gate", "ffn_up_exps": "up", "ffn_down_exps": "down"})
# A tensor an expert: Mixtral as llama.cpp wrote it at first.
_SINGLE_EXPERTS = MappingProxyType({"ffn_gate.{}": "gate", "ffn_up.{}": "up", "ffn_down.{}": "down"})
_OF_ONE_EXPERT = re.compile(r"blk\.\d+\.ffn_(gate|up|down)\.\d+\.weight")
_ROUTER = "ffn_gate_inp"
# Where there are norms after attention and MLP too, ffn_norm is no longer the one after attention.
_NORMS = MappingProxyType({"ffn_norm": "post_attention_layernorm"})
_SANDWICH_NORMS = MappingProxyType(
    {
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    }
)
_VIEWS: Mapping[str, Any] = MappingProxyType(
    {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2"), "bf16": ml_dtypes.bfloat16}
)


class GgufTensors:
    """A TensorSource and LinearSource over a GGUF file.

    heads, kv_heads: given where llama.cpp's converter interleaved the rows of queries and keys, so that
        pairs to be rotated are neighbours; the rows are put back.
    experts: those of the layers that have some, under the names that Hugging Face gives them.
    norm_offset: what the converter added to every norm weight.
    used_elsewhere: tensors that are no weights.
    """

    def __init__(
        self,
        file: GgufFile,
        *,
        heads: int | None = None,
        kv_heads: int | None = None,
        experts: ExpertsSpec | None = None,
        norm_offset: float = 0.0,
        sandwich_norms: bool = False,
        used_elsewhere: Collection[str] = (),
    ) -> None:
        self._file = file
        self._heads, self._kv_heads, self._norm_offset = heads, kv_heads, norm_offset
        in_layer = {**_IN_LAYER, **(_SANDWICH_NORMS if sandwich_norms else _NORMS)}
        if experts is not None:
            in_layer[_ROUTER] = experts.router
            if any(map(_OF_ONE_EXPERT.fullmatch, file.tensors)):
                in_layer |= {gguf: name for name, gguf in _spelled_experts(experts, _SINGLE_EXPERTS)}
                experts = None  # none has to be cut out of a tensor for all
        self._spelled = {huggingface: gguf for gguf, huggingface in [*_TOP.items(), *in_layer.items()]}
        self._tensors: dict[str, GgufTensor] = {}
        for name, tensor in file.tensors.items():
            if name in used_elsewhere:
                continue
            place = _experts_place(name, tensor, experts)
            if place is None:
                self._tensors[_huggingface_name(name, in_layer)] = tensor
            else:
                self._tensors |= _one_by_one(tensor, place)
        if experts is not None:
            self._spelled |= dict(_spelled_experts(experts, _EXPERTS))
        self._infos = {
            name: TensorInfo(tensor.shape, tensor.precision.name, tensor.num_bytes)
            for name, tensor in self._tensors.items()
        }

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def stored_name(self, name: str) -> str:
        """The name in the file of the tensor that Hugging Face calls `name`, there or not."""
        if name in self._tensors:
            return self._tensors[name].name
        stem, _, kind = name.rpartition(".")
        layer, _, rest = stem.removeprefix("model.layers.").partition(".")
        return (
            f"blk.{layer}.{self._spelled[rest]}.{kind}"
            if rest in self._spelled
            else f"{self._spelled[stem]}.{kind}"
        )

    def read(self, name: str) -> NDArray[Any]:
        """As TensorSource.read: fp32, fp16 and bf16 as stored, blocks as float32."""
        tensor = self._tensors[name]
        raw = self.read_blocks(name)
        if tensor.precision.name in _VIEWS:
            values: NDArray[Any] = raw.view(_VIEWS[tensor.precision.name])
        else:
            values = dequantize(raw.reshape(-1), tensor.precision.name, int(np.prod(tensor.shape)))
            values = values.reshape(tensor.shape)
        if self._norm_offset and name.endswith("norm.weight"):
            values = (values.astype(np.float32) - np.float32(self._norm_offset)).astype(values.dtype)
        return values

    def read_linear(self, name: str) -> QuantizedLinear:
        """As LinearSource.read_linear: Q4_0, Q4_1 and Q8_0 as their integers, other blocks dequantized."""
        tensor = self._tensors[f"{name}.weight"]
        if tensor.precision.name not in gguf_blocks.PRECISIONS:
            return QuantizedLinear(DenseWeight(self.read(f"{name}.weight")))
        try:
            return QuantizedLinear(
                gguf_blocks.unpack_blocks(self.read_blocks(f"{name}.weight"), tensor.precision.name)
            )
        except LayoutError as error:
            raise CheckpointError(f"{self._file.path}: tensor {tensor.name!r}: {error}") from error

    def grain(self, name: str) -> tuple[int, int]:
        return 1, self._tensors[f"{name}.weight"].precision.block_elements

    def read_part(self, name: str, part: Part) -> QuantizedLinear:
        """Blocks lie along a row: whole ones are cut out of it, as rows are unless they are put back."""
        full = f"{name}.weight"
        tensor = self._tensors[full]
        outputs, inputs = tensor.shape
        (top, bottom), (left, right) = part.spans((outputs, inputs))
        elements, size = tensor.precision.block_elements, tensor.precision.block_bytes
        precision = tensor.precision.name
        if left % elements or right % elements:
            return cut(self.read_linear(name), part)
        raw = self.read_blocks(full)[top:bottom, left // elements * size : right // elements * size]
        if precision in _VIEWS:
            return QuantizedLinear(DenseWeight(np.ascontiguousarray(raw).view(_VIEWS[precision])))
        if precision not in gguf_blocks.PRECISIONS:
            values = dequantize(
                np.ascontiguousarray(raw).reshape(-1), precision, (bottom - top) * (right - left)
            )
            return QuantizedLinear(DenseWeight(values.reshape(bottom - top, right - left)))
        try:
            return QuantizedLinear(gguf_blocks.unpack_blocks(raw, precision))
        except LayoutError as error:
            raise CheckpointError(f"{self._file.path}: tensor {tensor.name!r}: {error}") from error

    @property
    def quantization(self) -> QuantizationInfo | None:
        """Which linears are stored in blocks; None where none is."""
        linears = {
            name.removesuffix(".weight"): gguf_blocks.label(tensor.precision.name)
            for name, tensor in self._tensors.items()
            if tensor.precision.block_elements > 1
            and name != "model.embed_tokens.weight"
            and f".{_ROUTER}." not in tensor.name
        }
        return QuantizationInfo("gguf", linears) if linears else None

    def release_pages(self) -> None:
        self._file.release_pages()

    def read_blocks(self, name: str) -> NDArray[np.uint8]:
        """The stored bytes, uint8 [rows, bytes a row], rows in Hugging Face's order (a view where they are
        stored so).

        Blocks lie along a row, so moving rows leaves them whole.
        """
        tensor = self._tensors[name]
        raw = self._file.raw(tensor)
        heads = self._heads if ".q_proj." in name else self._kv_heads if ".k_proj." in name else None
        if heads is None:
            return raw
        if raw.ndim == 1:  # a bias: one row of values, each a row of its own
            rows = _undo_interleaving(raw.reshape(tensor.shape[0], -1), heads)
            return rows.reshape(-1)
        return _undo_interleaving(raw, heads)


def _undo_interleaving(rows: NDArray[np.uint8], heads: int) -> NDArray[np.uint8]:
    count, width = rows.shape
    halves = rows.reshape(heads, count // heads // 2, 2, width).swapaxes(1, 2)
    return np.ascontiguousarray(halves).reshape(count, width)


def _huggingface_name(name: str, in_layer: Mapping[str, str]) -> str:
    """The name, or the GGUF's own for a tensor that no supported architecture has (found out in
    validation)."""
    stem, _, kind = name.rpartition(".")
    if stem in _TOP:
        return f"{_TOP[stem]}.{kind}"
    match = re.fullmatch(r"blk\.(\d+)\.([\w.]+)", stem)
    if match and match[2] in in_layer:
        return f"model.layers.{match[1]}.{in_layer[match[2]]}.{kind}"
    return name


def _spelled_experts(experts: ExpertsSpec, names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Inside a layer, every expert's linears under Hugging Face's name and GGUF's. names: GGUF's to roles."""
    for expert in range(experts.count):
        for gguf, role in names.items():
            yield getattr(experts, role).format(expert), gguf.format(expert)


def _experts_place(name: str, tensor: GgufTensor, experts: ExpertsSpec | None) -> str | None:
    """The full name of a layer's experts with {} for the number; None for a tensor of anything else."""
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if experts is None or match is None or match[2] not in _EXPERTS:
        return None
    # A tensor of another shape is left as it is, for validation to name.
    if len(tensor.shape) != 3 or tensor.shape[0] != experts.count:
        return None
    return f"model.layers.{match[1]}.{getattr(experts, _EXPERTS[match[2]])}.weight"


def _one_by_one(tensor: GgufTensor, place: str) -> dict[str, GgufTensor]:
    """The experts of one tensor, each where it lies in the file."""
    count, *shape = tensor.shape
    num_bytes = tensor.num_bytes // count
    return {
        place.format(expert): replace(
            tensor, shape=tuple(shape), offset=tensor.offset + expert * num_bytes, num_bytes=num_bytes
        )
        for expert in range(count)
    }
