"""Rotary frequencies from a configuration, in transformers 4's style (`rope_theta`, `rope_scaling`) and 5's
(`rope_parameters`).

Computed in float32 step by step as the models were trained: an angle is position x frequency, so a frequency
that is right to 1e-7 instead of bit-equal is off by a thousandth of a radian at position 10,000.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tightpack.architectures.config_fields import ConfigError, Fields
from tightpack.architectures.model_spec import RotarySpec

Floats = NDArray[np.float32]


def rope_parameters(
    config: Mapping[str, Any],
    *,
    default_theta: float = 10_000.0,
    layer_type: str | None = None,
) -> dict[str, Any]:
    """The rope parameters of the whole model, or of one `layer_type`, with `rope_type` and `rope_theta` set.

    layer_type: for families whose layers differ; transformers 5 nests their parameters by it.
    """
    given = config.get("rope_parameters")
    if given is None:
        given = config.get("rope_scaling")
    if given is None:
        given = {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"config field 'rope_parameters' must be an object, not {given!r}")
    if layer_type is not None and layer_type in given:
        given = given[layer_type] or {}
    nested = [key for key, value in given.items() if isinstance(value, Mapping)]
    if nested:
        raise ConfigError(
            f"config field 'rope_parameters' has {nested[0]!r}, which this family does not nest by"
        )
    parameters = dict(given)
    legacy_type = parameters.pop("type", None)
    parameters["rope_type"] = parameters.get("rope_type") or legacy_type or "default"
    if parameters.get("rope_theta") is None:
        parameters["rope_theta"] = config.get("rope_theta") or default_theta
    for source in (config, parameters):
        factor = source.get("partial_rotary_factor")
        if factor not in (None, 1, 1.0):
            raise ConfigError(f"config field 'partial_rotary_factor' is {factor!r}; supported: 1.0")
    return parameters


def rotary_spec(parameters: Mapping[str, Any], head_dim: int, max_position_embeddings: int) -> RotarySpec:
    """Frequencies for `rope_parameters(...)`.

    Types: default (Su et al. 2021), linear (Chen et al. 2023), llama3 (Llama 3.1's smoothing by wavelength),
    yarn (Peng et al. 2023), and longrope (Ding et al. 2024) where its two factor lists agree. `dynamic`
    changes frequencies with the length of the batch, so a cached key would be wrong, and is refused.
    """
    if head_dim % 2:
        raise ConfigError(f"config field 'head_dim' must be even for rotary embedding, not {head_dim}")
    fields = Fields(parameters)
    plain = _plain(fields.number("rope_theta"), head_dim)
    kind = parameters.get("rope_type")
    magnitude = 1.0
    if kind == "default":
        frequencies = plain
    elif kind == "linear":
        frequencies = plain / np.float32(fields.number("factor"))
    elif kind == "llama3":
        frequencies = _llama3(plain, fields)
    elif kind == "yarn":
        frequencies, magnitude = _yarn(plain, fields, head_dim, max_position_embeddings)
    elif kind == "longrope":
        frequencies, magnitude = _fixed_factors(fields, parameters, head_dim, max_position_embeddings)
    else:
        raise ConfigError(
            f"config field 'rope_type' is {kind!r}; supported: default, linear, llama3, yarn, "
            "longrope with one list of factors"
        )
    return RotarySpec(tuple(float(f) for f in frequencies), magnitude)


def _powers(theta: float, head_dim: int) -> Floats:
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    # numpy's own float32 power is off by a unit in the last place for one value in five.
    return np.power(np.float64(theta), exponents.astype(np.float64)).astype(np.float32)


def _plain(theta: float, head_dim: int) -> Floats:
    return np.float32(1) / _powers(theta, head_dim)


def _llama3(plain: Floats, fields: Fields) -> Floats:
    factor = np.float32(fields.number("factor"))
    low, high = fields.number("low_freq_factor"), fields.number("high_freq_factor")
    trained = fields.integer("original_max_position_embeddings")
    if high <= low:
        raise ConfigError(f"config field 'high_freq_factor' ({high}) must exceed 'low_freq_factor' ({low})")
    # A reciprocal and a product, as PyTorch divides a number by a tensor: it moves the last place.
    one = np.float32(1)
    wavelengths = one / plain * np.float32(2 * math.pi)
    smooth = (one / wavelengths * np.float32(trained) - np.float32(low)) / np.float32(high - low)
    blended = (1 - smooth) * plain / factor + smooth * plain
    long, short = wavelengths > trained / low, wavelengths < trained / high
    scaled: Floats = np.where(long, plain / factor, np.where(short, plain, blended)).astype(np.float32)
    return scaled


def _yarn(plain: Floats, fields: Fields, head_dim: int, max_position_embeddings: int) -> tuple[Floats, float]:
    trained = fields.integer("original_max_position_embeddings", max_position_embeddings)
    factor = fields.number("factor", max_position_embeddings / trained)
    beta_fast, beta_slow = fields.number("beta_fast", 32), fields.number("beta_slow", 1)
    theta = fields.number("rope_theta")

    def mscale(scale: float, weight: float = 1.0) -> float:
        return 1.0 if scale <= 1 else 0.1 * weight * math.log(scale) + 1.0

    magnitude = fields.optional_number("attention_factor")
    if magnitude is None:
        above, below = fields.optional_number("mscale"), fields.optional_number("mscale_all_dim")
        magnitude = mscale(factor, above) / mscale(factor, below) if above and below else mscale(factor)

    def pair_turning(rotations: float) -> float:
        """The pair of dimensions that turns this often over the trained length."""
        return head_dim * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_turning(beta_fast), pair_turning(beta_slow)
    if fields.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    pairs = np.arange(head_dim // 2, dtype=np.float32)
    keep = 1 - np.clip((pairs - np.float32(low)) / np.float32(high - low), 0, 1)
    powers = _powers(theta, head_dim)
    stretched = np.float32(1) / (np.float32(factor) * powers)
    return (stretched * (1 - keep) + plain * keep).astype(np.float32), magnitude


def _fixed_factors(
    fields: Fields, parameters: Mapping[str, Any], head_dim: int, max_position_embeddings: int
) -> tuple[Floats, float]:
    factors = parameters.get("short_factor")
    if not isinstance(factors, list | tuple) or len(factors) != head_dim // 2:
        raise ConfigError(f"config field 'short_factor' must list {head_dim // 2} numbers")
    if list(factors) != list(parameters.get("long_factor") or ()):
        raise ConfigError(
            "config field 'long_factor' differs from 'short_factor': frequencies that change with the length "
            "are not supported"
        )
    magnitude = fields.optional_number("attention_factor")
    if magnitude is None:
        trained = fields.integer("original_max_position_embeddings", max_position_embeddings)
        factor = fields.number("factor", max_position_embeddings / trained)
        magnitude = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(trained))
    scaled = np.asarray(factors, np.float32) * _powers(fields.number("rope_theta"), head_dim)
    return np.float32(1) / scaled, magnitude
