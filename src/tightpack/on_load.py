"""The `quantization` argument: what a quantized checkpoint must be, what becomes of another as it is read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from tightpack.calibration.group_size import default_group_size
from tightpack.checkpoints.checkpoint import Checkpoint, QuantizationInfo, TensorInfo, TensorSource
from tightpack.checkpoints.quantized_tensors import linear_names
from tightpack.engine_args import ON_LOAD_METHODS, EngineArgs
from tightpack.schemes.part import Part, cut
from tightpack.schemes.quantized import ActivationFormat, DenseWeight, Fp8Weight, IntWeight, QuantizedLinear
from tightpack.schemes.rounding import fp8_rows, int4_groups, int8_rows

logger = logging.getLogger(__name__)

# Methods of which nothing in a compressed-tensors file tells but that its weights alone are integers.
_CALIBRATED = ("awq", "gptq")


def with_quantization(checkpoint: Checkpoint, args: EngineArgs) -> Checkpoint:
    """The checkpoint as `args.quantization` wants it.

    Raises ValueError where the argument contradicts the checkpoint, and where the method needs calibration.
    """
    wanted, stored = args.quantization, checkpoint.quantization
    if wanted is None:
        return checkpoint
    if stored is not None:
        if wanted == stored.method or is_stored_as(wanted, checkpoint, stored):
            return checkpoint
        if stored.method != "gguf" or wanted not in ON_LOAD_METHODS:
            raise ValueError(
                f"quantization={wanted!r} contradicts the checkpoint {checkpoint.name}, which is "
                f"{stored.method} ({_schemes(stored)}); leave the argument out, or give the original model"
            )
        logger.warning("%s is quantized already (%s); its rounding adds up", checkpoint.name, stored.method)
    elif wanted not in ON_LOAD_METHODS:
        raise ValueError(
            f"quantization={wanted!r}, but the checkpoint {checkpoint.name} is not quantized{_remedy(wanted)}"
        )
    return quantize_on_load(checkpoint, wanted, llm_int8_threshold=args.llm_int8_threshold)


def quantize_on_load(checkpoint: Checkpoint, method: str, *, llm_int8_threshold: float) -> Checkpoint:
    """The checkpoint with every linear but head and routers quantized when it is read, without calibration.

    method: one of ON_LOAD_METHODS. Raises ValueError where no group size fits the model's widths.
    """
    shapes = checkpoint.spec.tensor_shapes()
    names = [name for name in linear_names(checkpoint.spec) if name != "lm_head"]
    widths = {shapes[f"{name}.weight"][1] for name in names}
    quantize, label = _quantizer(method, widths, llm_int8_threshold)
    group_size = default_group_size(widths) if method == "int4" else 1
    tensors = _QuantizedOnRead(checkpoint, frozenset(names), quantize, group_size)
    info = QuantizationInfo(method, MappingProxyType(dict.fromkeys(names, label)))
    return replace(checkpoint, tensors=tensors, quantization=info)


@dataclass(frozen=True, slots=True)
class _QuantizedOnRead:
    """A source of tensors whose `linears` come quantized; everything else as `original` has it.

    group_size: inputs that share a scale, where they are not all of a row.
    """

    original: Checkpoint
    linears: frozenset[str]
    quantize: Callable[[NDArray[Any]], QuantizedLinear]
    group_size: int = 1

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return self._source.infos

    @property
    def _source(self) -> TensorSource:
        return self.original.tensors

    def read(self, name: str) -> NDArray[Any]:
        linear = name.removesuffix(".weight")
        if linear != name and linear in self.linears:
            return self.read_linear(linear).weight.dequantize()
        return self._source.read(name)

    def release_pages(self) -> None:
        self.original.release_pages()

    def read_linear(self, name: str) -> QuantizedLinear:
        if name not in self.linears:
            return self.original.read_linear(name)
        return self._quantized(name, self._source.read(f"{name}.weight"))

    def grain(self, name: str) -> tuple[int, int]:
        return (1, self.group_size) if name in self.linears else self.original.grain(name)

    def read_part(self, name: str, part: Part) -> QuantizedLinear:
        """Rows are quantized each by itself; scales of inputs are those of the whole row."""
        if name not in self.linears:
            return self.original.read_part(name, part)
        rows = self.original.read_part(name, Part(rows=part.rows))
        values = rows.weight.values if isinstance(rows.weight, DenseWeight) else rows.weight.dequantize()
        return cut(self._quantized(name, values), Part(columns=part.columns))

    def _quantized(self, name: str, values: NDArray[Any]) -> QuantizedLinear:
        try:
            return self.quantize(values)
        except ValueError as error:
            raise ValueError(f"{self.original.name}: {name}.weight: {error}") from error


def _quantizer(
    method: str, widths: set[int], threshold: float
) -> tuple[Callable[[NDArray[Any]], QuantizedLinear], str]:
    """What quantizes a weight [outputs, inputs], and its label for people."""
    if method == "int4":
        size = default_group_size(widths)
        return (
            lambda w: QuantizedLinear(int4_groups(w, size)),
            f"int4, group {size}, asymmetric",
        )
    if method == "fp8":
        fp8 = ActivationFormat(precision="fp8")
        return (
            lambda w: QuantizedLinear(fp8_rows(w), fp8),
            "fp8, channel, fp8 activations by token",
        )
    activation, label = {
        "int8": (None, "int8, channel"),
        "w8a8": (ActivationFormat(precision="int8"), "int8, channel, int8 activations by token"),
        "llm.int8": (
            ActivationFormat(precision="int8", outlier_threshold=threshold),
            f"int8, channel, int8 activations by token below {threshold:g}",
        ),
    }[method]
    return lambda w: QuantizedLinear(int8_rows(w), activation), label


def is_stored_as(wanted: str, checkpoint: Checkpoint, stored: QuantizationInfo) -> bool:
    """Whether the name describes what the file holds, under whatever name it holds it."""
    one_of_each = {label: name for name, label in stored.linears.items()}
    linears = [checkpoint.read_linear(name) for name in one_of_each.values()]
    if wanted in _CALIBRATED:
        return stored.method == "compressed-tensors" and all(
            _kind(each) in ("int4", "int8") for each in linears
        )
    return bool(linears) and all(_kind(each) == wanted for each in linears)


def _kind(linear: QuantizedLinear) -> str:
    """The on-load method that would give such a linear."""
    if isinstance(linear.weight, DenseWeight):
        return "unquantized"
    if isinstance(linear.weight, Fp8Weight):
        return "fp8"
    return _int_kind(linear.weight, linear.activation)


def _int_kind(weight: IntWeight, activation: ActivationFormat | None) -> str:
    if activation is None:
        return f"int{weight.bits}"
    if activation.outlier_threshold is not None:
        return "llm.int8"
    return f"w{weight.bits}a8"


def _schemes(stored: QuantizationInfo) -> str:
    return "; ".join(dict.fromkeys(stored.linears.values()))


def _remedy(wanted: str) -> str:
    if wanted in _CALIBRATED:
        return (
            f"; quantize it first, since {wanted.upper()} needs calibration: "
            f"tightpack quantize MODEL --method {wanted} -o DIR"
        )
    return f"; {', '.join(map(repr, ON_LOAD_METHODS))} quantize it on loading"
