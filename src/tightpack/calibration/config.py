"""What a quantization is asked for, and what it becomes for a model: every "auto" resolved once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, cast

from tightpack.architectures.model_spec import ModelSpec
from tightpack.calibration.group_size import default_group_size
from tightpack.calibration.sites import DENSE, SITES, Site, SiteScheme, sites_of
from tightpack.requests.arguments import require_one_of, strict_keywords
from tightpack.schemes.quantized import ActivationFormat

Method = Literal["rtn", "awq", "gptq", "awq-gptq", "smoothquant", "llm.int8", "int8", "fp8"]
Layout = Literal["compressed-tensors", "awq", "gptq", "bitsandbytes"]

METHODS: tuple[Method, ...] = ("rtn", "awq", "gptq", "awq-gptq", "smoothquant", "llm.int8", "int8", "fp8")
LAYOUTS: tuple[Layout, ...] = ("compressed-tensors", "awq", "gptq", "bitsandbytes")
# Methods that take bits, group size and symmetry; the others fix them.
GROUPED: tuple[Method, ...] = ("rtn", "awq", "gptq", "awq-gptq")
SCALED: tuple[Method, ...] = ("awq", "awq-gptq", "smoothquant", "llm.int8")


@strict_keywords
@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationConfig:
    """What to do. None is chosen by `resolve`.

    method: rtn, awq, gptq, awq-gptq (int4 or int8 weights), int8 (weights alone), smoothquant (W8A8),
    llm.int8 (W8A8 with outliers in 16 bits, smoothed likewise), fp8 (E4M3 weights and activations).
    bits: 4 (default) or 8, of rtn, awq, gptq and awq-gptq; the others have 8.
    group_size: inputs that share a scale, -1 for one scale an output channel; by default the largest of 128,
    64
        and 32 that divides every input width of the model.
    symmetric: grids without zero points; by default those of 8-bit methods and of layout gptq.
    layout: the checkpoint's file format: compressed-tensors, but bitsandbytes for llm.int8; or awq, gptq.
    ignore: linears to leave in 16 bits: names, globs (`*.down_proj`) or `re:` and a regular expression. One
    of
        q, k and v takes the other two along, gate takes up. The head and the embedding always stay.
    clip: of rtn: "minmax" covers every weight, "mse" takes the range of least squared error.
    smoothing: SmoothQuant's alpha, 0 to 1, of smoothquant and llm.int8; None chooses each site's by its
        outputs' error.
    calibrated: of int8: whether weights are rounded as GPTQ does, on calibration text, or each to its nearest
        code; None is the former where `quantize` is given text.
    damping: GPTQ's, relative to the mean of the Hessian's diagonal.
    error_correction: of awq, gptq and awq-gptq: how much of what quantizing the layers before did to a
        linear's inputs its weights are moved to undo, 0 (nothing, and a third less time) to 1.
    outlier_threshold: LLM.int8's.
    fp8_fallback: of fp8: keep a site in bf16 whose relative output error is above this.
    kv_cache_dtype: "fp8" or "int8" calibrates a scale a layer for keys and one for values; "auto" leaves the
        cache in 16 bits.
    mixed: assign each site its own precision, by measured sensitivity, on top of rtn, awq, gptq or awq-gptq:
        the best within target_bits, or else the smallest whose expected KL divergence is within max_kl. By
        default where target_bits is given, or max_kl without bits, group_size and a layout of one scheme.
    target_bits: mean bits a quantized weight, scales included.
    max_kl: refuse to save above this KL divergence in nats; see `quantize`.
    samples, sequence_length: calibration text, in sequences and tokens each.
    evaluation_samples: held-out sequences, of the same length; fewer where the text has no more.
    seed: of text that the model generates itself.
    dtype: of dense arithmetic during calibration; "auto" is bfloat16 on CUDA, and on CPUs that multiply it
        (AVX512-BF16) where Hessians are gathered, else float32.
    device: "auto", "cpu", "cuda" or "cuda:N".
    """

    method: Method = "awq-gptq"
    bits: Literal[4, 8] | None = None
    group_size: int | None = None
    symmetric: bool | None = None
    layout: Layout | None = None
    ignore: tuple[str, ...] = ("lm_head",)
    clip: Literal["minmax", "mse"] = "minmax"
    smoothing: float | None = None
    calibrated: bool | None = None
    damping: float = 0.05
    error_correction: float = 0.5
    outlier_threshold: float = 6.0
    fp8_fallback: float | None = None
    kv_cache_dtype: Literal["auto", "fp8", "int8"] = "auto"
    mixed: bool | None = None
    target_bits: float | None = None
    max_kl: float | None = None
    samples: int = 96
    sequence_length: int = 512
    evaluation_samples: int = 16
    seed: int = 0
    dtype: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        require_one_of("method", self.method, METHODS)
        if self.layout is not None:
            require_one_of("layout", self.layout, LAYOUTS)
        require_one_of("clip", self.clip, ("minmax", "mse"))
        require_one_of("kv_cache_dtype", self.kv_cache_dtype, ("auto", "fp8", "int8"))
        object.__setattr__(self, "ignore", tuple(self.ignore))
        for name in ("samples", "sequence_length", "evaluation_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.bits not in (None, 4, 8):
            raise ValueError(f"bits must be 4 or 8, got {self.bits}")
        if self.group_size is not None and self.group_size < 1 and self.group_size != -1:
            raise ValueError(f"group_size must be at least 1, or -1 for a channel, got {self.group_size}")
        if self.smoothing is not None and not 0 <= self.smoothing <= 1:
            raise ValueError(f"smoothing must be between 0 and 1, got {self.smoothing}")
        if not 0 <= self.error_correction <= 1:
            raise ValueError(f"error_correction must be between 0 and 1, got {self.error_correction}")
        for name in ("max_kl", "fp8_fallback", "target_bits", "damping", "outlier_threshold"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        self._refuse_contradictions()

    def _refuse_contradictions(self) -> None:
        method = self.method
        if method not in GROUPED and self.bits == 4:
            raise ValueError(
                f"method={method!r} has 8 bits, and bits=4 was asked for; {', '.join(GROUPED)} have 4"
            )
        if method not in (*GROUPED, "int8") and self.group_size not in (None, -1):
            raise ValueError(f"method={method!r} has one scale a channel, and group_size={self.group_size}")
        if method not in GROUPED and self.symmetric is False:
            raise ValueError(
                f"method={method!r} is symmetric; only {', '.join(GROUPED)} take symmetric=False"
            )
        if self.calibrated is not None and method != "int8":
            raise ValueError(f"calibrated belongs to method='int8', not {method!r}")
        if self.fp8_fallback is not None and method != "fp8":
            raise ValueError(f"fp8_fallback belongs to method='fp8', not {method!r}")
        if self.target_bits is not None and method not in GROUPED:
            raise ValueError(f"target_bits mixes precisions on top of {', '.join(GROUPED)}, not {method!r}")
        if self.mixed and method not in GROUPED:
            raise ValueError(f"mixed=True mixes precisions on top of {', '.join(GROUPED)}, not {method!r}")
        if self.mixed and self.target_bits is None and self.max_kl is None:
            raise ValueError("mixed=True needs an aim: target_bits or max_kl")
        if self.mixed is False and self.target_bits is not None:
            raise ValueError("target_bits mixes precisions, and mixed=False was asked for")
        if self.clip == "mse" and method != "rtn":
            raise ValueError(f"clip='mse' belongs to method='rtn', not {method!r}")
        if self.layout is None:
            return
        if (self.layout == "bitsandbytes") != (method == "llm.int8"):
            raise ValueError(
                f"layout='bitsandbytes' and method='llm.int8' go together, not {self.layout!r} and {method!r}"
            )
        if self.layout in ("awq", "gptq") and method not in GROUPED:
            raise ValueError(
                f"layout={self.layout!r} holds integer weights alone, which {method!r} does not give"
            )
        if self.layout in ("awq", "gptq") and (
            self.mixed or self.target_bits or self.kv_cache_dtype != "auto"
        ):
            raise ValueError(
                f"layout={self.layout!r} has one scheme for all linears and no KV scales; "
                "use compressed-tensors"
            )
        if self.layout == "awq" and (self.bits == 8 or self.symmetric):
            raise ValueError("layout='awq' has 4 bits with zero points: leave out bits=8 and symmetric=True")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationRecipe:
    """A configuration for one model, with every choice made.

    schemes: layer and site to scheme; of a mix, what they are before precisions are assigned.
    mixture: of experts, whose linears are rounded alone: LLM.int8 then goes without smoothing.
    """

    config: QuantizationConfig
    schemes: Mapping[tuple[int, str], SiteScheme]
    mixture: bool = False

    def scheme(self, layer: int, site: Site) -> SiteScheme:
        return self.schemes[layer, site.name]

    @property
    def needs_text(self) -> bool:
        """Whether anything is measured on calibration text; the others round weights alone."""
        config = self.config
        return (
            (config.method in ("gptq", *SCALED) and not (self.mixture and config.method == "llm.int8"))
            or config.fp8_fallback is not None
            or config.kv_cache_dtype != "auto"
            or bool(config.mixed)
            or bool(config.calibrated)
        )

    @property
    def corrected_samples(self) -> int:
        """Calibration sequences that the original's activations are walked beside for: every second's worth
        of them, as the correction is damped and the walk costs as much as quantizing's own."""
        config = self.config
        if config.method not in ("awq", "gptq", "awq-gptq") or config.error_correction == 0:
            return 0
        return (config.samples + 1) // 2

    @property
    def label(self) -> str:
        """`gptq, int4 g64 asymmetric`; a method that is called as its precision is named once."""
        method = "int8 by gptq" if self.config.calibrated else self.config.method
        labels = sorted({scheme.label for scheme in self.schemes.values() if scheme.precision != "dense"})
        schemes = " | ".join(labels)
        return schemes if all(label.startswith(method) for label in labels) else f"{method}, {schemes}"


