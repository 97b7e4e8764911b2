"""The run: a decoder layer at a time, each site calibrated on what the quantized ones before it produce.

Only one layer's weights are in memory, and the activations of all calibration sequences, which stay in host
memory and go to the device in batches. Order inside a layer ("true sequential"): q, k and v; o; gate and up;
down. Where errors are corrected the original's activations of some sequences go along."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

import ml_dtypes
import torch
from numpy.typing import NDArray
from torch import Tensor

from tightpack.calibration.applied_linear import applied_linear
from tightpack.calibration.awq import query_heads_of_values
from tightpack.calibration.config import SCALED, QuantizationRecipe
from tightpack.calibration.error_correction import InputGap, corrected_weight
from tightpack.calibration.folding import divide_rows, fold_into_norm, of_value_rows
from tightpack.calibration.layer_linears import dense_linear, linear_of, stored_bias
from tightpack.calibration.layer_walk import Apply, DecoderLayer, Walk, mlp_norm
from tightpack.calibration.original_path import original_inputs
from tightpack.calibration.products import times_transposed
from tightpack.calibration.resume import LayerResult
from tightpack.calibration.site_quantizer import input_scales, quantize_site, wants_hessian
from tightpack.calibration.sites import DENSE, SITES, Site, SiteScheme, sites_of
from tightpack.calibration.statistics import InputStatistics
from tightpack.schemes.quantized import QuantizedLinear
from tightpack.torch_backend.arrays import as_tensor

QKV, OUTPUT, GATE_UP, DOWN = SITES
# On which a site's error is measured: more would cost as much as rounding it, and say the same.
_JUDGED_TOKENS = 512


class LayerRun:
    """Quantizes one layer. `quantize` is called once.

    activations: [sequences, tokens, hidden_size] before the layer, in host memory; after `quantize`, what the
        quantized layer made of them. None for methods that round weights alone.
    original: what the original model has in their place, of the first of these sequences; after `quantize`,
        what its layer made of them. None where the recipe corrects no errors.
    """

    def __init__(
        self,
        walk: Walk,
        recipe: QuantizationRecipe,
        index: int,
        activations: Tensor | None,
        original: Tensor | None = None,
    ) -> None:
        self._walk, self._recipe, self._index, self._x = walk, recipe, index, activations
        self._original = None if original is None else original_inputs(walk, index, original)
        self._prefix = f"model.layers.{index}."
        self._linears: dict[str, QuantizedLinear] = {}
        self._tensors: dict[str, NDArray[Any]] = {}
        self._errors: dict[str, float] = {}
        self._schemes: dict[str, str] = {}
        self._key_magnitude = 0.0
        self._value_magnitudes: Tensor | None = None

    def quantize(self) -> LayerResult:
        if self._x is None:
            for site in sites_of(self._walk.spec, self._index):
                self._round_alone(site)
        else:
            self._calibrate(self._x)
        if self._original is not None:
            next(self._original, None)  # takes the original past its last site
        return LayerResult(
            linears=self._linears,
            tensors=self._tensors,
            errors=self._errors,
            schemes=self._schemes,
            key_magnitude=self._key_magnitude,
            value_magnitude=0.0 if self._value_magnitudes is None else float(self._value_magnitudes.max()),
        )

    def _round_alone(self, site: Site) -> None:
        weights, scheme = self._weights(site), self._recipe.scheme(self._index, site)
        self._keep(site, scheme, weights, self._quantized(site, scheme, weights, None, None))
        for name, weight in weights.items():
            rounded = as_tensor(self._linears[name].weight.dequantize()).to(weight.device)
            self._errors[name] = _relative(rounded - weight, weight)

    def _calibrate(self, x: Tensor) -> None:
        walk, spec = self._walk, self._walk.spec
        layer = walk.layer(self._index)
        wide = spec.num_heads * spec.head_dim

        self._calibrate_after_norm(QKV, layer, "input_layernorm", x)
        q, k, v = self._applied(QKV)
        mixed = walk.room("between linears", *x.shape[:2], wide)
        for rows, (part,) in walk.batches(x):
            normed = layer.attention_input(part)
            queries, keys, values = q(normed), k(normed), v(normed)
            mixed[rows] = layer.attend(queries, keys, values, self._watch_cache).cpu()
        tied = query_heads_of_values(spec.num_heads, spec.num_kv_heads, spec.head_dim)
        scales = self._calibrate_after_linear(OUTPUT, mixed, QKV.names(self._index)[2], tied)
        if scales is not None:
            mixed /= scales.cpu().to(mixed.dtype)
            if self._value_magnitudes is not None:
                self._value_magnitudes /= of_value_rows(scales, tied)
        (o,) = self._applied(OUTPUT)
        for rows, (part, inputs) in walk.batches(x, mixed):
            x[rows] = layer.after_attention(part, o(inputs)).cpu()

        self._calibrate_after_norm(GATE_UP, layer, mlp_norm(spec), x)
        gate, up = self._applied(GATE_UP)
        hidden = walk.room("between linears", *x.shape[:2], spec.intermediate_size)
        for rows, (part,) in walk.batches(x):
            normed = layer.mlp_input(part)
            hidden[rows] = layer.gated(gate(normed), up(normed)).cpu()

        scales = self._calibrate_after_linear(DOWN, hidden, GATE_UP.names(self._index)[1], None)
        if scales is not None:
            hidden /= scales.cpu().to(hidden.dtype)
        (down,) = self._applied(DOWN)
        for rows, (part, inputs) in walk.batches(x, hidden):
            x[rows] = layer.after_mlp(part, down(inputs)).cpu()

    def _calibrate_after_norm(self, site: Site, layer: DecoderLayer, norm: str, x: Tensor) -> None:
        """A site whose input is the norm of `x`, whose weight takes the scales."""
        inputs_of = layer.attention_input if site is QKV else layer.mlp_input
        weights, scheme = self._weights(site), self._recipe.scheme(self._index, site)
        original = None if self._original is None else next(self._original)
        if scheme.precision == "dense":
            self._keep_dense(site, weights)
            return
        inputs = (inputs_of(part) for _, (part,) in self._walk.batches(x))
        weights, statistics, sample = self._watched(weights, inputs, original)
        scales = input_scales(self._recipe.config, scheme, weights, statistics, sample, None)
        divided = sample
        if scales is not None:
            full = f"{self._prefix}{norm}.weight"
            stored, scales = fold_into_norm(
                self._walk.checkpoint.read(full), scales, self._walk.spec.norm_weight_offset
            )
            self._tensors[full] = stored
            layer.set_norm(norm, stored)
            divided = sample / scales.to(sample.dtype)
        quantized = self._quantized(site, scheme, weights, statistics, scales)
        self._judge(site, scheme, weights, quantized, sample, divided)

    def _calibrate_after_linear(
        self, site: Site, inputs: Tensor, before: str, tied: Tensor | None
    ) -> Tensor | None:
        """A site whose input is linear in the outputs of `before`, whose rows take the scales: returns
        those."""
        weights, scheme = self._weights(site), self._recipe.scheme(self._index, site)
        original = None if self._original is None else next(self._original)
        if scheme.precision == "dense":
            self._keep_dense(site, weights)
            return None
        batches = (part for _, (part,) in self._walk.batches(inputs))
        weights, statistics, sample = self._watched(weights, batches, original)
        scales = input_scales(self._recipe.config, scheme, weights, statistics, sample, tied)
        divided = sample
        if scales is not None:
            divided = sample / scales.to(sample.dtype)
        quantized = self._quantized(site, scheme, weights, statistics, scales)
        self._judge(site, scheme, weights, quantized, sample, divided)
        if scales is not None:
            rows = scales if tied is None else of_value_rows(scales, tied)
            self._linears[before] = divide_rows(self._linears[before], rows)
            bias = stored_bias(self._walk, before)
            if bias is not None:
                self._tensors[f"{before}.bias"] = (bias / rows.cpu()).numpy().astype(ml_dtypes.bfloat16)
        return scales

    def _watched(
        self, weights: dict[str, Tensor], batches: Iterator[Tensor], original: Tensor | None
    ) -> tuple[dict[str, Tensor], InputStatistics, Tensor]:
        """The weights to round, corrected where the original's inputs are given; statistics of the site's
        inputs, and the first batch of them."""
        width, config = next(iter(weights.values())).shape[1], self._recipe.config
        statistics = InputStatistics(
            width,
            hessian=wants_hessian(config),
            magnitudes=config.method in SCALED,
            device=self._walk.device,
        )
        gap = InputGap(width, device=self._walk.device)
        aims = iter(()) if original is None else (part for _, (part,) in self._walk.batches(original))
        sample = None
        for batch, aim in zip_longest(batches, aims):
            sample = batch if sample is None else sample
            statistics.add(batch)
            if aim is not None:
                gap.add(batch[: len(aim)], aim)
        assert sample is not None
        if original is not None:
            # Rows do not touch each other, and one factorisation serves all.
            corrected = corrected_weight(
                torch.cat(list(weights.values())),
                gap.mean,
                statistics.hessian,
                share=config.error_correction,
                damping=config.damping,
            )
            parts = torch.split_with_sizes(corrected, [len(weight) for weight in weights.values()])
            weights = dict(zip(weights, parts, strict=True))
        return weights, statistics, sample

    def _quantized(
        self,
        site: Site,
        scheme: SiteScheme,
        weights: Mapping[str, Tensor],
        statistics: InputStatistics | None,
        scales: Tensor | None,
    ) -> dict[str, QuantizedLinear]:
        if scheme.precision == "dense":
            return {name: dense_linear(self._walk, name) for name in weights}
        return quantize_site(self._recipe.config, scheme, weights, statistics, scales)

    def _judge(
        self,
        site: Site,
        scheme: SiteScheme,
        weights: Mapping[str, Tensor],
        quantized: Mapping[str, QuantizedLinear],
        sample: Tensor,
        divided: Tensor,
    ) -> None:
        """Measure the outputs' relative error on some tokens, activations' rounding included; keep the site,
        or with fp8_fallback its original where the error is too large."""
        inputs, given = (t.flatten(0, -2)[:_JUDGED_TOKENS].float() for t in (sample, divided))
        errors = {}
        for name, weight in weights.items():
            exact = times_transposed(inputs, weight)
            apply = applied_linear(quantized[name], None, dtype=torch.float32, device=self._walk.device)
            errors[name] = _relative(apply(given) - exact, exact)
        threshold = self._recipe.config.fp8_fallback
        if threshold is not None and not max(errors.values()) <= threshold:
            self._keep_dense(site, weights)
            return
        self._keep(site, scheme, weights, quantized)
        self._errors |= errors

    def _keep(
        self,
        site: Site,
        scheme: SiteScheme,
        weights: Mapping[str, Tensor],
        quantized: Mapping[str, QuantizedLinear],
    ) -> None:
        self._linears |= quantized
        self._schemes |= dict.fromkeys(weights, scheme.label)

    def _keep_dense(self, site: Site, weights: Mapping[str, Tensor]) -> None:
        self._keep(site, DENSE, weights, {name: dense_linear(self._walk, name) for name in weights})
        self._errors |= dict.fromkeys(weights, 0.0)

    def _weights(self, site: Site) -> dict[str, Tensor]:
        """Float32 [outputs, inputs] on the device, by full name."""
        return {
            name: as_tensor(self._walk.checkpoint.read(f"{name}.weight")).to(self._walk.device, torch.float32)
            for name in site.names(self._index)
        }

    def _applied(self, site: Site) -> list[Apply]:
        return [
            linear_of(self._walk, name, self._linears[name], stored_bias(self._walk, name))
            for name in site.names(self._index)
        ]

    def _watch_cache(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Magnitudes of what the cache holds: of values by row of their projection, which scales may yet
        divide."""
        if self._recipe.config.kv_cache_dtype != "auto":
            self._key_magnitude = max(self._key_magnitude, float(keys.abs().max()))
            rows = values.abs().amax((0, 1)).reshape(-1).float()
            seen = self._value_magnitudes
            self._value_magnitudes = rows if seen is None else torch.maximum(seen, rows)
        return keys, values


def _relative(error: Tensor, exact: Tensor) -> float:
    """Frobenius norms; 0 for a matrix of zeros."""
    size = float(exact.norm())
    return float(error.norm()) / size if size else 0.0
