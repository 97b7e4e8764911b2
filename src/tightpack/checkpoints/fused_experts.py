"""Experts stored in one tensor for all of a layer, as transformers 5 has them in memory, seen one by one.

mlp.experts.gate_up_proj [experts, 2 * intermediate_size, hidden_size], gate above up
mlp.experts.down_proj    [experts, hidden_size, intermediate_size]
mlp.gate.weight          the router, under this name for every family
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from tightpack.architectures.model_spec import ExpertsSpec, ModelSpec
from tightpack.checkpoints.checkpoint import TensorInfo
from tightpack.checkpoints.safetensors_shards import SafetensorsShards

_GATE_UP, _DOWN, _ROUTER = "mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"


@dataclass(frozen=True, slots=True)
class _Part:
    """Where an expert's tensor lies: `take` cuts it out of the tensor called `stored`."""

    stored: str
    take: Callable[[NDArray[Any]], NDArray[Any]]
    shape: tuple[int, ...]


class FusedExperts:
    """A TensorSource over another in which a layer's experts are one tensor or one each."""

    def __init__(self, spec: ModelSpec, stored: SafetensorsShards) -> None:
        self._stored = stored
        self._parts: dict[str, _Part] = {}
        for index, layer in enumerate(spec.layers):
            if layer.experts is not None:
                self._add_layer(f"model.layers.{index}.", layer.experts)
        split = {part.stored for part in self._parts.values()}
        self._infos = {name: info for name, info in stored.infos.items() if name not in split}
        for name, part in self._parts.items():
            whole = stored.infos[part.stored]
            share = math.prod(part.shape) / math.prod(whole.shape)
            self._infos[name] = TensorInfo(part.shape, whole.precision, int(whole.num_bytes * share))

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def stored_name(self, name: str) -> str:
        """The name in its file of the tensor that the architecture calls `name`."""
        return self._stored.stored_name(self._parts[name].stored if name in self._parts else name)

    def read(self, name: str) -> NDArray[Any]:
        """A read-only view of the file."""
        part = self._parts.get(name)
        return self._stored.read(name) if part is None else part.take(self._stored.read(part.stored))

    def release_pages(self) -> None:
        self._stored.release_pages()

    def _add_layer(self, prefix: str, experts: ExpertsSpec) -> None:
        found = self._stored.infos
        gate_up, down, router = (prefix + name for name in (_GATE_UP, _DOWN, _ROUTER))
        # A tensor of another shape is left as it is, for validation to name.
        if gate_up in found and len(found[gate_up].shape) == 3 and found[gate_up].shape[0] == experts.count:
            rows, inputs = found[gate_up].shape[1:]
            for expert in range(experts.count):
                for name, first in ((experts.gate, 0), (experts.up, rows // 2)):
                    self._parts[f"{prefix}{name.format(expert)}.weight"] = _Part(
                        gate_up, _rows(expert, first, first + rows // 2), (rows // 2, inputs)
                    )
        if down in found and len(found[down].shape) == 3 and found[down].shape[0] == experts.count:
            rows, inputs = found[down].shape[1:]
            for expert in range(experts.count):
                self._parts[f"{prefix}{experts.down.format(expert)}.weight"] = _Part(
                    down, _rows(expert, 0, rows), (rows, inputs)
                )
        wanted = f"{prefix}{experts.router}.weight"
        if router in found and wanted not in found:
            self._parts[wanted] = _Part(router, _whole, found[router].shape)


def _rows(expert: int, first: int, end: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
    return lambda stored: stored[expert, first:end]


def _whole(stored: NDArray[Any]) -> NDArray[Any]:
    return stored
