"""A layer's linears as a walk applies them."""

from __future__ import annotations

from torch import Tensor

from tightpack.calibration.applied_linear import applied_linear
from tightpack.calibration.layer_walk import Apply, Walk
from tightpack.calibration.sites import sites_of
from tightpack.schemes.quantized import DenseWeight, QuantizedLinear
from tightpack.torch_backend.arrays import as_tensor


def linear_of(walk: Walk, name: str, linear: QuantizedLinear, bias: Tensor | None) -> Apply:
    """A linear of a layer as the walk applies it; name: its full name."""
    rotated = name.endswith(("q_proj", "k_proj"))
    return applied_linear(
        linear, bias, dtype=walk.dtype, device=walk.device, head_dim=walk.spec.head_dim if rotated else None
    )


def stored_bias(walk: Walk, name: str) -> Tensor | None:
    """Float32 [outputs], or None where the linear of that full name has none."""
    full = f"{name}.bias"
    if full not in walk.checkpoint.tensors.infos:
        return None
    return as_tensor(walk.checkpoint.read(full)).float()


def dense_linear(walk: Walk, name: str) -> QuantizedLinear:
    return QuantizedLinear(DenseWeight(walk.checkpoint.read(f"{name}.weight")))


def original_linears(walk: Walk, index: int) -> dict[str, Apply]:
    """All linears of layer `index` as the checkpoint has them, by their names inside the layer."""
    prefix = f"model.layers.{index}."
    return routers(walk, index) | {
        name.removeprefix(prefix): linear_of(walk, name, dense_linear(walk, name), stored_bias(walk, name))
        for site in sites_of(walk.spec, index)
        for name in site.names(index)
    }


def routers(walk: Walk, index: int) -> dict[str, Apply]:
    """The router of layer `index` by its name inside the layer; nothing where there are no experts."""
    experts = walk.spec.layers[index].experts
    if experts is None:
        return {}
    name = f"model.layers.{index}.{experts.router}"
    return {experts.router: linear_of(walk, name, dense_linear(walk, name), None)}
