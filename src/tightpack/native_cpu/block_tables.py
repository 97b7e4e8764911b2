"""Block tables as arrays, kept between steps: a request's table changes once a block, not once a token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_KEPT = 2048


class BlockTables:
    def __init__(self) -> None:
        # By identity, which the tuple beside the array keeps from being given to another.
        self._arrays: dict[int, tuple[tuple[int, ...], NDArray[np.int32]]] = {}

    def joined(self, tables: Sequence[tuple[int, ...]]) -> NDArray[np.int32]:
        """The tables one after the other, int32."""
        if len(self._arrays) > _KEPT:
            self._arrays.clear()
        arrays = self._arrays
        parts = []
        for table in tables:
            entry = arrays.get(id(table))
            if entry is None:
                entry = arrays[id(table)] = (table, np.array(table, np.int32))
            parts.append(entry[1])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
