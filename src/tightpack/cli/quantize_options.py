"""The options of `tightpack quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def _option(panel: str, help: str, *names: str, metavar: str | None = None, **others: Any) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel, **others)


_SCHEME, _TEXT, _RUN = "Scheme", "Calibration and evaluation", "Run"
OutputOption = Annotated[
    Path, typer.Option("--output", "-o", metavar="DIR", help="Directory to write; must be new or empty.")
]
MethodOption = Annotated[
    str,
    typer.Option(
        help="rtn, awq, gptq, awq-gptq (best at 4 bits), int8 (weights alone), smoothquant (W8A8), llm.int8 "
        "or fp8."
    ),
]
BitsOption = Annotated[int | None, _option(_SCHEME, "4 or 8.  [default: 4, of rtn, awq, gptq and awq-gptq]")]
GroupOption = Annotated[
    int | None,
    _option(
        _SCHEME,
        "Inputs that share a scale; -1 for one scale an output channel.  "
        "[default: the largest of 128, 64, 32 that divides every input width]",
    ),
]
SymmetricOption = Annotated[
    bool | None,
    _option(
        _SCHEME,
        "Without or with zero points.  [default: asymmetric, but symmetric with --format gptq]",
        "--symmetric/--asymmetric",
    ),
]
FormatOption = Annotated[
    str | None,
    _option(
        _SCHEME,
        "compressed-tensors, awq or gptq.  [default: compressed-tensors; bitsandbytes for llm.int8]",
        "--format",
    ),
]
IgnoreOption = Annotated[
    list[str] | None,
    _option(
        _SCHEME,
        "Linears to leave in 16 bits: a name, a glob or re:EXPRESSION; may be repeated. Head and embedding "
        "stay in any case.",
        metavar="PATTERN",
    ),
]
KVOption = Annotated[
    str, _option(_SCHEME, "Calibrate scales for a KV cache in fp8 or int8.", "--kv-cache-dtype")
]
ClipOption = Annotated[str, _option(_SCHEME, "Of rtn: minmax, or mse for the range of least squared error.")]
FallbackOption = Annotated[
    float | None,
    _option(
        _SCHEME, "Of fp8: keep linears in bf16 whose relative output error is above this.", metavar="ERROR"
    ),
]
ThresholdOption = Annotated[
    float, _option(_SCHEME, "Of llm.int8: columns that reach it are computed in 16 bits.")
]
TargetOption = Annotated[
    float | None,
    _option(_SCHEME, "Mean bits a weight, scales included: mixed precision by measured sensitivity."),
]
CalibrationOption = Annotated[
    str | None,
    _option(
        _TEXT,
        'Plain text, JSON Lines (.jsonl) with a "text" field, or a data set: wikitext, c4, '
        "owner/name[:config[:split]].  [default: text that the model writes itself; int8 goes without]",
        metavar="TEXT",
    ),
]
EvaluationOption = Annotated[
    str | None,
    _option(_TEXT, "Held-out text.  [default: the end of the calibration text]", metavar="TEXT"),
]
SamplesOption = Annotated[int, _option(_TEXT, "Sequences to calibrate on.", min=1)]
LengthOption = Annotated[int, _option(_TEXT, "Tokens a sequence.", min=2)]
JudgedOption = Annotated[int, _option(_TEXT, "Held-out sequences to measure quality on.", min=1)]
MaxKlOption = Annotated[
    float | None,
    _option(
        _TEXT,
        "Refuse to save above this KL divergence in nats a token. Without bits or group size, also "
        "the aim: the smallest mix of precisions that is expected to keep it.",
    ),
]
MixedOption = Annotated[
    bool | None,
    _option(
        _SCHEME,
        "A precision for each site, or one for all.  [default: mixed with --target-bits, or with --max-kl "
        "where no bits or group size are named]",
        "--mixed/--uniform",
    ),
]
SeedOption = Annotated[int, _option(_TEXT, "Of text that the model writes itself.")]
DtypeOption = Annotated[
    str,
    _option(
        _RUN,
        "Of dense arithmetic meanwhile: auto (bfloat16 where it is fast and does, else float32), float32, "
        "bfloat16.",
    ),
]
ResumeOption = Annotated[
    bool, _option(_RUN, "Go on with an unfinished run from its last whole layer.", "--resume")
]
