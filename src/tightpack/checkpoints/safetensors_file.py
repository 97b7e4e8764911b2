"""The safetensors container, mapped: tensors are views of the file, without a copy and without PyTorch.

The format: 8 bytes of header length, a JSON header of dtype, shape and data_offsets, then the data.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tightpack.checkpoints.checkpoint import CheckpointError, TensorInfo
from tightpack.checkpoints.mapped_pages import release_pages

_MAX_HEADER = 100_000_000  # the format's own limit

DTYPES: Mapping[str, tuple[str, Any]] = MappingProxyType(
    {
        "F32": ("fp32", np.dtype("<f4")),
        "F16": ("fp16", np.dtype("<f2")),
        "BF16": ("bf16", np.dtype(ml_dtypes.bfloat16)),
        "F8_E4M3": ("fp8", np.dtype(ml_dtypes.float8_e4m3fn)),
        "I8": ("int8", np.dtype("<i1")),
        "U8": ("uint8", np.dtype("<u1")),
        "I32": ("int32", np.dtype("<i4")),
        "I64": ("int64", np.dtype("<i8")),
    }
)


@dataclass(frozen=True, slots=True)
class _Place:
    dtype: Any
    shape: tuple[int, ...]
    offset: int


class SafetensorsFile:
    """One mapped file: a TensorSource under the names in the file.

    Raises CheckpointError naming the file, and the tensor where one is at fault: cut short, overlong, a
    damaged header, an unknown dtype.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        size = path.stat().st_size
        if size < 8:
            raise CheckpointError(f"{path}: not a safetensors file: {size} bytes long")
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._infos: dict[str, TensorInfo] = {}
        self._places: dict[str, _Place] = {}
        self._read_header(size)

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def read(self, name: str) -> NDArray[Any]:
        """A read-only view of the file."""
        place = self._places[name]
        flat = np.frombuffer(self._map, place.dtype, math.prod(place.shape), place.offset)
        return flat.reshape(place.shape)

    def release_pages(self) -> None:
        release_pages(self._map)

    def _read_header(self, size: int) -> None:
        (length,) = struct.unpack_from("<Q", self._map, 0)
        if length > _MAX_HEADER:
            raise CheckpointError(f"{self.path}: not a safetensors file: a header of {length:,} bytes")
        if 8 + length > size:
            raise CheckpointError(
                f"{self.path}: cut short: a header of {length:,} bytes in a file of {size:,}; download the "
                "file again"
            )
        try:
            header = json.loads(self._map[8 : 8 + length])
            header.pop("__metadata__", None)
            entries = [
                (name, str(entry["dtype"]), tuple(map(int, entry["shape"])), *map(int, entry["data_offsets"]))
                for name, entry in header.items()
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{self.path}: the header is damaged ({error}); download the file again"
            ) from error
        start, last = 8 + length, 0
        for name, dtype, shape, begin, end in entries:
            self._add(name, dtype, shape, start, begin, end, size)
            last = max(last, end)
        if start + last != size:
            raise CheckpointError(f"{self.path}: {size - start - last:,} bytes follow the last tensor")

    def _add(
        self, name: str, dtype: str, shape: tuple[int, ...], start: int, begin: int, end: int, size: int
    ) -> None:
        if dtype not in DTYPES:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} is stored as {dtype}; supported: {', '.join(DTYPES)}"
            )
        precision, numpy_dtype = DTYPES[dtype]
        num_bytes = math.prod(shape) * numpy_dtype.itemsize
        if min(shape, default=1) < 0 or begin < 0 or end - begin != num_bytes:
            raise CheckpointError(
                f"{self.path}: tensor {name!r}: {dtype} {list(shape)} does not take the {end - begin:,} "
                "bytes given for it"
            )
        if start + end > size:
            raise CheckpointError(
                f"{self.path}: cut short: tensor {name!r} ends at byte {start + end:,} of a file of "
                f"{size:,}; download the file again"
            )
        self._infos[name] = TensorInfo(shape, precision, num_bytes)
        self._places[name] = _Place(numpy_dtype, shape, start + begin)
