"""What calibration remembers of a linear's inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from tightpack.calibration.checks import check_finite
from tightpack.calibration.products import add_over_tokens, product_dtype


class InputStatistics:
    """Sums over every token seen, of one input that one or several linears share.

    Position 0 of each sequence counts like any other: its activations are by far the largest (an attention
    sink), and leaving them out tripled the divergence of a quantized SmolLM2.

    inputs: width K of the input. hessian: whether to keep the K x K sum (int8 and fp8 do without).
    magnitudes: whether to keep those of each input (GPTQ does without).
    Sums are kept on `device`, each batch summed first: the Hessian's in float32 (it is K x K), those of
    magnitudes in float64.
    """

    def __init__(
        self,
        inputs: int,
        *,
        hessian: bool = True,
        magnitudes: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        if inputs < 1:
            raise ValueError(f"inputs must be at least 1, got {inputs}")
        self.inputs = inputs
        self.count = 0
        self._magnitudes = magnitudes
        self._sum_abs = torch.zeros(inputs, dtype=torch.float64, device=device)
        self._absmax = torch.zeros(inputs, dtype=torch.float32, device=device)
        self._products = torch.zeros(inputs, inputs, dtype=torch.float32, device=device) if hessian else None

    def add(self, batch: Tensor) -> None:
        """Counts the tokens of `batch` [..., K], any float dtype; ValueError if it holds NaN or infinity."""
        if batch.shape[-1] != self.inputs:
            raise ValueError(f"expected inputs of width {self.inputs}, got shape {tuple(batch.shape)}")
        tokens = batch.detach().reshape(-1, self.inputs).to(self._absmax.device)
        if not tokens.shape[0]:
            return
        if self._magnitudes:
            magnitudes = tokens.abs().to(torch.float32)
            sums = magnitudes.sum(dim=0)
            if not torch.isfinite(sums).all():
                check_finite(tokens, "inputs")
            self._sum_abs += sums
            torch.maximum(self._absmax, magnitudes.amax(dim=0), out=self._absmax)
        else:
            check_finite(tokens, "inputs")
        if self._products is not None:
            add_over_tokens(self._products, tokens.to(product_dtype(tokens)))
        self.count += tokens.shape[0]

    @property
    def hessian(self) -> Tensor:
        """Mean of x x^T over the tokens, float32 [K, K]."""
        if self._products is None:
            raise ValueError("these statistics were gathered without a Hessian")
        lower = self._products.tril()
        return (lower + lower.tril(-1).T) / self._tokens()

    @property
    def mean_abs(self) -> Tensor:
        """Mean of |x| over the tokens, float32 [K]."""
        self._check_magnitudes()
        return (self._sum_abs / self._tokens()).to(torch.float32)

    @property
    def absmax(self) -> Tensor:
        """Largest |x| of any token, float32 [K]."""
        self._check_magnitudes()
        self._tokens()
        return self._absmax.clone()

    def _check_magnitudes(self) -> None:
        if not self._magnitudes:
            raise ValueError("these statistics were gathered without magnitudes")

    def _tokens(self) -> int:
        if not self.count:
            raise ValueError("no calibration tokens were seen")
        return self.count
