"""What the names of dtypes mean for a checkpoint, "auto" among them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from tightpack.checkpoints.checkpoint import Checkpoint
from tightpack.schemes.quantized import KVCacheFormat

FloatPrecision = Literal["bf16", "fp16", "fp32"]

_FLOATS: Mapping[str, FloatPrecision] = MappingProxyType(
    {
        "bfloat16": "bf16",
        "bf16": "bf16",
        "float16": "fp16",
        "fp16": "fp16",
        "half": "fp16",
        "float32": "fp32",
        "fp32": "fp32",
        "float": "fp32",
    }
)
_EIGHT_BITS: Mapping[str, Literal["fp8", "int8"]] = MappingProxyType(
    {"fp8": "fp8", "fp8_e4m3": "fp8", "int8": "int8"}
)


def float_precision(name: str, checkpoint: Checkpoint) -> FloatPrecision:
    """ "auto" is bf16, but fp16 for a checkpoint stored so mostly; fp32 is slower on every device and has to
    be asked for. Raises ValueError for unknown names."""
    if name != "auto":
        if name not in _FLOATS:
            raise ValueError(f"dtype {name!r} is not known; use auto, {', '.join(_FLOATS)}")
        return _FLOATS[name]
    stored: Counter[str] = Counter()
    for info in checkpoint.tensors.infos.values():
        stored[info.precision] += info.num_bytes
    mostly = stored.most_common(1)[0][0] if stored else "bf16"
    return "fp16" if mostly in ("fp16", "f16") else "bf16"


def resolve_kv_cache(name: str, checkpoint: Checkpoint, unrounded: FloatPrecision) -> KVCacheFormat:
    """What the cache holds. name: "auto", a float's name as `float_precision` takes it, "fp8" or "int8".

    "auto" is what the checkpoint states, else `unrounded`, the precision that the executor computes in.
    Scales are the checkpoint's where it has calibrated some for this precision. Else fp8 is kept as it is
    (scale 1, as vLLM has it), and int8 has a scale for each token and head. Raises ValueError for unknown
    names.
    """
    stated = checkpoint.kv_cache_format
    if name == "auto" and stated is not None:
        return stated
    if name in _EIGHT_BITS:
        wanted = KVCacheFormat(precision=_EIGHT_BITS[name])
    else:
        precision = unrounded if name == "auto" else float_precision(name, checkpoint)
        wanted = KVCacheFormat(precision=precision)
    return stated if stated is not None and stated.precision == wanted.precision else wanted
