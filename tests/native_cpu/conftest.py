"""Checkpoints for the native executor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tightpack.checkpoints.checkpoint import Checkpoint
from tightpack.checkpoints.open import open_checkpoint
from tightpack.schemes.quantized import ActivationFormat, DenseWeight, Fp8Weight, IntWeight, QuantizedLinear

INT8 = ActivationFormat(precision="int8")
FP8 = ActivationFormat(precision="fp8")


def integers(
    values: np.ndarray,
    bits: Any,
    group_size: int | None = None,
    *,
    offsets: str = "",
    order: np.ndarray | None = None,
    activation: ActivationFormat | None = None,
) -> QuantizedLinear:
    """offsets: "", "zeros" or "minimums". order: the group of each input."""
    outputs, inputs = values.shape
    size = group_size or inputs
    grouped = values.reshape(outputs, -1, size)
    low, high = grouped.min(2), grouped.max(2)
    zeros = minimums = None
    if offsets:
        scales = np.maximum(((high - low) / (2**bits - 1)).astype(np.float16).astype(np.float32), 1e-6)
        if offsets == "zeros":
            zeros = np.clip(np.rint(-low / scales), 0, 2**bits - 1).astype(np.uint8)
            codes = np.rint(grouped / scales[..., None]) + zeros[..., None]
        else:
            minimums = low.astype(np.float16).astype(np.float32)
            codes = np.rint((grouped - minimums[..., None]) / scales[..., None])
        codes = np.clip(codes, 0, 2**bits - 1).astype(np.uint8)
    else:
        half = 2 ** (bits - 1)
        scales = (np.abs(grouped).max(2) / (half - 1)).astype(np.float16).astype(np.float32)
        codes = np.clip(np.rint(grouped / scales[..., None]), -half, half - 1).astype(np.int8)
    weight = IntWeight(
        codes=codes.reshape(outputs, inputs),
        scales=scales,
        zeros=zeros,
        bits=bits,
        group_size=size,
        group_of_input=order,
        minimums=minimums,
    )
    return QuantizedLinear(weight, activation)


def eights(
    values: np.ndarray, block: tuple[int, int] | None, activation: ActivationFormat | None = None
) -> QuantizedLinear:
    """block: (outputs, inputs) that share a scale; None for one of the whole matrix."""
    rows, columns = block or values.shape
    tiles = values.reshape(values.shape[0] // rows, rows, -1, columns)
    scales = (np.abs(tiles).max((1, 3)) / 448).astype(np.float32)
    codes = np.clip(tiles / scales[:, None, :, None], -448, 448).reshape(values.shape)
    weight = Fp8Weight(codes=codes.astype(ml_dtypes.float8_e4m3fn), scales=scales, block=(rows, columns))
    return QuantizedLinear(weight, activation)


def scattered(values: np.ndarray) -> QuantizedLinear:
    order = np.random.default_rng(1).permutation(values.shape[1]).astype(np.int32) // 32
    return integers(values, 4, 32, order=order)


SCHEMES: dict[str, Callable[[np.ndarray], QuantizedLinear]] = {
    "int4 symmetric": lambda w: integers(w, 4, 32),
    "int4 minimums": lambda w: integers(w, 4, 32, offsets="minimums"),
    "int4 channel zeros": lambda w: integers(w, 4, offsets="zeros"),
    "int8 zeros": lambda w: integers(w, 8, 16, offsets="zeros"),
    "w4a8": lambda w: integers(w, 4, 32, activation=INT8),
    "w8a8 static": lambda w: integers(w, 8, activation=replace(INT8, scale=0.05)),
    "fp8 tensor": lambda w: eights(w, None),
    "fp8 static": lambda w: eights(w, None, replace(FP8, scale=0.02)),
    "fp8 blocks": lambda w: eights(w, (32, 32), replace(FP8, per="group", group_size=32)),
    "scattered groups": scattered,
}


class Rewritten:
    """A source whose linears, but for the head and routers, are what a function makes of their values."""

    def __init__(self, original: Any, quantize: Callable[[np.ndarray], QuantizedLinear]) -> None:
        self.infos, self.read = original.infos, original.read
        self._quantize = quantize

    def read_linear(self, name: str) -> QuantizedLinear:
        values = self.read(f"{name}.weight")
        if name in ("lm_head", "model.embed_tokens") or name.endswith(".gate"):
            return QuantizedLinear(DenseWeight(values))
        return self._quantize(values.astype(np.float32))


@pytest.fixture(scope="session")
def rewritten() -> Callable[[Checkpoint, str], Checkpoint]:
    """A checkpoint in one of SCHEMES: those that quantizing on loading does not make."""

    def rewrite(checkpoint: Checkpoint, scheme: str) -> Checkpoint:
        return replace(checkpoint, tensors=Rewritten(checkpoint.tensors, SCHEMES[scheme]))

    return rewrite


@pytest.fixture(params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_model: Callable[[str], Path]) -> Callable[[str], Checkpoint]:
    """A family's name to a random checkpoint of three layers; "capped" has softcaps as well."""

    def get(family: str = "llama") -> Checkpoint:
        if family == "capped":
            checkpoint = open_checkpoint(str(tiny_model("gemma3")))
            spec = replace(checkpoint.spec, attention_softcap=0.7, logit_softcap=1.5)
            return replace(checkpoint, spec=spec)
        return open_checkpoint(str(tiny_model(family)))

    return get
