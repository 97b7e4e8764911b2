"""Numbers on their way between host and device, without making the host wait for what the device computes.

An ordinary copy to a GPU from pageable memory, and any copy back, waits until all that was launched is done.
"""

from __future__ import annotations

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor's numbers on the device, through pinned memory that is used again once they are there."""
    return pinned(tensor, device).to(device, non_blocking=True)


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """The same in memory that a device can copy from while the host goes on; itself for the CPU."""
    return tensor if device.type == "cpu" else tensor.pin_memory()


class Readback:
    """What tensors hold now, for the host to read later."""

    def __init__(self, *tensors: Tensor) -> None:
        self._copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        self._arrived = _event() if tensors[0].device.type == "cuda" else None

    def wait(self) -> list[Tensor]:
        """Once they have arrived. On a CPU they are the tensors themselves."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._copies


def _event() -> torch.cuda.Event:
    """Recorded behind all that was launched."""
    event: torch.cuda.Event = torch.cuda.current_stream().record_event()
    return event
