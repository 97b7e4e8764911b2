"""Which replica a request goes to, and which pool takes what another cannot serve in time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tightpack.cluster.asked import Asked
from tightpack.cluster.config import ClusterConfig, parse_config
from tightpack.cluster.prefixes import BLOCK_BYTES, prefix_hashes
from tightpack.cluster.replica import Health, Replica, Sent
from tightpack.cluster.routing import Choice, choose
from tightpack.serving_loop.load import EngineLoad

MakeLoad = Callable[..., EngineLoad]
PROMPT = prefix_hashes(b"p" * 8 * BLOCK_BYTES)  # 512 tokens


def ask(service_class: str = "standard", tokens: int = 512, prefix: tuple[bytes, ...] = ()) -> Asked:
    return Asked(None, service_class, tokens, 1, 32, True, prefix)


def replica(name: str, load: EngineLoad, pool: str = "main", **fields: Any) -> Replica:
    return Replica(name, pool, f"http://{name}", **{"health": Health.READY, "load": load, **fields})


@pytest.fixture
def one_pool() -> ClusterConfig:
    return parse_config({"pools": {"main": {}}})


@pytest.fixture
def two_pools() -> ClusterConfig:
    return parse_config(
        {
            "pools": {
                "fast": {"classes": ["interactive", "standard"], "overflow": ["bulk"]},
                "bulk": {"overflow": ["fast"]},
            }
        }
    )


def pick(config: ClusterConfig, asked: Asked, *replicas: Replica, tried: tuple[Replica, ...] = ()) -> Any:
    pools: dict[str, list[Replica]] = {}
    for one in replicas:
        pools.setdefault(one.pool, []).append(one)
    choice = choose(asked, config, pools, tried)
    return choice and choice.replica.id


def test_goes_where_the_first_token_comes_soonest(one_pool: ClusterConfig, make_load: MakeLoad) -> None:
    queue, idle = replica("queue", make_load(waiting=2000)), replica("idle", make_load())
    slow = replica("slow", make_load(step_seconds=(0.2, 0.0002, 0.0, 0.0001, 0.0)))
    assert pick(one_pool, ask(), queue, idle, slow) == "idle"
    assert pick(one_pool, ask(), queue, slow) == "queue"


@pytest.mark.parametrize("health", [Health.STARTING, Health.SUSPECT, Health.DRAINING])
def test_only_to_the_ready(one_pool: ClusterConfig, make_load: MakeLoad, health: Health) -> None:
    out = replica("out", make_load(), health=health)
    busy = replica("busy", make_load(waiting=9000))
    assert pick(one_pool, ask(), out, busy) == "busy"
    assert pick(one_pool, ask(), out) is None
    assert pick(one_pool, ask(), busy, tried=(busy,)) is None


def test_prefers_a_cached_prefix_while_that_is_in_time(one_pool: ClusterConfig, make_load: MakeLoad) -> None:
    """standard: 2 s and an affinity of a quarter of it. 1,500 tokens ahead are 0.36 s, 9,000 are 2.2 s."""
    for ahead, wanted in ((0, "warm"), (1500, "warm"), (4000, "cold"), (9000, "cold")):
        warm, cold = replica("warm", make_load(waiting=ahead)), replica("cold", make_load())
        warm.prefixes.note(PROMPT)
        assert pick(one_pool, ask(prefix=PROMPT), warm, cold) == wanted, ahead


def test_affinity_never_leads_to_a_miss(one_pool: ClusterConfig, make_load: MakeLoad) -> None:
    """Both are within the affinity of each other, but only one within the target."""
    warm, cold = replica("warm", make_load(waiting=8800)), replica("cold", make_load(waiting=7000))
    warm.prefixes.note(PROMPT)
    assert pick(one_pool, ask(prefix=PROMPT), warm, cold) == "cold"


def test_no_affinity_for_a_pace_that_is_too_slow(one_pool: ClusterConfig, make_load: MakeLoad) -> None:
    warm = replica("warm", make_load(step_seconds=(0.12, 0.0, 0.0, 0.0001, 0.0)))  # target: 0.1 s a token
    cold = replica("cold", make_load())
    warm.prefixes.note(PROMPT)
    assert pick(one_pool, ask(prefix=PROMPT), warm, cold) == "cold"


def test_overflows_to_a_pool_that_is_in_time(two_pools: ClusterConfig, make_load: MakeLoad) -> None:
    fast = replica("f", make_load(waiting=20_000), "fast")
    bulk = replica("b", make_load(), "bulk")
    late = replica("l", make_load(waiting=30_000), "bulk")
    assert pick(two_pools, ask(), fast, bulk) == "b"
    assert pick(two_pools, ask(), replica("f", make_load(), "fast"), bulk) == "f"
    assert pick(two_pools, ask(), fast, late) == "f"  # nobody is in time: it stays at home
    assert pick(two_pools, ask(), late) == "l"  # but where nobody is at home it goes all the same


def test_batch_work_is_a_guest_only_where_there_is_room(
    two_pools: ClusterConfig, make_load: MakeLoad
) -> None:
    bulk = replica("b", make_load(waiting=100_000), "bulk")  # 24 s, more than its patience of 10
    assert pick(two_pools, ask("batch"), bulk, replica("f", make_load(), "fast")) == "f"
    half_full = replica("f", make_load(num_running=4, decodes=4), "fast")
    assert pick(two_pools, ask("batch"), bulk, half_full) == "b"
    patient = replica("b", make_load(waiting=10_000), "bulk")
    assert pick(two_pools, ask("batch"), patient, replica("f", make_load(), "fast")) == "b"


def test_a_burst_between_two_looks_is_spread(one_pool: ClusterConfig, make_load: MakeLoad) -> None:
    """What was sent since the load was published counts, or all would go to the same replica."""
    both = [replica("a", make_load()), replica("b", make_load())]
    chosen: list[str] = []
    for _ in range(10):
        choice = choose(ask(), one_pool, {"main": both}, ())
        assert isinstance(choice, Choice)
        chosen.append(choice.replica.id)
        choice.replica.under_way.add(Sent(choice.work, at=1.0))
    assert sorted(chosen) == ["a"] * 5 + ["b"] * 5
