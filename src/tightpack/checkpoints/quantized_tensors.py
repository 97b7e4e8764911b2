"""A Hugging Face directory's tensors where linears are quantized: checked against their layouts, unpacked on
demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tightpack.architectures.model_spec import ModelSpec
from tightpack.checkpoints.checkpoint import (
    CheckpointError,
    MappedSource,
    QuantizationInfo,
    TensorInfo,
    TensorSource,
)
from tightpack.checkpoints.validation import UNQUANTIZED_NEVER, is_redundant, listed, nearest
from tightpack.schemes.layout import LayoutError, LinearLayout, Recipe, Stored
from tightpack.schemes.part import Part, cut, cut_stored
from tightpack.schemes.quantized import DenseWeight, KVCacheFormat, QuantizedLinear

_ATTENTION: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_MLP = ("mlp.gate_proj", "mlp.up_proj")
_KV_SCALES = ("k_scale", "v_scale")
# Where compressed-tensors kept them before 0.13.
_OLD_KV_SCALES = ("k_proj.output_scale", "v_proj.output_scale")


class QuantizedTensors:
    """A TensorSource and LinearSource.

    stored: the tensors in the files; recipe: which linear has which layout.
    path: the directory, and aliases: the other names that a linear goes by in the configuration.
    Raises CheckpointError naming the tensor or field at fault.
    """

    def __init__(
        self,
        spec: ModelSpec,
        stored: TensorSource,
        recipe: Recipe,
        path: Path,
        aliases: Callable[[str], Sequence[str]],
        stored_name: Callable[[str], str],
    ) -> None:
        self._stored, self._path, self._stored_name = stored, path, stored_name
        self._shapes = spec.tensor_shapes()
        self._layouts: dict[str, LinearLayout] = {}
        for name in linear_names(spec):
            try:
                layout = recipe.layout_of([name, *aliases(name)])
            except LayoutError as error:
                raise CheckpointError(f"{path}: field 'quantization_config': {error}") from error
            if layout is not None:
                self._layouts[name] = layout
        self._check_shared(spec)
        self._kv_names = self._find_kv_scales(spec, recipe)
        self._check_tensors(spec)
        self._infos = self._logical_infos()
        self.quantization = QuantizationInfo(
            recipe.method, {name: layout.label for name, layout in self._layouts.items()}
        )
        self.kv_cache_format = self._kv_cache_format(recipe)

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """A quantized weight's precision is its codes', and its bytes those of everything it is stored as."""
        return self._infos

    def stored_name(self, name: str) -> str:
        return self._stored_name(name)

    def read(self, name: str) -> NDArray[Any]:
        linear = name.removesuffix(".weight")
        if linear in self._layouts and linear != name:
            return self.read_linear(linear).weight.dequantize()
        return self._stored.read(name)

    def read_linear(self, name: str) -> QuantizedLinear:
        layout = self._layouts.get(name)
        if layout is None:
            return QuantizedLinear(DenseWeight(self._stored.read(f"{name}.weight")))
        shape = self._shape(name)
        tensors = {
            suffix: self._stored.read(f"{name}.{suffix}")
            for suffix in layout.expected(shape)
            if f"{name}.{suffix}" in self._stored.infos
        }
        try:
            return layout.unpack(tensors, shape)
        except LayoutError as error:
            raise CheckpointError(f"{self._path}: tensor {name}.{error}") from error

    def grain(self, name: str) -> tuple[int, int]:
        layout = self._layouts.get(name)
        return (1, 1) if layout is None else layout.grain(self._shape(name))

    def read_part(self, name: str, part: Part) -> QuantizedLinear:
        layout = self._layouts.get(name)
        if layout is None:
            return cut(self.read_linear(name), part)
        shape, prefix = self._shape(name), f"{name}."
        suffixes = [s for s in layout.expected(shape) if prefix + s in self._stored.infos]
        tensors = cut_stored(layout, suffixes, lambda s: self._stored.read(prefix + s), shape, part)
        if tensors is None:
            return cut(self.read_linear(name), part)
        try:
            return layout.unpack(tensors, part.shape(shape))
        except LayoutError as error:
            raise CheckpointError(f"{self._path}: tensor {name}.{error}") from error

    def release_pages(self) -> None:
        if isinstance(self._stored, MappedSource):
            self._stored.release_pages()

    def _shape(self, name: str) -> tuple[int, int]:
        outputs, inputs = self._shapes[f"{name}.weight"]
        return outputs, inputs

    def _check_shared(self, spec: ModelSpec) -> None:
        for first, *others in sharing_inputs(spec):
            for other in others:
                if self._layouts.get(first) != self._layouts.get(other):
                    raise CheckpointError(
                        f"{self._path}: {first} is {self._label(first)} and {other} is "
                        f"{self._label(other)}; linears that read the same input must share a scheme"
                    )

    def _label(self, name: str) -> str:
        return f"({self._layouts[name].label})" if name in self._layouts else "not quantized"

    def _expected(self) -> Iterator[tuple[str, Stored]]:
        for name, layout in self._layouts.items():
            try:
                expected = layout.expected(self._shape(name))
            except LayoutError as error:
                raise CheckpointError(f"{self._path}: linear {name!r}: {error}") from error
            for suffix, stored in expected.items():
                yield f"{name}.{suffix}", stored

    def _check_tensors(self, spec: ModelSpec) -> None:
        found, expected = self._stored.infos, dict(self._expected())
        weights = {f"{name}.weight" for name in self._layouts}
        dense = {name: shape for name, shape in self._shapes.items() if name not in weights}
        known = {*expected, *dense, *self._kv_names}
        extra = [
            name
            for name in found
            if name not in known and not is_redundant(spec, name) and not self._is_zero_bias(name)
        ]
        wanted = [name for name, stored in expected.items() if not stored.optional] + [
            *dense,
            *self._kv_names,
        ]
        missing = [name for name in wanted if name not in found]
        if missing:
            raise CheckpointError(
                f"{self._path}: {listed('missing', [self._stored_name(name) for name in missing])}"
                f"{self._contradiction(missing[0], extra) or nearest(missing[0], extra)}"
            )
        for name, shape in dense.items():
            self._check(name, Stored(dict.fromkeys(("fp32", "fp16", "bf16"), shape)))
        for name, stored in expected.items():
            if name in found:
                self._check(name, stored)
        for name in self._kv_names:
            self._check(name, Stored(dict.fromkeys(("fp32", "fp16", "bf16"), (1,))))
        if extra:
            raise CheckpointError(
                f"{self._path}: {listed('unknown', extra)} to the {spec.family} architecture as "
                f"'quantization_config' has it quantized"
            )

    def _check(self, name: str, wanted: Stored) -> None:
        info = self._stored.infos[name]
        if info.precision not in wanted.shapes:
            raise CheckpointError(
                f"{self._path}: tensor {self._stored_name(name)!r} is stored as {info.precision}; its scheme "
                f"makes it {' or '.join(wanted.shapes)}"
            )
        shape = wanted.shapes[info.precision]
        if _without_trailing_ones(info.shape) != _without_trailing_ones(shape):
            raise CheckpointError(
                f"{self._path}: tensor {self._stored_name(name)!r} has shape {list(info.shape)}; the "
                f"configuration makes it {list(shape)}"
            )

    def _contradiction(self, name: str, extra: Sequence[str]) -> str:
        """Where the configuration and the tensors disagree on whether a linear is quantized."""
        linear = name.rpartition(".")[0]
        others = [other for other in extra if other.rpartition(".")[0] == linear]
        if (
            linear in self._layouts
            and f"{linear}.weight" in self._stored.infos
            and not name.endswith(".weight")
        ):
            info = self._stored.infos[f"{linear}.weight"]
            if info.precision not in UNQUANTIZED_NEVER:
                return f"; 'quantization_config' has {linear} quantized, and its weight is {info.precision}"
        if linear not in self._layouts and others:
            return f"; 'quantization_config' leaves {linear} alone, and there is {others[0]!r}"
        return ""

    def _is_zero_bias(self, name: str) -> bool:
        """AutoGPTQ wrote biases of zeros where the model has none."""
        linear, _, kind = name.rpartition(".")
        return kind == "bias" and linear in self._layouts and not np.any(self._stored.read(name))

    def _find_kv_scales(self, spec: ModelSpec, recipe: Recipe) -> list[str]:
        """k and v of each layer in turn."""
        if recipe.kv_cache is None:
            return []
        attention = [f"model.layers.{layer}.self_attn." for layer in range(spec.num_layers)]
        old = [prefix + suffix for prefix in attention for suffix in _OLD_KV_SCALES]
        if all(name in self._stored.infos for name in old):
            return old
        return [prefix + suffix for prefix in attention for suffix in _KV_SCALES]

    def _kv_cache_format(self, recipe: Recipe) -> KVCacheFormat | None:
        if recipe.kv_cache is None:
            return None
        scales = [float(self._stored.read(name).astype(np.float32).reshape(())) for name in self._kv_names]
        for name, scale in zip(self._kv_names, scales, strict=True):
            if not (np.isfinite(scale) and scale > 0):
                raise CheckpointError(
                    f"{self._path}: tensor {self._stored_name(name)!r} holds {scale}, and must hold a "
                    "positive scale"
                )
        return KVCacheFormat(
            precision=recipe.kv_cache, key_scales=tuple(scales[0::2]), value_scales=tuple(scales[1::2])
        )

    def _logical_infos(self) -> dict[str, TensorInfo]:
        infos = {}
        for name, shape in self._shapes.items():
            layout = self._layouts.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
            if layout is None:
                infos[name] = self._stored.infos[name]
                continue
            linear = name.removesuffix(".weight")
            parts = [f"{linear}.{suffix}" for suffix in layout.expected(self._shape(linear))]
            num_bytes = sum(
                self._stored.infos[part].num_bytes for part in parts if part in self._stored.infos
            )
            infos[name] = TensorInfo(shape, layout.precision, num_bytes)
        return infos


def linear_names(spec: ModelSpec) -> list[str]:
    """Names of all linears that may be quantized, the head included where it is not tied; no router."""
    routers = {f"{name}.weight" for name in spec.router_names()}
    return [
        name.removesuffix(".weight")
        for name, shape in spec.tensor_shapes().items()
        if len(shape) == 2 and name != "model.embed_tokens.weight" and name not in routers
    ]


def sharing_inputs(spec: ModelSpec) -> Iterator[list[str]]:
    """Names of linears that decoders fuse because they read one input, and which therefore share a scheme."""
    for index, layer in enumerate(spec.layers):
        groups = [_ATTENTION]
        if layer.experts is None:
            groups.append(_MLP)
        else:
            experts = layer.experts
            groups += [
                (experts.gate.format(expert), experts.up.format(expert)) for expert in range(experts.count)
            ]
        yield from ([f"model.layers.{index}.{name}" for name in group] for group in groups)


def _without_trailing_ones(shape: Sequence[int]) -> tuple[int, ...]:
    """[n, 1] is written [n], and [1] as a scalar, by some."""
    kept = tuple(shape)
    while kept and kept[-1] == 1:
        kept = kept[:-1]
    return kept
