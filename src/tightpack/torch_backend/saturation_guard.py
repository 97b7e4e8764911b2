"""Watches linears whose inputs have static scales: one calibrated on other text saturates, and answers decay.

Numbers beyond the largest code are counted on the device by whatever rounds them. Every so many steps the
guard reads the counters; a layer that lost more than a share of its numbers since the time before gets inputs
of the decoder's own precision from then on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from tightpack.schemes.quantized import ActivationFormat
from tightpack.torch_backend.input_rounding import FP8_LARGEST, INT8_LARGEST
from tightpack.torch_backend.linear import LinearLayer
from tightpack.torch_backend.quantized_rows import QuantizedRows
from tightpack.torch_backend.rank_group import ALONE, RankGroup

logger = logging.getLogger(__name__)

# A calibrated scale reaches all but rare outliers; past one number in a thousand it is the wrong scale.
_LARGEST_SHARE = 1e-3
# Rows before which a layer is not judged.
_FEWEST_ROWS = 256


class GuardedLinear:
    """A layer with a static input scale, and what to run in its place.

    rounded: the layer; one that counts (`saturated`) does so itself, any other is counted for here.
    unrounded: makes the layer without rounding of inputs, when it is needed.
    saturated: int32 [1] on the device; rows: given to calls, which replays of a graph are not. Both since
    they were last reset.
    """

    __slots__ = ("_largest", "_layer", "_unrounded", "inputs", "rows", "saturated", "switched")

    def __init__(
        self,
        rounded: LinearLayer,
        activation: ActivationFormat,
        inputs: int,
        unrounded: Callable[[], LinearLayer],
        device: torch.device,
    ) -> None:
        assert activation.scale is not None
        self._layer = rounded
        self._unrounded = unrounded
        self.inputs = inputs
        self.rows = 0
        self.switched = False
        counter = getattr(rounded, "saturated", None)
        largest = INT8_LARGEST if activation.precision == "int8" else FP8_LARGEST
        self._largest = largest * activation.scale if counter is None else None
        self.saturated: Tensor = (
            torch.zeros(1, dtype=torch.int32, device=device) if counter is None else counter
        )

    @property
    def input_format(self) -> ActivationFormat | None:
        """How a fused kernel may round the input (see `fused_rows`); another one after the switch."""
        return getattr(self._layer, "input_format", None)

    @property
    def capturable(self) -> bool:
        return bool(getattr(self._layer, "capturable", True))

    def __call__(self, x: Tensor | QuantizedRows) -> Tensor:
        self.rows += len(x.codes if isinstance(x, QuantizedRows) else x)
        if self._largest is not None and not self.switched:
            assert isinstance(x, Tensor)
            self.saturated += (x.abs() > self._largest).sum(dtype=torch.int32)
        return self._layer(x)  # type: ignore[arg-type]  # as `input_format` says

    def switch(self) -> None:
        """Run unrounded from now on. Graphs that were recorded before read weights that are no more."""
        self._layer = self._unrounded()
        self.switched = True

    def reset(self) -> None:
        """Count from zero."""
        self.rows = 0
        self.saturated.zero_()


class SaturationGuard:
    """layers: by name, the same on every rank of `group`. largest_share: of a layer's numbers, that may
    saturate. fewest_rows: that a layer is judged by."""

    def __init__(
        self,
        layers: Mapping[str, GuardedLinear],
        group: RankGroup = ALONE,
        *,
        largest_share: float = _LARGEST_SHARE,
        fewest_rows: int = _FEWEST_ROWS,
    ) -> None:
        self._rounded = dict(layers)
        self._group = group
        self._largest_share = largest_share
        self._fewest_rows = fewest_rows
        self._switched: list[str] = []

    @property
    def switched(self) -> tuple[str, ...]:
        """The layers that run unrounded, in the order in which they were switched."""
        return tuple(self._switched)

    def reset(self) -> None:
        """Forget what was counted: rows that no request sent."""
        for layer in self._rounded.values():
            layer.reset()

    def poll(self, replayed: int = 0) -> tuple[str, ...]:
        """Judge each layer by its rows since it was last judged, and switch those that saturate: their names.

        replayed: rows, since the last poll, of replayed graphs, which pass every layer without a call of it.
        One copy from the device, and with several ranks one collective: all poll at the same step and switch
        the same layers. Where names come back, graphs that were recorded must be recorded again.
        """
        judged = {}
        for name, layer in self._rounded.items():
            layer.rows += replayed
            if layer.rows >= self._fewest_rows:
                judged[name] = layer
        if not judged:
            return ()
        shares = self._shares(list(judged.values()))
        switched = tuple(
            name
            for (name, layer), share in zip(judged.items(), shares, strict=True)
            if share > self._largest_share and self._switch(name, layer, share)
        )
        for layer in judged.values():
            layer.reset()
        for name in switched:
            del self._rounded[name]
        self._switched += switched
        return switched

    def _shares(self, layers: Sequence[GuardedLinear]) -> list[float]:
        """Of each layer's numbers, those beyond the largest code; over all ranks' parts of its input."""
        counts = torch.cat([layer.saturated for layer in layers]).long()
        numbers = torch.tensor([layer.rows * layer.inputs for layer in layers], device=counts.device)
        saturated, given = self._group.all_reduce_(torch.stack([counts, numbers])).tolist()
        return [float(count / number) for count, number in zip(saturated, given, strict=True)]

    def _switch(self, name: str, layer: GuardedLinear, share: float) -> bool:
        """False where there is no memory for it: the layer goes on as it is, until it is judged again."""
        saturates = f"{name}: {share:.2g} of its inputs are beyond its static scale"
        try:
            layer.switch()
        except torch.cuda.OutOfMemoryError:
            logger.warning("%s, and there is no GPU memory to run it unrounded", saturates)
            return False
        if self._group.rank == 0:
            logger.warning(
                "%s, more than %.2g; it runs unrounded from now on. Calibrate again on text like what is "
                "served",
                saturates,
                self._largest_share,
            )
        return True
