"""The requests that the options of `tightpack bench` ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tightpack.benchmarking.traffic import DrawnTraffic, TraceTraffic
from tightpack.cli.bench_options import CAPACITY_REQUESTS, INPUT_LEN, OUTPUT_LEN, REQUESTS
from tightpack.cli.option_values import refuse_beside, spelled
from tightpack.requests.arguments import nearest_hint
from tightpack.requests.service_class import ServiceClass
from tightpack.requests.service_class_settings import resolve_service_classes

Arguments = Mapping[str, Any]


def replayed_traffic(arguments: Arguments) -> TraceTraffic:
    refuse_beside(
        arguments, "--trace brings its own lengths and gaps", "input_len", "output_len", "mixed", "burstiness"
    )
    if arguments["rate"] is not None:
        refuse_beside(arguments, "--rate scales the trace's gaps already", "time_scale")
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


def drawn_traffic(arguments: Arguments, rates: tuple[float | None, ...]) -> DrawnTraffic:
    if arguments["time_scale"] is not None:
        raise ValueError("--time-scale stretches a trace; give --trace FILE.csv as well")
    for name in ("length_scale", "trace_skip"):
        if arguments[name] is not None:
            raise ValueError(f"{spelled(name)} is about a trace; give --trace FILE.csv as well")
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
