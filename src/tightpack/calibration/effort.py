"""How much arithmetic a run takes, counted from the sizes of the model: the forward passes over the text,
what each method does to a matrix, and what the sensitivities of a mix take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tightpack.architectures.model_spec import ModelSpec
from tightpack.calibration.config import QuantizationRecipe
from tightpack.calibration.sensitivity import VARIANT_TOKENS
from tightpack.calibration.site_quantizer import wants_hessian
from tightpack.calibration.sites import sites_of

# Passes over a matrix (each reads and writes every weight once) of rounding it to one grid and judging that,
# and how many grids are tried: ranges by clip search, AWQ's exponents, alphas of SmoothQuant, scales of fp8.
_ROUNDING = 8
_CLIPS, _EXPONENTS, _ALPHAS, _FP8_SCALES = 16, 21, 10, 16
# GPTQ, and a sweep of descent after it: each column moves half a block of 128 columns behind it.
_COLUMN_UPDATES = 64
# Products of a matrix with a matrix of its width, in their number: the updates of GPTQ, of the sweep, and of
# three fits of scales.
_GPTQ_PRODUCTS = 6
# Factorisations, inverses and solves of width x width of a site: in thirds of a cube.
_GPTQ_CUBES = 2


@dataclass(frozen=True, slots=True)
class Effort:
    """operations: of matrix products. passes: weights read and written one by one, times how often."""

    operations: float = 0.0
    passes: float = 0.0

    def __add__(self, other: Effort) -> Effort:
        return Effort(self.operations + other.operations, self.passes + other.passes)


def forward(spec: ModelSpec, recipe: QuantizationRecipe) -> Effort:
    """Of the calibration text through all layers, and the Hessians on the way."""
    if not recipe.needs_text:
        return Effort()
    length = recipe.config.sequence_length
    tokens, beside = recipe.config.samples * length, recipe.corrected_samples * length
    operations = 2.0 * (tokens + beside) * _met(spec)
    if wants_hessian(recipe.config):
        squares = 2 * spec.hidden_size**2 + (spec.num_heads * spec.head_dim) ** 2 + spec.intermediate_size**2
        operations += (tokens + 2.0 * beside) * squares * spec.num_layers
    return Effort(operations)


def solving(spec: ModelSpec, recipe: QuantizationRecipe) -> Effort:
    """Of what the method does to the weights, at any length of text."""
    total = Effort()
    for rows, width in _sites(spec, recipe):
        total += _solving(recipe, float(rows), float(width))
    return total


def sensitivity(spec: ModelSpec, recipe: QuantizationRecipe) -> Effort:
    """Of measuring what each site's rounding costs, where precisions are mixed."""
    if not recipe.config.mixed:
        return Effort()
    sites = list(_sites(spec, recipe))
    tokens = min(VARIANT_TOKENS, recipe.config.samples * recipe.config.sequence_length)
    # Each variant goes through the layers after its own: half of them on average.
    operations = 2.0 * tokens * len(sites) * (_met(spec) / 2 + spec.vocab_size * spec.hidden_size)
    total = Effort(operations)
    for rows, width in sites:
        # int4 with three group sizes and int8, each rounded within searched ranges and fitted again.
        total += Effort(4 * 4 * 2.0 * rows * width**2, (3 * _CLIPS + 4) * _ROUNDING * rows * width)
    return total


def judging(spec: ModelSpec, sequences: int, length: int) -> Effort:
    """Of both models over the held-out text."""
    return Effort(2 * 2.0 * sequences * length * (_met(spec) + spec.vocab_size * spec.hidden_size))


def _solving(recipe: QuantizationRecipe, rows: float, width: float) -> Effort:
    method, weights = recipe.config.method, rows * width
    product = 2.0 * rows * width**2
    once = Effort(passes=_ROUNDING * weights)
    scales = Effort(_EXPONENTS * product, _EXPONENTS * _ROUNDING * weights)
    clip = Effort(product, _CLIPS * _ROUNDING * weights)
    corrected = Effort(product + 2 / 3 * width**3) if recipe.corrected_samples else Effort()
    if method == "fp8":
        return Effort(passes=_FP8_SCALES * _ROUNDING * weights)
    if method == "awq":
        return corrected + scales + clip
    if method in ("gptq", "awq-gptq") or recipe.config.calibrated:
        columns = Effort(
            _GPTQ_PRODUCTS * product + _GPTQ_CUBES * width**3, 2 * (_COLUMN_UPDATES + _ROUNDING) * weights
        )
        return corrected + columns + clip + (scales if method == "awq-gptq" else Effort())
    if method in ("smoothquant", "llm.int8") and recipe.config.smoothing is None and recipe.needs_text:
        return once + Effort(_ALPHAS * 2.0 * 512 * weights, _ALPHAS * _ROUNDING * weights)
    return once


def _sites(spec: ModelSpec, recipe: QuantizationRecipe) -> Iterator[tuple[int, int]]:
    """Rows, all linears' together, and width of every site that is quantized."""
    shapes = spec.tensor_shapes()
    for layer in range(spec.num_layers):
        for site in sites_of(spec, layer):
            if recipe.scheme(layer, site).precision == "dense":
                continue
            found = [shapes[f"{name}.weight"] for name in site.names(layer)]
            yield sum(rows for rows, _ in found), found[0][1]


def _met(spec: ModelSpec) -> int:
    """Weights of the layers that a token meets: of experts, those that it is sent to."""
    every = sum(
        shape[0] * shape[1]
        for name, shape in spec.tensor_shapes().items()
        if name.startswith("model.layers.") and len(shape) == 2
    )
    return every - spec.num_idle_parameters
