"""compressed-tensors, the format of llm-compressor that vLLM, SGLang and transformers load.

Follows the package compressed-tensors 0.20 (Apache-2.0): compressors/ for the tensors, quantization/ for the
configuration. A linear is stored as
    pack-quantized   weight_packed int32 [N, K * bits / 32] (codes - lowest code, low bits first),
                     weight_scale, weight_shape int64 [2], and if asymmetric weight_zero_point int32 packed
                     along outputs
    int-quantized    weight int8 [N, K], weight_scale, and if asymmetric weight_zero_point int8
    float-quantized  weight float8_e4m3fn [N, K], weight_scale
    naive-quantized  as one of the last two, by its type
and input_scale where activations have a static scale. Codes and zero-points are signed: 4 bits are -8 .. 7.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tightpack.schemes.bit_packing import pack_words, packed_length, unpack_words
from tightpack.schemes.layout import (
    LayoutError,
    Shape,
    Stored,
    floats,
    fp8_codes,
    label_of,
    num_groups,
    refuse_unless_zero,
    scales_of,
)
from tightpack.schemes.quantized import ActivationFormat, Fp8Weight, IntWeight, QuantizedLinear

Granularity = Literal["tensor", "channel", "group"]


@dataclass(frozen=True, slots=True)
class Activations:
    """format: scale None; `static` says that input_scale holds it."""

    format: ActivationFormat
    static: bool = False

    @property
    def label(self) -> str:
        return f"{self.format.precision} activations"

    def expected(self) -> dict[str, Stored]:
        if not self.static:
            return {}
        return {"input_scale": floats((1,)), "input_zero_point": Stored({"int8": (1,), "fp8": (1,)}, True)}

    def read(self, tensors: Mapping[str, NDArray[Any]]) -> ActivationFormat:
        if not self.static:
            return self.format
        refuse_unless_zero("input_zero_point", tensors, "activations are symmetric")
        return replace(self.format, scale=scales_of("input_scale", tensors["input_scale"], (1,)).item())


@dataclass(frozen=True, slots=True)
class IntLayout:
    """packed: codes in 32-bit words, else one a byte. group_size: None but for granularity "group"."""

    bits: Literal[4, 8]
    granularity: Granularity
    group_size: int | None
    symmetric: bool
    packed: bool
    act_order: bool = False
    activations: Activations | None = None

    @property
    def precision(self) -> str:
        return f"int{self.bits}"

    @property
    def label(self) -> str:
        text = label_of(self.precision, self.group_size, self.symmetric, grouped=self.granularity != "tensor")
        return text + (f", {self.activations.label}" if self.activations else "")

    @property
    def format(self) -> str:
        return "pack-quantized" if self.packed else "int-quantized"

    def expected(self, shape: Shape) -> dict[str, Stored]:
        outputs, inputs = shape
        scales = self._scales(shape)
        tensors = {"weight_scale": floats(scales)}
        if self.packed:
            tensors["weight_packed"] = Stored({"int32": (outputs, packed_length(inputs, self.bits))})
            tensors["weight_shape"] = Stored({"int64": (2,), "int32": (2,)})
        else:
            tensors["weight"] = Stored({"int8": shape})
        # Symmetric checkpoints of old versions, and packed ones before 0.9, hold zero-points one a byte.
        zeros = {"int8": scales}
        if self.packed and not self.symmetric and self.granularity != "tensor":
            zeros["int32"] = (packed_length(outputs, self.bits), scales[1])
        tensors["weight_zero_point"] = Stored(zeros, optional=self.symmetric)
        if self.act_order:
            tensors["weight_g_idx"] = Stored({"int32": (inputs,)})
        return tensors | (self.activations.expected() if self.activations else {})

    def grain(self, shape: Shape) -> tuple[int, int]:
        word = 32 // self.bits if self.packed else 1
        zeros_in_words = not self.symmetric and self.granularity != "tensor"
        return (word if zeros_in_words else 1), math.lcm(word, self.group_size or 1)

    def unpack(self, tensors: Mapping[str, NDArray[Any]], shape: Shape) -> QuantizedLinear:
        outputs, inputs = shape
        stored = self._scales(shape)
        half = 1 << (self.bits - 1)
        if self.packed:
            if tuple(tensors["weight_shape"].tolist()) != shape:
                raise LayoutError(
                    f"weight_shape: says {tensors['weight_shape'].tolist()}, and the configuration makes it "
                    f"{list(shape)}"
                )
            codes = unpack_words(tensors["weight_packed"], self.bits, 1, inputs)
        else:
            codes = _unsigned("weight", tensors["weight"], self.bits)
        scales = scales_of("weight_scale", tensors["weight_scale"], stored)
        zeros: NDArray[np.uint8] | None = None
        if self.symmetric:
            refuse_unless_zero("weight_zero_point", tensors, "its weights are symmetric")
            codes = (codes - np.uint8(half)).view(np.int8)
        elif tensors["weight_zero_point"].dtype == np.int32:
            zeros = unpack_words(tensors["weight_zero_point"], self.bits, 0, outputs)
        else:
            zeros = _unsigned("weight_zero_point", tensors["weight_zero_point"], self.bits).reshape(stored)
        if self.granularity == "tensor":
            scales = np.repeat(scales.reshape(1, 1), outputs, 0)
            zeros = None if zeros is None else np.repeat(zeros.reshape(1, 1), outputs, 0)
        weight = IntWeight(
            codes=codes,
            scales=scales,
            zeros=zeros,
            bits=self.bits,
            group_size=self.group_size or inputs,
            group_of_input=group_indices("weight_g_idx", tensors["weight_g_idx"], scales.shape[1])
            if self.act_order
            else None,
        )
        return QuantizedLinear(weight, self.activations.read(tensors) if self.activations else None)

    def pack(self, linear: QuantizedLinear) -> dict[str, NDArray[Any]]:
        """The tensors of `expected`; scales in float32, for the writer to narrow."""
        weight = linear.weight
        assert isinstance(weight, IntWeight)
        half = 1 << (self.bits - 1)
        if self.symmetric:
            codes = (weight.codes.astype(np.int16) + half).astype(np.uint8)
        else:
            codes = weight.codes.view(np.uint8)
        tensors: dict[str, NDArray[Any]] = {}
        if self.packed:
            tensors["weight_packed"] = pack_words(codes, self.bits, 1)
            tensors["weight_shape"] = np.array(weight.shape, np.int64)
        else:
            tensors["weight"] = (codes.astype(np.int16) - half).astype(np.int8)
        tensors["weight_scale"] = weight.scales
        if weight.zeros is not None:
            tensors["weight_zero_point"] = (
                pack_words(weight.zeros, self.bits, 0)
                if self.packed
                else (weight.zeros.astype(np.int16) - half).astype(np.int8)
            )
        return tensors | _input_scale(linear)

    def arguments(self) -> dict[str, Any]:
        """`weights` of a config group."""
        return {
            "num_bits": self.bits,
            "type": "int",
            "symmetric": self.symmetric,
            "strategy": self.granularity,
            "group_size": self.group_size,
            "dynamic": False,
        }

    def _scales(self, shape: Shape) -> tuple[int, ...]:
        if self.granularity == "tensor":
            return (1,)
        return shape[0], num_groups(shape, self.group_size)


@dataclass(frozen=True, slots=True)
class Fp8Layout:
    """block: rows and columns that share a scale, 0 for all of them."""

    block: tuple[int, int]
    activations: Activations | None = None

    @property
    def precision(self) -> str:
        return "fp8"

    @property
    def label(self) -> str:
        where = {(0, 0): "tensor", (1, 0): "channel"}.get(
            self.block, f"block {self.block[0]} x {self.block[1]}"
        )
        return f"fp8, {where}" + (f", {self.activations.label}" if self.activations else "")

    @property
    def format(self) -> str:
        return "float-quantized"

    def expected(self, shape: Shape) -> dict[str, Stored]:
        tensors = {
            "weight": Stored({"fp8": shape}),
            "weight_scale": floats(self._scales(shape)),
            "weight_zero_point": Stored(
                {"fp8": self._scales(shape), "int8": self._scales(shape)}, optional=True
            ),
        }
        return tensors | (self.activations.expected() if self.activations else {})

    def grain(self, shape: Shape) -> tuple[int, int]:
        return self.block[0] or 1, self.block[1] or 1

    def unpack(self, tensors: Mapping[str, NDArray[Any]], shape: Shape) -> QuantizedLinear:
        refuse_unless_zero("weight_zero_point", tensors, "its weights are symmetric")
        rows, columns = self.block[0] or shape[0], self.block[1] or shape[1]
        weight = Fp8Weight(
            codes=fp8_codes("weight", tensors["weight"]),
            scales=scales_of("weight_scale", tensors["weight_scale"], block_scales(shape, (rows, columns))),
            block=(rows, columns),
        )
        return QuantizedLinear(weight, self.activations.read(tensors) if self.activations else None)

    def pack(self, linear: QuantizedLinear) -> dict[str, NDArray[Any]]:
        """The tensors of `expected`; scales in float32, for the writer to narrow."""
        weight = linear.weight
        assert isinstance(weight, Fp8Weight)
        scales = weight.scales.reshape(self._scales(weight.shape))
        return {"weight": weight.codes, "weight_scale": scales} | _input_scale(linear)

    def arguments(self) -> dict[str, Any]:
        """`weights` of a config group."""
        arguments: dict[str, Any] = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False}
        if self.block == (0, 0):
            return arguments | {"strategy": "tensor"}
        if self.block == (1, 0):
            return arguments | {"strategy": "channel"}
        if self.block[0] == 1:
            return arguments | {"strategy": "group", "group_size": self.block[1]}
        return arguments | {"strategy": "block", "block_structure": list(self.block)}

    def _scales(self, shape: Shape) -> tuple[int, ...]:
        if self.block == (0, 0):
            return (1,)
        if self.block[0] == 1:
            return shape[0], num_groups(shape, self.block[1] or None)
        return block_scales(shape, (self.block[0] or shape[0], self.block[1] or shape[1]))


def block_scales(shape: Shape, block: tuple[int, int]) -> tuple[int, int]:
    return -(-shape[0] // block[0]), -(-shape[1] // block[1])


def group_indices(suffix: str, stored: NDArray[Any], groups: int) -> NDArray[np.int32]:
    """The group of each input, refused where there is no such group."""
    indices: NDArray[np.int32] = stored.astype(np.int32)
    if indices.size and (int(indices.min()) < 0 or int(indices.max()) >= groups):
        raise LayoutError(
            f"{suffix}: groups {indices.min()} .. {indices.max()}, and there are {groups} groups of scales"
        )
    return indices


def _unsigned(suffix: str, stored: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Signed codes, one a byte, as 0 .. 2^bits - 1; refused where one does not fit."""
    half = 1 << (bits - 1)
    if bits < 8 and stored.size and not (-half <= int(stored.min()) and int(stored.max()) < half):
        raise LayoutError(f"{suffix}: holds {stored.min()} .. {stored.max()}, beyond {bits} bits")
    codes: NDArray[np.uint8] = (stored.astype(np.int16) + half).astype(np.uint8)
    return codes


def _input_scale(linear: QuantizedLinear) -> dict[str, NDArray[Any]]:
    if linear.activation is None or linear.activation.scale is None:
        return {}
    return {"input_scale": np.array([linear.activation.scale], np.float32)}
