"""Step time from first principles: each operation takes as long as its bytes or its arithmetic, whichever is
longer (the roofline model of Williams, Waterman and Patterson 2009).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from tightpack.architectures.model_spec import ExpertsSpec, ModelSpec
from tightpack.requests.arguments import strict_keywords
from tightpack.scheduling.plan import StepPlan
from tightpack.simulated.hardware import Hardware, Precision
from tightpack.simulated.step_work import StepWork

# Activations and the residual stream are kept in 16 bits whatever the linears compute in.
_ACTIVATION_BYTES = 2


@strict_keywords
@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """The share of a data sheet's rate that good kernels reach, and what no rate explains.

    linear: of arithmetic in large matrix products. attention: of arithmetic in prompt attention, softmax
    included. memory: of the bandwidth. link: of the interconnect's. overhead_s: of every step, for
    scheduling, launches and sampling. These are round numbers of the kind that public measurements of
    H100 kernels give; where a machine is at hand, measure it instead (`fitted.py`).
    """

    linear: float = 0.70
    attention: float = 0.50
    memory: float = 0.85
    link: float = 0.75
    overhead_s: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("linear", "attention", "memory", "link"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {getattr(self, name)}")
        if not (math.isfinite(self.overhead_s) and self.overhead_s >= 0):
            raise ValueError(f"overhead_s must be 0 or more seconds, got {self.overhead_s}")


@dataclass(frozen=True, slots=True)
class _Linear:
    """One device's part of a linear: inputs * outputs weights."""

    inputs: int
    outputs: int
    weight_bytes: float


@dataclass(frozen=True, slots=True)
class _Mlp:
    """One device's part of a gated MLP, or of each of `count` experts, of which a token goes through some."""

    gate_up: _Linear
    down: _Linear
    count: int = 1
    per_token: int = 1

    @property
    def weight_bytes(self) -> float:
        return self.count * (self.gate_up.weight_bytes + self.down.weight_bytes)

    def touched(self, tokens: int) -> float:
        """Experts that at least one of `tokens` goes through, on average, when all are as likely."""
        return self.count * (1 - (1 - self.per_token / self.count) ** tokens)


