"""What stands between two linears, fused with the rounding of the second one's input.

The decoder's own operations one by one are the reference; with kernels they are one pass over the rows. A
`KernelLinear` takes the rounded rows, any other layer gets a tensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional

from tightpack.architectures.model_spec import Activation
from tightpack.schemes.quantized import ActivationFormat
from tightpack.torch_backend.linear import LinearLayer
from tightpack.torch_backend.norm import rms_norm

if TYPE_CHECKING:
    from tightpack.torch_backend.kernels.context import KernelContext


def normed_linear(
    stream: Tensor,
    delta: Tensor | None,
    norm: Tensor,
    eps: float,
    linear: LinearLayer,
    context: KernelContext | None,
) -> Tensor:
    """stream += delta in place, then linear(rms_norm(stream)). stream, delta: [rows, width]."""
    if context is None:
        if delta is not None:
            stream.add_(delta)
        return linear(rms_norm(stream, norm, eps))
    from tightpack.torch_backend.kernels.add_norm import add_norm

    activation = input_format(linear)
    rows = add_norm(stream, delta, norm, eps, activation, context, saturated=_counter(linear))
    return linear(rows)  # type: ignore[arg-type]  # an input format says that rounded rows are taken


def gated_linear(
    gate_up: Tensor, kind: Activation, linear: LinearLayer, context: KernelContext | None
) -> Tensor:
    """linear(activation(gate) * up) for gate_up [rows, 2 * width], gates first; may overwrite it."""
    if context is None:
        gate, up = gate_up.chunk(2, dim=-1)
        gate = functional.silu(gate) if kind == "silu" else functional.gelu(gate, approximate="tanh")
        return linear(gate.mul_(up))
    from tightpack.torch_backend.kernels.gated_activation import gated_activation

    rows = gated_activation(gate_up, kind, input_format(linear), context, saturated=_counter(linear))
    return linear(rows)  # type: ignore[arg-type]  # as above


def input_format(linear: LinearLayer) -> ActivationFormat | None:
    """How the layer's input may come rounded; None where it must come as it is."""
    return getattr(linear, "input_format", None)


def _counter(linear: LinearLayer) -> Tensor | None:
    return getattr(linear, "saturated", None)
