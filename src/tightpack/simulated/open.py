"""From what a user names, a file or a device, to a cost model."""

from __future__ import annotations

from pathlib import Path

from tightpack.architectures.model_spec import ModelSpec
from tightpack.requests.arguments import nearest_hint
from tightpack.simulated.catalogue import load_catalogue
from tightpack.simulated.fitted import FittedCostModel
from tightpack.simulated.hardware import precision
from tightpack.simulated.roofline import RooflineCostModel


def open_cost_model(
    source: str, spec: ModelSpec, *, quantization: str = "bf16", tensor_parallel_size: int = 1
) -> FittedCostModel | RooflineCostModel:
    """A fit that `tightpack calibrate-cost` wrote, or the roofline of a device by name.

    quantization, tensor_parallel_size: of a roofline; a fit has what was measured.
    Raises ValueError for a name that is neither, and for a file that cannot be used.
    """
    path = Path(source)
    if path.is_file():
        return FittedCostModel.read(path)
    catalogue = load_catalogue()
    if source not in catalogue.names:
        hint = nearest_hint(source, catalogue.names, "the devices are")
        raise ValueError(f"{source}: no such file, and no device of that name; {hint}")
    return RooflineCostModel(
        spec, catalogue[source], precision(quantization), tensor_parallel_size=tensor_parallel_size
    )
