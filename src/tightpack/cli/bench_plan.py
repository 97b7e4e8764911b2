"""What the options of `tightpack bench` ask for, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tightpack.benchmarking.traffic import FixedTraffic, Traffic
from tightpack.cli.bench_options import MAX_NUM_SEQS, PROBE_SECONDS, SIMULATED_MAX_NUM_SEQS
from tightpack.cli.bench_traffic import drawn_traffic, replayed_traffic
from tightpack.cli.option_values import listed_policies, refuse_beside, spelled
from tightpack.engine_args import DEFAULT_MODEL
from tightpack.latency.service_level import ServiceLevel
from tightpack.requests.arguments import nearest_hint
from tightpack.scheduling.registry import POLICY_NAMES

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
    traffic = drawn_traffic(arguments, rates) if arguments["trace"] is None else replayed_traffic(arguments)
    clients = arguments["clients"]
    if clients is not None:
        refuse_beside(arguments, "--clients send when they are answered", "rate", "find_capacity")
        refuse_beside(arguments, "--clients send when they are answered", "time_scale", "burstiness")
    if search is not None and len(rates) > 1:
        raise ValueError("--find-capacity starts at one --rate; name one")
    return Plan(traffic, rates, clients, policies, arguments["max_model_len"], search)


def _policies(listed: str | None, default: Sequence[str] = POLICY_NAMES) -> list[str]:
    names = list(default) if listed is None else listed_policies(listed)
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"--policies names {name} twice; --repeats runs each policy more than once")
    return names


def _policy_limits(arguments: Arguments) -> dict[str, dict[str, int | None]]:
    tokens = arguments["max_num_batched_tokens"]
    return {
        policy: {
            "max_num_seqs": arguments["max_num_seqs"] or _max_num_seqs(arguments["simulate"]),
            "max_num_batched_tokens": tokens if policy in ("chunked-prefill", "slo") else None,
        }
        for policy in _policies(arguments["policies"])
    }


def _max_num_seqs(simulate: str | None) -> int:
    if simulate is None or Path(simulate).is_file():  # a fit holds for batches as large as were measured
        return MAX_NUM_SEQS
    return SIMULATED_MAX_NUM_SEQS


def _server_policies(arguments: Arguments) -> dict[str, dict[str, int | None]]:
    refuse_beside(
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
    refuse_beside(
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
    policies = _policies(arguments["policies"], chosen.policies)
    limits = {policy: chosen.limits(policy) for policy in policies}
    traffic = FixedTraffic(chosen.description, chosen.requests)
    return Plan(traffic, (None,), None, limits, chosen.max_model_len, None)


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
        refuse_beside(arguments, "without --find-capacity there is no service level to meet", *names)
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
            raise ValueError(f"{spelled(name)} must be at least 1, got {arguments[name]}")
    if arguments["max_model_len"] is not None and arguments["max_model_len"] < 2:
        raise ValueError(f"--max-model-len must be at least 2, got {arguments['max_model_len']}")
    if arguments["trace_skip"] is not None and arguments["trace_skip"] < 0:
        raise ValueError(f"--trace-skip must be at least 0, got {arguments['trace_skip']}")
    for name in ("time_scale", "length_scale", "burstiness", "probe_seconds"):
        if arguments[name] is not None and not 0 < arguments[name] < float("inf"):
            raise ValueError(f"{spelled(name)} must be above 0, got {arguments[name]:g}")


def _check_simulation(arguments: Arguments) -> None:
    because = "--simulate runs no model"
    refuse_beside(arguments, because, "url", "num_threads", "no_warmup")
    if arguments["model"] != DEFAULT_MODEL:
        raise ValueError(f"--simulate names the model itself, as in h100:{arguments['model']}; drop MODEL")
    for name in ("dtype", "device", "executor", "activation_dtype"):
        if arguments[name] != "auto":
            raise ValueError(f"{because}; drop {spelled(name)}")
