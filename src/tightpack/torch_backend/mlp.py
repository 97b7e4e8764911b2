"""What stands between a layer's attention and the next layer: a gated MLP, or a mixture of such."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from tightpack.architectures.model_spec import Activation, ExpertsSpec
from tightpack.schemes.quantized import ActivationFormat
from tightpack.torch_backend.grouped_linear import GroupedLinear
from tightpack.torch_backend.linear import LinearLayer
from tightpack.torch_backend.rank_group import ALONE, RankGroup
from tightpack.torch_backend.triton_kernels import KernelContext, backend_module


class Mlp(Protocol):
    """capturable: whether a call may be recorded in a CUDA graph."""

    @property
    def capturable(self) -> bool: ...

    def __call__(self, x: Tensor, /) -> Tensor:
        """x [tokens, hidden_size], normed, to the same shape."""


class GatedMlp:
    """down(activation(gate(x)) * up(x)). gate_up: both in one linear. context: of the kernels; None for
    PyTorch's operators."""

    def __init__(
        self,
        gate_up: LinearLayer,
        down: LinearLayer,
        activation: Activation,
        context: KernelContext | None = None,
    ) -> None:
        self._gate_up, self._down, self._activation, self._context = gate_up, down, activation, context

    @property
    def input_format(self) -> ActivationFormat | None:
        """How x may come, rounded for gate_up by a fused kernel (see `fused_rows`)."""
        return getattr(self._gate_up, "input_format", None)

    @property
    def saturated(self) -> Tensor | None:
        """As `input_format`."""
        return getattr(self._gate_up, "saturated", None)

    @property
    def capturable(self) -> bool:
        return all(getattr(linear, "capturable", True) for linear in (self._gate_up, self._down))

    def __call__(self, x: Tensor) -> Tensor:
        gate_up = self._gate_up(x)
        if self._context is None:
            return self._down(gated(gate_up, self._activation))
        fused = backend_module("fused_rows").gated_linear
        down: Tensor = fused(gate_up, self._activation, self._down, self._context)
        return down


class MixtureOfExperts:
    """Each token takes the experts that its router's scores are highest for; see `ExpertsSpec`.

    router: [hidden_size] to [experts]. Tokens are sorted by expert, so that an expert's weights are read
    once a step, and put back; a token's outputs are summed in the order of its scores, whatever the batch.
    group: of ranks that have a part of each expert's inner dimension; the sum over them comes last.
    """

    def __init__(
        self,
        spec: ExpertsSpec,
        router: LinearLayer,
        gate_up: GroupedLinear,
        down: GroupedLinear,
        activation: Activation,
        group: RankGroup = ALONE,
    ) -> None:
        self._spec, self._router, self._group = spec, router, group
        self._gate_up, self._down, self._activation = gate_up, down, activation

    @property
    def capturable(self) -> bool:
        return self._gate_up.capturable and self._down.capturable

    def __call__(self, x: Tensor) -> Tensor:
        weights, experts = self.route(x)
        chosen = experts.flatten()
        order = chosen.argsort(stable=True)
        numbers = torch.arange(self._spec.count + 1, device=x.device)
        offsets = torch.searchsorted(chosen[order], numbers, out_int32=True)
        rows = x[order // self._spec.experts_per_token]
        outputs = self._down(gated(self._gate_up(rows, offsets), self._activation), offsets)
        mixed = torch.empty_like(outputs)
        mixed[order] = outputs
        by_token = mixed.view(len(x), self._spec.experts_per_token, -1)
        return self._group.all_reduce_(by_token.mul_(weights.unsqueeze(-1)).sum(1))

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weights in x's dtype and expert numbers, [tokens, experts_per_token] each, heaviest first."""
        scores = self._router(x).softmax(-1, dtype=torch.float32)
        weights, experts = scores.topk(self._spec.experts_per_token, dim=-1)
        if self._spec.normalized:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights.to(x.dtype), experts


def gated(gate_up: Tensor, activation: Activation) -> Tensor:
    """activation(gate) * up of [rows, 2 * width], gate first; overwrites it."""
    gate, up = gate_up.chunk(2, dim=-1)
    active = functional.silu(gate) if activation == "silu" else functional.gelu(gate, approximate="tanh")
    return active.mul_(up)
