"""The ranks of a tensor-parallel engine as one of them sees it: its number, and the collectives.

The process group belongs to the engine alone: PyTorch's default group, which is one a process, is left to
the program that holds the engine.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import TCPStore
from torch.distributed.distributed_c10d import ProcessGroupGloo

# A rank may pack weights for minutes while another waits for it at the first collective.
_TIMEOUT = timedelta(minutes=10)
_HOST = "127.0.0.1"


class RankGroup:
    """Rank `rank` of `size`. With several, `join` comes before the first collective."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self._backend: Any = None
        self._on_cuda = False

    def join(self, store: TCPStore, device: torch.device) -> None:
        """Meet the other ranks: NCCL between GPUs, of which each rank has its own; gloo on a CPU."""
        self._on_cuda = device.type == "cuda"
        if self._on_cuda:
            from torch.distributed.distributed_c10d import ProcessGroupNCCL

            torch.cuda.set_device(device)
            nccl = ProcessGroupNCCL.Options()
            nccl._timeout = _TIMEOUT
            self._backend = ProcessGroupNCCL(store, self.rank, self.size, nccl)
            return
        backend: Any = ProcessGroupGloo
        gloo = backend._Options()
        # By default gloo looks up the machine's own name, which need not lead anywhere.
        gloo._devices = [backend.create_device(hostname=_HOST)]
        gloo._timeout = _TIMEOUT
        self._backend = backend(store, self.rank, self.size, gloo)

    def all_reduce_(self, x: Tensor) -> Tensor:
        """The sum of all ranks' x, in its place; the same bits on each."""
        if self.size > 1:
            self._backend.allreduce([x]).wait()
        return x

    def gather_rows(self, x: Tensor) -> Tensor:
        """All ranks' x, of one shape, one below the other."""
        if self.size == 1:
            return x
        gathered = x.new_empty((self.size * len(x), *x.shape[1:]))
        self._backend._allgather_base(gathered, x.contiguous()).wait()
        return gathered

    def least(self, value: int, device: torch.device) -> int:
        """The smallest of the ranks' values."""
        return int(self.gather_rows(torch.tensor([value], device=device)).min())

    def abort(self) -> None:
        """Give up collectives that wait for a rank that is gone. Gloo's fail by themselves, NCCL's wait."""
        if self._on_cuda:
            self._backend.abort()

    def leave(self) -> None:
        self._backend = None


ALONE = RankGroup()


def open_store(port: int, size: int) -> TCPStore:
    """Where the ranks meet. port: 0 to open one for all (rank 0), else where it is."""
    return TCPStore(_HOST, port, size, port == 0, _TIMEOUT, wait_for_workers=False)
