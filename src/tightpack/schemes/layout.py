"""How a quantized linear lies in a checkpoint: which tensors, of which shapes and precisions, and back."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tightpack.schemes.quantized import QuantizedLinear

FLOATS = ("fp32", "fp16", "bf16")
Shape = tuple[int, int]


class LayoutError(ValueError):
    """A configuration or tensor that a layout cannot be; the message names the field or tensor."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a linear: its shape for each precision that it may be stored in.

    optional: may be absent; what it must hold where present is for `unpack` to check.
    """

    shapes: Mapping[str, tuple[int, ...]]
    optional: bool = False


class LinearLayout(Protocol):
    """Frozen, and equal to another that describes the same precision and groups."""

    @property
    def precision(self) -> str:
        """Of the weight: "int4", "int8", "fp8"."""

    @property
    def label(self) -> str:
        """For people: "int4, group 64, asymmetric"."""

    def expected(self, shape: Shape) -> Mapping[str, Stored]:
        """The tensors of a linear [outputs, inputs] by their suffix to its name ("qweight", ...).

        Raises LayoutError where the linear cannot be stored so."""

    def grain(self, shape: Shape) -> tuple[int, int]:
        """Outputs and inputs of which a cut must be a multiple, so that it divides no stored word, no group
        and no block of scales of a linear [outputs, inputs]."""

    def unpack(self, tensors: Mapping[str, NDArray[Any]], shape: Shape) -> QuantizedLinear:
        """tensors: by suffix, as `expected` describes.

        Raises LayoutError beginning with the suffix at fault."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A checkpoint's quantization, read from its configuration.

    method: as users name it.
    layout_of: from the names that a linear goes by to its layout; None where it is not quantized.
    kv_cache: precision of keys and values, with calibrated scales beside the weights.
    """

    method: str
    layout_of: Callable[[Sequence[str]], LinearLayout | None]
    kv_cache: Literal["fp8", "int8"] | None = None


class Packer(Protocol):
    """One checkpoint being written in one layout."""

    def pack(self, name: str, linear: QuantizedLinear) -> Mapping[str, NDArray[Any]]:
        """The linear's tensors by suffix; those in float32 are scales, for the writer to narrow where that
        loses nothing.

        Raises LayoutError where the layout cannot hold the linear, or not beside those before."""

    def config(self, unquantized: Sequence[str], kv_cache: Literal["fp8", "int8"] | None) -> dict[str, Any]:
        """config.json's quantization_config, once all linears are packed."""


def floats(shape: tuple[int, ...], *, optional: bool = False) -> Stored:
    return Stored(dict.fromkeys(FLOATS, shape), optional)


def scales_of(suffix: str, stored: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The scales in float32, refused where one is no finite number."""
    scales: NDArray[np.float32] = np.ascontiguousarray(stored.astype(np.float32).reshape(shape))
    wrong = scales.size - int(np.count_nonzero(np.isfinite(scales)))
    if wrong:
        raise LayoutError(f"{suffix}: {wrong} of {scales.size} values are NaN or infinite")
    return scales


def fp8_codes(suffix: str, stored: NDArray[Any]) -> NDArray[Any]:
    """E4M3 codes as they are, refused where one is NaN (all bits but the sign set)."""
    wrong = int(np.count_nonzero((stored.view(np.uint8) & 0x7F) == 0x7F))
    if wrong:
        raise LayoutError(f"{suffix}: {wrong} of {stored.size} values are NaN")
    return stored


def refuse_unless_zero(suffix: str, tensors: Mapping[str, NDArray[Any]], why: str) -> None:
    values = tensors.get(suffix)
    if values is not None and np.any(values.astype(np.float32) != 0):
        raise LayoutError(f"{suffix}: holds other values than 0, though {why}")


def one_of(what: str, value: object, supported: Collection[str]) -> str:
    """The value, or a LayoutError naming the nearest one that is supported."""
    if isinstance(value, str) and value in supported:
        return value
    near = difflib.get_close_matches(str(value), supported, n=1)
    hint = f"the nearest supported is {near[0]!r}" if near else f"supported: {', '.join(sorted(supported))}"
    raise LayoutError(f"{what} is {value!r}, not known here; {hint}")


def bits_of(what: str, value: object) -> Literal[4, 8]:
    if value == 4:
        return 4
    if value == 8:
        return 8
    raise LayoutError(f"{what} is {value!r}; supported: 4, 8")


def group_size_of(what: str, value: object) -> int | None:
    """Inputs a group; None for one group a row, which files write as -1."""
    if isinstance(value, bool) or not isinstance(value, int) or value == 0 or value < -1:
        raise LayoutError(f"{what} is {value!r}; it must be a positive number of inputs, or -1 for all")
    return None if value == -1 else value


def names_of(what: str, value: object) -> tuple[str, ...]:
    """A list of names; () for null."""
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise LayoutError(f"{what} must be a list of names, not {value!r}")
    return tuple(value)


def flag_of(what: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise LayoutError(f"{what} must be true or false, not {value!r}")
    return value


def left_unconverted(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """As transformers' `should_convert_module` reads modules_to_not_convert: a prefix up to a dot, a regular
    expression up to a dot, or a suffix."""
    boundary = r"(?:(?<=\.)|(?=\.|$))"
    for pattern in patterns:
        for name in names:
            if name.endswith(pattern) or matches(rf"(?:{pattern}){boundary}", name):
                return True
    return False


def matches(pattern: str, name: str) -> bool:
    try:
        return re.match(pattern, name) is not None
    except re.error as error:
        raise LayoutError(f"{pattern!r} is no regular expression: {error}") from error


def num_groups(shape: Shape, group_size: int | None, *, partial: bool = False) -> int:
    """Groups a row. Raises LayoutError where the last one would be cut, unless that is allowed."""
    inputs = shape[1]
    size = group_size or inputs
    if inputs % size and not partial:
        raise LayoutError(f"group size {size} does not divide its {inputs} inputs")
    return -(-inputs // size)


class OneGroupSize:
    """The group size of a layout that has one for all linears, told from the linears as they come."""

    def __init__(self) -> None:
        self._inside: int | None = None
        self._whole: set[int] = set()

    def add(self, group_size: int, inputs: int) -> None:
        """Raises LayoutError where the linear does not agree with those before."""
        if group_size >= inputs:
            self._whole.add(inputs)
        elif self._inside is None:
            self._inside = group_size
        if (self._inside is not None and self._whole - {self._inside}) or (
            group_size < inputs and group_size != self._inside
        ):
            sizes = sorted({*self._whole, *([self._inside] if self._inside else []), group_size})
            raise LayoutError(f"makes groups of {' and '.join(map(str, sizes))}; this layout has one size")

    @property
    def stated(self) -> int:
        """As configurations have it: -1 for a group a row."""
        if self._inside is not None:
            return self._inside
        return self._whole.copy().pop() if len(self._whole) == 1 else -1


def label_of(precision: str, group_size: int | None, symmetric: bool, *, grouped: bool = True) -> str:
    where = f", group {group_size}" if group_size else ", channel" if grouped else ""
    return f"{precision}{where}{'' if symmetric else ', asymmetric'}"
