"""The model that a plan is for: known by name, or read from a config.json; no weights are needed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from tightpack.architectures.model_spec import ModelSpec
from tightpack.architectures.registry import model_spec
from tightpack.checkpoints.json_file import read_object
from tightpack.planning.stored_precision import stored_precision
from tightpack.requests.arguments import nearest_hint
from tightpack.simulated.hardware import Precision

_CHECKPOINTS = ("smollm2-135m",)
_KEPT = ("model.embed_tokens.weight", "lm_head.weight")


@dataclass(frozen=True)
class PlannedModel:
    """name: for people. served: what `tightpack serve` is given.

    stored: what the checkpoint's linears are already, where it is quantized; None for one that may become
    anything.
    """

    name: str
    served: str
    spec: ModelSpec
    stored: Precision | None = None

    @cached_property
    def linear_parameters(self) -> int:
        """Weights of the linears of all layers: those that quantization makes smaller."""
        kept = {*_KEPT, *(f"{name}.weight" for name in self.spec.router_names())}
        shapes = self.spec.tensor_shapes()
        return sum(math.prod(shape) for name, shape in shapes.items() if len(shape) > 1 and name not in kept)

    @cached_property
    def active_parameters(self) -> int:
        """Weights that a token goes through."""
        mixtures = [layer.experts for layer in self.spec.layers if layer.experts is not None]
        idle = sum((one.count - one.experts_per_token) * one.intermediate_size for one in mixtures)
        return self.parameters - 3 * self.spec.hidden_size * idle

    @cached_property
    def other_parameters(self) -> int:
        """Embedding, head, routers, norms and biases, which stay in 16 bits."""
        return sum(map(math.prod, self.spec.tensor_shapes().values())) - self.linear_parameters

    @property
    def parameters(self) -> int:
        return self.linear_parameters + self.other_parameters

    def weights_bytes(self, precision: Precision) -> int:
        """Of the whole model, when its linears have this precision."""
        linears = self.linear_parameters * precision.weight_bits / 8
        return round(linears + self.other_parameters * precision.head_bits / 8)


def known_models() -> Mapping[str, Mapping[str, Any]]:
    """Name to configuration, with `hub` beside its fields."""
    import yaml

    text = files("tightpack.planning").joinpath("models.yaml").read_text(encoding="utf-8")
    loaded: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return {name: config for name, config in loaded.items() if not name.startswith(".")}


def open_model(model: str) -> PlannedModel:
    """A known name or its hub id, `smollm2-135m`, a GGUF file, a directory with a config.json, or that file.

    Raises ValueError naming the nearest known model, or what is wrong with the configuration.
    """
    if model in _CHECKPOINTS or Path(model).suffix.lower() == ".gguf":
        return _of_checkpoint(model)
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{model} holds no config.json")
        return _of_config(path.resolve().name, model, read_object(path / "config.json"))
    if path.is_file():
        return _of_config(path.resolve().parent.name, str(path.parent), read_object(path))
    known = known_models()
    for name, config in known.items():
        if model.lower() in (name, config["hub"].lower()):
            return _of_config(name, config["hub"], config)
    names = [*known, *_CHECKPOINTS]
    hint = nearest_hint(model.lower(), names, "known are")
    raise ValueError(f"model {model!r} is not known, and there is no such file or directory; {hint}")


def _of_config(name: str, served: str, config: Mapping[str, Any]) -> PlannedModel:
    return PlannedModel(name, served, model_spec(config), stored_precision(config))


def _of_checkpoint(model: str) -> PlannedModel:
    from tightpack.checkpoints.open import open_checkpoint

    checkpoint = open_checkpoint(model)
    infos = checkpoint.tensors.infos
    shapes = checkpoint.spec.tensor_shapes()
    linears = [name for name, shape in shapes.items() if len(shape) == 2 and name not in _KEPT]
    weights = sum(math.prod(shapes[name]) for name in linears)
    bits = 8 * sum(infos[name].num_bytes for name in linears) / weights
    head = infos[_KEPT[0]]
    stored = Precision(
        name="gguf",
        weight_bits=bits,
        head_bits=8 * head.num_bytes / math.prod(shapes[_KEPT[0]]),
    )
    return PlannedModel(checkpoint.name, model, checkpoint.spec, stored)
