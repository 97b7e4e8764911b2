"""`tightpack bench`: one seeded workload under several batching policies."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tightpack.cli.options import (
    ActivationDtypeOption,
    DeviceOption,
    DtypeOption,
    ExecutorOption,
    KVCacheDtypeOption,
    ModelArgument,
    QuantizationOption,
    ThreadsOption,
    ThresholdOption,
)
from tightpack.engine_args import DEFAULT_MODEL, LLM_INT8_THRESHOLD
from tightpack.requests.arguments import nearest_hint

if TYPE_CHECKING:
    from tightpack.benchmarking.driver import Progress
    from tightpack.benchmarking.report import PolicyRun
    from tightpack.benchmarking.workload import RequestShape, Workload
    from tightpack.llm import Engine
    from tightpack.progress import Advance

_REQUESTS, _INPUT_LEN, _OUTPUT_LEN = 32, 128, 64
# Well under the default number of requests: with one batch for all there would be no policy to compare.
_MAX_NUM_SEQS = 8


def _option(help: str, *names: str, metavar: str | None = None) -> Any:
    """An option of the workload's panel in the help."""
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel="Workload")


PoliciesOption = Annotated[
    str | None, typer.Option(metavar="P,P,…", help="Those to compare, comma-separated.  [default: all]")
]
RequestsOption = Annotated[int | None, _option(f"How many.  [default: {_REQUESTS}]")]
InputLenOption = Annotated[int | None, _option(f"Prompt tokens of each.  [default: {_INPUT_LEN}]")]
OutputLenOption = Annotated[int | None, _option(f"Output tokens of each.  [default: {_OUTPUT_LEN}]")]
MixedOption = Annotated[
    bool, _option("Long-tailed (log-normal) lengths; those above are their means.", "--mixed")
]
RateOption = Annotated[float | None, _option("Poisson arrivals a second; without it all come at once.")]
TraceOption = Annotated[
    Path | None,
    _option(
        "Replay arrivals and lengths from TIMESTAMP, ContextTokens and GeneratedTokens.", metavar="FILE.csv"
    ),
]
TimeScaleOption = Annotated[
    float | None, _option("Multiply the trace's gaps; 2 halves the load.  [default: 1]")
]
ScenarioOption = Annotated[
    str | None,
    _option("What `tightpack demo` runs, limits included: demo or long-prompt.", metavar="NAME"),
]
SeedOption = Annotated[int, _option("Of lengths, arrivals and prompts.")]
MaxNumSeqsOption = Annotated[
    int | None, typer.Option(help=f"Requests in a batch at the most.  [default: {_MAX_NUM_SEQS}]")
]
MaxNumBatchedTokensOption = Annotated[
    int | None,
    typer.Option(
        help="Tokens a step of chunked-prefill; the others take whole prompts.  [default: by device]"
    ),
]
MaxModelLenOption = Annotated[
    int | None, typer.Option(help="Context; longer requests are clipped.  [default: the model's]")
]
PrefixCachingOption = Annotated[
    bool,
    typer.Option("--enable-prefix-caching", help="Off unless given: random prompts share no beginnings."),
]
NoWarmupOption = Annotated[
    bool, typer.Option("--no-warmup", help="Measure at once, without a few short requests before.")
]
RepeatsOption = Annotated[
    int, typer.Option(help="Runs of each policy, in turns; that of median throughput is shown.")
]
JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="OUT.json", help="Write the results to this file.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What to run. limits: policy to the engine arguments that it runs under."""

    description: str
    shapes: list[RequestShape]
    limits: Mapping[str, Mapping[str, int | None]]
    max_model_len: int | None

    @property
    def max_num_seqs(self) -> int:
        return max(limits["max_num_seqs"] or 1 for limits in self.limits.values())


