"""The shapes of work that the matrix kernels are tried with, by rows of the input: data, best guess first.

The guesses are from first principles for Hopper: 132 multiprocessors of 228 KiB shared memory and 64 K
registers; about 2.3 MB must be in flight for 3.3 TB/s at 0.7 us latency, which is 18 KiB a multiprocessor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Tile:
    """outputs x rows of the result a program computes at a time.

    splits: programs that share a result, each over its part of the inputs. persistent: programs stay and walk
    over results, as many as fit. inputs: of one step of the loop, where the layout leaves a choice.
    """

    outputs: int
    rows: int
    splits: int = 1
    inputs: int = 128
    warps: int = 4
    stages: int = 4
    persistent: bool = False


@dataclass(frozen=True, slots=True)
class RowRange:
    """Candidates for inputs of up to `rows` rows."""

    rows: int
    tiles: tuple[Tile, ...]


_ANY = 2**31

# 4-bit tiles are 4 KiB: with four stages a program keeps 12 KiB in flight. Up to 16 rows the sums are few, so
# eight programs fit a multiprocessor and the splits are there to have as many.
_INT4 = (
    RowRange(
        16,
        (
            Tile(64, 16, splits=4),
            Tile(64, 16, splits=8),
            Tile(64, 16, splits=2, stages=5),
            Tile(64, 16),
            Tile(128, 16, splits=4),
            Tile(128, 16, splits=8),
        ),
    ),
    RowRange(
        32,
        (Tile(64, 32, splits=4), Tile(64, 32, splits=2), Tile(128, 32, splits=4), Tile(64, 32, splits=8)),
    ),
    RowRange(
        64,
        (Tile(64, 64, splits=4), Tile(128, 64, splits=4), Tile(64, 64, splits=2), Tile(128, 64, splits=2)),
    ),
    RowRange(
        256,
        (
            Tile(128, 64, splits=2, warps=8),
            Tile(128, 128, splits=2, warps=8, stages=3),
            Tile(128, 128, warps=8, stages=3, persistent=True),
        ),
    ),
    RowRange(
        _ANY,
        (
            Tile(128, 128, warps=8, stages=3, persistent=True),
            Tile(128, 256, warps=8, stages=3, persistent=True),
        ),
    ),
)

# 8-bit tiles are twice as wide in bytes: a program keeps 24 KiB in flight with four stages of 64 x 128.
_INT8_WEIGHTS = (
    RowRange(
        16,
        (
            Tile(64, 16, splits=4),
            Tile(64, 16, splits=2),
            Tile(64, 16, splits=8),
            Tile(128, 16, splits=4, stages=3),
        ),
    ),
    RowRange(64, (Tile(64, 64, splits=2), Tile(64, 64, splits=4), Tile(128, 64, splits=2, stages=3))),
    RowRange(
        _ANY,
        (
            Tile(128, 128, inputs=64, warps=8, stages=3, persistent=True),
            Tile(128, 256, inputs=64, warps=8, stages=3, persistent=True),
        ),
    ),
)

_EIGHT_BITS = (
    RowRange(
        16,
        (
            Tile(64, 16, splits=4),
            Tile(64, 16, splits=2),
            Tile(64, 16, splits=8, inputs=256, stages=3),
            Tile(128, 16, splits=4),
        ),
    ),
    RowRange(64, (Tile(64, 64, splits=2), Tile(64, 64, splits=4), Tile(128, 64, splits=2))),
    RowRange(256, (Tile(128, 64, warps=4), Tile(128, 128, warps=8), Tile(128, 64, splits=2))),
    RowRange(
        _ANY,
        # 128 x 256 would spill: 8-bit floats have a second set of sums (`arithmetic.dot`).
        (Tile(128, 128, warps=8, persistent=True), Tile(128, 64, warps=4, persistent=True)),
    ),
)

# The second pass of LLM.int8 takes registers of its own.
_OUTLIERS = (
    *_EIGHT_BITS[:2],
    RowRange(_ANY, (Tile(64, 64, persistent=True), Tile(128, 64, warps=8, persistent=True))),
)

# By rows of all experts together over the experts they go to.
_GROUPED = (
    RowRange(16, (Tile(64, 16), Tile(128, 16, warps=4), Tile(64, 16, inputs=64, stages=5))),
    RowRange(64, (Tile(64, 64, inputs=64), Tile(128, 64, inputs=64))),
    RowRange(_ANY, (Tile(128, 128, inputs=64, warps=8), Tile(128, 256, inputs=64, warps=8, stages=3))),
)

TILES: Mapping[str, tuple[RowRange, ...]] = MappingProxyType(
    {
        "int4_matmul": _INT4,
        "weight_only_matmul": _INT8_WEIGHTS,
        "eight_bit_matmul": _EIGHT_BITS,
        "outlier_matmul": _OUTLIERS,
        "fp8_block_matmul": _EIGHT_BITS,
        "grouped_matmul": _GROUPED,
        "grouped_int4_matmul": _GROUPED,
    }
)


def candidates(kernel: str, rows: int) -> tuple[Tile, ...]:
    """Tiles for a kernel of `TILES` and a number of rows, best guess first."""
    return next(each.tiles for each in TILES[kernel] if rows <= each.rows)


def row_bucket(rows: int) -> int:
    """Rows that share a choice: powers of two."""
    return 1 << max(0, rows - 1).bit_length()
