"""`tightpack evaluate`: perplexity, KL divergence and top-1 agreement on a text."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from tightpack.cli.option_values import listed_names
from tightpack.cli.options import ActivationDtypeOption, DeviceOption, ModelArgument, ThreadsOption
from tightpack.cli.result_file import JsonOption, check_writable
from tightpack.engine_args import ACTIVATION_DTYPES
from tightpack.requests.arguments import require_one_of

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

    from tightpack.cli.evaluate_tables import show_quality, show_tasks

    check_writable(json_path)
    if (text is None) == (tasks is None):
        raise ValueError("give --text, or --tasks" + ("" if text is None else ", not both"))
    require_one_of("executor", executor, ("torch", "native"))
    require_one_of("activation_dtype", activation_dtype, ACTIVATION_DTYPES)
    status = Console(stderr=True)
    started = time.monotonic()
    arguments: dict[str, Any] = {"model": model}
    if tasks is not None:
        if reference is not None:
            raise ValueError("--reference belongs to --text; run --tasks on the reference too, and compare")
        named = listed_names("--tasks", tasks)
        engine = {
            "executor": executor,
            "activation_dtype": activation_dtype,
            "dtype": "auto" if executor == "native" else dtype,
            "device": device,
            "num_threads": num_threads,
        }
        found = _run_tasks(model, named, limit, num_fewshot, task_path, engine)
        show_tasks(Console(), model, found)
        arguments |= {"tasks": named, "limit": limit, "num_fewshot": num_fewshot, **engine}
        results: dict[str, Any] = {"results": found}
    else:
        assert text is not None
        from tightpack.evaluation.on_text import TextEvaluation

        native = executor == "native"
        if native and reference is None:
            reference = model
        asked: dict[str, Any] = {
            "text": text,
            "samples": samples,
            "sequence_length": sequence_length,
            "skip": skip,
            "dtype": dtype,
            "device": device,
            "activation_dtype": activation_dtype,
        }
        evaluation = TextEvaluation(**asked, num_threads=num_threads, native=native)
        with status.status(f"evaluating {model if reference is None else f'{model} against {reference}'}"):
            quality, name = evaluation.of(model, reference)
        show_quality(Console(), name, quality)
        arguments |= {"reference": reference, **asked, "executor": executor}
        results = dataclasses.asdict(quality)
    if json_path is not None:
        _write(json_path, arguments, results, time.monotonic() - started)
        status.print(f"wrote {json_path}", highlight=False, soft_wrap=True)


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
