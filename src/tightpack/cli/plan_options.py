"""The options of `tightpack plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

INPUT_LEN, OUTPUT_LEN = 1024, 256

PlanModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="A known name (llama-3.1-70b, qwen3-32b, mixtral-8x7b, ...), a hub id of one, a directory, a "
        "config.json, a GGUF file or smollm2-135m. No weights are needed.",
    ),
]
SloOption = Annotated[
    str,
    typer.Option(metavar="ttft=S,tpot=S", help="Targets of a request, in seconds; either may be left out."),
]
RateOption = Annotated[
    float | None,
    typer.Option(
        metavar="R", help="Requests a second in all.  [default: the trace's own]", show_default=False
    ),
]
TraceOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE.csv", help="Arrivals and lengths: TIMESTAMP,ContextTokens,GeneratedTokens."),
]
InputLenOption = Annotated[int | None, typer.Option(help=f"Prompt tokens.  [default: {INPUT_LEN}]")]
OutputLenOption = Annotated[int | None, typer.Option(help=f"Output tokens.  [default: {OUTPUT_LEN}]")]
MixedOption = Annotated[
    bool | None,
    typer.Option(
        "--mixed/--fixed", help="Long-tailed lengths about these means, or all the same.  [default: mixed]"
    ),
]
BurstinessOption = Annotated[
    float | None,
    typer.Option(help="Of the gaps between arrivals: 1 is Poisson, less comes in bursts.  [default: 1]"),
]
LengthScaleOption = Annotated[float | None, typer.Option(help="Multiplies the lengths of a trace.")]
HardwareOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,…",
        help="Devices to consider, this-machine among them.  "
        "[default: those of the catalogue that the engine was run on]",
    ),
]
HardwareFileOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE.yaml", help="Devices and prices of your own, on top of the catalogue's."),
]
CostModelOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Of this-machine: what `tightpack calibrate-cost MODEL -o FILE` wrote."
    ),
]
PriceOption = Annotated[
    str | None,
    typer.Option(metavar="NAME=USD,…", help="Dollars an hour of a device, instead of the catalogue's."),
]
PrecisionOption = Annotated[
    str | None, typer.Option(metavar="NAME,…", help="Of bf16, fp8, w8a8, int8, int4.  [default: all]")
]
KVOption = Annotated[
    str | None,
    typer.Option(
        "--kv-cache-dtype",
        metavar="NAME,…",
        help="Of auto, fp8, int8.  [default: auto and the device's 8 bits]",
    ),
]
PoliciesOption = Annotated[
    str | None,
    typer.Option(metavar="NAME,…", help="Batching policies.  [default: chunked-prefill,slo,continuous]"),
]
SizesOption = Annotated[
    str | None,
    typer.Option(
        "--tensor-parallel-size", metavar="N,…", help="Devices that share a replica.  [default: 1,2,4,8]"
    ),
]
MaxReplicasOption = Annotated[int | None, typer.Option(help="Replicas at the most.")]
MaxModelLenOption = Annotated[
    int | None,
    typer.Option(
        help="Context that an engine must hold.  [default: the longest request, in thousands of 1024]"
    ),
]
AttainmentOption = Annotated[float, typer.Option(help="The share of requests that must meet their targets.")]
QualityReportOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[PRECISION=]FILE",
        help="Measured KL, instead of a default by method: tightpack_report.json of `quantize`, or "
        "int4=FILE of `evaluate --json`; repeatable.",
    ),
]
MaxKlOption = Annotated[
    float | None, typer.Option(help="Leave out what is expected to diverge more, in nats.")
]
SeedOption = Annotated[int, typer.Option(help="Of lengths and arrivals.")]
HtmlOption = Annotated[
    Path | None, typer.Option("--html", metavar="OUT.html", help="Write a page with the Pareto front.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]
