"""Mixed precision: how much each site's rounding costs at the model's output.

One walk over the layers does it, so that weights are read once: beside the original's hidden states go those
of one variant for each site passed, in which that site alone is rounded. At the end each variant's KL
divergence from the original says what its site costs at the base scheme. A site's other schemes are taken to
cost in proportion to their squared output error, trace(E H E^T), which the divergence follows to second
order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tightpack.calibration.applied_linear import applied_linear
from tightpack.calibration.clip import quantize_with_hessian_clip
from tightpack.calibration.config import QuantizationRecipe
from tightpack.calibration.hessian import output_errors
from tightpack.calibration.layer_linears import linear_of, original_linears, stored_bias
from tightpack.calibration.layer_walk import Apply, DecoderLayer, Walk
from tightpack.calibration.sites import DENSE, SITES, Site, SiteScheme
from tightpack.calibration.statistics import InputStatistics
from tightpack.schemes.quantized import DenseWeight, IntWeight, QuantizedLinear
from tightpack.torch_backend.arrays import as_tensor
from tightpack.torch_backend.norm import rms_norm

Unit = tuple[int, str]

# Tokens that the variants are compared on. Each variant's hidden states of them are held.
VARIANT_TOKENS = 1024
_LENGTH = 256
_GROUP_SIZES = (128, 64, 32)


@dataclass(frozen=True, slots=True)
class Candidate:
    """error: KL divergence in nats that the scheme at this site alone is expected to bring."""

    scheme: SiteScheme
    num_bytes: int
    error: float


def candidates(recipe: QuantizationRecipe, width: int) -> list[SiteScheme]:
    """What a site of `width` inputs may be: int4 in groups of 128, 64 and 32, int8 by channel, bf16. (fp8
    takes int8's bytes and rounds weights more coarsely: it would never be chosen.)"""
    symmetric = bool(recipe.config.symmetric)
    sizes = [size for size in _GROUP_SIZES if width % size == 0]
    four = [SiteScheme(precision="int", bits=4, group_size=size, symmetric=symmetric) for size in sizes]
    return [*four, SiteScheme(precision="int", bits=8, symmetric=symmetric), DENSE]


def measure(
    walk: Walk,
    recipe: QuantizationRecipe,
    sequences: NDArray[np.int64],
    passed: Callable[[int], None] = lambda layer: None,
) -> dict[Unit, list[Candidate]]:
    """Candidates of each quantized site, in the order of the layers.

    sequences: int64 [samples, length], of which a few are used. passed: told each layer's number.
    """
    # Divergences of 1e-4 are told apart here: on a CPU not in bfloat16, whose own noise is larger.
    dtype = torch.float32 if walk.device.type == "cpu" else walk.dtype
    short = Walk(walk.checkpoint, _length(sequences), dtype, walk.device)
    count = min(len(sequences), max(1, VARIANT_TOKENS // _length(sequences)))
    rows = np.linspace(0, len(sequences) - 1, count).astype(int)
    x = short.embed(sequences[rows, : _length(sequences)])
    units = _units(recipe)
    variants: dict[Unit, Tensor] = {}
    found: dict[Unit, list[tuple[SiteScheme, int, float]]] = {}
    with torch.inference_mode():
        for index in range(walk.spec.num_layers):
            layer = short.layer(index)
            linears = original_linears(short, index)
            inputs = _SiteInputs(linears)
            after = torch.cat([layer.forward(part, inputs.watched).cpu() for _, (part,) in short.batches(x)])
            for unit, state in variants.items():
                variants[unit] = _passed(short, layer, linears, state)
            for site in SITES:
                if (index, site) not in units:
                    continue
                choices, rounded = _candidates(short, recipe, index, site, inputs.hessian(site))
                found[index, site.name] = choices
                variants[index, site.name] = _passed(short, layer, {**linears, **rounded}, x)
            x = after
            passed(index)
        divergences = _divergences(short, x, variants)
    return {
        unit: [Candidate(scheme, size, divergences[unit] * ratio) for scheme, size, ratio in choices]
        for unit, choices in found.items()
    }


def _length(sequences: NDArray[np.int64]) -> int:
    return min(_LENGTH, int(sequences.shape[1]))


class _SiteInputs:
    """Wraps a layer's linears so that the Hessian of each site's input is gathered on the way."""

    def __init__(self, linears: Mapping[str, Apply]) -> None:
        self._statistics: dict[str, InputStatistics] = {}
        self.watched = dict(linears)
        for site in SITES:
            self.watched[site.linears[0]] = self._watch(site, linears[site.linears[0]])

    def hessian(self, site: Site) -> Tensor:
        return self._statistics[site.name].hessian

    def _watch(self, site: Site, plain: Apply) -> Apply:
        def apply(x: Tensor) -> Tensor:
            if site.name not in self._statistics:
                self._statistics[site.name] = InputStatistics(x.shape[-1], device=x.device)
            self._statistics[site.name].add(x)
            return plain(x)

        return apply


def _candidates(
    walk: Walk, recipe: QuantizationRecipe, index: int, site: Site, hessian: Tensor
) -> tuple[list[tuple[SiteScheme, int, float]], dict[str, Apply]]:
    """Each candidate with its bytes and its squared error over the base scheme's; and the site's linears
    rounded to the base scheme, which is the recipe's, at 4 bits."""
    names = site.names(index)
    weights = {
        name: as_tensor(walk.checkpoint.read(f"{name}.weight")).to(walk.device, torch.float32)
        for name in names
    }
    width = next(iter(weights.values())).shape[1]
    schemes = candidates(recipe, width)
    base = next((scheme for scheme in schemes if scheme.group_size == recipe.config.group_size), schemes[0])
    errors: dict[SiteScheme, float] = {}
    rounded: dict[str, Apply] = {}
    for scheme in schemes:
        error = 0.0
        for name, weight in weights.items():
            quantized = _rounded(weight, hessian, scheme)
            values = as_tensor(quantized.dequantize()).to(walk.device)
            error += float(output_errors(values - weight, hessian).sum())
            if scheme == base:
                short = name.removeprefix(f"model.layers.{index}.")
                rounded[short] = linear_of(walk, name, QuantizedLinear(quantized), stored_bias(walk, name))
        errors[scheme] = error
    sizes = {
        scheme: sum(scheme.num_bytes(weight.shape[0], width) for weight in weights.values())
        for scheme in schemes
    }
    reference = errors[base] or 1.0
    return [(scheme, sizes[scheme], errors[scheme] / reference) for scheme in schemes], rounded


def _rounded(weight: Tensor, hessian: Tensor, scheme: SiteScheme) -> IntWeight | DenseWeight:
    if scheme.precision == "dense":
        return DenseWeight(weight.cpu().numpy())
    return quantize_with_hessian_clip(
        weight,
        hessian,
        bits=scheme.bits,
        group_size=scheme.group_size or weight.shape[1],
        symmetric=scheme.symmetric,
    )


def _passed(walk: Walk, layer: DecoderLayer, linears: Mapping[str, Apply], x: Tensor) -> Tensor:
    return torch.cat([layer.forward(part, linears).cpu() for _, (part,) in walk.batches(x)])


def _divergences(walk: Walk, x: Tensor, variants: Mapping[Unit, Tensor]) -> dict[Unit, float]:
    """Mean KL(original || variant) in nats over all positions."""
    checkpoint, spec = walk.checkpoint, walk.spec
    norm = as_tensor(checkpoint.read("model.norm.weight")).to(walk.dtype)
    if spec.norm_weight_offset:
        norm = norm.float() + spec.norm_weight_offset
    norm = norm.to(walk.device)
    head = applied_linear(checkpoint.read_linear("lm_head"), None, dtype=walk.dtype, device=walk.device)

    def log_probabilities(hidden: Tensor) -> Tensor:
        logits = head(rms_norm(hidden.to(walk.device), norm, spec.norm_eps)).float()
        cap = spec.logit_softcap
        if cap is not None:
            logits = logits.div_(cap).tanh_().mul_(cap)
        return logits.log_softmax(-1)

    sums = dict.fromkeys(variants, 0.0)
    for row, hidden in enumerate(x):
        p = log_probabilities(hidden)
        share = p.exp()
        for unit, state in variants.items():
            q = log_probabilities(state[row])
            sums[unit] += float((share * (p - q)).sum(dtype=torch.float64))
    positions = x.shape[0] * x.shape[1]
    return {unit: max(total / positions, 1e-9) for unit, total in sums.items()}


def _units(recipe: QuantizationRecipe) -> dict[tuple[int, Site], None]:
    """Layers and sites that are quantized, in order."""
    layers = sorted({layer for layer, _ in recipe.schemes})
    return {
        (layer, site): None
        for layer in layers
        for site in SITES
        if recipe.scheme(layer, site).precision != "dense"
    }
