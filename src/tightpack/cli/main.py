"""The `tightpack` command. Arguments and environment are read in this folder and nowhere else."""

from __future__ import annotations

import os
import signal
import sys

import typer

from tightpack.cli.batch import batch
from tightpack.cli.bench import bench, report
from tightpack.cli.calibrate_cost import calibrate_cost
from tightpack.cli.chat import chat
from tightpack.cli.cluster import cluster
from tightpack.cli.convert import convert
from tightpack.cli.demo import demo
from tightpack.cli.evaluate import evaluate
from tightpack.cli.generate import generate
from tightpack.cli.inspect import inspect
from tightpack.cli.plan import plan
from tightpack.cli.quantize import quantize
from tightpack.cli.serve import serve

app = typer.Typer(
    name="tightpack",
    help="Quantize, batch and serve language models. MODEL is smollm2-135m (bundled, the default), a Hugging "
    "Face directory, a GGUF file or a hub id.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # the drawn tables cut option names at 80 columns
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# In the list of commands, where 58 characters are seen at 80 columns.
for command, summary in (
    (demo, "See both levers on a real model, in about two minutes."),
    (generate, "Complete one prompt."),
    (chat, "Talk with a model."),
    (serve, "Serve a model over OpenAI's HTTP API."),
    (cluster, "Serve pools of replicas behind one address (Ray)."),
    (batch, "Answer the requests of an OpenAI batch file."),
    (inspect, "Print a model's parameters, bytes and KV bytes a token."),
    (convert, "Write a checkpoint as a bf16 Hugging Face directory."),
    (quantize, "Make a checkpoint smaller, and say what it cost."),
    (evaluate, "Measure perplexity, KL divergence and lm-eval's tasks."),
    (bench, "Compare policies, rates and servers on one workload."),
    (report, "Show results as one self-contained page of charts."),
    (calibrate_cost, "Fit a cost model of this machine, for simulations."),
    (plan, "Find the cheapest hardware that keeps latency targets."),
):
    app.command(short_help=summary)(command)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    if version:
        from importlib.metadata import version as installed_version

        typer.echo(installed_version("tightpack"))
        raise typer.Exit


def main() -> None:
    """The entry point: what the user can mend is one line on standard error, and exit code 2."""
    # OpenMP's threads spin while they wait, and when another process wants the cores (a client, the HTTP
    # server) a step takes 3 to 20 times as long. A short spin costs 2 ms a step on an idle machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        app()
    except (ValueError, TypeError, OSError, ModuleNotFoundError, MemoryError) as error:
        if os.environ.get("TIGHTPACK_TRACEBACK"):
            raise
        print(f"error: {_in_words(error)}", file=sys.stderr)
        print("(TIGHTPACK_TRACEBACK=1 shows where it came from)", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            print(file=sys.stderr)  # the prompt of the shell begins a line
        sys.exit(128 + signal.SIGINT)


def _in_words(error: Exception) -> str:
    """A failed system call without its number: "text.txt: no such file or directory"."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror[:1].lower()}{error.strerror[1:]}"
    return str(error)


if __name__ == "__main__":
    main()