class RooflineCostModel:
    """A `CostModel` of `tensor_parallel_size` devices that share every layer as in Megatron (Shoeybi et al.
    2019): heads and MLP columns are divided, two all-reduces a layer add up the parts.

    Counted per operation: the four linears of a layer, attention of decodes and of prompts over their
    windows, the KV cache written, the norms and activations between (as bytes), the head for the rows that
    sample, the all-reduces, and a fixed overhead a step. Operations follow each other; nothing overlaps.
    Of a mixture of experts, the weights of those experts are read that the step's tokens go through.
    """

    def __init__(
        self,
        spec: ModelSpec,
        hardware: Hardware,
        precision: Precision | None = None,
        *,
        tensor_parallel_size: int = 1,
        efficiency: Efficiency | None = None,
    ) -> None:
        self.spec = spec
        self.hardware = hardware
        self.precision = precision or Precision()
        self.tensor_parallel_size = tensor_parallel_size
        self.efficiency = efficiency or Efficiency()
        self._check()
        size = tensor_parallel_size
        # With more devices than KV heads, some hold the same head.
        self._kv_heads = max(1, spec.num_kv_heads // size)
        self._heads = spec.num_heads // size
        qkv_outputs = (self._heads + 2 * self._kv_heads) * spec.head_dim
        self._attention_linears = (
            self._linear(spec.hidden_size, qkv_outputs),
            self._linear(self._heads * spec.head_dim, spec.hidden_size),
        )
        kinds = Counter(layer.experts for layer in spec.layers)
        self._mlps = tuple((self._mlp(experts), layers) for experts, layers in kinds.items())
        vocabulary = -(-spec.vocab_size // size)
        head_bytes = spec.hidden_size * vocabulary * self.precision.head_bits / 8
        self._head = _Linear(spec.hidden_size, vocabulary, head_bytes)
        self._windows = tuple(Counter(layer.window for layer in spec.layers).items())
        # Two norms read and write the residual stream; the gated activation reads two vectors, writes one.
        widths = sum(layers * mlp.per_token * mlp.down.inputs for mlp, layers in self._mlps)
        self._between_bytes = (6 * spec.num_layers * spec.hidden_size + 3 * widths) * _ACTIVATION_BYTES
        self._linear_rate = hardware.rates[self.precision.arithmetic] * self.efficiency.linear
        self._head_rate = hardware.rates["bf16"] * self.efficiency.linear
        self._attention_rate = hardware.rates["bf16"] * self.efficiency.attention
        self._bandwidth = hardware.bandwidth * self.efficiency.memory

    @property
    def description(self) -> Mapping[str, str]:
        size = self.tensor_parallel_size
        return {
            "cost_model": "roofline",
            "device": self.hardware.name if size == 1 else f"{size} x {self.hardware.name}",
            "precision": self.precision.name,
            "efficiency": ", ".join(
                f"{name} {getattr(self.efficiency, name):g}"
                for name in ("linear", "attention", "memory", "link", "overhead_s")
            ),
        }

    @property
    def weight_bytes(self) -> float:
        """Of one device: its parts of the layers, the embedding and the head. Norms and biases are left out,
        less than 0.1 %."""
        matrices = 1 if self.spec.tied_embeddings else 2
        attention = sum(linear.weight_bytes for linear in self._attention_linears)
        mlps = sum(layers * mlp.weight_bytes for mlp, layers in self._mlps)
        return self.spec.num_layers * attention + mlps + matrices * self._head.weight_bytes

    @property
    def kv_bytes_per_token(self) -> float:
        """Of one device: keys and values of one position in all layers."""
        return self.spec.num_layers * self._layer_kv_bytes

    def num_blocks(self, block_size: int, memory_utilization: float = 0.9) -> int:
        """KV blocks that fit beside the weights in this share of the memory.

        Raises MemoryError when the weights leave no room for one.
        """
        room = self.hardware.memory_bytes * memory_utilization - self.weight_bytes
        fitting = int(room // (self.kv_bytes_per_token * block_size))
        if fitting < 1:
            raise MemoryError(
                f"the weights take {self.weight_bytes / 1e9:.1f} GB on each of {self.tensor_parallel_size} "
                f"{self.hardware.name} and {memory_utilization:.0%} of its memory is "
                f"{self.hardware.memory_bytes * memory_utilization / 1e9:.1f} GB: take more devices "
                f"(tensor_parallel_size) or fewer bits a weight"
            )
        return fitting

    def step_seconds(self, plan: StepPlan) -> float:
        return math.fsum(self.seconds_by_operation(plan).values())

    def seconds_by_operation(self, plan: StepPlan) -> dict[str, float]:
        """Where the step's time goes."""
        work = {window: StepWork.of(plan.chunks, window) for window, _ in self._windows}
        first = next(iter(work.values()))  # its counts of rows are everybody's
        layers, tokens = self.spec.num_layers, first.tokens
        kv_written = tokens * self.kv_bytes_per_token
        seconds = {
            "linears": self._linears(tokens),
            "decode_attention": math.fsum(
                count * self._decode_attention(work[window]) for window, count in self._windows
            ),
            "prompt_attention": math.fsum(
                count * self._prompt_attention(work[window]) for window, count in self._windows
            ),
            "between": (tokens * self._between_bytes + kv_written) / self._bandwidth,
            "all_reduce": 2 * layers * self._all_reduce(tokens),
            "overhead": self.efficiency.overhead_s,
        }
        if first.samples:
            seconds["head"] = self._linear_seconds(self._head, first.samples, self._head_rate)
        return seconds

    @property
    def _layer_kv_bytes(self) -> float:
        return 2 * self._kv_heads * self.spec.head_dim * self.precision.kv_bits / 8

    def _linear(self, inputs: int, outputs: int) -> _Linear:
        return _Linear(inputs, outputs, inputs * outputs * self.precision.weight_bits / 8)

    def _mlp(self, experts: ExpertsSpec | None) -> _Mlp:
        hidden, size = self.spec.hidden_size, self.tensor_parallel_size
        inner = (experts.intermediate_size if experts else self.spec.intermediate_size) // size
        linears = self._linear(hidden, 2 * inner), self._linear(inner, hidden)
        return _Mlp(*linears, experts.count, experts.experts_per_token) if experts else _Mlp(*linears)

    def _linears(self, tokens: int) -> float:
        """Those of all layers."""
        attention = math.fsum(self._linear_seconds(one, tokens) for one in self._attention_linears)
        seconds = self.spec.num_layers * attention
        for mlp, layers in self._mlps:
            rows, touched = tokens * mlp.per_token, mlp.touched(tokens)
            seconds += layers * self._linear_seconds(mlp.gate_up, rows, matrices=touched)
            seconds += layers * self._linear_seconds(mlp.down, rows, matrices=touched)
        return seconds

    def _linear_seconds(
        self, linear: _Linear, rows: int, rate: float | None = None, matrices: float = 1
    ) -> float:
        """matrices: how many of its kind are read, each for some of the rows."""
        moved = matrices * linear.weight_bytes + rows * (linear.inputs + linear.outputs) * _ACTIVATION_BYTES
        operations = 2 * rows * linear.inputs * linear.outputs
        return max(moved / self._bandwidth, operations / (rate or self._linear_rate))

    def _decode_attention(self, work: StepWork) -> float:
        """One layer. Each decode reads its own keys and values once, for all queries that share them."""
        return self._attention(work.decode_context, work.decode_context, work.decodes)

    def _prompt_attention(self, work: StepWork) -> float:
        rows = work.tokens - work.decodes
        return self._attention(work.prompt_context + rows, work.own_pairs + work.cached_pairs, rows)

    def _attention(self, positions: int, pairs: int, rows: int) -> float:
        width = self._heads * self.spec.head_dim
        moved = positions * self._layer_kv_bytes + rows * 2 * width * _ACTIVATION_BYTES
        # Two products of query and key vectors a pair, a multiply and an add for each element.
        return max(moved / self._bandwidth, 4 * pairs * width / self._attention_rate)

    def _all_reduce(self, tokens: int) -> float:
        size, link = self.tensor_parallel_size, self.hardware.interconnect
        if size == 1 or link is None:
            return 0.0
        # A ring sends each part twice round all devices but one.
        sent = 2 * (size - 1) / size * tokens * self.spec.hidden_size * _ACTIVATION_BYTES
        return link.latency_s + sent / (link.bandwidth * self.efficiency.link)

    def _check(self) -> None:
        size, spec, hardware = self.tensor_parallel_size, self.spec, self.hardware
        if self.precision.arithmetic not in hardware.rates:
            raise ValueError(
                f"{hardware.name} has no {self.precision.arithmetic} arithmetic for precision "
                f"{self.precision.name!r}; it has {', '.join(hardware.rates)}"
            )
        if size < 1:
            raise ValueError(f"tensor_parallel_size must be at least 1, got {size}")
        columns = {
            e.intermediate_size if e else spec.intermediate_size
            for e in {layer.experts for layer in spec.layers}
        }
        divided = [("attention heads", spec.num_heads), *(("MLP columns", width) for width in columns)]
        for what, count in divided:
            if count % size:
                raise ValueError(f"tensor_parallel_size={size} does not divide {count} {what}")
        if spec.num_kv_heads % size and size % spec.num_kv_heads:
            raise ValueError(
                f"tensor_parallel_size={size} neither divides {spec.num_kv_heads} KV heads nor is a multiple"
            )
        if size > 1 and hardware.interconnect is None:
            raise ValueError(f"{hardware.name} has no interconnect for tensor_parallel_size={size}")
