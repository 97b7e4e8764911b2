"""What the options of `tightpack bench` ask for, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tightpack.benchmarking.traffic import DrawnTraffic, FixedTraffic, TraceTraffic, Traffic
from tightpack.cli.bench_options import (
    CAPACITY_REQUESTS,
    INPUT_LEN,
    MAX_NUM_SEQS,
    OUTPUT_LEN,
    PROBE_SECONDS,
    REQUESTS,
    SIMULATED_MAX_NUM_SEQS,
)
from tightpack.engine_args import DEFAULT_MODEL
from tightpack.latency.service_level import ServiceLevel
from tightpack.requests.arguments import nearest_hint
from tightpack.requests.service_class import ServiceClass
from tightpack.requests.service_class_settings import resolve_service_classes

Arguments = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CapacitySearch:
    """start: the first rate tried. probe_s: how long the arrivals at each rate last at the least."""

    level: ServiceLevel
    start: float
    resolution: float
    probe_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run. limits: policy to the engine arguments that it runs under.

    rates: each is run; None is the traffic's own. clients: closed loop. capacity: a search instead of runs.
    """

    traffic: Traffic
    rates: tuple[float | None, ...]
    clients: int | None
    limits: Mapping[str, Mapping[str, int | None]]
    max_model_len: int | None
    capacity: CapacitySearch | None

    @property
    def policies(self) -> list[str]:
        return list(self.limits)

    @property
    def max_num_seqs(self) -> int:
        return max(limits.get("max_num_seqs") or 1 for limits in self.limits.values())

    @property
    def num_requests(self) -> int:
        return len(self.traffic.shapes(None, 0))


def make_plan(arguments: Arguments) -> Plan:
    """Raises ValueError for options that do not go together, or whose values cannot be."""
    _check_numbers(arguments)
    if arguments["simulate"] is not None:
        _check_simulation(arguments)
    search = _capacity(arguments)
    if arguments["url"] is not None:
        policies = _server_policies(arguments)
    elif arguments["scenario"] is None:
        policies = _policy_limits(arguments)
    else:
        return _scenario_plan(arguments)
    rates = _rates(arguments["rate"])
    traffic = _drawn(arguments, rates) if arguments["trace"] is None else _replayed(arguments)
    clients = arguments["clients"]
    if clients is not None:
        _refuse_beside(arguments, "--clients send when they are answered", "rate", "find_capacity")
        _refuse_beside(arguments, "--clients send when they are answered", "time_scale", "burstiness")
    if search is not None and len(rates) > 1:
        raise ValueError("--find-capacity starts at one --rate; name one")
    return Plan(traffic, rates, clients, policies, arguments["max_model_len"], search)


def policy_names(listed: str | None) -> list[str]:
    """A comma-separated list, checked; all policies without one."""
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


def parse_mix(mix: str | None, changed: Sequence[str]) -> dict[ServiceClass, float]:
    """The classes of a workload and their shares, from NAME=SHARE,… and from targets as NAME:ttft=…,tpot=….

    Raises ValueError for a class that there is not, and for targets of one that the workload has none of.
    """
    classes = {one.name: one for one in resolve_service_classes(changed)}
    shares = {}
    for part in ("standard=1" if mix is None else mix).split(","):
        name, _, value = part.partition("=")
        try:
            share = float(value)
        except ValueError:
            raise ValueError(f"--mix takes shares such as interactive=0.7,batch=0.3, got {mix!r}") from None
        if not 0 < share < float("inf"):
            raise ValueError(f"--mix: the share of {name} must be above 0, got {share:g}")
        shares[_known(classes, name)] = share
    unused = [text for text in changed if text.partition(":")[0] not in {one.name for one in shares}]
    if unused:
        raise ValueError(f"--service-class {unused[0]!r} is about requests of which --mix has none")
    return shares


def _known(classes: Mapping[str, ServiceClass], name: str) -> ServiceClass:
    if name not in classes:
        hint = nearest_hint(name, list(classes), "there are")
        raise ValueError(f"--mix: no service class is named {name!r}; {hint}")
    return classes[name]


def _policy_limits(arguments: Arguments) -> dict[str, dict[str, int | None]]:
    tokens = arguments["max_num_batched_tokens"]
    return {
        policy: {
            "max_num_seqs": arguments["max_num_seqs"] or _max_num_seqs(arguments["simulate"]),
            "max_num_batched_tokens": tokens if policy in ("chunked-prefill", "slo") else None,
        }
        for policy in policy_names(arguments["policies"])
    }


def _max_num_seqs(simulate: str | None) -> int:
    if simulate is None or Path(simulate).is_file():  # a fit holds for batches as large as were measured
        return MAX_NUM_SEQS
    return SIMULATED_MAX_NUM_SEQS


def _server_policies(arguments: Arguments) -> dict[str, dict[str, int | None]]:
    _refuse_beside(
        arguments,
        "--url measures a server, which has its own policy and engine",
        *("policies", "scenario", "quantization", "num_threads", "enable_prefix_caching"),
        *("max_num_seqs", "max_num_batched_tokens"),
    )
    return {arguments["label"] or "server": {}}


def _scenario_plan(arguments: Arguments) -> Plan:
    from tightpack.benchmarking.scenarios import scenarios

    name = arguments["scenario"]
    known = scenarios(arguments["seed"])
    if name not in known:
        raise ValueError(f"no scenario is named {name!r}; {nearest_hint(name, known, 'there are')}")
    _refuse_beside(
        arguments,
        "--scenario brings its own workload and limits",
        *(
            "requests",
            "input_len",
            "output_len",
            "mixed",
            "rate",
            "burstiness",
            "clients",
            "mix",
            "service_class",
        ),
        *("trace", "trace_skip", "time_scale", "length_scale", "find_capacity"),
        *("max_num_seqs", "max_num_batched_tokens", "max_model_len"),
    )
    chosen = known[name]
    policies = policy_names(arguments["policies"] or ",".join(chosen.policies))
    limits = {policy: chosen.limits(policy) for policy in policies}
    traffic = FixedTraffic(chosen.description, chosen.requests)
    return Plan(traffic, (None,), None, limits, chosen.max_model_len, None)


