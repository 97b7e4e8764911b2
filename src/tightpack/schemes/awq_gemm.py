"""AutoAWQ's GEMM layout (awq/modules/linear/gemm.py): 4 bits, asymmetric.

    qweight int32 [K, N / 8]       codes, eight neighbouring outputs a word
    qzeros  int32 [K / group, N / 8]
    scales  fp16  [K / group, N]
From its lowest bits up, a word holds outputs 0, 2, 4, 6, 1, 3, 5, 7 of its eight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tightpack.schemes.bit_packing import pack_words, unpack_words
from tightpack.schemes.layout import (
    LayoutError,
    LinearLayout,
    OneGroupSize,
    Recipe,
    Shape,
    Stored,
    flag_of,
    floats,
    group_size_of,
    label_of,
    left_unconverted,
    names_of,
    num_groups,
    one_of,
    scales_of,
)
from tightpack.schemes.quantized import IntWeight, QuantizedLinear

METHOD = "awq"
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_BACK = tuple(ORDER.index(output) for output in range(8))


@dataclass(frozen=True, slots=True)
class AwqLayout:
    """symmetric: no qzeros, and every zero-point is 8."""

    group_size: int | None
    symmetric: bool = False

    @property
    def precision(self) -> str:
        return "int4"

    @property
    def label(self) -> str:
        return label_of("int4", self.group_size, self.symmetric)

    def expected(self, shape: Shape) -> dict[str, Stored]:
        outputs, inputs = shape
        if outputs % 8:
            raise LayoutError(f"its {outputs} outputs are no multiple of 8, which AWQ packs together")
        groups = num_groups(shape, self.group_size)
        return {
            "qweight": Stored({"int32": (inputs, outputs // 8)}),
            "qzeros": Stored({"int32": (groups, outputs // 8)}, optional=self.symmetric),
            "scales": floats((groups, outputs)),
        }

    def grain(self, shape: Shape) -> tuple[int, int]:
        return 8, self.group_size or 1

    def unpack(self, tensors: Mapping[str, NDArray[Any]], shape: Shape) -> QuantizedLinear:
        outputs, inputs = shape
        groups = num_groups(shape, self.group_size)
        codes = np.ascontiguousarray(_unpack(tensors["qweight"], outputs).T)
        zeros = None
        if self.symmetric:
            codes = (codes - np.uint8(8)).view(np.int8)
        else:
            zeros = np.ascontiguousarray(_unpack(tensors["qzeros"], outputs).T)
        scales = scales_of("scales", tensors["scales"], (groups, outputs))
        weight = IntWeight(
            codes=codes,
            scales=np.ascontiguousarray(scales.T),
            zeros=zeros,
            bits=4,
            group_size=self.group_size or inputs,
        )
        return QuantizedLinear(weight)


class Packer:
    """A `layout.Packer`. Symmetric weights get zero-points of 8, since AutoAWQ's kernels always read them."""

    def __init__(self) -> None:
        self._size = OneGroupSize()

    def pack(self, name: str, linear: QuantizedLinear) -> dict[str, NDArray[Any]]:
        weight = linear.weight
        if not isinstance(weight, IntWeight) or weight.bits != 4 or linear.activation is not None:
            raise LayoutError("is not of 4-bit integers with 16-bit activations, all that AWQ's layout holds")
        if weight.minimums is not None or weight.group_of_input is not None:
            raise LayoutError(
                "has minimums or groups that are not contiguous, which AWQ's layout does not hold"
            )
        AwqLayout(weight.group_size).expected(weight.shape)
        self._size.add(weight.group_size, weight.shape[1])
        codes, zeros = weight.codes.view(np.uint8), weight.zeros
        if zeros is None:
            codes = codes + np.uint8(8)
            zeros = np.full(weight.scales.shape, 8, np.uint8)
        return {
            "qweight": _pack(codes.T),
            "qzeros": _pack(zeros.T),
            "scales": np.ascontiguousarray(weight.scales.T),
        }

    def config(self, unquantized: Sequence[str], kv_cache: Literal["fp8", "int8"] | None) -> dict[str, Any]:
        return {
            "quant_method": METHOD,
            "version": "gemm",
            "bits": 4,
            "group_size": self._size.stated,
            "zero_point": True,
            "modules_to_not_convert": None if unquantized == ["lm_head"] else list(unquantized),
        }


def read_recipe(config: Mapping[str, Any]) -> Recipe:
    """From quantization_config, or AutoAWQ's own quant_config.json. Raises LayoutError naming the field."""
    bits = config.get("bits", config.get("w_bit", 4))
    if bits != 4:
        raise LayoutError(f"bits is {bits!r}; AWQ's GEMM layout has 4")
    version = config.get("version") or config.get("format") or "gemm"
    one_of("version", str(version).lower(), ("gemm",))
    size = group_size_of("group_size", config.get("group_size", config.get("q_group_size", 128)))
    layout = AwqLayout(size, not flag_of("zero_point", config.get("zero_point", True)))
    skipped = ("lm_head", *names_of("modules_to_not_convert", config.get("modules_to_not_convert")))

    def layout_of(names: Sequence[str]) -> LinearLayout | None:
        return None if left_unconverted(names, skipped) else layout

    return Recipe(METHOD, layout_of)


def _pack(codes: NDArray[Any]) -> NDArray[np.int32]:
    """uint8 [rows, N] to int32 [rows, N / 8]."""
    rows, outputs = codes.shape
    ordered = codes.reshape(rows, outputs // 8, 8)[:, :, ORDER].reshape(rows, outputs)
    return pack_words(ordered, 4, 1)


def _unpack(words: NDArray[Any], outputs: int) -> NDArray[np.uint8]:
    """int32 [rows, N / 8] to uint8 [rows, N]."""
    codes = unpack_words(words, 4, 1, outputs)
    return codes.reshape(-1, outputs // 8, 8)[:, :, _BACK].reshape(-1, outputs)
