"""What the native executor cannot run, and why."""

from __future__ import annotations

from tightpack.checkpoints.checkpoint import Checkpoint
from tightpack.checkpoints.precision import float_precision, resolve_kv_cache

# Positions of a tile of keys.
_KEY_TILE = 16
_LARGEST_HEAD = 256


def reason_against(checkpoint: Checkpoint, *, dtype: str, kv_cache_dtype: str, block_size: int) -> str | None:
    """Why the checkpoint cannot run under these engine arguments, for people; None where it can.

    Raises ValueError for unknown names.
    """
    spec = checkpoint.spec
    # "auto" is bfloat16 here even for a checkpoint of float16, whose numbers lose three bits of eleven.
    if dtype != "auto" and float_precision(dtype, checkpoint) != "bf16":
        return f"it computes in bfloat16, not in dtype={dtype!r}"
    kv_cache = resolve_kv_cache(kv_cache_dtype, checkpoint, "bf16")
    if kv_cache.precision not in ("bf16", "fp8", "int8"):
        return f"its KV cache is bfloat16, fp8 or int8, not kv_cache_dtype={kv_cache_dtype!r}"
    if block_size % _KEY_TILE:
        return f"its KV blocks are multiples of {_KEY_TILE} positions, not block_size={block_size}"
    if spec.head_dim % 2 or spec.head_dim > _LARGEST_HEAD:
        return f"its heads have an even number of dimensions up to {_LARGEST_HEAD}, not {spec.head_dim}"
    return None
