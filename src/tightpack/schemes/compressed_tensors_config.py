"""compressed-tensors' quantization_config: config groups with targets, ignore list, cache scheme; read and
written.

Follows the package compressed-tensors 0.20 (Apache-2.0): quantization/quant_config.py, quant_scheme.py and
quant_args.py for the fields, utils/match.py for which group a linear belongs to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal

from numpy.typing import NDArray

from tightpack.schemes.compressed_tensors import Activations, Fp8Layout, Granularity, IntLayout
from tightpack.schemes.layout import (
    LayoutError,
    LinearLayout,
    Recipe,
    bits_of,
    flag_of,
    group_size_of,
    matches,
    names_of,
    num_groups,
    one_of,
)
from tightpack.schemes.quantized import ActivationFormat, Fp8Weight, IntWeight, QuantizedLinear

METHOD = "compressed-tensors"
PACKED, INT, FLOAT, NAIVE = "pack-quantized", "int-quantized", "float-quantized", "naive-quantized"
FORMATS = (PACKED, INT, FLOAT, NAIVE)
MIXED = "mixed-precision"
# calculate_qparams: the largest magnitude over half of 127 - -128.
_INT8_STEPS: Literal[255] = 255


def read_recipe(config: Mapping[str, Any]) -> Recipe:
    """From config.json's quantization_config. Raises LayoutError naming the field at fault."""
    whole = config.get("format")
    exact: dict[str, LinearLayout | None] = {}
    patterns: dict[str, LinearLayout | None] = {}
    everywhere: LinearLayout | None = None
    groups = config.get("config_groups") or {}
    if not isinstance(groups, Mapping):
        raise LayoutError("config_groups must be an object")
    if not groups and not config.get("kv_cache_scheme"):
        raise LayoutError("config_groups is empty, and nothing else is quantized")
    for name, group in groups.items():
        if not isinstance(group, Mapping):
            raise LayoutError(f"config_groups.{name} must be an object, not {group!r}")
        layout = _layout(f"config_groups.{name}", group, whole)
        for target in names_of(f"config_groups.{name}.targets", group.get("targets")):
            if target.startswith("re:"):
                patterns.setdefault(target.removeprefix("re:"), layout)
            elif target == "Linear":
                everywhere = everywhere or layout
            else:
                exact.setdefault(target, layout)
    for field, inside in (("transform_config", "config_groups"), ("sparsity_config", "format")):
        other = config.get(field)
        if isinstance(other, Mapping) and other.get(inside) not in (None, {}, "dense"):
            raise LayoutError(
                f"{field}.{inside} is {other[inside]!r}; it is not supported beside quantization"
            )
    ignored = names_of("ignore", config.get("ignore"))

    def layout_of(names: Sequence[str]) -> LinearLayout | None:
        if any(_listed(ignored, name) for name in names):
            return None
        # The package takes names before patterns, patterns alphabetically, and the class last.
        for name in names:
            if name in exact:
                return exact[name]
        for pattern in sorted(patterns):
            if any(matches(pattern, name) for name in names):
                return patterns[pattern]
        return everywhere

    return Recipe(METHOD, layout_of, _kv_cache(config.get("kv_cache_scheme")))


def _listed(ignored: Sequence[str], name: str) -> bool:
    return any(
        matches(entry.removeprefix("re:"), name) if entry.startswith("re:") else entry in (name, "Linear")
        for entry in ignored
    )


def _layout(where: str, group: Mapping[str, Any], whole: object) -> LinearLayout | None:
    """None for a group that leaves weights alone (of attention modules, say)."""
    weights = group.get("weights")
    if weights is None:
        return None
    if not isinstance(weights, Mapping):
        raise LayoutError(f"{where}.weights must be an object, not {weights!r}")
    if group.get("output_activations"):
        raise LayoutError(f"{where}.output_activations is not supported")
    given = group.get("format") or whole
    name = one_of(f"{where}.format" if group.get("format") else "format", given, FORMATS)
    kind = one_of(f"{where}.weights.type", weights.get("type", "int"), ("int", "float"))
    if name != NAIVE and (kind == "float") != (name == FLOAT):
        raise LayoutError(f"{where}.weights.type is {kind!r}, which format {name!r} does not hold")
    activations = _activations(f"{where}.input_activations", group.get("input_activations"))
    strategy, size = _strategy(f"{where}.weights", weights)
    if kind == "float":
        if weights.get("num_bits", 8) != 8:
            raise LayoutError(
                f"{where}.weights.num_bits is {weights['num_bits']!r}; floats of 8 are supported"
            )
        return Fp8Layout(_fp8_block(where, weights, strategy, size), activations)
    if strategy == "block":
        raise LayoutError(f"{where}.weights.strategy 'block' goes with type 'float'")
    granularity: Granularity = (
        "tensor" if strategy == "tensor" else "channel" if strategy == "channel" else "group"
    )
    return IntLayout(
        bits=bits_of(f"{where}.weights.num_bits", weights.get("num_bits", 8)),
        granularity=granularity,
        group_size=size,
        symmetric=flag_of(f"{where}.weights.symmetric", weights.get("symmetric", True)),
        packed=name == PACKED,
        act_order=weights.get("actorder") in ("group", "dynamic", True),
        activations=activations,
    )


