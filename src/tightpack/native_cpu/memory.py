"""What the native executor will keep in memory, from a checkpoint's headers alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tightpack.architectures import kv_memory
from tightpack.checkpoints.checkpoint import Checkpoint
from tightpack.schemes.quantized import KVCacheFormat

# The interpreter, its modules, the tokenizer, and a step's activations and logits.
PROCESS_BYTES = 150 * 2**20
# Codes that stay what they are; every other precision becomes bfloat16.
_KEPT = frozenset(("q4_0", "q4_1", "q8_0", "int4", "int8", "fp8"))
_BF16_BYTES = 2


@dataclass(frozen=True, slots=True)
class ResidentMemory:
    """Bytes. kv_pool: once all of it has been used; pages are taken as positions are first written."""

    weights: int
    kv_pool: int
    process: int = PROCESS_BYTES

    @property
    def total(self) -> int:
        return self.weights + self.kv_pool + self.process


def predict(
    checkpoint: Checkpoint, kv_cache: KVCacheFormat, *, block_size: int, num_blocks: int
) -> ResidentMemory:
    """The most that the process takes."""
    block = kv_memory.kv_block_bytes(checkpoint.spec, block_size, kv_cache)
    return ResidentMemory(packed_bytes(checkpoint), num_blocks * block)


def packed_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of all weights as the kernels stream them."""
    total = 0
    for name, shape in checkpoint.spec.tensor_shapes().items():
        info = checkpoint.tensors.infos[name]
        kept = info.precision in _KEPT
        total += info.num_bytes if kept else int(np.prod(shape)) * _BF16_BYTES
    return total
