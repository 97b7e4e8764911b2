"""What is measured: engines and weights, shapes of work, and the figures that follow from the seconds.

An engine is timed from outside only: seconds for the first token of every stream, and seconds for all tokens.
Decoding is the difference of the two, for the output tokens after the first, in the same way for everybody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Round = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One engine with one kind of weights.

    runner: of benchmarks/peers, and the name of the interpreter's option.
    bits: of the class that it is compared in.
    arithmetic: whose peak bounds it, "int8" or "bf16".
    kv_bytes: a key or value element in the engine's own default.
    """

    runner: str
    engine: str
    weights: str
    bits: int
    model: str
    arithmetic: str
    kv_bytes: int = 2
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.runner}/{self.weights.replace(' ', '-')}"


TIGHTPACK = "tightpack"
_OURS = {"policy": "continuous"}

ROWS = (
    Row(TIGHTPACK, TIGHTPACK, "Q4_0", 4, "q4_0.gguf", "int8", settings=_OURS),
    Row(TIGHTPACK, TIGHTPACK, "int4 g64", 4, "int4-g64", "int8", settings=_OURS),
    Row("llamacpp", "llama.cpp", "Q4_0", 4, "q4_0.gguf", "int8"),
    # Keys and values are 8-bit there by default.
    Row("openvino", "OpenVINO GenAI", "Q4_0", 4, "q4_0.gguf", "int8", kv_bytes=1),
    Row("vllm", "vLLM CPU", "W4A16 g64", 4, "int4-g64", "bf16"),
    Row(TIGHTPACK, TIGHTPACK, "Q8_0", 8, "q8_0.gguf", "int8", settings=_OURS),
    Row(TIGHTPACK, TIGHTPACK, "W8A8", 8, "w8a8", "int8", settings=_OURS),
    Row("llamacpp", "llama.cpp", "Q8_0", 8, "q8_0.gguf", "int8"),
    Row("openvino", "OpenVINO GenAI", "Q8_0", 8, "q8_0.gguf", "int8", kv_bytes=1),
    Row("vllm", "vLLM CPU", "W8A8", 8, "w8a8", "int8"),
    Row(TIGHTPACK, TIGHTPACK, "bf16", 16, "bf16", "bf16", settings=_OURS),
    Row("llamacpp", "llama.cpp", "BF16", 16, "bf16.gguf", "bf16"),
    Row("vllm", "vLLM CPU", "bf16", 16, "bf16", "bf16"),
)

# Each shape: name, streams, prompt tokens, output tokens. The first one has the prompt length of the first
# token after the start.
ShapeTuple = tuple[str, int, int, int]
SHAPES: tuple[ShapeTuple, ...] = (
    ("one", 1, 128, 128),
    ("long", 1, 1024, 1),
    ("8", 8, 128, 64),
    ("16", 16, 128, 64),
    ("32", 32, 128, 64),
)
QUICK_SHAPES: tuple[ShapeTuple, ...] = (
    ("one", 1, 128, 4),
    ("long", 1, 256, 1),
    ("8", 2, 32, 4),
    ("16", 3, 32, 4),
    ("32", 4, 32, 4),
)


@dataclass(frozen=True)
class Figure:
    """A column. better: max or min. shape: what it is measured with, where it has a roofline."""

    name: str
    title: str
    better: str
    decimals: int = 0
    shape: str | None = None
    part: str = ""


FIGURES = (
    Figure("decode_1", "decode, 1 stream", "max", shape="one", part="decode"),
    Figure("prefill_128", "prefill 128", "max", shape="one", part="prefill"),
    Figure("prefill_1024", "prefill 1024", "max", shape="long", part="prefill"),
    Figure("decode_8", "decode, 8 streams", "max", shape="8", part="decode"),
    Figure("decode_16", "decode, 16", "max", shape="16", part="decode"),
    Figure("decode_32", "decode, 32", "max", shape="32", part="decode"),
    Figure("job_32", "whole job, 32 requests", "max", shape="32", part="job"),
    Figure("http_32", "the job over HTTP", "max"),
    Figure("http_share", "HTTP / offline", "max", decimals=2),
    Figure("memory_mib", "resident, MiB", "min"),
    Figure("first_token_s", "start to first token, s", "min", decimals=1),
)


def figures_of(one: Round, shapes: Sequence[ShapeTuple]) -> dict[str, float]:
    """What one round gave; figures that it did not measure are absent. Rates are tokens a second.

    Within a round the best repeat counts: a shape's first one may compile or allocate.
    """
    sizes = {name: sizes for name, *sizes in shapes}
    first = {name: min(seconds["first_s"]) for name, seconds in one["seconds"].items()}
    whole = {name: min(seconds["whole_s"]) for name, seconds in one["seconds"].items() if seconds["whole_s"]}
    found: dict[str, float] = {}
    for figure in FIGURES:
        if figure.shape is None or figure.shape not in first:
            continue
        streams, input_len, output_len = sizes[figure.shape]
        if figure.part == "prefill":
            found[figure.name] = streams * input_len / first[figure.shape]
        elif figure.part == "job" and figure.shape in whole:
            found[figure.name] = streams * output_len / whole[figure.shape]
        elif figure.part == "decode" and whole.get(figure.shape, 0.0) > first[figure.shape]:
            elapsed = whole[figure.shape] - first[figure.shape]
            found[figure.name] = streams * (output_len - 1) / elapsed
    for name in ("first_token_s", "memory_mib"):
        if name in one:
            found[name] = one[name]
    if "http" in one:
        found["http_32"] = one["http"]["output_tokens_per_s"]
        if "job_32" in found:
            found["http_share"] = found["http_32"] / found["job_32"]
    return found
