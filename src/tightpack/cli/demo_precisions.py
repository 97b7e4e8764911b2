"""The precisions of a checkpoint that `tightpack demo` serves one after the other, and how to serve each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tightpack.checkpoints.checkpoint import Checkpoint
from tightpack.checkpoints.widened import widened
from tightpack.engine_args import LLM_INT8_THRESHOLD, EngineArgs
from tightpack.on_load import is_stored_as, quantize_on_load

# The engine's quick methods: round to nearest as the weights are read.
_ON_LOAD = ("int8", "int4")
ORIGINAL = "the checkpoint's own weights"


@dataclass(frozen=True, slots=True)
class Precision:
    """open: the checkpoint at this precision. how: where its weights come from, in words.

    serve: the arguments of `tightpack serve` behind the model. needs_conversion: whether the model must be
    converted to a bf16 directory first.
    """

    name: str
    how: str
    open: Callable[[], Checkpoint]
    serve: tuple[str, ...] = ()
    needs_conversion: bool = False


def precisions(checkpoint: Checkpoint, args: EngineArgs) -> list[Precision]:
    """The original first. A checkpoint whose quantization cannot be replaced is served as it is beside it."""
    stored = checkpoint.quantization
    if stored is None:
        original = Precision("bf16", ORIGINAL, lambda: checkpoint)
        return [original, *(_on_load(checkpoint, args, name) for name in _ON_LOAD)]
    original = Precision(
        "bf16", "the file's weights widened to bf16", lambda: widened(checkpoint), needs_conversion=True
    )
    if stored.method == "gguf":
        return [original, *(_on_load(checkpoint, args, name) for name in _ON_LOAD)]
    schemes = "; ".join(dict.fromkeys(stored.linears.values()))
    return [original, Precision(stored.method, f"as stored: {schemes}", lambda: checkpoint)]


def rounded_anew(checkpoint: Checkpoint) -> Checkpoint | None:
    """The file's weights widened and rounded to int4 again: what 4 bits cost a model that comes in bf16. None
    where `precisions` rounds to int4 anyway, and where it cannot."""
    if checkpoint.quantization is None or checkpoint.quantization.method != "gguf":
        return None
    return quantize_on_load(widened(checkpoint), "int4", llm_int8_threshold=LLM_INT8_THRESHOLD)


def _on_load(checkpoint: Checkpoint, args: EngineArgs, name: str) -> Precision:
    """What `--quantization name` makes of the checkpoint."""
    stored = checkpoint.quantization
    serve = ("--quantization", name)
    if stored is not None and is_stored_as(name, checkpoint, stored):
        schemes = "; ".join(dict.fromkeys(stored.linears.values()))
        return Precision(name, f"as the file has them: {schemes}", lambda: checkpoint, serve)
    how = "rounded to nearest on loading"
    if stored is not None:
        how += f", from the file's {stored.method}"
    return Precision(
        name,
        how,
        lambda: quantize_on_load(checkpoint, name, llm_int8_threshold=args.llm_int8_threshold),
        serve,
    )
