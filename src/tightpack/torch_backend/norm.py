"""Root-mean-square normalization (Zhang and Sennrich 2019), in float32 inside."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension; weight [..., width], in x's dtype or float32.

    A float32 weight beside a narrower x multiplies before the result is rounded (Gemma), one of x's dtype
    after (Llama): each as its publisher's code does.
    """
    width = weight.shape[-1]
    if weight.dtype != x.dtype:
        return (functional.rms_norm(x.float(), (width,), None, eps) * weight).to(x.dtype)
    if weight.dim() == 1:
        return functional.rms_norm(x, (width,), weight, eps)
    return functional.rms_norm(x, (width,), None, eps) * weight