def _strategy(where: str, weights: Mapping[str, Any]) -> tuple[str, int | None]:
    size = weights.get("group_size")
    if size is not None:
        size = group_size_of(f"{where}.group_size", size)
    strategy = weights.get("strategy")
    if strategy is None:
        given = weights.get("group_size")
        strategy = "tensor" if given is None else "channel" if size is None else "group"
    strategy = one_of(f"{where}.strategy", strategy, ("tensor", "channel", "group", "block"))
    if (strategy == "group") != (size is not None):
        raise LayoutError(f"{where}.strategy is {strategy!r} with group_size {weights.get('group_size')!r}")
    return strategy, size


def _fp8_block(where: str, weights: Mapping[str, Any], strategy: str, size: int | None) -> tuple[int, int]:
    if strategy == "block":
        block = weights.get("block_structure")
        if isinstance(block, str):
            block = [int(side) if side.isdecimal() else 0 for side in block.split("x")]
        if (
            not isinstance(block, list | tuple)
            or len(block) != 2
            or not all(isinstance(side, int) and side > 0 for side in block)
        ):
            raise LayoutError(
                f"{where}.weights.block_structure must be two positive numbers, not "
                f"{weights.get('block_structure')!r}"
            )
        return int(block[0]), int(block[1])
    return {"tensor": (0, 0), "channel": (1, 0)}.get(strategy, (1, size or 0))


def _activations(where: str, given: object) -> Activations | None:
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise LayoutError(f"{where} must be an object, not {given!r}")
    if given.get("num_bits", 8) != 8:
        raise LayoutError(f"{where}.num_bits is {given['num_bits']!r}; 8 are supported")
    if given.get("symmetric", True) is not True:
        raise LayoutError(f"{where}.symmetric is {given['symmetric']!r}; symmetric activations are supported")
    kind = one_of(f"{where}.type", given.get("type", "int"), ("int", "float"))
    precision: Literal["int8", "fp8"] = "int8" if kind == "int" else "fp8"
    steps: Literal[254, 255] = _INT8_STEPS if kind == "int" else 254
    strategy = given.get("strategy") or ("group" if given.get("group_size") else "tensor")
    strategy = one_of(f"{where}.strategy", strategy, ("token", "tensor", "group"))
    if not flag_of(f"{where}.dynamic", given.get("dynamic", False)):
        if strategy != "tensor":
            raise LayoutError(f"{where}.strategy is {strategy!r}; static scales are of the whole tensor")
        return Activations(ActivationFormat(precision=precision, per="tensor", steps=steps), static=True)
    if strategy == "group":
        size = group_size_of(f"{where}.group_size", given.get("group_size"))
        return Activations(ActivationFormat(precision=precision, per="group", group_size=size, steps=steps))
    return Activations(
        ActivationFormat(precision=precision, per="token" if strategy == "token" else "tensor", steps=steps)
    )


def _kv_cache(given: object) -> Literal["fp8", "int8"] | None:
    if not given:
        return None
    if not isinstance(given, Mapping):
        raise LayoutError(f"kv_cache_scheme must be an object, not {given!r}")
    for field, wanted in MappingProxyType(
        {"num_bits": 8, "symmetric": True, "dynamic": False, "strategy": "tensor"}
    ).items():
        if given.get(field, wanted) not in (wanted, None):
            raise LayoutError(f"kv_cache_scheme.{field} is {given[field]!r}; supported: {wanted!r}")
    kind = one_of("kv_cache_scheme.type", given.get("type", "int"), ("int", "float"))
    return "int8" if kind == "int" else "fp8"


