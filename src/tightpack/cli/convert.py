"""`tightpack convert`: any checkpoint as a bf16 Hugging Face directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tightpack.cli.options import ModelArgument


def convert(
    model: ModelArgument = "smollm2-135m",
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Directory to write; must be new or empty.")
    ],
) -> None:
    """Write a checkpoint as a bf16 Hugging Face directory that transformers, vLLM and others load.

    Example: `tightpack convert model.Q4_K_M.gguf -o model-bf16`
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from tightpack.checkpoints.conversion import convert_checkpoint, refuse_occupied
    from tightpack.checkpoints.open import open_checkpoint

    refuse_occupied(output)
    checkpoint = open_checkpoint(model)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(f"writing {output}", total=2 * checkpoint.num_parameters)
        convert_checkpoint(
            checkpoint, output, written=lambda num_bytes: progress.update(task, advance=num_bytes)
        )
    typer.echo(f"{output}: {checkpoint.num_parameters:,} parameters in bf16")
