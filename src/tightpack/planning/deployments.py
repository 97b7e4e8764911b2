"""One replica: devices, precision and tensor parallelism together, and the limits of an engine on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tightpack.engine_args import SLO_BUDGET
from tightpack.planning.load import Load
from tightpack.planning.models import PlannedModel
from tightpack.planning.step_times import decode_seconds, mixed_seconds
from tightpack.planning.weight_choices import WeightChoice, kv_choices, with_kv
from tightpack.scheduling.limits import SchedulerLimits
from tightpack.simulated.cost_model import CostModel
from tightpack.simulated.hardware import Hardware
from tightpack.simulated.roofline import RooflineCostModel

BLOCK_SIZE = 16
# As `gpu_memory_utilization`; the rest is the driver's, the allocator's and the graphs'.
MEMORY_UTILIZATION = 0.9
# Steps are planned to take no more than this share of the TPOT target, as the mean of a request's gaps must.
_AIM = 0.9
_SEQUENCES = (8, 16, 32, 64, 128, 256, 512)
_BUDGETS = (128, 256, 512, 1024, 2048, 4096, 8192)
# Without a TPOT target, what engines have as their defaults.
_DEFAULT_SEQUENCES, _DEFAULT_BUDGET = 256, 2048


@dataclass(frozen=True)
class Deployment:
    """hardware: the name of a device. weights_bytes, kv_bytes_per_token: of the whole model, over all devices
    of the replica. cache_tokens: positions that its KV cache holds. usd_per_hour: of the replica; None where
    no price is known. options: what `tightpack serve` needs beside what the policy decides.
    """

    hardware: str
    weights: WeightChoice
    kv_cache_dtype: str
    kl: float
    tensor_parallel_size: int
    cost_model: CostModel
    weights_bytes: int
    kv_bytes_per_token: float
    cache_tokens: int
    usd_per_hour: float | None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    options: Sequence[str] = ()
    note: str = ""

    @property
    def pace(self) -> tuple[object, ...]:
        """Two deployments of equal pace take the same time for every step."""
        precision, rates = self.weights.precision, getattr(self.cost_model, "hardware", None)
        rate = precision.arithmetic if rates is None else rates.rates[precision.arithmetic]
        bits = (precision.weight_bits, precision.head_bits, self.kv_bytes_per_token)
        return self.hardware, self.tensor_parallel_size, rate, *bits

    @property
    def label(self) -> str:
        kv = "" if self.kv_cache_dtype == "auto" else f" kv-{self.kv_cache_dtype}"
        devices = f"{self.tensor_parallel_size} x " if self.tensor_parallel_size > 1 else ""
        return f"{devices}{self.hardware} {self.weights.name}{kv}"

    def limits(self, policy: str, load: Load, replicas: int = 1) -> SchedulerLimits:
        """Capacities for one of so many replicas under this load: as many sequences, and as large a prompt
        chunk, as leave TPOT its target.

        Raises ValueError where the cache cannot hold one request.
        """
        sequences = self.max_num_seqs or self._sequences(load)
        if policy == "chunked-prefill":
            budget = max(self._budget(load, load.rate / replicas, sequences), sequences)
        elif policy == "slo":
            budget = max(SLO_BUDGET["cuda"], sequences)
        else:
            budget = load.max_model_len + sequences
        if self.max_num_batched_tokens is not None and policy in ("chunked-prefill", "slo"):
            budget = min(budget, self.max_num_batched_tokens)
        return SchedulerLimits(
            max_num_seqs=sequences,
            max_num_batched_tokens=budget,
            max_model_len=load.max_model_len,
            block_size=BLOCK_SIZE,
            num_blocks=max(1, self.cache_tokens // BLOCK_SIZE),
            max_queue=100_000,
            enable_prefix_caching=False,
        )

    def _sequences(self, load: Load) -> int:
        target = load.promise.tpot_s
        fitting = max(1, self.cache_tokens // load.mean_context)
        chosen = _SEQUENCES[0]
        for count in _SEQUENCES:
            slow = (
                target is not None
                and decode_seconds(self.cost_model, count, load.mean_context) > _AIM * target
            )
            if slow or chosen >= fitting or (target is None and count > _DEFAULT_SEQUENCES):
                break
            chosen = count
        return chosen

    def _budget(self, load: Load, rate: float, sequences: int) -> int:
        target = load.promise.tpot_s
        if target is None:
            return _DEFAULT_BUDGET
        # So many decode at once when each of their tokens takes as long as it may (Little's law).
        context, decodes = load.mean_context, min(sequences, round(rate * load.mean_output * _AIM * target))
        fitting = [
            budget
            for budget in _BUDGETS
            if mixed_seconds(self.cost_model, decodes, context, budget - decodes) <= _AIM * target
        ]
        return max(fitting, default=_BUDGETS[0])


def rooflines(
    model: PlannedModel,
    hardware: Hardware,
    weights: Sequence[WeightChoice],
    kv: Sequence[str] | None,
    sizes: Sequence[int],
    divergence: Mapping[tuple[str, str], float],
    *,
    reserve_tokens: int,
) -> Iterator[Deployment]:
    """Every replica of this device that holds the model, by data sheet.

    kv: `--kv-cache-dtype`s; None for those that suit the device. sizes: of tensor parallelism, of which those
    are taken that a machine has devices for and that divide the model. divergence: of precision and KV type.
    reserve_tokens: of one step, whose activations need room.
    """
    for choice in weights:
        if choice.precision.arithmetic not in hardware.rates:
            continue
        for cache in kv_choices(hardware, kv):
            precision = with_kv(choice.precision, cache, model.spec.head_dim)
            for size in sizes:
                if size > hardware.machine or (size > 1 and hardware.interconnect is None):
                    continue
                try:
                    cost = RooflineCostModel(model.spec, hardware, precision, tensor_parallel_size=size)
                except ValueError:  # does not divide the model's heads or columns
                    continue
                room = hardware.memory_bytes * MEMORY_UTILIZATION - cost.weight_bytes
                room -= activation_bytes(model, reserve_tokens, size)
                yield Deployment(
                    hardware=hardware.name,
                    weights=choice,
                    kv_cache_dtype=cache,
                    kl=divergence[choice.name, cache],
                    tensor_parallel_size=size,
                    cost_model=cost,
                    weights_bytes=model.weights_bytes(choice.precision),
                    kv_bytes_per_token=kv_bytes_per_token(model, precision.kv_bits),
                    cache_tokens=max(0, int(room // cost.kv_bytes_per_token)),
                    usd_per_hour=None if hardware.usd_per_hour is None else hardware.usd_per_hour * size,
                    options=() if hardware.native_bf16 else ("--dtype", "float16"),
                    note=hardware.note,
                )


def kv_bytes_per_token(model: PlannedModel, kv_bits: float) -> float:
    """Keys and values of one position in all layers."""
    spec = model.spec
    return 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * kv_bits / 8


def activation_bytes(model: PlannedModel, tokens: int, size: int) -> float:
    """Of one device, at the widest place of a step of so many tokens: residual stream and its norm, and the
    MLP's two halves, in 16 bits; the logits of 512 rows in 32."""
    spec = model.spec
    inner = max(
        experts.intermediate_size * experts.experts_per_token if experts else spec.intermediate_size
        for experts in {layer.experts for layer in spec.layers}
    )
    rows = 2 * tokens * (2 * spec.hidden_size + 3 * inner / size)
    return rows + 4 * 512 * spec.vocab_size
