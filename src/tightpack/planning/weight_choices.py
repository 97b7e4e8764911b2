"""What may become of a model's weights and KV cache: bits, arithmetic, divergence, and how to get there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from tightpack.requests.arguments import require_one_of
from tightpack.simulated.hardware import PRECISIONS, Hardware, Precision

_MEASURED = "SmolLM2-135M, docs/quantization.md: larger models lose less"


@dataclass(frozen=True, slots=True)
class WeightChoice:
    """precision: bits and arithmetic. kl: KL(original‖quantized), nats a token; source: who measured it.

    option: of `tightpack serve`, where weights become so as they are loaded. method: of `tightpack quantize`,
    where they must be calibrated first. checkpoint: one that is so already.
    """

    name: str
    precision: Precision
    kl: float = 0.0
    source: str = ""
    option: str | None = None
    method: str | None = None
    checkpoint: str | None = None


def _default(name: str, kl: float, *, option: str | None = None, method: str | None = None) -> WeightChoice:
    return WeightChoice(name, PRECISIONS[name], kl, f"default ({_MEASURED})", option, method)


WEIGHT_CHOICES: Mapping[str, WeightChoice] = MappingProxyType(
    {
        choice.name: choice
        for choice in (
            WeightChoice("bf16", PRECISIONS["bf16"], 0.0, "the original"),
            _default("fp8", 0.0233, option="fp8"),
            _default("w8a8", 0.0100, method="smoothquant"),
            _default("int8", 0.0032, option="int8"),
            _default("int4", 0.0769, method="awq-gptq"),
        )
    }
)
# Of a mixture of experts, which are rounded without calibration text. Round-to-nearest at 4 bits is what
# SmolLM2 suffers most from.
_WITHOUT_TEXT: Mapping[str, WeightChoice] = MappingProxyType(
    {
        "w8a8": _default("w8a8", 0.0191, option="w8a8"),
        "int4": _default("int4", 0.3326, option="int4"),
    }
)
# On top of the weights': SmolLM2-135M with int8 weights on 12 x 512 tokens of WikiText-2 is at .0032 nats
# with a cache in bf16, at .0099 in fp8 and at .0074 in int8, scales calibrated.
KV_DIVERGENCE: Mapping[str, float] = MappingProxyType({"auto": 0.0, "fp8": 0.0066, "int8": 0.0042})


def choices_for(
    stored: Precision | None, wanted: Sequence[str] | None, *, is_mixture: bool = False
) -> list[WeightChoice]:
    """The precisions to consider; a quantized checkpoint has one. Raises ValueError for unknown names."""
    if stored is not None:
        if wanted:
            raise ValueError(
                f"the checkpoint is quantized already ({stored.name}); drop --precision, or give the original"
            )
        return [WeightChoice(stored.name, stored, 0.0, "the checkpoint as it is")]
    for name in wanted or ():
        require_one_of("precision", name, WEIGHT_CHOICES)
    known = {**WEIGHT_CHOICES, **_WITHOUT_TEXT} if is_mixture else WEIGHT_CHOICES
    return [known[name] for name in wanted or known]


def kv_choices(hardware: Hardware, wanted: Sequence[str] | None) -> list[str]:
    """As serve's `--kv-cache-dtype`: 16 bits, and 8 in the format that the device converts in hardware."""
    if wanted:
        for name in wanted:
            require_one_of("kv_cache_dtype", name, KV_DIVERGENCE)
        return list(dict.fromkeys(wanted))
    return ["auto", "fp8" if "fp8" in hardware.rates else "int8"]


def with_kv(precision: Precision, kv: str, head_dim: int) -> Precision:
    """int8 keys and values have a 32-bit scale a token and head, fp8 ones none."""
    bits = {"auto": precision.kv_bits, "fp8": 8.0, "int8": 8 + 32 / head_dim}[kv]
    return replace(precision, kv_bits=bits)
