"""One site's weights and input statistics in, its quantized linears out: which algorithm a method is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from tightpack.calibration.awq import awq_scales
from tightpack.calibration.clip import quantize_with_hessian_clip
from tightpack.calibration.config import SCALED, QuantizationConfig
from tightpack.calibration.fp8 import fp8_weight
from tightpack.calibration.gptq import gptq
from tightpack.calibration.hessian import scaled_hessian
from tightpack.calibration.llm_int8 import int8_channels
from tightpack.calibration.round_to_nearest import round_to_nearest
from tightpack.calibration.sites import SiteScheme
from tightpack.calibration.smoothquant import searched_smoothquant_scales, smoothquant_scales
from tightpack.calibration.statistics import InputStatistics
from tightpack.schemes.quantized import IntWeight, QuantizedLinear


def wants_hessian(config: QuantizationConfig) -> bool:
    return config.method in ("awq", "gptq", "awq-gptq") or bool(config.mixed) or bool(config.calibrated)


def input_scales(
    config: QuantizationConfig,
    scheme: SiteScheme,
    weights: Mapping[str, Tensor],
    statistics: InputStatistics,
    sample: Tensor,
    tied: Tensor | None,
) -> Tensor | None:
    """The scales that the method would multiply weight columns by, float32 [inputs]; None for none.

    weights: float32 [outputs, inputs], by name. sample: some of their inputs, [..., inputs].
    tied: see `awq_scales`.
    """
    if config.method not in SCALED or scheme.precision != "int":
        return None
    matrices = list(weights.values())
    if config.method in ("smoothquant", "llm.int8"):
        absmax, threshold = statistics.absmax, None
        if scheme.activation is not None:
            threshold = scheme.activation.outlier_threshold
        if config.smoothing is None:
            return searched_smoothquant_scales(
                matrices, absmax, sample, tied=tied, outlier_threshold=threshold
            )
        centred = threshold is not None
        return smoothquant_scales(matrices, absmax, config.smoothing, tied=tied, centred=centred)
    if scheme.bits == 8:
        return None  # 8 bits round too finely for scales to be worth their rounding of the norms
    return awq_scales(
        matrices,
        statistics.hessian,
        statistics.mean_abs,
        bits=scheme.bits,
        group_size=scheme.group_size or matrices[0].shape[1],
        symmetric=scheme.symmetric,
        tied=tied,
    )


def quantize_site(
    config: QuantizationConfig,
    scheme: SiteScheme,
    weights: Mapping[str, Tensor],
    statistics: InputStatistics | None,
    scales: Tensor | None = None,
) -> dict[str, QuantizedLinear]:
    """weights: float32 [outputs, inputs] by name, not yet multiplied by `scales`, which their input is
    divided by.

    Raises ValueError, beginning with the linear's name, for weights or statistics that are not finite.
    """
    if scales is not None:
        weights = {name: weight * scales for name, weight in weights.items()}
    if scheme.precision == "fp8":
        found = {
            name: _named(name, fp8_weight, weight, granularity="channel", search=True)
            for name, weight in weights.items()
        }
        return {name: QuantizedLinear(weight, scheme.activation) for name, weight in found.items()}
    inputs = next(iter(weights.values())).shape[1]
    size = scheme.group_size or inputs
    grid = {"bits": scheme.bits, "group_size": size, "symmetric": scheme.symmetric}
    method = config.method
    if method in ("smoothquant", "llm.int8") or (method == "int8" and not config.calibrated):
        quantized = {
            name: _named(name, int8_channels, weight, group_size=scheme.group_size)
            for name, weight in weights.items()
        }
    elif method == "rtn" and not config.mixed:
        quantized = {
            name: _named(name, round_to_nearest, weight, clip=config.clip, **grid)
            for name, weight in weights.items()
        }
    else:
        assert statistics is not None
        hessian = statistics.hessian if scales is None else scaled_hessian(statistics.hessian, scales)
        if method in ("awq", "rtn"):
            quantized = {
                name: _named(name, quantize_with_hessian_clip, weight, hessian, **grid)
                for name, weight in weights.items()
            }
        else:
            # Rows do not touch each other, and one factorisation serves all.
            stacked = torch.cat(list(weights.values()))
            together = _named(" + ".join(weights), gptq, stacked, hessian, damping=config.damping, **grid)
            quantized = dict(zip(weights, _split(together, list(weights.values())), strict=True))
    return {name: QuantizedLinear(weight, scheme.activation) for name, weight in quantized.items()}


def _split(weight: IntWeight, parts: Sequence[Tensor]) -> list[IntWeight]:
    ends = np.cumsum([len(part) for part in parts])[:-1]
    zeros = [None] * len(parts) if weight.zeros is None else np.split(weight.zeros, ends)
    return [
        IntWeight(codes=codes, scales=scales, zeros=zero, bits=weight.bits, group_size=weight.group_size)
        for codes, scales, zero in zip(
            np.split(weight.codes, ends), np.split(weight.scales, ends), zeros, strict=True
        )
    ]


def _named(name: str, algorithm, *arguments, **options):  # type: ignore[no-untyped-def]
    try:
        return algorithm(*arguments, **options)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
