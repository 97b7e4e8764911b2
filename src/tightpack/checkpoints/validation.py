"""A checkpoint's tensors against what its architecture must have."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection
from pathlib import Path

from tightpack.architectures.model_spec import ModelSpec
from tightpack.checkpoints.checkpoint import CheckpointError, TensorSource

# Buffers that old versions of transformers saved; they follow from the configuration.
_HARMLESS = re.compile(r"(.*\.)?rotary_emb\.inv_freq")
_SHOWN = 3
# Precisions that a safetensors file holds for the parts of a quantized linear, and not for a tensor as it is.
UNQUANTIZED_NEVER = ("int8", "uint8", "int32", "int64", "fp8")


def _unchanged(name: str) -> str:
    return name


def validate_tensors(
    spec: ModelSpec,
    tensors: TensorSource,
    path: Path,
    stored_name: Callable[[str], str] = _unchanged,
) -> None:
    """Raise CheckpointError naming the tensors that are missing, mis-shaped or unknown.

    path: the file or directory to name; stored_name: from Hugging Face's name to the one that the file uses.
    """
    wanted, found = spec.tensor_shapes(), tensors.infos
    extra = [name for name in found if name not in wanted and not is_redundant(spec, name)]
    missing = [name for name in wanted if name not in found]
    if missing:
        raise CheckpointError(
            f"{path}: {listed('missing', [stored_name(m) for m in missing])}{nearest(missing[0], extra)}"
        )
    for name, shape in wanted.items():
        if found[name].precision in UNQUANTIZED_NEVER:
            raise CheckpointError(
                f"{path}: tensor {stored_name(name)!r} is stored as {found[name].precision}, and no "
                "'quantization_config' says so"
            )
        if found[name].shape != shape:
            raise CheckpointError(
                f"{path}: tensor {stored_name(name)!r} has shape {list(found[name].shape)}; the "
                f"configuration makes it {list(shape)}"
            )
    if extra:
        raise CheckpointError(f"{path}: {listed('unknown', extra)} to the {spec.family} architecture")


def is_redundant(spec: ModelSpec, name: str) -> bool:
    """Whether a tensor may be there without being read: rotary buffers, and a tied model's copy of the
    head."""
    return bool(_HARMLESS.fullmatch(name)) or (spec.tied_embeddings and name == "lm_head.weight")


def listed(what: str, names: Collection[str]) -> str:
    first = list(names)[:_SHOWN]
    more = f" and {len(names) - len(first)} more" if len(names) > len(first) else ""
    noun = "tensors" if len(names) > 1 else "tensor"
    return f"{noun} {', '.join(map(repr, first))}{more} {'are' if len(names) > 1 else 'is'} {what}"


def nearest(name: str, extra: Collection[str]) -> str:
    near = difflib.get_close_matches(name, extra, n=1, cutoff=0.8)
    return f"; there is {near[0]!r}, which has no place" if near else ""
