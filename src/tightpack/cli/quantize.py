"""`tightpack quantize`: a checkpoint made smaller, with what it cost in quality."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tightpack.cli.options import DeviceOption, ModelArgument

if TYPE_CHECKING:
    from tightpack.calibration.config import QuantizationRecipe
    from tightpack.calibration.estimate import Estimate
    from tightpack.calibration.report import QuantizationReport
    from tightpack.calibration.resume import LayerResult


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
    _option(_SCHEME, "Without or with zero points.  [default: asymmetric]", "--symmetric/--asymmetric"),
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
        "owner/name[:config[:split]].  [default: text that the model writes itself]",
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
        _RUN, "Of dense arithmetic meanwhile: auto (float32 on a CPU, else bfloat16), float32, bfloat16."
    ),
]
ResumeOption = Annotated[
    bool, _option(_RUN, "Go on with an unfinished run from its last whole layer.", "--resume")
]


def quantize(
    model: ModelArgument,
    output: OutputOption,
    method: MethodOption = "awq-gptq",
    bits: BitsOption = None,
    group_size: GroupOption = None,
    symmetric: SymmetricOption = None,
    layout: FormatOption = None,
    ignore: IgnoreOption = None,
    kv_cache_dtype: KVOption = "auto",
    clip: ClipOption = "minmax",
    fp8_fallback: FallbackOption = None,
    outlier_threshold: ThresholdOption = 6.0,
    mixed: MixedOption = None,
    target_bits: TargetOption = None,
    calibration: CalibrationOption = None,
    evaluation: EvaluationOption = None,
    samples: SamplesOption = 96,
    sequence_length: LengthOption = 512,
    evaluation_samples: JudgedOption = 16,
    max_kl: MaxKlOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    resume: ResumeOption = False,
) -> None:
    """Make a checkpoint smaller, and say what it cost: perplexity, KL divergence, top-1 agreement.

    One decoder layer is in memory at a time. Progress is kept in DIR.partial after every layer; Ctrl-C or a
    crash costs one layer, and --resume goes on to the same bytes.

    Examples:

    `tightpack quantize smollm2-135m -o smol-4bit --calibration text.txt`

    `tightpack quantize ./model -o ./model-w8a8 --method smoothquant --calibration text.jsonl --max-kl 0.05`

    `tightpack quantize ./model -o ./model-mixed --max-kl 0.05 --calibration text.txt`

    `tightpack quantize ./model -o ./model-fp8 --method fp8 --kv-cache-dtype fp8`
    """
    from rich.console import Console

    try:
        from tightpack.calibration.config import QuantizationConfig
        from tightpack.quantization import quantize as run
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ModuleNotFoundError(
            "quantizing needs PyTorch, which is not installed: pip install 'tightpack[torch]'", name="torch"
        ) from error

    fields = {
        name: value
        for name, value in locals().items()
        if name in QuantizationConfig.__dataclass_fields__ and name != "ignore"
    }
    config = QuantizationConfig(**fields, ignore=("lm_head", *(ignore or ())))
    console = Console(stderr=True)
    with _Bars(console) as bars:
        try:
            report = run(
                model,
                output,
                config,
                calibration=calibration,
                evaluation=evaluation,
                resume=resume,
                observer=bars,
            )
        except KeyboardInterrupt:
            bars.stop()
            if bars.began:
                console.print(
                    f"interrupted; the same command with --resume goes on from {output}.partial",
                    soft_wrap=True,
                )
            raise
    _show(Console(), report, output)


class _Bars:
    """Shows a run on standard error: what it expects to take, then a bar a layer with error and time left."""

    def __init__(self, console: Any) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
        )

        self._console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task: Any = None
        self._phase: Any = None
        self._started = 0.0
        self._first: int | None = None
        self.began = False

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._progress.stop()

    def phase(self, what: str) -> None:
        if self._phase is not None:
            self._progress.update(self._phase, total=1, completed=1)
        self._phase = self._progress.add_task(what, total=None, note="")

    def planned(self, recipe: QuantizationRecipe, expected: Estimate) -> None:
        if self._phase is not None:
            self._progress.update(self._phase, total=1, completed=1)
            self._phase = None
        self._console.print(
            f"{recipe.label}: about {_duration(expected.seconds)}, {_gib(expected.memory_bytes)} of memory "
            f"and {_gib(expected.disk_bytes)} of disk for progress",
            highlight=False,
            soft_wrap=True,
        )
        self._started = time.monotonic()
        self.began = True

    def layer(self, index: int, count: int, result: LayerResult) -> None:
        if self._task is None:
            self._task = self._progress.add_task("layers", total=count, note="")
            self._first = index
        assert self._first is not None
        done = index + 1 - self._first
        left = (time.monotonic() - self._started) / done * (count - index - 1)
        errors = list(result.errors.values())
        mean = sum(errors) / len(errors)
        note = f"error {mean:.4f}, {_duration(left)} left" if left else f"error {mean:.4f}"
        self._progress.update(self._task, completed=index + 1, note=note)


def _show(console: Any, report: QuantizationReport, output: Path) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.ROUNDED, title=f"{report.model}: {report.recipe}", title_style="bold")
    table.add_column("layer", justify="right")
    table.add_column("scheme")
    table.add_column("relative error", justify="right")
    table.add_column("worst linear")
    for layer, schemes, error, worst in report.by_layer():
        table.add_row(str(layer), " / ".join(schemes), f"{error:.4f}", worst)
    console.print(table)
    quality = report.quality
    summary = Table(box=box.ROUNDED, show_header=False)
    summary.add_column(style="cyan", no_wrap=True)
    summary.add_column()
    original = f"(original {quality['reference_perplexity']:.3f})"
    summary.add_row("perplexity", f"{quality['perplexity']:.3f} {original}")
    summary.add_row("KL(original‖quantized)", f"{quality['kl']:.5f} nats a token")
    summary.add_row("top-1 agreement", f"{quality['top1_agreement']:.2%}")
    summary.add_row("measured on", f"{quality['tokens']:,} tokens, {report.held_out_text}")
    summary.add_row("bits a weight", f"{report.bits_per_weight:.2f}")
    took = ", ".join(f"{name} {_duration(value)}" for name, value in report.seconds.items())
    summary.add_row("time", took)
    if report.peak_memory_bytes is not None:
        summary.add_row("peak memory", _gib(report.peak_memory_bytes))
    if "continuation" in report.smoke_test:
        summary.add_row("it says", report.smoke_test["prompt"] + report.smoke_test["continuation"])
    else:
        summary.add_row("not generated from", report.smoke_test["skipped"])
    console.print(summary)
    console.print(f"wrote {output}; try: tightpack serve {output}", highlight=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**29 else f"{num_bytes / 2**20:.0f} MiB"
