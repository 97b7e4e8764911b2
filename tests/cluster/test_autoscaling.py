"""How many replicas there should be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tightpack.cluster.attainment import Arrival, predicted_attainment
from tightpack.cluster.autoscaling import Autoscaler
from tightpack.cluster.config import AutoscalingConfig, PoolConfig
from tightpack.engine_args import EngineArgs
from tightpack.requests.service_class import BATCH, INTERACTIVE, ServiceClass
from tightpack.serving_loop.load import EngineLoad

MakeLoad = Callable[..., EngineLoad]


def traffic(
    rate: float, seconds: float = 60.0, service_class: ServiceClass = INTERACTIVE, prompt: int = 500
) -> list[Arrival]:
    return [Arrival(i / rate, service_class, prompt, 20) for i in range(int(rate * seconds))]


def scaler(low: int = 1, high: int = 8, **settings: Any) -> Autoscaler:
    pool = PoolConfig(
        name="p", classes=("interactive",), engine=EngineArgs(), min_replicas=low, max_replicas=high
    )
    return Autoscaler(pool, AutoscalingConfig(**settings), patience=10.0)


def test_attainment_grows_with_the_replicas(make_load: MakeLoad) -> None:
    """A prompt of 500 takes 0.12 s, so that one replica serves 8 a second and no more."""
    load = make_load(max_num_seqs=32)
    shares = [predicted_attainment(traffic(20), n, load, patience=10) for n in (1, 2, 3, 4)]
    assert shares == sorted(shares)
    assert shares[0] < 0.1
    assert shares[-1] == 1.0
    assert predicted_attainment(traffic(7), 1, load, patience=10) == 1.0
    assert predicted_attainment(traffic(7), 1, load, patience=10, faster=3.0) < 0.5


def test_places_and_pace_bound_it_too(make_load: MakeLoad) -> None:
    short = traffic(20, prompt=10)
    assert predicted_attainment(short, 1, make_load(max_num_seqs=64), patience=10) == 1.0
    assert predicted_attainment(short, 1, make_load(max_num_seqs=2), patience=10) < 0.5
    slow = make_load(step_seconds=(0.06, 0.0, 0.0, 0.0, 0.0), max_num_seqs=64)  # the target is 0.05 s
    assert predicted_attainment(short, 8, slow, patience=10) == 0.0


def test_takes_as_many_as_are_needed_at_once(make_load: MakeLoad) -> None:
    target = scaler().decide(60.0, traffic(20), make_load(max_num_seqs=32), 1)
    assert target.replicas == 3
    assert target.attainment < 0.1


def test_a_long_queue_alone_is_no_reason(make_load: MakeLoad) -> None:
    """Batch work that comes within its patience needs no more replicas, however much of it waits."""
    load = make_load(max_num_seqs=32, num_waiting=60)
    burst = [Arrival(30.0 + 0.001 * i, BATCH, 500, 20) for i in range(60)]
    assert scaler().decide(60.0, burst, load, 1).replicas == 1


def test_what_no_number_can_meet_takes_no_more(make_load: MakeLoad) -> None:
    slow = make_load(step_seconds=(0.06, 0.0, 0.0, 0.0, 0.0), max_num_seqs=64)
    assert scaler().decide(60.0, traffic(5, prompt=10), slow, 2).replicas == 2


def test_goes_down_one_by_one_after_a_while(make_load: MakeLoad) -> None:
    one = scaler(down_after=30)
    load = make_load(max_num_seqs=32)
    counts, replicas = [], 4
    for now in range(60, 180, 10):
        arrivals = [Arrival(now - 60 + a.at, a.service_class, 500, 20) for a in traffic(5)]
        replicas = one.decide(float(now), arrivals, load, replicas).replicas
        counts.append(replicas)
    assert counts == [4, 4, 4, 3, 3, 3, 2, 2, 2, 1, 1, 1]


def test_keeps_headroom(make_load: MakeLoad) -> None:
    """7 a second are within one replica's 8, but not a quarter more of them."""
    one = scaler(down_after=0)
    assert one.decide(60.0, traffic(7), make_load(max_num_seqs=32), 2).replicas == 2
    assert one.decide(60.0, traffic(5), make_load(max_num_seqs=32), 2).replicas == 1


def test_keeps_to_its_range(make_load: MakeLoad) -> None:
    load = make_load(max_num_seqs=32)
    assert scaler(high=2).decide(60.0, traffic(50), load, 1).replicas == 2
    assert scaler(low=2, down_after=0).decide(60.0, [], load, 2).replicas == 2
    assert scaler(low=2).decide(60.0, traffic(50), None, 1).replicas == 2