def layout_for(linear: QuantizedLinear) -> IntLayout | Fp8Layout:
    """The layout that holds a quantized linear exactly. Raises LayoutError where none does."""
    weight, activation = linear.weight, linear.activation
    activations = None
    if activation is not None:
        if activation.outlier_threshold is not None:
            raise LayoutError("LLM.int8's outlier columns have no place in compressed-tensors")
        if activation.precision == "int8" and activation.steps != _INT8_STEPS:
            raise LayoutError(f"has int8 activations of {activation.steps} steps, not {_INT8_STEPS}")
        static = activation.scale is not None
        kind = replace(activation, scale=None)
        activations = Activations(replace(kind, per="tensor") if static else kind, static)
    if isinstance(weight, Fp8Weight):
        rows, columns = weight.block
        block = (rows, columns)
        if block == weight.shape:
            block = (0, 0)
        elif rows == 1 and columns >= weight.shape[1]:
            block = (1, 0)
        return Fp8Layout(block, activations)
    if not isinstance(weight, IntWeight):
        raise LayoutError("is not quantized")
    if weight.minimums is not None:
        raise LayoutError(
            "has minimums (GGUF's Q4_1), which compressed-tensors cannot hold; quantize it anew"
        )
    if weight.group_of_input is not None:
        raise LayoutError("has groups that are not contiguous, which compressed-tensors no longer loads")
    inputs = weight.shape[1]
    num_groups(weight.shape, weight.group_size)
    grouped = weight.group_size < inputs
    return IntLayout(
        bits=weight.bits,
        granularity="group" if grouped else "channel",
        group_size=weight.group_size if grouped else None,
        symmetric=weight.zeros is None,
        packed=activation is None,
        activations=activations,
    )


class Packer:
    """A `layout.Packer`: collects which linear has which layout, for the config groups."""

    def __init__(self) -> None:
        self._groups: dict[IntLayout | Fp8Layout, list[str]] = {}

    def pack(self, name: str, linear: QuantizedLinear) -> dict[str, NDArray[Any]]:
        layout = layout_for(linear)
        self._groups.setdefault(layout, []).append(name)
        return layout.pack(linear)

    def config(self, unquantized: Sequence[str], kv_cache: Literal["fp8", "int8"] | None) -> dict[str, Any]:
        return _written_config(self._groups, unquantized, kv_cache)


def _written_config(
    groups: Mapping[IntLayout | Fp8Layout, Sequence[str]],
    unquantized: Sequence[str],
    kv_cache: Literal["fp8", "int8"] | None,
) -> dict[str, Any]:
    """config.json's quantization_config for the linears of each layout.

    One layout targets the class Linear and ignores the rest. Several name each linear: vLLM tries the class
    of a fused linear before the names of its parts, so a class beside names would win where it must not.
    """
    formats = {layout.format for layout in groups}
    config: dict[str, Any] = {
        "quant_method": METHOD,
        "format": formats.pop() if len(formats) == 1 else MIXED,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "config_groups": {
            f"group_{number}": {
                "targets": ["Linear"] if len(groups) == 1 else list(names),
                "weights": layout.arguments(),
                "input_activations": _activation_arguments(layout.activations),
                "output_activations": None,
                "format": layout.format,
            }
            for number, (layout, names) in enumerate(groups.items())
        },
        "ignore": list(unquantized),
        "kv_cache_scheme": None,
    }
    only = next(iter(groups), None)
    if len(groups) == 1 and isinstance(only, IntLayout) and only.packed and not only.symmetric:
        # transformers 5.23 over compressed-tensors 0.20 makes room for unpacked zero-points and then refuses
        # packed ones, even the package's own, unless it dequantizes as it loads. With several groups that
        # reads all of them by the first one's scheme, so it is for one alone; vLLM does not read the field.
        config["dequantize"] = True
    if kv_cache is not None:
        config["kv_cache_scheme"] = {
            "num_bits": 8,
            "type": "float" if kv_cache == "fp8" else "int",
            "strategy": "tensor",
            "dynamic": False,
            "symmetric": True,
        }
    return config


def _activation_arguments(activations: Activations | None) -> dict[str, Any] | None:
    if activations is None:
        return None
    format = activations.format
    return {
        "num_bits": 8,
        "type": "int" if format.precision == "int8" else "float",
        "symmetric": True,
        "strategy": "tensor" if activations.static else format.per,
        "group_size": format.group_size,
        "dynamic": not activations.static,
    }