def resolve(config: QuantizationConfig, spec: ModelSpec) -> QuantizationRecipe:
    """The recipe for a model. Raises ValueError naming the tensor that a group size does not divide, the
    pattern that matches no linear, or the model that the method cannot calibrate."""
    shapes = spec.tensor_shapes()
    ignored = _ignored(config, spec)
    widths = {
        name: shapes[f"{name}.weight"][1]
        for layer in range(spec.num_layers)
        for site in sites_of(spec, layer)
        if (layer, site.name) not in ignored
        for name in site.names(layer)
    }
    if not widths:
        raise ValueError(f"ignore={', '.join(config.ignore)} leaves no linear to quantize")
    config = _with_defaults(config, widths)
    scheme = _scheme(config)
    recipe = QuantizationRecipe(
        config=config,
        schemes={
            (layer, site.name): DENSE if (layer, site.name) in ignored else scheme
            for layer in range(spec.num_layers)
            for site in SITES
        },
        mixture=spec.is_mixture,
    )
    if spec.is_mixture and recipe.needs_text:
        raise ValueError(
            f"{spec.family} is a mixture of experts, whose linears are rounded without calibration text: "
            "take method rtn, int8, llm.int8 or fp8, without fp8_fallback, mixed precisions and "
            f"kv_cache_dtype (method={config.method!r} was asked for)"
        )
    return recipe


