"""The architecture of a model whose weights are not needed: a plan or a simulation reads its config alone."""

from __future__ import annotations

from pathlib import Path

from tightpack.architectures.config_fields import ConfigError
from tightpack.architectures.model_spec import ModelSpec
from tightpack.architectures.registry import model_spec
from tightpack.checkpoints.checkpoint import CheckpointError
from tightpack.checkpoints.huggingface_directory import CONFIG
from tightpack.checkpoints.json_file import read_object
from tightpack.checkpoints.open import open_checkpoint


def read_model_spec(model: str) -> ModelSpec:
    """The ModelSpec of a config.json, of a directory with one, or of whatever `open_checkpoint` opens.

    A config.json without its weights is enough. Raises CheckpointError naming the file and what is wrong.
    """
    path = Path(model).expanduser()
    config = path / CONFIG if (path / CONFIG).is_file() else path
    if config.suffix != ".json":
        return open_checkpoint(model).spec
    try:
        return model_spec(read_object(config))
    except ConfigError as error:
        raise CheckpointError(f"{config}: {error}") from error
