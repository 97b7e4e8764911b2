"""Will it fit: memory arithmetic for every device, precision and KV type, before anything is simulated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from tightpack.planning.deployments import Deployment


@dataclass(frozen=True, slots=True)
class Fit:
    """Bytes are of the whole model.

    devices: the fewest that hold it in one machine, with room for one request of the context; None where a
    whole machine does not. max_tokens_in_cache: over those devices; 0 where there are none.
    """

    hardware: str
    precision: str
    kv_cache_dtype: str
    weights_bytes: int
    kv_bytes_per_token: float
    devices: int | None
    max_tokens_in_cache: int


def fits(deployments: Iterable[Deployment], max_model_len: int) -> list[Fit]:
    """deployments: of every size, as `rooflines` yields them. One row a device, precision and KV type."""

    def key(one: Deployment) -> tuple[str, str, str]:
        return one.hardware, one.weights.name, one.kv_cache_dtype

    return [_fit(list(sizes), max_model_len) for _, sizes in groupby(deployments, key)]


def _fit(sizes: Sequence[Deployment], max_model_len: int) -> Fit:
    first = sizes[0]
    holding = [one for one in sizes if one.cache_tokens >= max_model_len]
    least = min(holding, key=lambda one: one.tensor_parallel_size, default=None)
    return Fit(
        hardware=first.hardware,
        precision=first.weights.name,
        kv_cache_dtype=first.kv_cache_dtype,
        weights_bytes=first.weights_bytes,
        kv_bytes_per_token=first.kv_bytes_per_token,
        devices=None if least is None else least.tensor_parallel_size,
        max_tokens_in_cache=0 if least is None else least.cache_tokens,
    )
