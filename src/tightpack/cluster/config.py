"""What a cluster is made of, as its YAML file says."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tightpack.engine_args import DEFAULT_MODEL, EngineArgs
from tightpack.requests.arguments import as_float, as_int, nearest_hint
from tightpack.requests.service_class import ServiceClass
from tightpack.requests.service_class_settings import SERVICE_CLASSES, resolve_service_classes

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingConfig:
    """How requests find their replicas.

    affinity: how much later than on the best replica, as a share of the TTFT target, a first token may be
        predicted on one that has more of the prompt in its prefix cache; 0 looks at the cache only through
        the time that it saves.
    patience: seconds that a request without a TTFT target may be predicted to wait before its pool counts
        as full.
    retry_for: seconds for which a request of which nothing was streamed is tried again.
    poll_interval: seconds between two looks at each replica.
    dead_after: seconds without an answer to such a look until a replica counts as dead.
    """

    affinity: float = 0.25
    patience: float = 10.0
    retry_for: float = 60.0
    poll_interval: float = 0.25
    dead_after: float = 5.0

    def __post_init__(self) -> None:
        _numbers(self, "routing")
        _at_least("routing", self, 0, "affinity", "retry_for")
        _above_zero("routing", self, "patience", "poll_interval", "dead_after")


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscalingConfig:
    """When a pool whose `replicas` is a range gets more of them or fewer.

    attainment: the share of requests that must be predicted to meet their targets.
    window: seconds of traffic that the prediction is made on.
    interval: seconds between predictions.
    down_after: seconds for which fewer replicas must have been enough before one is taken away.
    headroom: that fewer replicas must stand the traffic of the window so many times as fast.
    """

    attainment: float = 0.99
    window: float = 60.0
    interval: float = 5.0
    down_after: float = 60.0
    headroom: float = 1.25

    def __post_init__(self) -> None:
        _numbers(self, "autoscaling")
        _above_zero("autoscaling", self, "window", "interval", "attainment")
        _at_least("autoscaling", self, 0, "down_after")
        _at_least("autoscaling", self, 1, "headroom")
        if self.attainment > 1:
            raise ValueError(f"autoscaling: attainment is a share up to 1, got {self.attainment:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """Replicas of one kind.

    classes: the service classes that are at home here; none given means all that no other pool has.
    min_replicas, max_replicas: their number; it is fixed where they are equal.
    overflow: pools that take what this one cannot serve in time, nearest first.
    engine: arguments of `EngineArgs`.
    num_cpus, num_gpus: what Ray sets aside for each replica.
    """

    name: str
    classes: tuple[str, ...]
    engine: EngineArgs
    min_replicas: int = 1
    max_replicas: int = 1
    overflow: tuple[str, ...] = ()
    num_cpus: float = 1.0
    num_gpus: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RayConfig:
    """address: of a running Ray cluster ("auto" finds it); None starts one in this machine.

    object_store_memory: bytes for the local one; requests do not pass through it.
    """

    address: str | None = None
    object_store_memory: int = 80 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """Pools behind one address. `model` is the name clients use for all of them."""

    model: str
    pools: tuple[PoolConfig, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    drain_timeout: float = 30.0
    service_classes: tuple[ServiceClass, ...] = SERVICE_CLASSES
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    autoscaling: AutoscalingConfig = field(default_factory=AutoscalingConfig)
    ray: RayConfig = field(default_factory=RayConfig)

    def pool(self, name: str) -> PoolConfig:
        return next(pool for pool in self.pools if pool.name == name)

    def home(self, service_class: str) -> PoolConfig:
        """The pool of a service class."""
        return next(pool for pool in self.pools if service_class in pool.classes)

    def targets(self, pool: PoolConfig) -> tuple[ServiceClass, ...]:
        """The service classes at home in a pool."""
        return tuple(one for one in self.service_classes if one.name in pool.classes)


def parse_config(given: Any) -> ClusterConfig:
    """The content of a YAML file. Raises TypeError or ValueError that names what is wrong."""
    top = _mapping(given, "the configuration")
    _known(
        top,
        "the configuration",
        (
            "model",
            "served_model_name",
            "host",
            "port",
            "drain_timeout",
            "service_classes",
            "pools",
            "routing",
            "autoscaling",
            "ray",
        ),
    )
    model = str(top.get("model", DEFAULT_MODEL))
    classes = resolve_service_classes(top.get("service_classes"))
    listed = _mapping(top.get("pools"), "pools")
    if not listed:
        raise ValueError("pools: name at least one, such as pools: {main: {replicas: 2}}")
    name = str(top.get("served_model_name", model))
    common = {"model": model, "served_model_name": name, "service_classes": classes}
    port = as_int("port", top.get("port", 8000))
    if not 0 <= port <= 65535:
        raise ValueError(f"port must be 0 (picks a free one) to 65535, got {port}")
    config = ClusterConfig(
        model=name,
        pools=_at_home([_pool(str(key), value, common) for key, value in listed.items()]),
        host=str(top.get("host", "127.0.0.1")),
        port=port,
        drain_timeout=as_float("drain_timeout", top.get("drain_timeout", 30.0)),
        service_classes=classes,
        routing=_section(RoutingConfig, "routing", top),
        autoscaling=_section(AutoscalingConfig, "autoscaling", top),
        ray=_section(RayConfig, "ray", top),
    )
    for pool in config.pools:
        for other in pool.overflow:
            if other == pool.name or other not in listed:
                raise ValueError(
                    f"pool {pool.name!r}: overflow names {other!r}, which is not another pool; there are "
                    f"{', '.join(map(str, listed))}"
                )
    return config


def _pool(name: str, given: Any, common: Mapping[str, Any]) -> PoolConfig:
    owner = f"pool {name!r}"
    settings = _mapping(given, owner)
    _known(settings, owner, ("classes", "replicas", "overflow", "engine", "num_cpus", "num_gpus"))
    low, high = _replicas(settings.get("replicas", 1), owner)
    engine = _mapping(settings.get("engine"), f"{owner}: engine")
    for key in common:
        if key in engine and key != "model":
            raise ValueError(f"{owner}: {key} is of the whole cluster; give it beside pools")
    known = [one.name for one in SERVICE_CLASSES]
    classes = _names(settings.get("classes", ()), f"{owner}: classes")
    for one in classes:
        if one not in known:
            hint = nearest_hint(one, known, "there are")
            raise ValueError(f"{owner}: no service class is named {one!r}; {hint}")
    return PoolConfig(
        name=name,
        classes=classes,
        engine=EngineArgs.from_keywords(f"{owner}: engine", {**common, **engine}),
        min_replicas=low,
        max_replicas=high,
        overflow=_names(settings.get("overflow", ()), f"{owner}: overflow"),
        num_cpus=as_float(f"{owner}: num_cpus", settings.get("num_cpus", 1.0)),
        num_gpus=as_float(f"{owner}: num_gpus", settings.get("num_gpus", 0.0)),
    )


def _replicas(given: Any, owner: str) -> tuple[int, int]:
    if isinstance(given, Mapping):
        _known(given, f"{owner}: replicas", ("min", "max"))
        low = as_int(f"{owner}: replicas: min", given.get("min", 1))
        high = as_int(f"{owner}: replicas: max", given.get("max", low))
    else:
        low = high = as_int(f"{owner}: replicas", given)
    if not 1 <= low <= high:
        raise ValueError(f"{owner}: replicas must be 1 or more, min no more than max; got {low} to {high}")
    return low, high


def _at_home(pools: list[PoolConfig]) -> tuple[PoolConfig, ...]:
    """Every service class in exactly one pool."""
    owners: dict[str, str] = {}
    for pool in pools:
        for one in pool.classes:
            if one in owners:
                raise ValueError(
                    f"service class {one!r} is in the pools {owners[one]!r} and {pool.name!r}; "
                    "a class has one home (overflow sends it elsewhere)"
                )
            owners[one] = pool.name
    rest = tuple(one.name for one in SERVICE_CLASSES if one.name not in owners)
    open_ones = [pool.name for pool in pools if not pool.classes]
    if len(open_ones) > 1:
        raise ValueError(
            f"the pools {', '.join(open_ones)} name no classes; only one of them can take the rest"
        )
    if rest and not open_ones:
        raise ValueError(f"no pool has the service class {rest[0]!r}; add it to the classes of one")
    if open_ones and not rest:
        raise ValueError(f"pool {open_ones[0]!r} names no classes, and the other pools have them all")
    return tuple(pool if pool.classes else dataclasses.replace(pool, classes=rest) for pool in pools)


def _section(cls: type[T], owner: str, top: Mapping[str, Any]) -> T:
    given = _mapping(top.get(owner), owner)
    _known(given, owner, [one.name for one in dataclasses.fields(cls)])  # type: ignore[arg-type]
    return cls(**given)


def _mapping(given: Any, owner: str) -> Mapping[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(f"{owner} must be a mapping of settings, got {given!r}")
    return given


def _names(given: Any, owner: str) -> tuple[str, ...]:
    if isinstance(given, str) or not isinstance(given, list | tuple):
        raise TypeError(f"{owner} must be a list of names, got {given!r}")
    return tuple(str(one) for one in given)


def _known(given: Mapping[str, Any], owner: str, valid: tuple[str, ...] | list[str]) -> None:
    for key in given:
        if key not in valid:
            raise ValueError(f"{owner} has no setting {key!r}; {nearest_hint(str(key), valid, 'it takes')}")


def _numbers(config: Any, owner: str) -> None:
    for one in dataclasses.fields(config):
        value = as_float(f"{owner}: {one.name}", getattr(config, one.name))
        object.__setattr__(config, one.name, value)


def _at_least(owner: str, config: Any, least: float, *names: str) -> None:
    for name in names:
        if not getattr(config, name) >= least:
            raise ValueError(f"{owner}: {name} must be {least:g} or more, got {getattr(config, name):g}")


def _above_zero(owner: str, config: Any, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{owner}: {name} must be above 0, got {getattr(config, name):g}")
