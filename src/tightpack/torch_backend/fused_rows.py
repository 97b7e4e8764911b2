"""What stands between two linears, fused with the rounding of the second one's input.

One pass over the rows by the kernels, where `decoder` and `mlp` have PyTorch's operators one by one. A linear
of `kernel_linear` takes the rounded rows, any other layer gets a tensor.
"""

from __future__ import annotations

from torch import Tensor

from tightpack.architectures.model_spec import Activation
from tightpack.schemes.quantized import ActivationFormat
from tightpack.torch_backend.kernels.add_norm import add_norm
from tightpack.torch_backend.kernels.context import KernelContext
from tightpack.torch_backend.kernels.gated_activation import gated_activation
from tightpack.torch_backend.linear import LinearLayer


def normed_linear(
    stream: Tensor,
    delta: Tensor | None,
    norm: Tensor,
    eps: float,
    linear: LinearLayer,
    context: KernelContext,
) -> Tensor:
    """stream += delta in place, then linear(rms_norm(stream)). stream, delta: [rows, width]."""
    rows = add_norm(stream, delta, norm, eps, input_format(linear), context, saturated=_counter(linear))
    return linear(rows)  # type: ignore[arg-type]  # an input format says that rounded rows are taken


def gated_linear(gate_up: Tensor, kind: Activation, linear: LinearLayer, context: KernelContext) -> Tensor:
    """linear(activation(gate) * up) for gate_up [rows, 2 * width], gates first."""
    rows = gated_activation(gate_up, kind, input_format(linear), context, saturated=_counter(linear))
    return linear(rows)  # type: ignore[arg-type]  # as above


def input_format(linear: LinearLayer) -> ActivationFormat | None:
    """How the layer's input may come rounded; None where it must come as it is."""
    return getattr(linear, "input_format", None)


def _counter(linear: LinearLayer) -> Tensor | None:
    return getattr(linear, "saturated", None)
