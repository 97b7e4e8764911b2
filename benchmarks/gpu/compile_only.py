"""Compile kernels for Hopper on a machine without a GPU, and read what the compiler made of them.

Triton brings NVIDIA's assembler and disassembler, so registers, spills, shared memory and the instructions
chosen are known without a device: whether tensor cores are used (HGMMA, QGMMA, IGMMA on Hopper), and how many
operations unpack a weight.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from tightpack.torch_backend.kernels.context import KernelContext

HOPPER = 90
_WARP = 32


@dataclass(frozen=True, slots=True)
class Compiled:
    """One kernel as compiled. spilled: bytes of a thread's registers that went to memory. shared: bytes a
    program. instructions: by name without its suffixes."""

    kernel: str
    options: Mapping[str, object]
    registers: int
    spilled: int
    shared: int
    instructions: Mapping[str, int]

    @property
    def tensor_cores(self) -> str:
        """The tensor-core instructions, joined: "HGMMA", "HGMMA+IGMMA", or "" for none."""
        names = ("HGMMA", "QGMMA", "IGMMA", "HMMA", "IMMA", "QMMA")
        return "+".join(name for name in names if self.instructions.get(name))


class _Target:
    """Stands for the driver of a GPU that is not there."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, _WARP)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0


class CompilingContext(KernelContext):
    """A context whose launches compile and do not run. Results are of no meaning."""

    def __init__(self, capability: int = HOPPER, multiprocessors: int = 132) -> None:
        if triton.knobs.runtime.interpret:
            raise RuntimeError("TRITON_INTERPRET is set, and an interpreted kernel is not compiled")
        triton.runtime.driver.set_active(_Target(capability))
        self.device = torch.device("cpu")
        self._tune = False
        self._chosen = {}
        self._partials = torch.empty(0)
        self._counters = torch.zeros(0, dtype=torch.int32)
        self._outgrown = []
        self.multiprocessors = multiprocessors
        self.compiled: list[Compiled] = []

    def launch(self, kernel: Any, grid: tuple[int, ...], *args: object, **options: object) -> None:
        binary = kernel.warmup(*args, grid=grid, **options)
        self.compiled.append(_read(kernel.__name__, options, binary))


def _read(name: str, options: Mapping[str, object], binary: Any) -> Compiled:
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = _output(tools / "cuobjdump", "-res-usage", file.name)
        listing = _output(tools / "nvdisasm", file.name)
    opcodes = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+\s+)?([A-Z][A-Z0-9_]*)", listing, re.MULTILINE)
    return Compiled(
        kernel=name,
        options=options,
        registers=_number(r"REG:(\d+)", usage),
        spilled=_number(r"STACK:(\d+)", usage),
        shared=int(binary.metadata.shared),
        instructions=Counter(opcodes),
    )


def _output(program: Path, *arguments: str) -> str:
    return subprocess.run([program, *arguments], check=True, capture_output=True, text=True).stdout


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"no {pattern!r} in what cuobjdump printed: {text[:200]!r}")
    return int(found[1])
