"""`tightpack demo`: a question answered, and what batching policies do to a busy server."""

from __future__ import annotations

import os
from collections.abc import Callable
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
)
from tightpack.cli.result_file import JsonOption, check_writable
from tightpack.engine_args import DEFAULT_MODEL

if TYPE_CHECKING:
    from rich.console import Console

    from tightpack.benchmarking.outcomes import Progress
    from tightpack.benchmarking.policy_run import PolicyRun
    from tightpack.benchmarking.scenarios import Scenario
    from tightpack.benchmarking.workload import Workload
    from tightpack.llm import Engine

_QUESTION = "What is the capital of France?"
_ANSWER_TOKENS = 48

SeedOption = Annotated[int, typer.Option(help="Of the workload's lengths, arrivals and prompts.")]


def demo(
    model: ModelArgument = DEFAULT_MODEL,
    seed: SeedOption = 0,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    executor: ExecutorOption = "auto",
    activation_dtype: ActivationDtypeOption = "auto",
    num_threads: ThreadsOption = None,
    json_path: JsonOption = None,
) -> None:
    """Ask the model one question, then run mixed requests under four batching policies. About a minute.

    `tightpack bench --scenario demo` and `--scenario long-prompt` measure the same with more options.

    Example: `tightpack demo --json demo.json`
    """
    check_writable(json_path)
    # Imported here, so that other commands start without them.
    from rich.console import Console

    from tightpack.benchmarking import observations
    from tightpack.benchmarking.comparison import WARM_UP_REQUESTS
    from tightpack.benchmarking.manifest import Conditions, manifest
    from tightpack.benchmarking.report import to_json, write_json
    from tightpack.benchmarking.scenarios import scenarios
    from tightpack.engine_args import EngineArgs
    from tightpack.llm import load_engine

    console = Console(highlight=False)
    shown = scenarios(seed)
    mixed, long_prompt = shown["demo"], shown["long-prompt"]
    with console.status(f"loading {model}"):
        engine = load_engine(
            EngineArgs(
                model=model,
                dtype=dtype,
                device=device,
                executor=executor,
                activation_dtype=activation_dtype,
                num_threads=num_threads,
                max_num_seqs=max(mixed.max_num_seqs, long_prompt.max_num_seqs),
                max_model_len=max(mixed.max_model_len, long_prompt.max_model_len),
                enable_prefix_caching=False,
            )
        )
    try:
        _introduce(console, engine)
        _ask(console, engine)
        workload, runs = _play(console, engine, mixed, seed)
        _conclude(console, observations.against_baseline(runs))
        long_workload, long_runs = _play(console, engine, long_prompt, seed)
        _conclude(console, observations.while_a_long_prompt_arrives(long_runs))
    finally:
        engine.executor.close()
    if json_path is not None:
        arguments = {
            "model": model,
            "seed": seed,
            "dtype": dtype,
            "device": device,
            "executor": executor,
            "activation_dtype": activation_dtype,
            "num_threads": num_threads,
        }
        head = manifest(
            model=engine.checkpoint.name,
            label=_label(engine),
            executor=engine.executor.description,
            arguments={**arguments, "limits": {run.policy: mixed.limits(run.policy) for run in runs}},
        )
        conditions = Conditions(WARM_UP_REQUESTS, prefix_caching=False, kv_cache_at_start="empty")
        report = to_json(head, conditions, [workload], [[run] for run in runs])
        report["long_prompt"] = {
            "limits": {run.policy: long_prompt.limits(run.policy) for run in long_runs},
            **_as_scene(long_workload, long_runs),
        }
        write_json(json_path, report)
        console.print(f"wrote {json_path}\n", soft_wrap=True)
    _say_how_to_serve(console, model, engine)


def _label(engine: Engine) -> str:
    """The precision of the weights, in a word."""
    where = engine.executor.description
    computed_as_stored = where["backend"] == "native" and where["quantization"] != "none"
    return where["quantization"] if computed_as_stored else where["dtype"]