def _replayed(arguments: Arguments) -> TraceTraffic:
    _refuse_beside(
        arguments, "--trace brings its own lengths and gaps", "input_len", "output_len", "mixed", "burstiness"
    )
    if arguments["rate"] is not None:
        _refuse_beside(arguments, "--rate scales the trace's gaps already", "time_scale")
    traffic = TraceTraffic(
        path=Path(arguments["trace"]),
        count=_count(arguments),
        time_scale=arguments["time_scale"] or 1.0,
        length_scale=arguments["length_scale"] or 1.0,
        skip=arguments["trace_skip"] or 0,
        classes=parse_mix(arguments["mix"], arguments["service_class"] or ()),
        seed=arguments["seed"],
    )
    traffic.shapes(None, arguments["repeats"] - 1)  # is there so much of it?
    return traffic


def _drawn(arguments: Arguments, rates: tuple[float | None, ...]) -> DrawnTraffic:
    if arguments["time_scale"] is not None:
        raise ValueError("--time-scale stretches a trace; give --trace FILE.csv as well")
    for name in ("length_scale", "trace_skip"):
        if arguments[name] is not None:
            raise ValueError(f"{_spelled(name)} is about a trace; give --trace FILE.csv as well")
    if arguments["burstiness"] is not None and rates == (None,) and not arguments["find_capacity"]:
        raise ValueError("--burstiness shapes the gaps between arrivals; give a --rate as well")
    return DrawnTraffic(
        count=_count(arguments),
        input_len=arguments["input_len"] or INPUT_LEN,
        output_len=arguments["output_len"] or OUTPUT_LEN,
        mixed=arguments["mixed"],
        burstiness=arguments["burstiness"] or 1.0,
        classes=parse_mix(arguments["mix"], arguments["service_class"] or ()),
        seed=arguments["seed"],
    )


def _count(arguments: Arguments) -> int:
    return int(arguments["requests"] or (CAPACITY_REQUESTS if arguments["find_capacity"] else REQUESTS))


def _rates(listed: str | None) -> tuple[float | None, ...]:
    if listed is None:
        return (None,)
    rates: list[float | None] = []
    for text in listed.split(","):
        try:
            rate = float(text)
        except ValueError:
            raise ValueError(f"--rate takes numbers such as 4 or 1,2,4, got {listed!r}") from None
        if not 0 < rate < float("inf"):
            raise ValueError(f"--rate must be above 0, got {rate:g}")
        rates.append(rate)
    return tuple(dict.fromkeys(rates))


def _capacity(arguments: Arguments) -> CapacitySearch | None:
    names = ("attainment", "longest_ttft", "batch_tokens", "resolution", "probe_seconds")
    if not arguments["find_capacity"]:
        _refuse_beside(arguments, "without --find-capacity there is no service level to meet", *names)
        return None
    attainment, longest_ttft, batch_tokens, resolution, probe_s = (arguments[name] for name in names)
    default = ServiceLevel()
    level = ServiceLevel(
        attainment=default.attainment if attainment is None else attainment,
        max_ttft_s=default.max_ttft_s if longest_ttft is None else longest_ttft,
        batch_tokens=default.batch_tokens if batch_tokens is None else batch_tokens,
    )
    resolution = 0.05 if resolution is None else resolution
    if not 0 < resolution < 1:
        raise ValueError(f"--resolution must lie between 0 and 1, got {resolution:g}")
    start = _rates(arguments["rate"])[0] or 1.0
    return CapacitySearch(level, start, resolution, PROBE_SECONDS if probe_s is None else probe_s)


def _check_numbers(arguments: Arguments) -> None:
    for name in (
        *("requests", "input_len", "output_len", "repeats", "clients"),
        *("max_num_seqs", "max_num_batched_tokens", "num_threads"),
    ):
        if arguments[name] is not None and arguments[name] < 1:
            raise ValueError(f"{_spelled(name)} must be at least 1, got {arguments[name]}")
    if arguments["max_model_len"] is not None and arguments["max_model_len"] < 2:
        raise ValueError(f"--max-model-len must be at least 2, got {arguments['max_model_len']}")
    if arguments["trace_skip"] is not None and arguments["trace_skip"] < 0:
        raise ValueError(f"--trace-skip must be at least 0, got {arguments['trace_skip']}")
    for name in ("time_scale", "length_scale", "burstiness", "probe_seconds"):
        if arguments[name] is not None and not 0 < arguments[name] < float("inf"):
            raise ValueError(f"{_spelled(name)} must be above 0, got {arguments[name]:g}")


def _check_simulation(arguments: Arguments) -> None:
    because = "--simulate runs no model"
    _refuse_beside(arguments, because, "url", "num_threads", "no_warmup")
    if arguments["model"] != DEFAULT_MODEL:
        raise ValueError(f"--simulate names the model itself, as in h100:{arguments['model']}; drop MODEL")
    for name in ("dtype", "device", "executor", "activation_dtype"):
        if arguments[name] != "auto":
            raise ValueError(f"{because}; drop {_spelled(name)}")


def _refuse_beside(arguments: Arguments, because: str, *names: str) -> None:
    for name in names:
        if arguments[name] not in (None, False, []):
            raise ValueError(f"{because}; drop {_spelled(name)}")


def _spelled(name: str) -> str:
    return "--" + name.replace("_", "-")
