"""GPTQ's layout (AutoGPTQ, GPTQModel: nn_modules/qlinear): 4 or 8 bits, groups along the inputs.

qweight int32 [K * bits / 32, N]       codes, neighbouring inputs a word, low bits first
qzeros  int32 [groups, N * bits / 32]  zero-points, neighbouring outputs a word; version 1 stores them less
                                       one, modulo 2^bits, version 2 (checkpoint_format gptq_v2) as they are
scales  fp16  [groups, N]
g_idx   int32 [K]                      the group of each input; with desc_act groups are not contiguous
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tightpack.schemes.bit_packing import pack_words, packed_length, unpack_words
from tightpack.schemes.compressed_tensors import group_indices
from tightpack.schemes.layout import (
    LayoutError,
    LinearLayout,
    OneGroupSize,
    Recipe,
    Shape,
    Stored,
    bits_of,
    flag_of,
    floats,
    group_size_of,
    label_of,
    left_unconverted,
    matches,
    names_of,
    num_groups,
    one_of,
    scales_of,
)
from tightpack.schemes.quantized import IntWeight, QuantizedLinear

METHOD = "gptq"
_FORMATS = {"gptq": 1, "gptq_v2": 2}


@dataclass(frozen=True, slots=True)
class GptqLayout:
    bits: Literal[4, 8]
    group_size: int | None
    symmetric: bool
    act_order: bool
    version: int

    @property
    def precision(self) -> str:
        return f"int{self.bits}"

    @property
    def label(self) -> str:
        text = label_of(self.precision, self.group_size, self.symmetric)
        return f"{text}, act-order" if self.act_order else text

    def expected(self, shape: Shape) -> dict[str, Stored]:
        outputs, inputs = shape
        for what, count in (("inputs", inputs), ("outputs", outputs)):
            if count * self.bits % 32:
                raise LayoutError(f"its {count} {what} do not fill words of {32 // self.bits}")
        groups = num_groups(shape, self.group_size, partial=True)
        return {
            "qweight": Stored({"int32": (packed_length(inputs, self.bits), outputs)}),
            "qzeros": Stored({"int32": (groups, packed_length(outputs, self.bits))}),
            "scales": floats((groups, outputs)),
            "g_idx": Stored({"int32": (inputs,)}, optional=not self.act_order),
        }

    def grain(self, shape: Shape) -> tuple[int, int]:
        word = 32 // self.bits
        return word, math.lcm(word, self.group_size or 1)

    def unpack(self, tensors: Mapping[str, NDArray[Any]], shape: Shape) -> QuantizedLinear:
        outputs, inputs = shape
        size = self.group_size or inputs
        groups = num_groups(shape, self.group_size, partial=True)
        half = 1 << (self.bits - 1)
        codes = np.ascontiguousarray(unpack_words(tensors["qweight"], self.bits, 0, inputs).T)
        zeros: NDArray[np.uint8] | None = np.ascontiguousarray(
            unpack_words(tensors["qzeros"], self.bits, 1, outputs).T
        )
        assert zeros is not None
        if self.version == 1:
            zeros = (zeros + np.uint8(1)) & np.uint8(2 * half - 1)
        if self.symmetric:
            if np.any(zeros != half):
                raise LayoutError(
                    f"qzeros: zero-points of {zeros.min()} .. {zeros.max()}, and a symmetric checkpoint of "
                    f"format {_name(self.version)!r} has {half}"
                )
            codes = (codes - np.uint8(half)).view(np.int8)
            zeros = None
        order = None
        if "g_idx" in tensors:
            order = group_indices("g_idx", tensors["g_idx"], groups)
            if np.array_equal(order, np.arange(inputs, dtype=np.int32) // size):
                order = None
        scales = scales_of("scales", tensors["scales"], (groups, outputs))
        weight = IntWeight(
            codes=codes,
            scales=np.ascontiguousarray(scales.T),
            zeros=zeros,
            bits=self.bits,
            group_size=size,
            group_of_input=order,
        )
        return QuantizedLinear(weight)


class Packer:
    """A `layout.Packer`: version 1 for symmetric weights, which every loader reads, and version 2 for
    asymmetric ones, since the first has no place for a zero-point of 0."""

    def __init__(self) -> None:
        self._layout: GptqLayout | None = None
        self._size = OneGroupSize()

    def pack(self, name: str, linear: QuantizedLinear) -> dict[str, NDArray[Any]]:
        weight = linear.weight
        if not isinstance(weight, IntWeight) or linear.activation is not None:
            raise LayoutError("is not of integers with 16-bit activations, all that GPTQ's layout holds")
        if weight.minimums is not None:
            raise LayoutError("has minimums (GGUF's Q4_1), which GPTQ's layout does not hold")
        symmetric = weight.zeros is None
        layout = GptqLayout(weight.bits, None, symmetric, False, 1 if symmetric else 2)
        if self._layout is None:
            self._layout = layout
        if replace(self._layout, act_order=False) != layout:
            raise LayoutError(f"is {layout.precision} and {'' if symmetric else 'a'}symmetric, unlike others")
        replace(layout, group_size=weight.group_size).expected(weight.shape)
        self._size.add(weight.group_size, weight.shape[1])
        inputs, half = weight.shape[1], 1 << (weight.bits - 1)
        codes, zeros = weight.codes.view(np.uint8), weight.zeros
        if zeros is None:
            codes = codes + np.uint8(half)
            zeros = np.full(weight.scales.shape, half - 1, np.uint8)
        order = weight.group_of_input
        if order is None:
            order = (np.arange(inputs) // weight.group_size).astype(np.int32)
        else:
            self._layout = replace(self._layout, act_order=True)
        return {
            "qweight": pack_words(codes.T, weight.bits, 0),
            "qzeros": pack_words(zeros.T, weight.bits, 1),
            "scales": np.ascontiguousarray(weight.scales.T),
            "g_idx": order.astype(np.int32),
        }

    def config(self, unquantized: Sequence[str], kv_cache: Literal["fp8", "int8"] | None) -> dict[str, Any]:
        layout = self._layout
        if layout is None:
            raise LayoutError("no linear was quantized")
        # GPTQModel's and vLLM's way to leave a linear alone.
        left: dict[str, dict[str, Any]] = {
            f"-:^{name.replace('.', chr(92) + '.')}$": {} for name in unquantized if name != "lm_head"
        }
        return {
            "quant_method": METHOD,
            "checkpoint_format": _name(layout.version),
            "bits": layout.bits,
            "group_size": self._size.stated,
            "sym": layout.symmetric,
            "desc_act": layout.act_order,
            "lm_head": False,
            **({"dynamic": left} if left else {}),
        }


def read_recipe(config: Mapping[str, Any]) -> Recipe:
    """From quantization_config, or from AutoGPTQ's own quantize_config.json. Raises LayoutError naming the
    field."""
    given = config.get("checkpoint_format") or "gptq"
    layout = GptqLayout(
        bits=bits_of("bits", config.get("bits", 4)),
        group_size=group_size_of("group_size", config.get("group_size", 128)),
        symmetric=flag_of("sym", config.get("sym", True)),
        act_order=flag_of("desc_act", config.get("desc_act", False)),
        version=_FORMATS[one_of("checkpoint_format", given, _FORMATS)],
    )
    head = flag_of("lm_head", config.get("lm_head") or False)
    skipped = names_of("modules_to_not_convert", config.get("modules_to_not_convert"))
    inside = config.get("modules_in_block_to_quantize")
    chosen = None if inside is None else _flat("modules_in_block_to_quantize", inside)
    dynamic = config.get("dynamic") or {}
    if not isinstance(dynamic, Mapping):
        raise LayoutError(f"dynamic must be an object of patterns, not {dynamic!r}")

    def layout_of(names: Sequence[str]) -> LinearLayout | None:
        for pattern, changes in dynamic.items():
            if any(matches(pattern.removeprefix("+:").removeprefix("-:"), name) for name in names):
                return None if pattern.startswith("-:") else _changed(layout, pattern, changes)
        if "lm_head" in names:
            return layout if head else None
        if chosen is not None and not any(name.endswith(f".{part}") for name in names for part in chosen):
            return None
        return None if left_unconverted(names, skipped) else layout

    return Recipe(METHOD, layout_of)


def _changed(layout: GptqLayout, pattern: str, changes: object) -> GptqLayout:
    if not isinstance(changes, Mapping):
        raise LayoutError(f"dynamic {pattern!r} must be an object, not {changes!r}")
    if "bits" in changes:
        layout = replace(layout, bits=bits_of(f"dynamic {pattern!r}: bits", changes["bits"]))
    if "group_size" in changes:
        size = group_size_of(f"dynamic {pattern!r}: group_size", changes["group_size"])
        layout = replace(layout, group_size=size)
    if "sym" in changes:
        layout = replace(layout, symmetric=flag_of(f"dynamic {pattern!r}: sym", changes["sym"]))
    if "desc_act" in changes:
        layout = replace(layout, act_order=flag_of(f"dynamic {pattern!r}: desc_act", changes["desc_act"]))
    return layout


def _flat(what: str, value: object) -> tuple[str, ...]:
    """A list of lists of names, as transformers writes it, or a list of names."""
    if isinstance(value, list | tuple) and all(isinstance(item, list | tuple) for item in value):
        return tuple(name for item in value for name in names_of(what, item))
    return names_of(what, value)


def _name(version: int) -> str:
    return next(name for name, number in _FORMATS.items() if number == version)
