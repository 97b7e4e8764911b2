"""Quantized linears as numbers, whatever file layout they come from: the oracle of every kernel.

A linear computes y = x W^T with W [outputs, inputs]. `dequantize` gives W in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray


class Weight(Protocol):
    """A weight matrix in some precision."""

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""

    @property
    def num_bytes(self) -> int:
        """Bytes of codes and everything that goes with them, as packed."""

    def dequantize(self) -> NDArray[np.float32]:
        """W [outputs, inputs]."""


@dataclass(frozen=True, slots=True)
class DenseWeight:
    """values: float32, float16 or ml_dtypes.bfloat16 [outputs, inputs]."""

    values: NDArray[Any]

    @property
    def shape(self) -> tuple[int, int]:
        outputs, inputs = self.values.shape
        return outputs, inputs

    @property
    def num_bytes(self) -> int:
        return self.values.nbytes

    def dequantize(self) -> NDArray[np.float32]:
        return self.values.astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class IntWeight:
    """W[n, k] = (codes[n, k] - zeros[n, g]) * scales[n, g] + minimums[n, g], g = group_of_input[k], or
    k // group_size.

    codes: int8 [outputs, inputs], one code a byte. Symmetric: -2^(bits-1) .. 2^(bits-1) - 1 and zeros None.
        Asymmetric: zeros is given, codes and zeros are 0 .. 2^bits - 1 (uint8).
    scales: float32 [outputs, groups], values as stored (usually exact in fp16 or bf16).
    group_size: inputs that share a scale; equal to inputs for one scale an output channel.
    group_of_input: int32 [inputs] where groups are not contiguous (GPTQ's desc_act), else None.
    minimums: float32 [outputs, groups] where a group's offset is no multiple of its scale (GGUF's Q4_1); then
        zeros is None and codes are 0 .. 2^bits - 1.
    """

    codes: NDArray[Any]
    scales: NDArray[np.float32]
    zeros: NDArray[np.uint8] | None
    bits: Literal[4, 8]
    group_size: int
    group_of_input: NDArray[np.int32] | None = None
    minimums: NDArray[np.float32] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        outputs, inputs = self.codes.shape
        return outputs, inputs

    @property
    def symmetric(self) -> bool:
        return self.zeros is None and self.minimums is None

    @property
    def num_bytes(self) -> int:
        zeros = 0 if self.zeros is None else self.zeros.size * self.bits // 8
        minimums = 0 if self.minimums is None else self.minimums.size * 2
        return self.codes.size * self.bits // 8 + self.scales.size * 2 + zeros + minimums

    def dequantize(self) -> NDArray[np.float32]:
        inputs = self.codes.shape[1]
        groups = self.group_of_input
        if groups is None:
            groups = (np.arange(inputs) // self.group_size).astype(np.int32)
        codes = self.codes.astype(np.float32)
        if self.zeros is not None:
            codes -= self.zeros[:, groups].astype(np.float32)
        values: NDArray[np.float32] = codes * self.scales[:, groups]
        if self.minimums is not None:
            values += self.minimums[:, groups]
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Weight:
    """W[n, k] = codes[n, k] * scales[n // block[0], k // block[1]] with E4M3 codes (largest value 448).

    codes: ml_dtypes.float8_e4m3fn [outputs, inputs].
    scales: float32 [ceil(outputs / block[0]), ceil(inputs / block[1])].
    block: (outputs, inputs) for one scale a tensor, (1, inputs) for one a channel, or e.g. (128, 128).
    """

    codes: NDArray[Any]
    scales: NDArray[np.float32]
    block: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        outputs, inputs = self.codes.shape
        return outputs, inputs

    @property
    def num_bytes(self) -> int:
        return self.codes.size + 4 * self.scales.size

    def dequantize(self) -> NDArray[np.float32]:
        outputs, inputs = self.codes.shape
        scales = np.repeat(np.repeat(self.scales, self.block[0], 0), self.block[1], 1)[:outputs, :inputs]
        values: NDArray[np.float32] = self.codes.astype(np.float32) * scales
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationFormat:
    """How a linear's input is rounded before the product; None in its place means not at all.

    precision: "int8" (symmetric) or "fp8" (E4M3, saturating at +-448).
    scale: a static scale of the whole tensor (input = codes * scale); None: dynamic, from the values.
    per: of a dynamic scale: "token" (one a row), "tensor", or "group" (one for each group_size neighbouring
        inputs of a row: DeepSeek-V3's 128, beside weights in 128 x 128 blocks).
    steps: of int8: what -a .. a, a the largest magnitude, is divided into: 254 (codes -127 .. 127, a scale of
        a / 127) or 255 (codes -128 .. 127, a / 127.5: what compressed-tensors means).
    outlier_threshold: LLM.int8's (Dettmers et al. 2022), decided in each row: entries with an absolute
        value at or above it are computed in 16 bits with the dequantized weight; None for none.
    """

    precision: Literal["int8", "fp8"]
    scale: float | None = None
    per: Literal["token", "tensor", "group"] = "token"
    steps: Literal[254, 255] = 254
    outlier_threshold: float | None = None
    group_size: int | None = None


@dataclass(frozen=True, slots=True)
class QuantizedLinear:
    """activation: None computes in the activations' own precision (weight-only quantization, or dense)."""

    weight: DenseWeight | IntWeight | Fp8Weight
    activation: ActivationFormat | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KVCacheFormat:
    """precision of keys and values in the cache, with one static scale a layer (values = codes * scale)."""

    precision: Literal["bf16", "fp16", "fp32", "fp8", "int8"]
    key_scales: tuple[float, ...] = ()
    value_scales: tuple[float, ...] = ()
