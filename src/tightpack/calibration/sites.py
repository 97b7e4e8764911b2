"""The four places of a decoder layer where linears read one input, and how each is to be quantized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tightpack.architectures.model_spec import ModelSpec
from tightpack.schemes.quantized import ActivationFormat

SiteName = Literal["qkv", "o", "gate_up", "down"]


@dataclass(frozen=True, slots=True)
class Site:
    """linears: names inside a layer, in the order in which they are stacked; they always share a scheme."""

    name: SiteName
    linears: tuple[str, ...]

    def names(self, layer: int) -> list[str]:
        """As a checkpoint calls them."""
        return [f"model.layers.{layer}.{linear}" for linear in self.linears]


# In the order of computation: each is calibrated on inputs that those before it, quantized, produce.
SITES = (
    Site("qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    Site("o", ("self_attn.o_proj",)),
    Site("gate_up", ("mlp.gate_proj", "mlp.up_proj")),
    Site("down", ("mlp.down_proj",)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteScheme:
    """How the linears of a site are stored and computed.

    precision: "dense" leaves them in 16 bits.
    group_size: inputs that share a scale; None for one scale an output channel.
    """

    precision: Literal["dense", "int", "fp8"]
    bits: Literal[4, 8] = 8
    group_size: int | None = None
    symmetric: bool = True
    activation: ActivationFormat | None = None

    @property
    def label(self) -> str:
        """In a few words, for tables: `int4 g64 asymmetric`, `int8, int8 activations`, `bf16`."""
        if self.precision == "dense":
            return "bf16"
        name = "fp8" if self.precision == "fp8" else f"int{self.bits}"
        if self.group_size is not None:
            name += f" g{self.group_size}"
        if not self.symmetric:
            name += " asymmetric"
        if self.activation is None:
            return name
        name += f", {self.activation.precision} activations"
        if self.activation.outlier_threshold is not None:
            name += f", outliers from {self.activation.outlier_threshold:g}"
        return name

    def num_bytes(self, outputs: int, inputs: int) -> int:
        """Of one linear's weight, as packed: codes, 16-bit scales (32-bit for fp8), zero points."""
        if self.precision == "dense":
            return 2 * outputs * inputs
        if self.precision == "fp8":
            return outputs * inputs + 4 * outputs
        groups = outputs * (inputs // (self.group_size or inputs))
        zeros = 0 if self.symmetric else groups * self.bits // 8
        return outputs * inputs * self.bits // 8 + 2 * groups + zeros


DENSE = SiteScheme(precision="dense")


def sites_of(spec: ModelSpec, layer: int) -> tuple[Site, ...]:
    """The sites of a layer, in the order of `SITES` and under their names. All experts of a mixture are one
    site each way: gates and ups, downs."""
    experts = spec.layers[layer].experts
    if experts is None:
        return SITES
    numbers = range(experts.count)
    return (
        *SITES[:2],
        Site("gate_up", tuple(name.format(n) for n in numbers for name in (experts.gate, experts.up))),
        Site("down", tuple(experts.down.format(n) for n in numbers)),
    )
