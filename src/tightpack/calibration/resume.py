"""Progress of a run on disk, layer by layer, so that a crash or Ctrl-C costs one layer.

DIR.partial/ holds fingerprint.json, layer-NNNNN.npz for each whole layer, the activations after the last of
them, and state.json, which names both and is replaced last: whatever it names is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tightpack.calibration.config import QuantizationRecipe, config_as_json
from tightpack.checkpoints.checkpoint import Checkpoint
from tightpack.schemes.quantized import ActivationFormat, DenseWeight, Fp8Weight, IntWeight, QuantizedLinear

# Changing these changes no byte of the linears: a run may be resumed with others. (Where max_kl is what a mix
# of precisions aims at, the mix that was found is kept, in mix.json.)
_FREE_FIELDS = ("max_kl", "layout", "evaluation_samples")


@dataclass(frozen=True, slots=True)
class LayerResult:
    """A quantized layer.

    linears: by full name. tensors: norms and biases that folding changed, by full name.
    errors: linear to relative error; schemes: linear to label.
    key_magnitude, value_magnitude: largest absolute values in the cache; 0 where nobody asked.
    """

    linears: Mapping[str, QuantizedLinear]
    tensors: Mapping[str, NDArray[Any]]
    errors: Mapping[str, float]
    schemes: Mapping[str, str]
    key_magnitude: float = 0.0
    value_magnitude: float = 0.0
    notes: tuple[str, ...] = field(default=())


class Progress:
    """The directory of an unfinished run. Opened by `begin` or `resume`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def layers_done(self) -> int:
        path = self.directory / "state.json"
        return json.loads(path.read_text())["layers"] if path.is_file() else 0

    def refuse(self) -> NoReturn:
        raise ValueError(
            f"{self.directory} holds an unfinished run: go on with --resume, or delete it to start afresh"
        )

    def begin(self, fingerprint: Mapping[str, str]) -> None:
        """Raises ValueError when an unfinished run is there already."""
        if self.directory.exists():
            self.refuse()
        self.directory.mkdir(parents=True)
        _replace(self.directory / "fingerprint.json", json.dumps(fingerprint, indent=2).encode())

    def resume(self, fingerprint: Mapping[str, str]) -> None:
        """Go on with what is there, or begin. Raises ValueError naming what differs from when it began."""
        path = self.directory / "fingerprint.json"
        if not path.is_file():
            shutil.rmtree(self.directory, ignore_errors=True)
            self.begin(fingerprint)
            return
        before = json.loads(path.read_text())
        differing = [name for name in fingerprint if before.get(name) != fingerprint[name]]
        if differing:
            raise ValueError(
                f"{self.directory} was begun with another {' and '.join(differing)}: repeat that run's "
                "arguments, or delete it to start afresh"
            )

    def save(self, index: int, result: LayerResult, activations: Sequence[Tensor] = ()) -> None:
        """activations: those after layer `index`, in host memory; none for a run that needs none."""
        with _Replacing(self._layer(index)) as file:
            _save_arrays(file, _to_arrays(result))
        if activations:
            with _Replacing(self._activations(index)) as file:
                for tensor in activations:
                    file.write(_as_bytes(tensor))
        _replace(self.directory / "state.json", json.dumps({"layers": index + 1}).encode())
        if index:
            self._activations(index - 1).unlink(missing_ok=True)

    def load(self, index: int) -> LayerResult:
        with np.load(self._layer(index)) as arrays:
            return _from_arrays(arrays)

    def restore_activations(self, activations: Sequence[Tensor]) -> None:
        """Overwrite `activations` with those after the last whole layer."""
        with self._activations(self.layers_done - 1).open("rb") as file:
            for tensor in activations:
                raw = np.fromfile(file, dtype=np.uint8, count=tensor.nbytes)
                tensor.copy_(torch.from_numpy(raw).view(tensor.dtype).view(tensor.shape))

    def save_mix(self, mix: str) -> None:
        """The precisions that were chosen and what they were chosen from, so that it is measured once."""
        _replace(self.directory / "mix.json", mix.encode())

    def load_mix(self) -> str | None:
        path = self.directory / "mix.json"
        return path.read_text() if path.is_file() else None

    def begin_again(self, mix: str) -> None:
        """All layers are to be done again, with another mix. Cut off in between, they are done again with the
        one before, which leads here again."""
        (self.directory / "state.json").unlink()
        self.save_mix(mix)

    def discard(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    def _layer(self, index: int) -> Path:
        return self.directory / f"layer-{index:05d}.npz"

    def _activations(self, index: int) -> Path:
        return self.directory / f"activations-{index:05d}.bin"


def fingerprint(
    checkpoint: Checkpoint, recipe: QuantizationRecipe, sequences: NDArray[np.int64] | None
) -> dict[str, str]:
    """What must be the same for a run to go on: model, recipe and calibration data, in words and hashes."""
    config = {
        name: value for name, value in config_as_json(recipe.config).items() if name not in _FREE_FIELDS
    }
    return {
        "model": _model_digest(checkpoint),
        "recipe": json.dumps(config, sort_keys=True),
        "calibration text": "none" if sequences is None else hashlib.sha256(sequences.tobytes()).hexdigest(),
    }


def _model_digest(checkpoint: Checkpoint) -> str:
    """Of names, shapes, sizes and two tensors: another fine-tune differs in those, and the rest stays
    unread."""
    digest = hashlib.sha256()
    for name, info in sorted(checkpoint.tensors.infos.items()):
        digest.update(f"{name} {info.shape} {info.precision} {info.num_bytes}\n".encode())
    last = checkpoint.spec.num_layers - 1
    for name in ("model.norm.weight", f"model.layers.{last}.self_attn.k_proj.weight"):
        digest.update(np.ascontiguousarray(checkpoint.read(name)).view(np.uint8).tobytes())
    return digest.hexdigest()


def _to_arrays(result: LayerResult) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    described: dict[str, Any] = {}
    for name, linear in result.linears.items():
        weight = linear.weight
        entry: dict[str, Any] = {
            "activation": None if linear.activation is None else asdict(linear.activation),
            "kind": type(weight).__name__,
        }
        if isinstance(weight, DenseWeight):
            entry["dtype"] = weight.values.dtype.name
            arrays[f"{name}:values"] = _storable(weight.values)
        elif isinstance(weight, Fp8Weight):
            entry["block"] = weight.block
            arrays[f"{name}:codes"] = weight.codes.view(np.uint8)
            arrays[f"{name}:scales"] = weight.scales
        else:
            entry |= {"bits": weight.bits, "group_size": weight.group_size}
            arrays[f"{name}:codes"] = weight.codes
            arrays[f"{name}:scales"] = weight.scales
            if weight.zeros is not None:
                arrays[f"{name}:zeros"] = weight.zeros
        described[name] = entry
    for name, tensor in result.tensors.items():
        arrays[f"{name}:tensor"] = _storable(tensor)
    meta = {
        "linears": described,
        "tensors": {name: tensor.dtype.name for name, tensor in result.tensors.items()},
        "errors": dict(result.errors),
        "schemes": dict(result.schemes),
        "magnitudes": [result.key_magnitude, result.value_magnitude],
        "notes": result.notes,
    }
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
    return arrays


def _from_arrays(arrays: Mapping[str, NDArray[Any]]) -> LayerResult:
    meta = json.loads(arrays["meta"].tobytes())
    linears = {}
    for name, entry in meta["linears"].items():
        weight: DenseWeight | Fp8Weight | IntWeight
        if entry["kind"] == "DenseWeight":
            weight = DenseWeight(_restored(arrays[f"{name}:values"], entry["dtype"]))
        elif entry["kind"] == "Fp8Weight":
            rows, columns = entry["block"]
            codes = arrays[f"{name}:codes"].view(ml_dtypes.float8_e4m3fn)
            weight = Fp8Weight(codes=codes, scales=arrays[f"{name}:scales"], block=(rows, columns))
        else:
            weight = IntWeight(
                codes=arrays[f"{name}:codes"],
                scales=arrays[f"{name}:scales"],
                zeros=arrays.get(f"{name}:zeros"),
                bits=entry["bits"],
                group_size=entry["group_size"],
            )
        activation = entry["activation"]
        linears[name] = QuantizedLinear(
            weight, None if activation is None else ActivationFormat(**activation)
        )
    return LayerResult(
        linears=linears,
        tensors={name: _restored(arrays[f"{name}:tensor"], kind) for name, kind in meta["tensors"].items()},
        errors=meta["errors"],
        schemes=meta["schemes"],
        key_magnitude=meta["magnitudes"][0],
        value_magnitude=meta["magnitudes"][1],
        notes=tuple(meta["notes"]),
    )


def _storable(values: NDArray[Any]) -> NDArray[Any]:
    """bfloat16 is no type of NumPy's files."""
    return values.view(np.uint16) if values.dtype.name == "bfloat16" else values


def _restored(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    return values.view(ml_dtypes.bfloat16) if dtype == "bfloat16" else values


def _save_arrays(file: IO[bytes], arrays: Mapping[str, NDArray[Any]]) -> None:
    np.savez(file, **arrays)  # type: ignore[arg-type]  # its stub takes the names for its own options


def _as_bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().view(torch.uint8).numpy().reshape(-1).data


class _Replacing:
    """A file written beside its place and renamed into it when whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._beside = path.with_name(path.name + ".tmp")

    def __enter__(self) -> IO[bytes]:
        self._file = self._beside.open("wb")
        return self._file

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if kind is None:
            os.replace(self._beside, self._path)
        else:
            self._beside.unlink(missing_ok=True)


def _replace(path: Path, content: bytes) -> None:
    with _Replacing(path) as file:
        file.write(content)


def saved_layers(progress: Progress, num_layers: int) -> Iterator[LayerResult]:
    """All layers in order, one in memory at a time."""
    for index in range(num_layers):
        yield progress.load(index)
