"""`tightpack demo`: a tour of both levers, precision and batching, on this machine."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tightpack.cli.options import (
    ActivationDtypeOption,
    DeviceOption,
    DtypeOption,
    ExecutorOption,
    ModelArgument,
    ThreadsOption,
    engine_options,
)
from tightpack.cli.result_file import JsonOption, check_writable
from tightpack.engine_args import DEFAULT_MODEL

if TYPE_CHECKING:
    from rich.console import Console

    from tightpack.benchmarking.tour.recommendation import Choice
    from tightpack.cli.demo_tour import Tour
    from tightpack.engine import Engine

_QUESTION = "What is the capital of France?"
_ANSWER_TOKENS = 48
_PAGE = "tightpack-demo.html"

SecondsOption = Annotated[
    float, typer.Option(min=0.05, help="How long requests arrive in each of the runs (5 a precision).")
]
MaxKlOption = Annotated[
    float,
    typer.Option(
        "--max-kl", min=0.0, help="Quality bound of the recommendation: KL from the original, in nats."
    ),
]
HtmlOption = Annotated[
    Path | None,
    typer.Option("--html", metavar="OUT.html", help=f"Where the page goes.  [default: ./{_PAGE}]"),
]
SeedOption = Annotated[int, typer.Option(help="Of the workload's lengths, arrivals and prompts.")]


def demo(
    model: ModelArgument = DEFAULT_MODEL,
    seconds: SecondsOption = 5.0,
    max_kl: MaxKlOption = 0.05,
    seed: SeedOption = 0,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    executor: ExecutorOption = "auto",
    activation_dtype: ActivationDtypeOption = "auto",
    num_threads: ThreadsOption = None,
    html_path: HtmlOption = None,
    json_path: JsonOption = None,
) -> None:
    """A tour of both levers in about two minutes: the model in bf16, INT8 and INT4, each under every batching
    policy on one mixed workload; what each costs in quality, and which to serve with.

    The load follows from a short measurement of this machine, so that a laptop and a server both show the
    differences. Results go to the terminal and to a page of charts.

    Example: `tightpack demo --json demo.json`
    """
    given = locals()
    check_writable(json_path)
    check_writable(html_path, "--html")
    page = html_path or _default_page()
    # Imported here, so that other commands start without them.
    from rich.console import Console

    from tightpack.benchmarking.html.page import write_page
    from tightpack.benchmarking.report import write_json
    from tightpack.benchmarking.tour.precision_runs import candidates
    from tightpack.benchmarking.tour.recommendation import recommend
    from tightpack.benchmarking.tour.table import tour_table
    from tightpack.benchmarking.tour.words import both_levers, choice_in_words
    from tightpack.cli.demo_tour import Tour
    from tightpack.engine_args import EngineArgs

    console = Console(highlight=False)
    args = EngineArgs(**engine_options(given), enable_prefix_caching=False)
    tour = Tour(console, args, seconds=seconds, seed=seed)
    found = tour.play(_ask)
    choice = recommend(candidates(found), max_kl)
    console.print(tour_table(found, choice.winner))
    for note in tour.notes():
        console.print(note, style="dim")
    console.print()
    for sentence in both_levers(found):
        console.print(f"[bold cyan]›[/bold cyan] {sentence}")
    why = choice_in_words(choice, max_kl)
    _say_choice(console, why, _serve_line(tour, choice, _command()))
    report = tour.report(found) | {
        "recommendation": _as_json(choice, max_kl, _serve_line(tour, choice, "tightpack"), why)
    }
    write_page(page, [report])
    console.print(f"\nCharts of all of it: {page}", soft_wrap=True)
    if json_path is not None:
        write_json(json_path, report)
        console.print(f"Every number: {json_path}", soft_wrap=True)


def _default_page() -> Path:
    """In the current directory, or where temporary files go if that cannot be written."""
    here = Path(_PAGE)
    return here if os.access(Path.cwd(), os.W_OK) else Path(tempfile.mkdtemp(prefix="tightpack-")) / _PAGE


def _ask(console: Console, engine: Engine) -> None:
    """One question, through the chat template where there is one; the answer as it comes."""
    from tightpack.requests.request import Request
    from tightpack.requests.sampling_params import SamplingParams
    from tightpack.serving_loop.text_stream import CompletionStream

    tokenizer = engine.checkpoint.tokenizer
    if tokenizer.has_chat_template:
        prompt = tokenizer.render_chat([{"role": "user", "content": _QUESTION}], add_generation_prompt=True)
        token_ids = tokenizer.encode(prompt, add_special_tokens=False)
    else:
        token_ids = tokenizer.encode(_QUESTION)
    params = SamplingParams(temperature=0, max_tokens=_ANSWER_TOKENS)
    loop = engine.with_policy("continuous").loop
    request = Request(
        request_id="question",
        prompt_token_ids=tuple(token_ids),
        params=params,
        seed=0,
        max_output_tokens=_ANSWER_TOKENS,
        eos_token_ids=frozenset(tokenizer.eos_token_ids) | frozenset(engine.checkpoint.spec.eos_token_ids),
        arrival_time=loop.clock.now(),
    )
    answer = CompletionStream(0, params, tokenizer.decode)
    console.print(f"[bold cyan]You[/bold cyan]    {_QUESTION}")
    console.print("[bold green]Model[/bold green]  ", end="")
    loop.add(request)
    while loop.has_unfinished:
        for update in loop.step():
            console.print(answer.push(update).text, end="", markup=False, soft_wrap=True)
    console.print("\n")


def _serve_line(tour: Tour, choice: Choice, program: str) -> str:
    """What a shell takes to serve as the winner was measured. program: how it finds this one."""
    given = tour.args.model
    precision = tour.precision(choice.winner.precision)
    options = [*precision.serve, "--policy", choice.winner.policy, *tour.serve_options(choice.winner.policy)]
    if not precision.needs_conversion:
        named = [] if given == DEFAULT_MODEL else [given]
        return f"{program} serve {shlex.join([*named, *options])}"
    directory = f"{Path(given).stem or 'model'}-bf16"
    convert = f"{program} convert {shlex.join([given])} -o {directory}"
    return f"{convert} && {program} serve {shlex.join([directory, *options])}"


def _say_choice(console: Console, why: Sequence[str], line: str) -> None:
    console.print()
    console.rule("[bold]Serve it like this[/bold]", align="left")
    for sentence in why:
        console.print(sentence, markup=False)
    shown = _in_lines(line, console.width - 4)
    console.print(f"\n{shown}\n", style="bold green", markup=False, soft_wrap=True)
    console.print(
        "  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\\n"
        """    -d '{"service_tier": "priority",\n"""
        f"""         "messages": [{{"role": "user", "content": "{_QUESTION}"}}]}}'""",
        style="dim",
        markup=False,
        soft_wrap=True,
    )


def _in_lines(line: str, width: int) -> str:
    """A command as a shell takes it, broken before options where it is too long."""
    lines = [""]
    for part in line.replace(" --", "\n--").replace(" && ", " &&\n").split("\n"):
        if lines[-1] and (len(lines[-1]) + len(part) + 3 > width or lines[-1].endswith("&&")):
            lines.append(part)
        else:
            lines[-1] = f"{lines[-1]} {part}".strip()
    broken = [one if one.endswith("&&") else f"{one} \\" for one in lines[:-1]]
    return "\n".join(f"  {'    ' * (index > 0)}{one}" for index, one in enumerate([*broken, lines[-1]]))


def _as_json(choice: Choice, max_kl: float, line: str, why: Sequence[str]) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(choice), "max_kl": max_kl, "serve": line, "why": why}


def _command() -> str:
    """How this shell would find the program: its bare name where PATH has it, else the path it was run by."""
    import shutil
    import sys

    if shutil.which("tightpack"):
        return "tightpack"
    beside = Path(sys.executable).parent / "tightpack"
    return os.path.relpath(beside) if beside.exists() else "tightpack"
