"""The weights of a Hugging Face directory: one safetensors file, or several with an index."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tightpack.checkpoints.checkpoint import CheckpointError, TensorInfo
from tightpack.checkpoints.safetensors_file import SafetensorsFile

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class SafetensorsShards:
    """A TensorSource over the files of `directory`.

    rename: from the name in a file to the one that the architecture uses, or None for a tensor to leave out.
    """

    def __init__(self, directory: Path, rename: Callable[[str], str | None]) -> None:
        self._files: dict[str, tuple[SafetensorsFile, str]] = {}
        self._infos: dict[str, TensorInfo] = {}
        for file in _open_files(directory):
            for stored, info in file.infos.items():
                name = rename(stored)
                if name is None:
                    continue
                if name in self._files:
                    other, other_name = self._files[name]
                    raise CheckpointError(
                        f"{file.path}: tensor {stored!r} is also in {other.path.name} (as {other_name!r})"
                    )
                self._files[name] = (file, stored)
                self._infos[name] = info

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def stored_name(self, name: str) -> str:
        """The name in its file of the tensor that the architecture calls `name`."""
        return self._files[name][1] if name in self._files else name

    def read(self, name: str) -> NDArray[Any]:
        """A read-only view of the file."""
        file, stored = self._files[name]
        return file.read(stored)

    def release_pages(self) -> None:
        for file in {id(file): file for file, _ in self._files.values()}.values():
            file.release_pages()


def _open_files(directory: Path) -> list[SafetensorsFile]:
    whole, index = directory / WEIGHTS, directory / INDEX
    if whole.is_file():
        return [SafetensorsFile(whole)]
    if index.is_file():
        return _open_shards(directory, index)
    found = sorted(path.name for path in directory.glob("*.safetensors"))
    if found:
        raise CheckpointError(
            f"{directory}: {found[0]} has another name than {WEIGHTS}, and there is no {INDEX}"
        )
    pickles = sorted(path.name for path in directory.iterdir() if path.suffix in _PICKLES)
    if pickles:
        raise CheckpointError(
            f"{directory}: its weights are pickles ({pickles[0]}), and unpickling runs whatever code they "
            "hold. If you "
            'trust their source, convert them once: python -c "import transformers; '
            f'transformers.AutoModelForCausalLM.from_pretrained({str(directory)!r}).save_pretrained({str(directory)!r})"'
        )
    raise CheckpointError(f"{directory}: no weights: neither {WEIGHTS} nor {INDEX}")


def _open_shards(directory: Path, index: Path) -> list[SafetensorsFile]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards: dict[str, list[str]] = {}
        for name, shard in weight_map.items():
            shards.setdefault(str(shard), []).append(name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: no 'weight_map' of tensor names to files: {error}") from error
    files = []
    for shard, names in sorted(shards.items()):
        path = directory / shard
        if Path(shard).name != shard:
            raise CheckpointError(f"{index}: {shard!r} is no file name of this directory")
        if not path.is_file():
            raise CheckpointError(f"{path}: missing; {index.name} says that it holds {names[0]!r}")
        file = SafetensorsFile(path)
        absent = next((name for name in names if name not in file.infos), None)
        if absent is not None:
            raise CheckpointError(f"{path}: tensor {absent!r} is missing, which {index.name} says it holds")
        files.append(file)
    return files
