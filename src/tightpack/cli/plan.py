"""`tightpack plan`: which hardware, precision, policy and replicas a model, a traffic and a promise need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from tightpack.cli import plan_options as options
from tightpack.cli.result_file import JsonOption, check_writable

if TYPE_CHECKING:
    from tightpack.cli.plan_input import Machines
    from tightpack.planning.load import Load
    from tightpack.planning.models import PlannedModel
    from tightpack.planning.report import Plan


def plan(
    model: options.PlanModelOption,
    slo: options.SloOption = "ttft=0.5,tpot=0.05",
    rate: options.RateOption = None,
    trace: options.TraceOption = None,
    input_len: options.InputLenOption = None,
    output_len: options.OutputLenOption = None,
    mixed: options.MixedOption = None,
    burstiness: options.BurstinessOption = None,
    length_scale: options.LengthScaleOption = None,
    hardware: options.HardwareOption = None,
    hardware_file: options.HardwareFileOption = None,
    cost_model: options.CostModelOption = None,
    price: options.PriceOption = None,
    precision: options.PrecisionOption = None,
    kv_cache_dtype: options.KVOption = None,
    policies: options.PoliciesOption = None,
    tensor_parallel_size: options.SizesOption = None,
    max_replicas: options.MaxReplicasOption = None,
    max_model_len: options.MaxModelLenOption = None,
    attainment: options.AttainmentOption = 0.99,
    quality_report: options.QualityReportOption = None,
    max_kl: options.MaxKlOption = None,
    seed: options.SeedOption = 0,
    json_path: JsonOption = None,
    html_path: options.HtmlOption = None,
    quiet: options.QuietOption = False,
) -> None:
    """Say what fits, and find the cheapest way to serve a traffic within its targets, by simulation.

    The same policies that serve run on a virtual clock, with step times from data sheets (or from a
    measurement of this machine). The exit code is 1 where nothing keeps the promise.

    Examples: `tightpack plan --model llama-3.1-70b --rate 10`; `tightpack plan --model qwen3-8b --trace
    requests.csv --slo ttft=0.5,tpot=0.05 --hardware l4,l40s,a100-80gb --html plan.html`
    """
    arguments = dict(locals())
    check_writable(json_path)
    check_writable(html_path, "--html")

    # Imported here, so that other commands start without them.
    from rich.console import Console

    from tightpack.cli.plan_input import read_load, read_machines
    from tightpack.cli.plan_tables import show
    from tightpack.planning.models import open_model
    from tightpack.planning.report import to_json

    planned = open_model(model)
    machines = read_machines(arguments)
    load = read_load(arguments, planned, machines)
    result = _plan(arguments, planned, machines, load)
    show(Console(highlight=False), result)
    status = Console(stderr=True, quiet=quiet, highlight=False)
    record = to_json(result)
    if json_path is not None:
        from tightpack.benchmarking.report import write_json

        write_json(json_path, record)
        status.print(f"wrote {json_path}", soft_wrap=True)
    if html_path is not None:
        from tightpack.planning.html.page import write_page

        write_page(html_path, record)
        status.print(f"wrote {html_path}", soft_wrap=True)
    if result.found.best is None:
        raise typer.Exit(1)


def _plan(arguments: dict[str, Any], model: PlannedModel, machines: Machines, load: Load) -> Plan:
    from tightpack.benchmarking.machine import usable_cores
    from tightpack.cli.plan_input import read_deployments, read_policies
    from tightpack.planning.fits import fits
    from tightpack.planning.jobs import open_jobs
    from tightpack.planning.nowhere import require_somewhere
    from tightpack.planning.report import Plan
    from tightpack.planning.search import search
    from tightpack.planning.weight_choices import WEIGHT_CHOICES
    from tightpack.progress import share_bar
    from tightpack.simulated.catalogue import load_catalogue

    policies = read_policies(arguments["policies"])
    deployments, own = read_deployments(arguments, model, machines)
    fitting = fits([*deployments, *own], load.max_model_len)
    if machines.devices and not own:
        everything = {"precision": None, "kv_cache_dtype": None, "tensor_parallel_size": None}
        catalogue = load_catalogue(arguments["hardware_file"])
        whole = read_deployments(
            {**arguments, **everything, "quality_report": None},
            model,
            type(machines)(tuple(catalogue.devices.values()), None, None),
        )[0]
        choices = [WEIGHT_CHOICES[name] for name in (arguments["precision"] or "").split(",") if name]
        require_somewhere(
            fitting,
            fits(whole, load.max_model_len),
            model,
            machines.devices,
            choices,
            load.max_model_len,
        )
    with (
        open_jobs(usable_cores(), load) as jobs,
        share_bar("planning", hidden=arguments["quiet"]) as advance,
    ):
        found = search(
            [*deployments, *own],
            load,
            policies,
            max_kl=arguments["max_kl"],
            max_replicas=arguments["max_replicas"],
            jobs=jobs,
            on_progress=advance,
        )
    return Plan(model, load, fitting, found, machines.devices)
