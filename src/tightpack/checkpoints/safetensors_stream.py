"""Writing safetensors tensor by tensor, where neither names nor precisions are known beforehand."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tightpack.checkpoints.safetensors_file import DTYPES
from tightpack.checkpoints.safetensors_shards import INDEX, WEIGHTS
from tightpack.checkpoints.safetensors_writer import SHARD_BYTES

_CODES = MappingProxyType({numpy_dtype.name: code for code, (_, numpy_dtype) in DTYPES.items()})


class SafetensorsStream:
    """Tensors in the order they come, into model.safetensors, or into numbered shards with an index.

    The header precedes the data in the format but is known only at the end, so room for it is left in each
    file and padded with spaces, which the format allows.

    header_bytes: the room, enough for one file with all tensors.
    Use as a context manager; what is written is whole once the block has ended without an exception.
    """

    def __init__(self, directory: Path, *, header_bytes: int, shard_bytes: int = SHARD_BYTES) -> None:
        self._directory, self._limit = directory, shard_bytes
        self._room = -(-header_bytes // 8) * 8
        self._shards: list[dict[str, Any]] = []
        self._file: IO[bytes] | None = None
        self._size = 0
        self._total = 0

    def __enter__(self) -> SafetensorsStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._finish()
        elif self._file is not None:
            self._file.close()

    def add(self, name: str, values: NDArray[Any]) -> None:
        """Raises ValueError where the name has come before or the format has no such dtype."""
        if any(name in shard for shard in self._shards):
            raise ValueError(f"tensor {name!r} is written twice")
        if values.dtype.name not in _CODES:
            raise ValueError(f"tensor {name!r} has dtype {values.dtype}, which is not written")
        values = np.ascontiguousarray(values).reshape(values.shape)
        if self._file is None or (self._size and self._size + values.nbytes > self._limit):
            self._next_shard()
        assert self._file is not None
        end = self._size + values.nbytes
        self._shards[-1][name] = {
            "dtype": _CODES[values.dtype.name],
            "shape": list(values.shape),
            "data_offsets": [self._size, end],
        }
        self._file.write(values.reshape(-1).view(np.uint8).data)
        self._size = end
        self._total += values.nbytes

    def _next_shard(self) -> None:
        self._end_shard()
        self._file = (self._directory / _partial(len(self._shards))).open("wb")
        self._file.write(b" " * (8 + self._room))
        self._shards.append({})
        self._size = 0

    def _end_shard(self) -> None:
        if self._file is None:
            return
        header = {"__metadata__": {"format": "pt"}, **self._shards[-1]}
        text = json.dumps(header, separators=(",", ":")).encode()
        if len(text) > self._room:
            raise ValueError(f"a header of {len(text):,} bytes, and room for {self._room:,}")
        self._file.seek(0)
        self._file.write(struct.pack("<Q", self._room) + text)
        self._file.close()
        self._file = None

    def _finish(self) -> None:
        self._end_shard()
        count = len(self._shards)
        if count == 1:
            (self._directory / _partial(0)).rename(self._directory / WEIGHTS)
            return
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(self._shards):
            file_name = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            (self._directory / _partial(number)).rename(self._directory / file_name)
            weight_map |= dict.fromkeys(shard, file_name)
        index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
        (self._directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _partial(number: int) -> str:
    return f"shard-{number}.partial"
