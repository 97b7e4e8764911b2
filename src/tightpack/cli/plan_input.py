"""What the options of `tightpack plan` ask for, checked before anything is simulated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tightpack.benchmarking.traffic import DrawnTraffic, FixedTraffic, TraceTraffic, Traffic
from tightpack.benchmarking.workload import mean_rate
from tightpack.cli.option_values import listed_names, listed_policies, spelled
from tightpack.cli.plan_options import INPUT_LEN, OUTPUT_LEN
from tightpack.latency.service_level import ServiceLevel
from tightpack.planning.deployments import Deployment, rooflines
from tightpack.planning.load import Load
from tightpack.planning.measured import NAME, longest_context, measured
from tightpack.planning.models import PlannedModel
from tightpack.planning.quality_reports import divergences
from tightpack.planning.search import POLICIES
from tightpack.planning.weight_choices import choices_for
from tightpack.requests.arguments import nearest_hint
from tightpack.requests.service_class import ServiceClass
from tightpack.simulated.catalogue import load_catalogue
from tightpack.simulated.fitted import FittedCostModel
from tightpack.simulated.hardware import Hardware

Arguments = Mapping[str, Any]

# Of a step, for the activations that a plan leaves room for: as much as `slo` and chunked prefill take.
_STEP_TOKENS = 8192
_TRACE_REQUESTS = 10_000
_SIZES = (1, 2, 4, 8)
_CONTEXT_STEP = 1024


@dataclass(frozen=True, slots=True)
class Machines:
    """devices: of the catalogue. fit: of this machine, where it is considered, and its price."""

    devices: tuple[Hardware, ...]
    fit: FittedCostModel | None
    usd_per_hour: float | None


def read_machines(arguments: Arguments) -> Machines:
    """Raises ValueError for a name or a price that cannot be, OSError for a file that cannot be read."""
    catalogue = load_catalogue(arguments["hardware_file"])
    prices = _prices(arguments["price"], (*catalogue.names, NAME))
    fit = None if arguments["cost_model"] is None else FittedCostModel.read(arguments["cost_model"])
    names = _names("--hardware", arguments["hardware"])
    if names is None:
        tested = [device.name for device in catalogue.devices.values() if device.tested]
        names = [NAME] if fit is not None else tested
    if NAME in names and fit is None:
        raise ValueError(
            f"--hardware {NAME} needs --cost-model FILE; `tightpack calibrate-cost MODEL -o FILE` writes one"
        )
    if fit is not None and NAME not in names:
        raise ValueError(f"--cost-model is a measurement of {NAME}; name it in --hardware, or drop the file")
    for name in names:
        if name != NAME and name not in catalogue.names:
            hint = nearest_hint(name, (*catalogue.names, NAME), "there are")
            raise ValueError(f"hardware {name!r} is not known; {hint} (--hardware-file adds others)")
    chosen = dict.fromkeys(catalogue[name].name for name in names if name != NAME)
    by_device = {catalogue[name].name: usd for name, usd in prices.items() if name != NAME}
    devices = [catalogue[name] for name in chosen]
    return Machines(
        tuple(replace(one, usd_per_hour=by_device.get(one.name, one.usd_per_hour)) for one in devices),
        fit,
        prices.get(NAME),
    )


def read_load(arguments: Arguments, model: PlannedModel, machines: Machines) -> Load:
    """Raises ValueError for a rate, length, target or context that cannot be."""
    for name in ("rate", "burstiness", "length_scale"):
        value = arguments[name]
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{spelled(name)} must be above 0, got {value:g}")
    for name in ("input_len", "output_len", "max_model_len", "max_replicas"):
        if arguments[name] is not None and arguments[name] < 1:
            raise ValueError(f"{spelled(name)} must be at least 1, got {arguments[name]}")
    max_kl = arguments["max_kl"]
    if max_kl is not None and not max_kl >= 0:
        raise ValueError(f"--max-kl must be 0 or more nats, got {max_kl:g}")
    traffic, description = _drawn(arguments) if arguments["trace"] is None else _replayed(arguments)
    rate = arguments["rate"]
    if rate is None:
        if arguments["trace"] is None:
            raise ValueError("how much traffic? give --rate R requests a second, or --trace FILE.csv")
        rate = mean_rate(traffic.shapes(None, 0))
        if rate is None:
            raise ValueError("all requests of the trace come at once: give --rate R requests a second")
    longest = model.spec.max_position_embeddings
    if machines.fit is not None:
        longest = min(longest, longest_context(machines.fit) or longest)
    wanted = arguments["max_model_len"]
    if wanted is not None and wanted > longest:
        raise ValueError(f"--max-model-len {wanted} is beyond the {longest:,} positions of {model.name}")
    load = Load(
        traffic=traffic,
        description=description,
        rate=rate,
        promise=read_promise(arguments["slo"]),
        level=ServiceLevel(attainment=arguments["attainment"]),
        max_model_len=wanted or longest,
    )
    if wanted is None:
        needed = math.ceil(load.longest / _CONTEXT_STEP) * _CONTEXT_STEP
        load = replace(load, max_model_len=min(longest, needed))
    return load


def read_promise(text: str) -> ServiceClass:
    """`ttft=0.5,tpot=0.05`, either of the two or both."""
    targets: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in ("ttft", "tpot"):
            raise ValueError(f"--slo takes targets in seconds such as ttft=0.5,tpot=0.05, got {text!r}")
        try:
            targets[name] = float(value)
        except ValueError:
            raise ValueError(f"--slo: {name} must be a number of seconds, got {value!r}") from None
        if not 0 < targets[name] < math.inf:
            raise ValueError(f"--slo: {name} must be above 0 seconds, got {value}")
    return ServiceClass("standard", targets.get("ttft"), targets.get("tpot"))


def read_policies(listed: str | None) -> list[str]:
    return list(POLICIES) if listed is None else list(dict.fromkeys(listed_policies(listed)))


def read_deployments(
    arguments: Arguments, model: PlannedModel, machines: Machines
) -> tuple[list[Deployment], list[Deployment]]:
    """Those of the devices, of every size and precision, and that of this machine.

    Raises ValueError for unknown precisions, KV types and sizes, and for reports that do not fit them.
    """
    precisions = _names("--precision", arguments["precision"])
    kv = _names("--kv-cache-dtype", arguments["kv_cache_dtype"])
    choices, divergence = divergences(
        choices_for(model.stored, precisions, is_mixture=model.spec.is_mixture),
        arguments["quality_report"] or (),
    )
    sizes = _sizes(arguments["tensor_parallel_size"])
    found = [
        deployment
        for device in machines.devices
        for deployment in rooflines(
            model, device, choices, kv, sizes, divergence, reserve_tokens=_STEP_TOKENS
        )
    ]
    own = [] if machines.fit is None else [measured(machines.fit, model, machines.usd_per_hour)]
    return found, own


def _drawn(arguments: Arguments) -> tuple[Traffic, str]:
    if arguments["length_scale"] is not None:
        raise ValueError("--length-scale is about a trace; give --trace FILE.csv as well")
    mixed = arguments["mixed"] is not False
    traffic = DrawnTraffic(
        count=1,  # a plan asks for as many as it needs
        input_len=arguments["input_len"] or INPUT_LEN,
        output_len=arguments["output_len"] or OUTPUT_LEN,
        mixed=mixed,
        burstiness=arguments["burstiness"] or 1.0,
        seed=arguments["seed"],
    )
    return traffic, "long-tailed lengths" if mixed else "all the same"


def _replayed(arguments: Arguments) -> tuple[Traffic, str]:
    for name in ("input_len", "output_len", "mixed", "burstiness"):
        if arguments[name] is not None:
            raise ValueError(f"--trace brings its own lengths and gaps; drop {spelled(name)}")
    trace = TraceTraffic(
        path=arguments["trace"], count=_TRACE_REQUESTS, length_scale=arguments["length_scale"] or 1.0
    )
    # Read once, and not for every simulation.
    traffic = FixedTraffic(trace.path.name, trace.shapes(None, 0))
    return traffic, f"lengths and gaps of {arguments['trace'].name}"


def _prices(listed: str | None, names: Sequence[str]) -> dict[str, float]:
    prices = {}
    for part in [] if listed is None else listed.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in names:
            raise ValueError(
                f"--price: hardware {name!r} is not known; {nearest_hint(name, names, 'there are')}"
            )
        try:
            prices[name] = float(value)
        except ValueError:
            raise ValueError(f"--price takes NAME=USD, such as h100-sxm=2.5, got {part!r}") from None
        if not 0 <= prices[name] < math.inf:
            raise ValueError(f"--price: {name} must cost 0 dollars an hour or more, got {value}")
    return prices


def _sizes(listed: str | None) -> list[int]:
    names = _names("--tensor-parallel-size", listed)
    if names is None:
        return list(_SIZES)
    sizes = []
    for name in names:
        if not name.isdecimal() or int(name) < 1:
            raise ValueError(f"--tensor-parallel-size takes numbers of devices such as 1,2,4, got {listed!r}")
        sizes.append(int(name))
    return sizes


def _names(option: str, listed: str | None) -> list[str] | None:
    """Each once."""
    return None if listed is None else list(dict.fromkeys(listed_names(option, listed)))