def _with_defaults(config: QuantizationConfig, widths: Mapping[str, int]) -> QuantizationConfig:
    grouped = config.method in GROUPED
    size = config.group_size
    if size is None:
        size = default_group_size(widths.values()) if grouped else -1
    if size != -1:
        for name, width in widths.items():
            if width % size:
                fitting = [s for s in (128, 64, 32, 16) if all(w % s == 0 for w in widths.values())]
                advice = f"group_size={fitting[0]} divides all" if fitting else "-1 gives one scale a channel"
                raise ValueError(
                    f"group_size={size} does not divide the {width} inputs of {name}.weight; {advice}"
                )
    symmetric = config.symmetric
    if symmetric is None:
        # vLLM takes GPTQ's layout without zero points only.
        symmetric = not grouped or config.layout == "gptq"
    bits = config.bits or (4 if grouped else 8)
    mixed = config.mixed
    if mixed is None:
        named = config.bits is not None or config.group_size is not None or config.layout in ("awq", "gptq")
        mixed = config.target_bits is not None or (config.max_kl is not None and grouped and not named)
    layout: Layout = "bitsandbytes" if config.method == "llm.int8" else "compressed-tensors"
    return replace(
        config,
        layout=config.layout or layout,
        bits=bits,
        group_size=size,
        symmetric=symmetric,
        mixed=mixed,
    )


def _scheme(config: QuantizationConfig) -> SiteScheme:
    """Of a configuration whose defaults are filled in."""
    size = None if config.group_size == -1 else config.group_size
    if config.method == "fp8":
        return SiteScheme(precision="fp8", activation=ActivationFormat(precision="fp8"))
    activation = None
    if config.method == "smoothquant":
        activation = ActivationFormat(precision="int8", steps=255)
    if config.method == "llm.int8":
        activation = ActivationFormat(precision="int8", outlier_threshold=config.outlier_threshold)
    return SiteScheme(
        precision="int",
        bits=cast(Literal[4, 8], config.bits),
        group_size=size,
        symmetric=bool(config.symmetric),
        activation=activation,
    )


def _ignored(config: QuantizationConfig, spec: ModelSpec) -> set[tuple[int, str]]:
    """Sites with a linear that a pattern matches."""
    found: set[tuple[int, str]] = set()
    for pattern in config.ignore:
        matches = _matcher(pattern)
        hits = {
            (layer, site.name)
            for layer in range(spec.num_layers)
            for site in sites_of(spec, layer)
            if any(matches(name) for name in site.names(layer))
        }
        if not hits and not any(matches(name) for name in ("lm_head", "model.embed_tokens")):
            raise ValueError(
                f"ignore pattern {pattern!r} matches no linear; they are called like "
                f"{', '.join(name for site in sites_of(spec, 0) for name in site.names(0)[:1])}"
            )
        found |= hits
    return found


def _matcher(pattern: str) -> Any:
    if pattern.startswith("re:"):
        try:
            expression = re.compile(pattern.removeprefix("re:"))
        except re.error as error:
            raise ValueError(f"ignore pattern {pattern!r}: {error}") from error
        return lambda name: expression.match(name) is not None
    return lambda name: fnmatchcase(name, pattern)


def config_as_json(config: QuantizationConfig) -> dict[str, Any]:
    import dataclasses

    return {
        field.name: str(value) if isinstance(value := getattr(config, field.name), Path) else value
        for field in dataclasses.fields(config)
    }