def bench(
    model: ModelArgument = DEFAULT_MODEL,
    policies: PoliciesOption = None,
    requests: RequestsOption = None,
    input_len: InputLenOption = None,
    output_len: OutputLenOption = None,
    mixed: MixedOption = False,
    rate: RateOption = None,
    trace: TraceOption = None,
    time_scale: TimeScaleOption = None,
    scenario: ScenarioOption = None,
    seed: SeedOption = 0,
    max_num_seqs: MaxNumSeqsOption = None,
    max_num_batched_tokens: MaxNumBatchedTokensOption = None,
    max_model_len: MaxModelLenOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    executor: ExecutorOption = "auto",
    activation_dtype: ActivationDtypeOption = "auto",
    quantization: QuantizationOption = None,
    llm_int8_threshold: ThresholdOption = LLM_INT8_THRESHOLD,
    kv_cache_dtype: KVCacheDtypeOption = "auto",
    num_threads: ThreadsOption = None,
    enable_prefix_caching: PrefixCachingOption = False,
    no_warmup: NoWarmupOption = False,
    repeats: RepeatsOption = 1,
    json_path: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Run one seeded workload under each policy: throughput, latency percentiles, goodput.

    Prompts are random tokens, and every request gives exactly the output asked for, greedily. Requests come
    when they are due whether the engine is ready for them or not (open loop), so waiting is measured.

    Example: `tightpack bench --requests 32 --input-len 128 --output-len 64 --mixed --rate 4 --json run.json`
    """
    arguments = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in locals().items()
        if name not in ("json_path", "quiet")
    }
    _check_numbers(arguments)
    plan = _plan(arguments)
    check_writable(json_path)

    # Imported here, so that other commands start without them.
    from rich.console import Console

    from tightpack.benchmarking.comparison import compare_policies, warm_up
    from tightpack.benchmarking.report import to_json, write_json
    from tightpack.benchmarking.vocabulary import ordinary_token_ids
    from tightpack.benchmarking.workload import build_workload
    from tightpack.engine_args import EngineArgs
    from tightpack.llm import load_engine

    status = Console(stderr=True, quiet=quiet)
    with status.status(f"loading {model}"):
        engine = load_engine(
            EngineArgs(
                model=model,
                dtype=dtype,
                device=device,
                executor=executor,
                activation_dtype=activation_dtype,
                quantization=quantization,
                llm_int8_threshold=llm_int8_threshold,
                kv_cache_dtype=kv_cache_dtype,
                num_threads=num_threads,
                max_model_len=plan.max_model_len,
                enable_prefix_caching=enable_prefix_caching,
                max_num_seqs=plan.max_num_seqs,
                max_queue=max(1024, len(plan.shapes)),
            )
        )
    try:
        vocabulary = ordinary_token_ids(engine.checkpoint.tokenizer)
        workload = build_workload(plan.description, plan.shapes, vocabulary, engine.max_model_len, seed)
        if not no_warmup:
            with status.status("warming up"):
                policy = next(iter(plan.limits))
                warm_up(engine.with_policy(policy, **plan.limits[policy]).loop, workload)
        runs = compare_policies(
            lambda policy: engine.with_policy(policy, **plan.limits[policy]).loop,
            list(plan.limits),
            workload,
            repeats=repeats,
            observer=None if quiet else _Bars(),
        )
    finally:
        engine.executor.close()
    _show(Console(), engine, workload, runs)
    if json_path is not None:
        limits = {policy: dict(limits) for policy, limits in plan.limits.items()}
        report = to_json(
            model=engine.checkpoint.name,
            executor=engine.executor.description,
            arguments={**arguments, "limits": limits},
            workload=workload,
            repeats=runs,
        )
        write_json(json_path, report)
        status.print(f"wrote {json_path}", highlight=False, soft_wrap=True)


def _show(console: Any, engine: Engine, workload: Workload, runs: list[list[PolicyRun]]) -> None:
    from tightpack.benchmarking.report import median_run, results_table, table_notes

    shown = [median_run(repeated) for repeated in runs]
    where = ", ".join(f"{key} {value}" for key, value in engine.executor.description.items())
    console.print(f"[bold]{engine.checkpoint.name}[/bold]: {where}", highlight=False)
    console.print(
        f"{workload.description}; in all {workload.num_input_tokens} prompt tokens,"
        f" {workload.num_output_tokens} output tokens",
        highlight=False,
    )
    if workload.num_clipped:
        clipped = f"{workload.num_clipped} of {len(workload.requests)} requests were clipped"
        console.print(f"{clipped} to the context of {engine.max_model_len} tokens.", style="yellow")
    console.print(results_table(shown))
    for note in table_notes(workload, shown):
        console.print(note, highlight=False)


class _Bars:
    """A progress bar a run."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._advance: Advance | None = None
        self._seen = (0, 0)

    def started(self, policy: str, total: int) -> None:
        from tightpack.progress import progress_bar

        self._seen = (0, 0)
        self._advance = self._stack.enter_context(progress_bar(total, f"{policy:15}"))

    def progressed(self, policy: str, progress: Progress) -> None:
        if self._advance is not None:
            ended, tokens = self._seen
            self._advance(progress.ended - ended, progress.output_tokens - tokens)
            self._seen = (progress.ended, progress.output_tokens)

    def ended(self, run: PolicyRun) -> None:
        self._stack.close()


def _plan(arguments: Mapping[str, Any]) -> _Plan:
    """The workload that the options describe. Raises ValueError for options that do not go together."""
    if arguments["scenario"] is not None:
        return _scenario_plan(arguments)
    policies = _policies(arguments["policies"])
    limits = {
        policy: {
            "max_num_seqs": arguments["max_num_seqs"] or _MAX_NUM_SEQS,
            "max_num_batched_tokens": arguments["max_num_batched_tokens"]
            if policy == "chunked-prefill"
            else None,
        }
        for policy in policies
    }
    drawn = arguments["trace"] is None
    description, shapes = _drawn_shapes(arguments) if drawn else _trace_shapes(arguments)
    return _Plan(description, shapes, limits, arguments["max_model_len"])


def _scenario_plan(arguments: Mapping[str, Any]) -> _Plan:
    from tightpack.benchmarking.scenarios import scenarios

    name = arguments["scenario"]
    known = scenarios(arguments["seed"])
    if name not in known:
        raise ValueError(f"no scenario is named {name!r}; {nearest_hint(name, known, 'there are')}")
    _refuse_beside(
        arguments,
        "--scenario brings its own workload and limits",
        *("requests", "input_len", "output_len", "mixed", "rate", "trace", "time_scale"),
        *("max_num_seqs", "max_num_batched_tokens", "max_model_len"),
    )
    chosen = known[name]
    policies = _policies(arguments["policies"] or ",".join(chosen.policies))
    limits = {policy: chosen.limits(policy) for policy in policies}
    return _Plan(chosen.description, list(chosen.requests), limits, chosen.max_model_len)


def _trace_shapes(arguments: Mapping[str, Any]) -> tuple[str, list[RequestShape]]:
    from tightpack.benchmarking.trace import read_trace

    _refuse_beside(
        arguments, "--trace brings its own lengths and arrivals", "input_len", "output_len", "mixed", "rate"
    )
    path, scale = Path(arguments["trace"]), arguments["time_scale"] or 1.0
    shapes = read_trace(path, arguments["requests"] or _REQUESTS, scale)
    scaled = f", gaps times {scale:g}" if scale != 1 else ""
    return f"the first {len(shapes)} requests of {path.name}{scaled}", shapes


def _drawn_shapes(arguments: Mapping[str, Any]) -> tuple[str, list[RequestShape]]:
    from tightpack.benchmarking import workload

    if arguments["time_scale"] is not None:
        raise ValueError("--time-scale stretches a trace; give --trace FILE.csv as well")
    count = arguments["requests"] or _REQUESTS
    input_len = arguments["input_len"] or _INPUT_LEN
    output_len = arguments["output_len"] or _OUTPUT_LEN
    seed, rate = arguments["seed"], arguments["rate"]
    if arguments["mixed"]:
        lengths = workload.mixed_lengths(count, input_len, output_len, seed)
        described = f"mixed lengths (means about {input_len} in, {output_len} out)"
    else:
        lengths = workload.fixed_lengths(count, input_len, output_len)
        described = f"{input_len} tokens in, {output_len} out"
    arrivals = workload.arrive_at_once(count) if rate is None else workload.arrive_poisson(count, rate, seed)
    coming = "all at once" if rate is None else f"{rate:g} a second"
    return f"{count} requests, {described}, {coming}", workload.shapes(lengths, arrivals)


def _policies(listed: str | None) -> list[str]:
    from tightpack.scheduling.registry import POLICY_NAMES

    if listed is None:
        return list(POLICY_NAMES)
    names = [name.strip() for name in listed.split(",") if name.strip()]
    if not names:
        raise ValueError(f"--policies names none; there are {', '.join(POLICY_NAMES)}")
    for name in names:
        if name not in POLICY_NAMES:
            raise ValueError(f"no policy is named {name!r}; {nearest_hint(name, POLICY_NAMES, 'there are')}")
        if names.count(name) > 1:
            raise ValueError(f"--policies names {name} twice; --repeats runs each policy more than once")
    return names


def _check_numbers(arguments: Mapping[str, Any]) -> None:
    for name in (
        *("requests", "input_len", "output_len", "repeats"),
        *("max_num_seqs", "max_num_batched_tokens", "num_threads"),
    ):
        if arguments[name] is not None and arguments[name] < 1:
            raise ValueError(f"{_spelled(name)} must be at least 1, got {arguments[name]}")
    if arguments["max_model_len"] is not None and arguments["max_model_len"] < 2:
        raise ValueError(f"--max-model-len must be at least 2, got {arguments['max_model_len']}")
    for name in ("rate", "time_scale"):
        if arguments[name] is not None and not 0 < arguments[name] < float("inf"):
            raise ValueError(f"{_spelled(name)} must be above 0, got {arguments[name]:g}")


def check_writable(path: Path | None) -> None:
    """Refuse a --json that cannot be written before minutes of measuring, not after."""
    if path is not None and path.is_dir():
        raise ValueError(f"--json {path} is a directory; name a file")
    if path is not None and not path.parent.is_dir():
        raise ValueError(f"--json {path}: there is no directory {path.parent}")


def _refuse_beside(arguments: Mapping[str, Any], because: str, *names: str) -> None:
    for name in names:
        if arguments[name] not in (None, False):
            raise ValueError(f"{because}; drop {_spelled(name)}")


def _spelled(name: str) -> str:
    return "--" + name.replace("_", "-")
