"""Writing a quantized checkpoint as its linears are made, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tightpack.architectures.model_spec import ModelSpec
from tightpack.checkpoints.checkpoint import Checkpoint, CheckpointError
from tightpack.checkpoints.model_files import whole_directory, write_model_files
from tightpack.checkpoints.quantized_tensors import linear_names, sharing_inputs
from tightpack.checkpoints.safetensors_stream import SafetensorsStream
from tightpack.checkpoints.safetensors_writer import SHARD_BYTES
from tightpack.schemes import awq_gemm, bitsandbytes8, compressed_tensors_config, gptq
from tightpack.schemes.layout import LayoutError, Packer
from tightpack.schemes.quantized import DenseWeight, Fp8Weight, IntWeight, KVCacheFormat, QuantizedLinear

Dtype = Literal["bfloat16", "float16", "float32"]
LAYOUTS: Mapping[str, Callable[[], Packer]] = MappingProxyType(
    {
        "compressed-tensors": compressed_tensors_config.Packer,
        "awq": awq_gemm.Packer,
        "gptq": gptq.Packer,
        "bitsandbytes": bitsandbytes8.Packer,
    }
)
_DTYPES: Mapping[str, Any] = MappingProxyType(
    {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype("<f2"), "float32": np.dtype("<f4")}
)
_OWN = MappingProxyType({"bf16": "bfloat16", "fp16": "float16"})
_HEADER_BYTES = 200  # of one tensor beside its name: dtype, shape, offsets
_PARTS = 6  # tensors of a linear at most


def write_quantized(
    source: Checkpoint,
    linears: Iterable[tuple[str, QuantizedLinear]],
    overrides: Mapping[str, NDArray[Any]],
    directory: Path,
    *,
    layout: str = "compressed-tensors",
    kv_cache_format: KVCacheFormat | None = None,
    extra_files: Mapping[str, str] | Callable[[], Mapping[str, str]] = MappingProxyType({}),
    dtype: Dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    written: Callable[[int], None] = lambda num_bytes: None,
) -> None:
    """Write `source` with its linears replaced into `directory`, which is whole once it exists.

    linears: consumed once, each written before the next is asked for. A linear that does not come, or comes
        as DenseWeight, is left unquantized. Those that share an input (q/k/v, gate/up) must share a scheme.
    overrides: other tensors (folded norms, biases) by name, with their shapes in `source.spec`.
    layout: of LAYOUTS.
    kv_cache_format: fp8 or int8 with one scale a layer goes into the checkpoint; other precisions do not.
    extra_files: name to text, or a function that is called once all linears have come.
    dtype: of tensors that are not quantized; by default the source's own, or bfloat16. Scales keep their
        exact values: in this dtype, in float16 or bfloat16, or in float32.
    written: told the bytes of each tensor.

    Raises CheckpointError naming the linear or tensor at fault; nothing is left behind then.
    """
    if layout not in LAYOUTS:
        raise CheckpointError(f"layout {layout!r} is not written; supported: {', '.join(LAYOUTS)}")
    spec, shapes = source.spec, source.spec.tensor_shapes()
    names = dict.fromkeys(linear_names(spec))
    own = source.tensors.infos["model.embed_tokens.weight"].precision
    chosen = dtype or _OWN.get(own, "bfloat16")
    _check_overrides(shapes, names, overrides)
    _check_cache(spec, kv_cache_format, layout)
    packer, kinds = LAYOUTS[layout](), dict[str, str]()
    room = sum(len(name) + _HEADER_BYTES for name in shapes) * _PARTS
    with whole_directory(directory) as partial:
        with SafetensorsStream(partial, header_bytes=room, shard_bytes=shard_bytes) as stream:

            def add(name: str, values: NDArray[Any]) -> None:
                stream.add(name, values)
                written(values.nbytes)

            replaced: set[str] = set()
            for name, linear in linears:
                _check_linear(name, linear, shapes, names, replaced)
                replaced.add(name)
                if isinstance(linear.weight, DenseWeight):
                    add(f"{name}.weight", _cast(f"{name}.weight", linear.weight.values, chosen))
                    continue
                try:
                    parts = packer.pack(name, linear)
                except LayoutError as error:
                    raise CheckpointError(f"linear {name!r} {error}; layout {layout!r}") from error
                kinds[name] = _kind(linear)
                for suffix, values in parts.items():
                    add(f"{name}.{suffix}", _narrowed(values, chosen))
            _check_shared(spec, kinds)
            for name, shape in shapes.items():
                if name.removesuffix(".weight") in replaced and name.endswith(".weight"):
                    continue
                values = overrides[name] if name in overrides else source.read(name)
                add(name, _cast(name, values, chosen).reshape(shape))
            cache = _write_cache_scales(spec, kv_cache_format, add, chosen)
        try:
            # Loaders have linears for a tied head, which is no tensor of its own, and for routers.
            every = dict.fromkeys([*names, *spec.router_names(), "lm_head"])
            left = [name for name in every if name not in kinds]
            config = packer.config(left, cache)
        except LayoutError as error:
            raise CheckpointError(f"layout {layout!r}: {error}") from error
        if not kinds and cache is None:
            raise CheckpointError("no linear was quantized; nothing was written")
        write_model_files(partial, source, dtype=chosen, quantization_config=config)
        for file_name, text in (extra_files() if callable(extra_files) else extra_files).items():
            (partial / file_name).write_text(text, encoding="utf-8")


def _check_overrides(
    shapes: Mapping[str, tuple[int, ...]], linears: Iterable[str], overrides: Mapping[str, NDArray[Any]]
) -> None:
    weights = {f"{name}.weight" for name in linears}
    for name, values in overrides.items():
        if name not in shapes:
            raise CheckpointError(f"tensor {name!r} has no place in the model")
        if name in weights:
            raise CheckpointError(f"tensor {name!r} is a linear's weight; give it among the linears")
        if values.shape != shapes[name]:
            raise CheckpointError(
                f"tensor {name!r} has shape {list(values.shape)}, not {list(shapes[name])} as the model"
            )


def _check_linear(
    name: str,
    linear: QuantizedLinear,
    shapes: Mapping[str, tuple[int, ...]],
    names: Iterable[str],
    replaced: set[str],
) -> None:
    if name not in names:
        raise CheckpointError(f"linear {name!r} is none of the model's")
    if name in replaced:
        raise CheckpointError(f"linear {name!r} came twice")
    weight, shape = linear.weight, shapes[f"{name}.weight"]
    if weight.shape != shape:
        raise CheckpointError(
            f"linear {name!r} has shape {list(weight.shape)}, not {list(shape)} as the model"
        )
    if isinstance(weight, DenseWeight):
        return
    wrong = weight.scales.size - int(np.count_nonzero(np.isfinite(weight.scales)))
    if wrong:
        raise CheckpointError(f"linear {name!r}: {wrong} of {weight.scales.size} scales are NaN or infinite")
    if isinstance(weight, Fp8Weight):
        if np.any(np.isnan(weight.codes)):
            raise CheckpointError(f"linear {name!r}: weights are NaN")
        return
    groups = -(-shape[1] // weight.group_size)
    for what, values in (("scales", weight.scales), ("zeros", weight.zeros), ("minimums", weight.minimums)):
        if values is not None and weight.group_of_input is None and values.shape != (shape[0], groups):
            raise CheckpointError(
                f"linear {name!r}: {what} have shape {list(values.shape)}; groups of {weight.group_size} "
                f"make it {[shape[0], groups]}"
            )
    _check_codes(name, weight)


def _check_codes(name: str, weight: IntWeight) -> None:
    half = 1 << (weight.bits - 1)
    signed = weight.zeros is None and weight.minimums is None
    low, high = (-half, half - 1) if signed else (0, 2 * half - 1)
    codes = weight.codes if signed else weight.codes.view(np.uint8)
    for what, values in (("codes", codes), ("zeros", weight.zeros)):
        if values is not None and values.size and (int(values.min()) < low or int(values.max()) > high):
            raise CheckpointError(
                f"linear {name!r}: {what} of {values.min()} .. {values.max()}, beyond {low} .. {high}"
            )


def _kind(linear: QuantizedLinear) -> str:
    """What linears that share an input must agree on."""
    weight, activation = linear.weight, linear.activation
    inputs = (
        "16-bit activations"
        if activation is None
        else f"{activation.precision} activations, {activation.per}, "
        f"{'dynamic' if activation.scale is None else 'static'}"
    )
    if isinstance(weight, IntWeight):
        kind = "asymmetric" if weight.zeros is not None else "symmetric"
        return f"int{weight.bits} in {kind} groups of {weight.group_size}, {inputs}"
    assert isinstance(weight, Fp8Weight)
    rows, columns = weight.block
    whole = (rows, columns) == weight.shape
    return f"fp8 in {'one block' if whole else f'blocks of {rows} x {columns}'}, {inputs}"


def _check_shared(spec: ModelSpec, kinds: Mapping[str, str]) -> None:
    for first, *others in sharing_inputs(spec):
        for other in others:
            if kinds.get(first) != kinds.get(other):
                raise CheckpointError(
                    f"{first} is {kinds.get(first, 'not quantized')} and {other} is "
                    f"{kinds.get(other, 'not quantized')}; linears of one input must share a scheme"
                )


def _check_cache(spec: ModelSpec, cache: KVCacheFormat | None, layout: str) -> None:
    if cache is None or cache.precision not in ("fp8", "int8"):
        return
    if layout != "compressed-tensors":
        raise CheckpointError(f"layout {layout!r} holds no scales of the KV cache; compressed-tensors does")
    for what, scales in (("key", cache.key_scales), ("value", cache.value_scales)):
        if len(scales) != spec.num_layers:
            raise CheckpointError(f"{len(scales)} {what} scales for {spec.num_layers} layers")
        if not all(np.isfinite(scale) and scale > 0 for scale in scales):
            raise CheckpointError(f"{what} scales must be positive numbers, not {scales}")


def _write_cache_scales(
    spec: ModelSpec,
    cache: KVCacheFormat | None,
    add: Callable[[str, NDArray[Any]], None],
    dtype: str,
) -> Literal["fp8", "int8"] | None:
    if cache is None or cache.precision not in ("fp8", "int8"):
        return None
    for layer in range(spec.num_layers):
        for suffix, scales in (("k_scale", cache.key_scales), ("v_scale", cache.value_scales)):
            values = np.array([scales[layer]], np.float32)
            add(f"model.layers.{layer}.self_attn.{suffix}", _narrowed(values, dtype))
    return "fp8" if cache.precision == "fp8" else "int8"


def _cast(name: str, values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Rounded to nearest; refused where a value is or becomes NaN or infinite."""
    with np.errstate(over="ignore"):
        cast = values.astype(_DTYPES[dtype], copy=False)
    # In float32, which numpy tests many times faster than bfloat16; a row block at a time, for the memory.
    rows = max(1, 1 << 22 if cast.ndim < 2 else (1 << 22) // cast.shape[-1])
    for start in range(0, cast.shape[0], rows):
        if not np.isfinite(cast[start : start + rows].astype(np.float32, copy=False)).all():
            raise CheckpointError(f"tensor {name!r} holds NaN, or values beyond {dtype}")
    return cast


def _narrowed(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """float32 values in a precision that holds them exactly, `dtype` first; others as they are."""
    if values.dtype != np.float32:
        return values
    for candidate in (dtype, "float16", "bfloat16"):
        with np.errstate(over="ignore", under="ignore"):
            narrow = values.astype(_DTYPES[candidate])
            if np.array_equal(narrow.astype(np.float32), values):
                return narrow
    return values
