"""`tightpack evaluate`: perplexity, KL divergence and top-1 agreement on a text."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tightpack.cli.options import ActivationDtypeOption, DeviceOption, ModelArgument, ThreadsOption
from tightpack.engine_args import ACTIVATION_DTYPES
from tightpack.requests.arguments import require_one_of

if TYPE_CHECKING:
    from tightpack.evaluation.comparison import Quality

ReferenceOption = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="The original. Without it only the perplexity is measured; of --executor native, what its "
        "arithmetic costs: the reference is then MODEL itself, computed exactly.",
    ),
]
TextOption = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help='Plain text, JSON Lines (.jsonl) with a "text" field, or a data set: wikitext, c4, '
        "owner/name[:config[:split]].",
    ),
]
TasksOption = Annotated[
    str | None,
    typer.Option(metavar="TASK,...", help="Tasks of lm-eval instead of a text: hellaswag,arc_easy."),
]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Of --tasks: documents of each.")]
FewshotOption = Annotated[
    int | None, typer.Option(min=0, help="Of --tasks: examples in the prompt.  [default: the task's own]")
]
TaskPathOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Of --tasks: a directory with more tasks, as YAML files.")
]
SamplesOption = Annotated[
    int | None, typer.Option(min=1, help="Sequences to measure.  [default: all after --skip]")
]
LengthOption = Annotated[int, typer.Option(min=2, help="Tokens a sequence.")]
SkipOption = Annotated[
    int, typer.Option(help="Sequences to leave out at the start; --skip=-64 takes the last 64.")
]
DtypeOption = Annotated[
    str, typer.Option(help="Of dense weights and activations: float32, bfloat16 or float16.")
]
EvaluatedOption = Annotated[
    str,
    typer.Option(
        help="torch, or native: MODEL in the executor that serves on CPUs, int8 activations and all. The "
        "reference stays in torch."
    ),
]
JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="OUT.json", help="Write the results to this file.")
]


def evaluate(
    model: ModelArgument,
    text: TextOption = None,
    tasks: TasksOption = None,
    limit: LimitOption = None,
    num_fewshot: FewshotOption = None,
    task_path: TaskPathOption = None,
    reference: ReferenceOption = None,
    samples: SamplesOption = None,
    sequence_length: LengthOption = 512,
    skip: SkipOption = 0,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "auto",
    executor: EvaluatedOption = "torch",
    activation_dtype: ActivationDtypeOption = "auto",
    num_threads: ThreadsOption = None,
    json_path: JsonOption = None,
) -> None:
    """Measure perplexity and, against a reference, KL(reference‖model) in nats and top-1 agreement; or run
    lm-eval's tasks.

    The text is cut in sequences, each read from an empty context. Both models run side by side in the torch
    executor, in float32 unless told otherwise, so that the difference is the checkpoint's and not the
    arithmetic's; with --executor native it is both.

    Example: `tightpack evaluate ./model-4bit --reference ./model --text held-out.txt --samples 64`

    Example: `tightpack evaluate ./model-4bit --tasks hellaswag,arc_easy --limit 200`
    """
    from rich.console import Console

    from tightpack.cli.result_file import check_writable

    check_writable(json_path)
    if (text is None) == (tasks is None):
        raise ValueError("give --text, or --tasks" + ("" if text is None else ", not both"))
    status = Console(stderr=True)
    started = time.monotonic()
    require_one_of("executor", executor, ("torch", "native"))
    require_one_of("activation_dtype", activation_dtype, ACTIVATION_DTYPES)
    if tasks is not None:
        if reference is not None:
            raise ValueError("--reference belongs to --text; run --tasks on the reference too, and compare")
        named = [task.strip() for task in tasks.split(",") if task.strip()]
        engine: dict[str, Any] = {
            "executor": executor,
            "activation_dtype": activation_dtype,
            "dtype": "auto" if executor == "native" else dtype,
            "device": device,
            "num_threads": num_threads,
        }
        found = _run_tasks(model, named, limit, num_fewshot, task_path, engine)
        _show_tasks(Console(), model, found)
        if json_path is not None:
            arguments = {"model": model, "tasks": named, "limit": limit, "num_fewshot": num_fewshot, **engine}
            _write(json_path, arguments, {"results": found}, time.monotonic() - started)
            status.print(f"wrote {json_path}", highlight=False, soft_wrap=True)
        return
    assert text is not None
    native = executor == "native"
    if native and reference is None:
        reference = model
    names = [model] if reference is None else [model, reference]
    with status.status(f"evaluating {' against '.join(names)}"):
        quality, model_name = _measure(
            model,
            reference,
            text,
            samples,
            sequence_length,
            skip,
            dtype,
            device,
            num_threads,
            native=native,
            activation_dtype=activation_dtype,
        )
    _show(Console(), model_name, quality)
    if json_path is not None:
        arguments = {
            "model": model,
            "reference": reference,
            "text": text,
            "samples": samples,
            "sequence_length": sequence_length,
            "skip": skip,
            "dtype": dtype,
            "device": device,
            "executor": executor,
            "activation_dtype": activation_dtype,
        }
        _write(json_path, arguments, dataclasses.asdict(quality), time.monotonic() - started)
        status.print(f"wrote {json_path}", highlight=False, soft_wrap=True)


def _measure(
    model: str,
    reference: str | None,
    text: str,
    samples: int | None,
    sequence_length: int,
    skip: int,
    dtype: str,
    device: str,
    num_threads: int | None,
    *,
    native: bool,
    activation_dtype: str,
) -> tuple[Quality, str]:
    from contextlib import ExitStack

    from tightpack.calibration.data_sets import open_text
    from tightpack.checkpoints.open import open_checkpoint
    from tightpack.evaluation.comparison import measure
    from tightpack.evaluation.sequence_logits import SequenceLogits
    from tightpack.torch_backend.sizing import resolve_device, resolve_dtype

    checkpoint = open_checkpoint(model)
    original = None if reference is None else open_checkpoint(reference)
    if original is not None and original.spec.vocab_size != checkpoint.spec.vocab_size:
        raise ValueError(
            f"{model} has a vocabulary of {checkpoint.spec.vocab_size} and {reference} of "
            f"{original.spec.vocab_size}: their distributions cannot be compared"
        )
    # The reference's tokenizer would give the same ids; the judged model's is the one that must be right.
    wanted = None if samples is None or skip < 0 else (skip + samples) * sequence_length
    tokens = open_text(text, checkpoint.tokenizer, wanted)
    sequences = tokens.sequences(sequence_length, skip=skip, count=samples)
    where = resolve_device(device)
    with ExitStack() as stack:

        def logits(of: Any, native: bool = False) -> SequenceLogits:
            return stack.enter_context(
                SequenceLogits(
                    of,
                    sequence_length=sequence_length,
                    dtype=resolve_dtype(dtype, of),
                    device=where,
                    num_threads=num_threads,
                    native=native,
                    activation_dtype=activation_dtype,
                )
            )

        own = logits(checkpoint, native).each(sequences)
        other = None if original is None else logits(original).each(sequences)
        return measure(sequences, own, other), checkpoint.name


def _run_tasks(
    model: str,
    tasks: list[str],
    limit: int | None,
    num_fewshot: int | None,
    task_path: Path | None,
    engine: dict[str, Any],
) -> dict[str, dict[str, float]]:
    from tightpack.llm import LLM

    try:
        from tightpack.task_evaluation import evaluate_tasks
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "lm_eval":
            raise
        raise ModuleNotFoundError(
            "--tasks needs lm-eval, which is not installed: pip install 'tightpack[eval]'", name="lm_eval"
        ) from error
    llm = LLM(model=model, **engine)
    try:
        return evaluate_tasks(llm, tasks, limit=limit, num_fewshot=num_fewshot, task_directory=task_path)
    finally:
        llm.engine.executor.close()


def _show_tasks(console: Any, name: str, found: dict[str, dict[str, float]]) -> None:
    from rich import box
    from rich.table import Table

    table = Table("task", "metric", title=name, title_style="bold", box=box.ROUNDED)
    table.add_column("value", justify="right")
    for task, metrics in found.items():
        for metric, value in metrics.items():
            if metric.endswith("_stderr") or metric in ("alias", "sample_len"):
                continue
            error = metrics.get(f"{metric}_stderr")
            table.add_row(task, metric, f"{value:.4f}" + ("" if error is None else f" ± {error:.4f}"))
    console.print(table)


def _show(console: Any, name: str, quality: Quality) -> None:
    from rich import box
    from rich.table import Table

    table = Table(title=name, title_style="bold", box=box.ROUNDED, show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(justify="right")
    table.add_row("perplexity", f"{quality.perplexity:.3f}")
    if quality.kl is not None:
        table.add_row("reference's perplexity", f"{quality.reference_perplexity:.3f}")
        table.add_row("KL(reference‖model), nats", f"{quality.kl:.5f}")
        table.add_row("top-1 agreement", f"{quality.top1_agreement:.4f}")
    table.add_row("tokens", f"{quality.tokens:,}")
    table.add_row("seconds", f"{quality.seconds:.1f}")
    console.print(table)


def _write(path: Path, arguments: dict[str, Any], results: dict[str, Any], seconds: float) -> None:
    import json

    from tightpack.benchmarking.machine import describe_machine

    report = {
        "arguments": arguments,
        **results,
        "seconds_in_all": seconds,
        "machine": describe_machine(),
    }
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
