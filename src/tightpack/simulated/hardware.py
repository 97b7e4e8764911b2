"""What a step's time depends on in a machine: memory, arithmetic by precision, links between devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Literal

from tightpack.requests.arguments import nearest_hint, strict_keywords

Arithmetic = Literal["bf16", "fp8", "int8"]


def _require_positive(owner: str, **values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{owner}: {name} must be above 0, got {value}")


@strict_keywords
@dataclass(frozen=True, slots=True, kw_only=True)
class Interconnect:
    """The links over which devices add up their partial results.

    bandwidth: bytes a second that one device sends (half of what a data sheet adds up for both directions).
    latency_s: of one all-reduce of next to nothing, synchronization included.
    """

    name: str
    bandwidth: float
    latency_s: float

    def __post_init__(self) -> None:
        _require_positive(self.name, bandwidth=self.bandwidth, latency_s=self.latency_s)


@strict_keywords
@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One device, by its data sheet; how much of it a kernel reaches is `roofline.Efficiency`.

    memory_bytes, bandwidth: of the device's memory; bytes, bytes a second.
    rates: arithmetic to dense operations a second (a multiply and an add are two).
    interconnect: None for a device that works alone.
    machine: how many of them a machine holds, beyond which no layer is divided.
    native_bf16: whether its 16-bit arithmetic knows bfloat16; else it is float16's.
    tested: whether the engine has been run on it.
    usd_per_hour: of one device; None where it is not known.
    data_sheet, price: where the numbers come from. note: what a plan has to say of it.
    """

    name: str
    memory_bytes: float
    bandwidth: float
    rates: Mapping[Arithmetic, float]
    interconnect: Interconnect | None = None
    machine: int = 8
    native_bf16: bool = True
    tested: bool = True
    usd_per_hour: float | None = None
    data_sheet: str = ""
    price: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        _require_positive(self.name, memory_bytes=self.memory_bytes, bandwidth=self.bandwidth)
        _require_positive(self.name, **{str(name): rate for name, rate in self.rates.items()})
        if "bf16" not in self.rates:
            raise ValueError(f"{self.name}: rates must hold bf16, in which attention is computed")
        if self.machine < 1:
            raise ValueError(f"{self.name}: machine must be at least 1 device, got {self.machine}")
        if self.usd_per_hour is not None and not self.usd_per_hour >= 0:
            raise ValueError(f"{self.name}: usd_per_hour must be 0 or more, got {self.usd_per_hour}")
        object.__setattr__(self, "rates", MappingProxyType(dict(self.rates)))

    def __reduce__(self) -> tuple[Callable[..., Hardware], tuple[dict[str, Any]]]:
        """For `pickle`, which knows no mapping proxies: plans simulate in several processes."""
        given = {one.name: getattr(self, one.name) for one in fields(self)}
        return _restored, ({**given, "rates": dict(self.rates)},)


def _restored(given: dict[str, Any]) -> Hardware:
    return Hardware(**given)


@strict_keywords
@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """Bits that are read and the arithmetic they meet.

    weight_bits: a weight of a linear, its share of scales and zero-points included (4.25 for 4 bits
        with a 16-bit scale for every 64).
    arithmetic: of the linears; 16-bit activations on narrower weights compute in bf16.
    kv_bits: an element of the KV cache.
    head_bits: a weight of the embedding and the head, which stay in 16 bits as a rule.
    """

    name: str = "bf16"
    weight_bits: float = 16.0
    arithmetic: Arithmetic = "bf16"
    kv_bits: float = 16.0
    head_bits: float = 16.0

    def __post_init__(self) -> None:
        _require_positive(
            self.name, weight_bits=self.weight_bits, kv_bits=self.kv_bits, head_bits=self.head_bits
        )


# The scheme names that `quantization=` and `kv_cache_dtype=` use.
PRECISIONS: Mapping[str, Precision] = MappingProxyType(
    {
        precision.name: precision
        for precision in (
            Precision(),
            Precision(name="fp8", weight_bits=8, arithmetic="fp8"),
            Precision(name="w8a8", weight_bits=8, arithmetic="int8"),
            Precision(name="int8", weight_bits=8),
            # 4 bits, and a 16-bit scale and a 4-bit zero-point for every 128.
            Precision(name="int4", weight_bits=4 + 20 / 128),
        )
    }
)


def precision(name: str) -> Precision:
    """A precision by name. Raises ValueError with the nearest."""
    if name not in PRECISIONS:
        raise ValueError(f"precision {name!r} is not known; {nearest_hint(name, PRECISIONS, 'there are')}")
    return PRECISIONS[name]