def _introduce(console: Console, engine: Engine) -> None:
    seconds = sum(engine.load_seconds.values())
    parameters = engine.checkpoint.num_parameters / 1e6
    where = engine.executor.description
    weights = where.get("weights", where["dtype"])
    console.print(
        f"[bold]{engine.checkpoint.name}[/bold]: {parameters:.0f}M parameters, {weights}"
        f" on {where['device']}, ready in {seconds:.1f} s\n"
    )


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


def _play(
    console: Console, engine: Engine, scenario: Scenario, seed: int
) -> tuple[Workload, list[PolicyRun]]:
    """Run a scenario under its policies, with a table that fills as they end."""
    from rich.live import Live

    from tightpack.benchmarking.comparison import compare_policies, warm_up
    from tightpack.benchmarking.results_table import results_table, table_notes
    from tightpack.benchmarking.target import InProcess
    from tightpack.benchmarking.vocabulary import ordinary_token_ids
    from tightpack.benchmarking.workload import build_workload

    vocabulary = ordinary_token_ids(engine.checkpoint.tokenizer)
    workload = build_workload(
        scenario.description,
        scenario.requests,
        vocabulary,
        min(scenario.max_model_len, engine.max_model_len),
        seed,
    )

    def make_loop(policy: str, **limits: Any) -> Any:
        return engine.with_policy(policy, **limits).loop

    target = InProcess(make_loop, {policy: scenario.limits(policy) for policy in scenario.policies})

    console.rule(f"[bold]{scenario.description}[/bold]", align="left")
    with Live(console=console, refresh_per_second=8, transient=True) as live:
        table = _LiveTable(live.update, console)
        live.update("warming up")
        warm_up(target, scenario.policies[-1], workload)
        runs = [run for [run] in compare_policies(target, scenario.policies, [workload], observer=table)]
    console.print(results_table(runs))
    for note in table_notes(workload, runs):
        console.print(note, style="dim")
    return workload, runs


class _LiveTable:
    """The results so far, and a line on the run under way."""

    def __init__(self, show: Callable[[Any], None], console: Console) -> None:
        self._show = show
        self._console = console
        self._runs: list[PolicyRun] = []
        self._table: Any = None

    def started(self, policy: str, total: int) -> None:
        from tightpack.benchmarking.results_table import results_table

        self._table = results_table(self._runs)

    def progressed(self, policy: str, progress: Progress) -> None:
        from rich.console import Group
        from rich.text import Text

        rate = progress.output_tokens / progress.elapsed_s if progress.elapsed_s > 0 else 0.0
        line = f"{policy}: {progress.ended} of {progress.total} requests done, {rate:.0f} tokens/s"
        self._show(Group(self._table, Text(line, style="cyan")))

    def ended(self, run: PolicyRun) -> None:
        self._runs.append(run)
        if not self._console.is_terminal:  # a log, where the live table does not show
            self._console.print(f"{run.policy}: {run.completed} requests in {run.duration_s:.1f} s")


def _conclude(console: Console, sentence: str | None) -> None:
    if sentence is not None:
        console.print(f"\n[bold]What to see:[/bold] {sentence}")
    console.print()


def _as_scene(workload: Workload, runs: list[PolicyRun]) -> dict[str, Any]:
    from tightpack.benchmarking.report import describe_workload, run_to_json

    return {"workload": describe_workload(workload), "runs": [run_to_json(run) for run in runs]}


def _say_how_to_serve(console: Console, model: str, engine: Engine) -> None:
    named = "" if model == DEFAULT_MODEL else f" {model}"
    served = engine.checkpoint.name
    console.rule("[bold]Serve it[/bold]", align="left")
    console.print(f"  {_command()} serve{named}\n", style="bold", soft_wrap=True)
    console.print(
        "  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\\n"
        f"""    -d '{{"model": "{served}", "messages": [{{"role": "user", "content": "{_QUESTION}"}}]}}'""",
        markup=False,
        soft_wrap=True,
    )


def _command() -> str:
    """How this shell would find the program: its bare name where PATH has it, else the path it was run by."""
    import shutil
    import sys

    if shutil.which("tightpack"):
        return "tightpack"
    beside = Path(sys.executable).parent / "tightpack"
    return os.path.relpath(beside) if beside.exists() else "tightpack"
