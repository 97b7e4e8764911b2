"""Watches linears whose inputs have static scales: one calibrated on other text saturates, and answers decay.

Numbers beyond the largest code are counted on the device by the kernels that round. Between steps the guard
reads the counters; a layer that lost more than a share of its numbers runs in the decoder's own precision
from then on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tightpack.schemes.quantized import ActivationFormat
from tightpack.torch_backend.input_rounding import FP8_LARGEST, INT8_LARGEST
from tightpack.torch_backend.linear import LinearLayer
from tightpack.torch_backend.quantized_rows import QuantizedRows

logger = logging.getLogger(__name__)

# A calibrated scale reaches all but rare outliers; past one number in a thousand it is the wrong scale.
_LARGEST_SHARE = 1e-3
# Tokens before which a layer is not judged.
_FEWEST_TOKENS = 256


class GuardedLinear:
    """A layer with a static input scale, and what to run in its place.

    rounded: the layer; one that counts (`saturated`) does so itself, any other is counted for here.
    unrounded: makes the layer without rounding of inputs, when it is needed.
    """

    __slots__ = ("_largest", "_rounded", "_unrounded", "input_format", "inputs", "saturated", "switched")

    def __init__(
        self,
        rounded: LinearLayer,
        activation: ActivationFormat,
        inputs: int,
        unrounded: Callable[[], LinearLayer],
        device: torch.device,
    ) -> None:
        assert activation.scale is not None
        self._rounded = rounded
        self._unrounded = unrounded
        self.inputs = inputs
        self.switched = False
        counter = getattr(rounded, "saturated", None)
        largest = INT8_LARGEST if activation.precision == "int8" else FP8_LARGEST
        self._largest = largest * activation.scale if counter is None else None
        self.saturated: Tensor = (
            torch.zeros(1, dtype=torch.int32, device=device) if counter is None else counter
        )
        self.input_format: ActivationFormat | None = getattr(rounded, "input_format", None)

    def __call__(self, x: Tensor | QuantizedRows) -> Tensor:
        if self._largest is not None and not self.switched:
            assert isinstance(x, Tensor)
            self.saturated += (x.abs() > self._largest).sum(dtype=torch.int32)
        return self._rounded(x)  # type: ignore[arg-type]  # as `input_format` says

    def switch(self) -> None:
        """Run unrounded from now on. Graphs that were recorded before hold the rounded layer."""
        self._rounded = self._unrounded()
        self.input_format = None
        self.switched = True


@dataclass(frozen=True, slots=True)
class Saturation:
    """saturated: numbers beyond the largest code; share: of all numbers the layer was given since it was
    first judged; switched: whether it runs unrounded."""

    saturated: int
    share: float
    switched: bool


class SaturationGuard:
    """layers: by name. largest_share: of a layer's numbers that may saturate."""

    def __init__(
        self,
        layers: Mapping[str, GuardedLinear],
        *,
        largest_share: float = _LARGEST_SHARE,
        fewest_tokens: int = _FEWEST_TOKENS,
    ) -> None:
        self._layers = dict(layers)
        self._largest_share = largest_share
        self._fewest_tokens = fewest_tokens
        self._tokens = 0
        self._counts = dict.fromkeys(layers, 0)

    def poll(self, tokens: int) -> tuple[str, ...]:
        """Read the counters after `tokens` more tokens, and switch what saturates: the names, once each.

        One copy from the device; call it every few hundred steps. Where names come back, recorded graphs
        must be recorded again.
        """
        self._tokens += tokens
        watched = {name: layer for name, layer in self._layers.items() if not layer.switched}
        if not watched:
            return ()
        counts = torch.cat([layer.saturated for layer in watched.values()]).tolist()
        self._counts.update(zip(watched, counts, strict=True))
        if self._tokens < self._fewest_tokens:
            return ()
        switched = []
        for name, layer in watched.items():
            share = self._share(name)
            if share > self._largest_share:
                layer.switch()
                switched.append(name)
                logger.warning(
                    "%s: %.2g of its inputs are beyond its static scale, more than %.2g; it runs unrounded "
                    "from now on. Calibrate again on text like what is served",
                    name,
                    share,
                    self._largest_share,
                )
        return tuple(switched)

    def report(self) -> Mapping[str, Saturation]:
        """As of the last poll, the layers that saturated at all."""
        return {
            name: Saturation(count, self._share(name), self._layers[name].switched)
            for name, count in self._counts.items()
            if count
        }

    def _share(self, name: str) -> float:
        numbers = self._tokens * self._layers[name].inputs
        return self._counts[name] / numbers if numbers else 0.0
