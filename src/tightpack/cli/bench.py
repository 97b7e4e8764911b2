"""`tightpack bench`: seeded workloads under several batching policies, here or on a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from tightpack.cli import bench_options as options
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
from tightpack.cli.result_file import JsonOption, check_writable
from tightpack.engine_args import DEFAULT_MODEL, LLM_INT8_THRESHOLD

# What says where results go and who asks, not what is measured: it stands in no manifest.
_UNRECORDED = ("json_path", "html_path", "beside", "quiet", "api_key")


def bench(
    model: ModelArgument = DEFAULT_MODEL,
    policies: options.PoliciesOption = None,
    requests: options.RequestsOption = None,
    input_len: options.InputLenOption = None,
    output_len: options.OutputLenOption = None,
    mixed: options.MixedOption = False,
    rate: options.RateOption = None,
    burstiness: options.BurstinessOption = None,
    clients: options.ClientsOption = None,
    trace: options.TraceOption = None,
    trace_skip: options.TraceSkipOption = None,
    time_scale: options.TimeScaleOption = None,
    length_scale: options.LengthScaleOption = None,
    service_class: options.ServiceClassOption = None,
    mix: options.MixOption = None,
    scenario: options.ScenarioOption = None,
    seed: options.SeedOption = 0,
    max_num_seqs: options.MaxNumSeqsOption = None,
    max_num_batched_tokens: options.MaxNumBatchedTokensOption = None,
    max_model_len: options.MaxModelLenOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    executor: ExecutorOption = "auto",
    activation_dtype: ActivationDtypeOption = "auto",
    quantization: QuantizationOption = None,
    llm_int8_threshold: ThresholdOption = LLM_INT8_THRESHOLD,
    kv_cache_dtype: KVCacheDtypeOption = "auto",
    num_threads: ThreadsOption = None,
    enable_prefix_caching: options.PrefixCachingOption = False,
    no_warmup: options.NoWarmupOption = False,
    simulate: options.SimulateOption = None,
    repeats: options.RepeatsOption = 1,
    url: options.UrlOption = None,
    served_model: options.ServedModelOption = None,
    endpoint: options.EndpointOption = "completions",
    ignore_eos: options.IgnoreEosOption = True,
    api_key: options.ApiKeyOption = None,
    find_capacity: options.FindCapacityOption = False,
    attainment: options.AttainmentOption = None,
    longest_ttft: options.LongestTtftOption = None,
    batch_tokens: options.BatchTokensOption = None,
    resolution: options.ResolutionOption = None,
    probe_seconds: options.ProbeSecondsOption = None,
    label: options.LabelOption = None,
    json_path: JsonOption = None,
    html_path: options.HtmlOption = None,
    beside: options.BesideOption = None,
    quiet: options.QuietOption = False,
) -> None:
    """Run one seeded workload under each policy: throughput, latency percentiles, goodput.

    Prompts are random tokens, and every request gives exactly the output asked for, greedily. Requests come
    when they are due whether the engine is ready for them or not (open loop), so waiting is measured.

    Examples: `tightpack bench --requests 64 --mixed --rate 1,2,4 --json run.json --html run.html`;
    `tightpack bench --find-capacity --mixed`; `tightpack bench --url http://127.0.0.1:8000 --clients 8`;
    `tightpack bench --simulate h100:llama-3.1-8b --quantization fp8 --trace trace.csv --requests 10000`
    """
    given = locals()
    arguments = {name: _plain(value) for name, value in given.items() if name not in _UNRECORDED}

    # Imported here, so that other commands start without them.
    from rich.console import Console

    from tightpack.benchmarking.html.page import write_page
    from tightpack.benchmarking.html.results import read_reports
    from tightpack.benchmarking.report import write_json
    from tightpack.cli.bench_plan import make_plan
    from tightpack.cli.bench_run import measure
    from tightpack.cli.bench_simulate import open_simulation
    from tightpack.cli.bench_target import open_engine, open_server

    plan = make_plan(arguments)
    check_writable(json_path)
    check_writable(html_path, "--html")
    earlier = read_reports(beside or ())
    status = Console(stderr=True, quiet=quiet, highlight=False)
    if simulate is not None:
        opening = open_simulation(arguments, plan)
    else:
        opening = open_engine(arguments, plan) if url is None else open_server(arguments, plan, api_key)
    with status.status(f"opening {simulate or url or model}") as spinner, opening as opened:
        spinner.stop()
        result = measure(Console(), status, opened, plan, arguments)
    if json_path is not None:
        write_json(json_path, result)
        status.print(f"wrote {json_path}", soft_wrap=True)
    if html_path is not None:
        if not result["runs"]:
            raise ValueError(f"no page at {html_path}: no policy met the service level at any rate tried")
        write_page(html_path, [*earlier, result])
        status.print(f"wrote {html_path}", soft_wrap=True)


def report(
    results: list[Path] = typer.Argument(  # noqa: B008
        metavar="FILE.json…", help="Results of `tightpack bench --json`, or of `tightpack demo --json`."
    ),
    output: Path = typer.Option(..., "-o", "--output", metavar="OUT.html"),  # noqa: B008
) -> None:
    """Show results as one self-contained page with charts.

    Example: `tightpack report bf16.json int4.json -o page.html`
    """
    from tightpack.benchmarking.html.page import write_page
    from tightpack.benchmarking.html.results import read_reports

    check_writable(output, "--output")
    write_page(output, read_reports(results))
    typer.echo(f"wrote {output}")


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
