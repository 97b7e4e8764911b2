"""What a run did and what it cost: tightpack_report.json and README.md of the output."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

# Layout to who else loads it, for the README of the output.
_READERS: Mapping[str, str] = MappingProxyType(
    {
        "compressed-tensors": "compressed-tensors, which vLLM, SGLang and transformers (with `pip install "
        "compressed-tensors`) load",
        "awq": "AutoAWQ's GEMM layout, which vLLM and transformers (with `pip install gptqmodel`) load",
        "gptq": "GPTQ's, which vLLM (without zero points) and transformers (with `pip install optimum "
        "gptqmodel`) load",
        "bitsandbytes": "bitsandbytes' of 8 bits, which transformers (with `pip install bitsandbytes`) loads",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearReport:
    """relative_error: of the outputs on calibration text (Frobenius norms), activations' rounding included;
    of the weights for methods that take no text."""

    name: str
    scheme: str
    relative_error: float
    num_bytes: int
    parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationReport:
    """quality: fields of `evaluation.comparison.Quality`, on held_out text. smoke_test: a greedy
    continuation, or why there is none. peak_memory_bytes: of the process, measured; None where the system
    does not tell."""

    model: str
    output: str
    recipe: str
    config: Mapping[str, Any]
    calibration_text: str
    held_out_text: str
    linears: Sequence[LinearReport]
    quality: Mapping[str, Any]
    smoke_test: Mapping[str, str]
    seconds: Mapping[str, float]
    peak_memory_bytes: int | None
    bits_per_weight: float
    machine: Mapping[str, Any]
    versions: Mapping[str, str]

    def worst(self, count: int = 5) -> list[LinearReport]:
        return sorted(self.linears, key=lambda linear: -linear.relative_error)[:count]

    def as_json(self) -> str:
        fields = {name: getattr(self, name) for name in self.__slots__}
        fields["linears"] = [
            {name: getattr(linear, name) for name in linear.__slots__} for linear in self.linears
        ]
        return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"

    def as_readme(self) -> str:
        quality = self.quality
        rows = [
            ("perplexity", f"{quality['perplexity']:.3f}"),
            ("perplexity of the original", f"{quality['reference_perplexity']:.3f}"),
            ("KL(original‖quantized), nats a token", f"{quality['kl']:.4f}"),
            ("top-1 agreement", f"{quality['top1_agreement']:.1%}"),
            ("bits a quantized weight", f"{self.bits_per_weight:.2f}"),
        ]
        table = "\n".join(f"| {name} | {value} |" for name, value in rows)
        by_layer = "\n".join(
            f"| {layer} | {' / '.join(schemes)} | {error:.4f} | {worst} |"
            for layer, schemes, error, worst in self.by_layer()
        )
        return f"""# {self.model}, quantized

{self.recipe}; made by tightpack {self.versions.get("tightpack", "")}.

| measured on {quality["sequences"]} x {quality["sequence_length"]} tokens that were not calibrated on | |
|---|---:|
{table}

Calibration text: {self.calibration_text}. Held-out text: {self.held_out_text}.

    tightpack serve {self.output}

The file format is {_READERS[self.config["layout"]]}.

## Layers

| layer | scheme | mean relative error | worst linear |
|---:|---|---:|---|
{by_layer}

All numbers and the arguments are in `tightpack_report.json`.
"""

    def by_layer(self) -> list[tuple[int, list[str], float, str]]:
        """Layer, its schemes, the mean of its linears' relative errors, and the name of the worst with its
        error."""
        rows = []
        layers: dict[int, list[LinearReport]] = {}
        for linear in self.linears:
            layers.setdefault(int(linear.name.split(".")[2]), []).append(linear)
        for layer, linears in layers.items():
            worst = max(linears, key=lambda linear: linear.relative_error)
            mean = sum(linear.relative_error for linear in linears) / len(linears)
            schemes = list(dict.fromkeys(linear.scheme for linear in linears))
            short = worst.name.rpartition(".")[2]
            rows.append((layer, schemes, mean, f"{short} {worst.relative_error:.4f}"))
        return rows
