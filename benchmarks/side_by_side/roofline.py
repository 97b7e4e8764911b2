"""The least time that a machine's peaks allow (Williams, Waterman and Patterson 2009), and peaks measured.

Counted are the weights, read once a step, the keys and values of every stream's context, and two operations a
weight and token. Attention's own operations, norms and sampling are left out, so that a share of 1 cannot be
reached. It can be passed only where caches, or a tighter packing, spare an engine bytes of its checkpoint.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from side_by_side.figures import FIGURES, Row, ShapeTuple

SOURCE = Path(__file__).resolve().parent.parent / "machine_peaks.cpp"


class MachinePeaks:
    """The measuring program, compiled for this machine once; `measure` takes about two seconds."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._program = Path(self._folder.name) / "machine_peaks"
        compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
        if compiler is None:
            raise ValueError("the machine's peaks need a C++ compiler (Debian: apt-get install g++)")
        flags = ["-O3", "-std=c++20", "-pthread", "-march=native"]
        command = [compiler, *flags, str(SOURCE), "-o", str(self._program)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ValueError(f"{SOURCE.name} does not compile here:\n{done.stderr[-2000:]}")

    def measure(self) -> dict[str, Any]:
        done = subprocess.run([str(self._program)], capture_output=True, text=True, check=True)
        return dict(json.loads(done.stdout))


@dataclass(frozen=True)
class Peaks:
    """Bytes a second read from memory; operations a second by arithmetic, "int8" and "bf16"."""

    read_bytes_per_s: float
    ops_per_s: Mapping[str, float]


def ceilings(
    row: Row, geometry: Mapping[str, int], weight_bytes: int, peaks: Peaks, shapes: tuple[ShapeTuple, ...]
) -> dict[str, float]:
    """Figure to the tokens a second that nothing on this machine can pass."""
    rate = peaks.ops_per_s[row.arithmetic]
    body, head = 2 * geometry["body_weights"], 2 * geometry["head_weights"]
    position_bytes = geometry["kv_elements"] * row.kv_bytes

    def least(kv_positions: float, tokens: int, heads: int) -> float:
        moved = weight_bytes + kv_positions * position_bytes
        return max(moved / peaks.read_bytes_per_s, (tokens * body + heads * head) / rate)

    sizes = {name: sizes for name, *sizes in shapes}
    found = {}
    for figure in FIGURES:
        if figure.shape not in sizes:
            continue
        streams, input_len, output_len = sizes[figure.shape]
        prefill = least(0, streams * input_len, streams)
        # The mean context of the steps after the prompt; the sum over steps of a bound that is linear in it.
        step = least(streams * (input_len + output_len / 2), streams, streams)
        if figure.part == "prefill":
            found[figure.name] = streams * input_len / prefill
        elif figure.part == "decode":
            found[figure.name] = streams / step
        else:
            found[figure.name] = streams * output_len / (prefill + (output_len - 1) * step)
    return found
