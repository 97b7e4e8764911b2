"""`tightpack quantize`: a checkpoint made smaller, with what it cost in quality."""

from __future__ import annotations

from tightpack.cli import quantize_options as options
from tightpack.cli.options import DeviceOption, ModelArgument


def quantize(
    model: ModelArgument,
    output: options.OutputOption,
    method: options.MethodOption = "awq-gptq",
    bits: options.BitsOption = None,
    group_size: options.GroupOption = None,
    symmetric: options.SymmetricOption = None,
    layout: options.FormatOption = None,
    ignore: options.IgnoreOption = None,
    kv_cache_dtype: options.KVOption = "auto",
    clip: options.ClipOption = "minmax",
    fp8_fallback: options.FallbackOption = None,
    outlier_threshold: options.ThresholdOption = 6.0,
    mixed: options.MixedOption = None,
    target_bits: options.TargetOption = None,
    calibration: options.CalibrationOption = None,
    evaluation: options.EvaluationOption = None,
    samples: options.SamplesOption = 96,
    sequence_length: options.LengthOption = 512,
    evaluation_samples: options.JudgedOption = 16,
    max_kl: options.MaxKlOption = None,
    seed: options.SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: options.DtypeOption = "auto",
    resume: options.ResumeOption = False,
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

    from tightpack.cli.quantize_display import QuantizationBars, show_report

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
    with QuantizationBars(console) as bars:
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
    show_report(Console(), report, output)
