"""Writing safetensors one tensor at a time, so that a model need not fit in memory."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tightpack.checkpoints.safetensors_shards import INDEX, WEIGHTS

SHARD_BYTES = 5_000_000_000


def write_bf16(
    directory: Path,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], NDArray[Any]],
    *,
    shard_bytes: int = SHARD_BYTES,
    written: Callable[[int], None] = lambda num_bytes: None,
) -> None:
    """Write model.safetensors, or numbered shards with an index where one file would exceed `shard_bytes`.

    read: called once a name, in order; its values are rounded to bfloat16, to nearest, ties to even.
    written: told the bytes of each tensor once they are in the file.
    """
    shards = _shards(shapes, shard_bytes)
    if len(shards) == 1:
        _write_file(directory / WEIGHTS, shapes, shards[0], read, written)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(directory / file_name, shapes, names, read, written)
        weight_map |= dict.fromkeys(names, file_name)
    total = sum(_num_bytes(shape) for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _num_bytes(shape: Sequence[int]) -> int:
    return 2 * math.prod(shape)


def _shards(shapes: Mapping[str, tuple[int, ...]], limit: int) -> list[list[str]]:
    """Names in order, cut wherever the next tensor would exceed the limit."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        if shards[-1] and size + _num_bytes(shape) > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += _num_bytes(shape)
    return shards


def _write_file(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    names: Iterable[str],
    read: Callable[[str], NDArray[Any]],
    written: Callable[[int], None],
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        end = offset + _num_bytes(shapes[name])
        header[name] = {"dtype": "BF16", "shape": list(shapes[name]), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # readers map the data: keep it aligned
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for name in names:
            values = np.ascontiguousarray(read(name).astype(ml_dtypes.bfloat16, copy=False))
            if values.shape != tuple(shapes[name]):
                raise ValueError(f"tensor {name!r} was read with shape {values.shape}, not {shapes[name]}")
            file.write(values.reshape(-1).view(np.uint8).data)
            written(values.nbytes)
