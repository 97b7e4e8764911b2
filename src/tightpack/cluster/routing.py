"""Which replica a request goes to."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tightpack.cluster.asked import Asked
from tightpack.cluster.config import ClusterConfig, PoolConfig, RoutingConfig
from tightpack.cluster.prediction import Prediction, Work, predict
from tightpack.cluster.prefixes import BLOCK_BYTES
from tightpack.cluster.replica import Health, Replica
from tightpack.requests.service_class import ServiceClass

_BLOCK_TOKENS = BLOCK_BYTES // 4
# Work without a target enters a pool of others only where it leaves at least so much of the places free.
_GUEST_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Choice:
    """replica: where to. work: as predicted there. overflowed: it is not of the request's own pool.

    cached: blocks of the prompt's beginning that it was sent before.
    """

    replica: Replica
    work: Work
    prediction: Prediction
    overflowed: bool
    cached: int


def choose(
    asked: Asked, config: ClusterConfig, replicas: Mapping[str, Sequence[Replica]], tried: Collection[Replica]
) -> Choice | None:
    """The replica for a request, or None where none is ready.

    1. At home: of the ready replicas of its class's pool, by `within_pool`.
    2. If none of them is predicted to be in time, the first overflow pool with one that is. A request
       without a TTFT target counts as in time within `patience` seconds, and as a guest it must leave half
       of a replica's places and the TPOT target of the hosts unharmed.
    3. If nobody is in time: home if any replica there is ready, else the first overflow pool with one.

    replicas: pool to its replicas. tried: those that failed this request already.
    """
    service_class = next(one for one in config.service_classes if one.name == asked.service_class)
    home = config.home(asked.service_class)
    late: Choice | None = None
    for name in (home.name, *home.overflow):
        pool = config.pool(name)
        guest = name != home.name
        candidates = [
            _candidate(replica, asked, service_class, guest)
            for replica in replicas.get(name, ())
            if replica.health is Health.READY and replica not in tried
        ]
        best = within_pool(candidates, service_class, config.routing)
        if best is None:
            continue
        if in_time(best.prediction, service_class, config.routing) and (
            not guest or service_class.ttft_s is not None or _has_room_for_guest(best, pool, config)
        ):
            return best
        late = late or best
    return late


def within_pool(
    candidates: Iterable[Choice], service_class: ServiceClass, routing: RoutingConfig
) -> Choice | None:
    """Who is predicted to have the first token soonest, but for prefix affinity.

    Affinity: of those predicted to meet every target, and no later than the soonest by `affinity` of the TTFT
    target, the one with most of the prompt cached is taken. So it never leads to a miss that another
    replica would have spared, and bounds what it costs.
    """
    ordered = sorted(candidates, key=lambda one: one.prediction.ttft_s)
    if not ordered:
        return None
    ttft_s = service_class.ttft_s or routing.patience
    latest = min(ttft_s, ordered[0].prediction.ttft_s + routing.affinity * ttft_s)
    near = [one for one in ordered if one.prediction.ttft_s <= latest and one.prediction.meets(service_class)]
    if near:
        return max(near, key=lambda one: (one.cached, -one.prediction.ttft_s))
    return ordered[0]


def in_time(prediction: Prediction, service_class: ServiceClass, routing: RoutingConfig) -> bool:
    if service_class.ttft_s is None:
        return prediction.ttft_s <= routing.patience and prediction.meets(service_class)
    return prediction.meets(service_class)


def _candidate(replica: Replica, asked: Asked, service_class: ServiceClass, guest: bool) -> Choice:
    assert replica.load is not None
    cached = replica.prefixes.matched(asked.prefix)
    work = Work(
        service_class,
        asked.prompt_tokens,
        min(cached * _BLOCK_TOKENS, asked.prompt_tokens - 1),
        asked.sequences,
    )
    return Choice(replica, work, predict(replica.load, work, replica.unseen), guest, cached)


def _has_room_for_guest(choice: Choice, pool: PoolConfig, config: ClusterConfig) -> bool:
    load = choice.replica.load
    assert load is not None
    unseen = sum(one.sequences for one in choice.replica.unseen)
    taken = load.num_running + load.num_waiting + unseen + choice.work.sequences
    tightest = min((one.tpot_s or math.inf for one in config.targets(pool)), default=math.inf)
    return taken <= _GUEST_SHARE * load.max_num_seqs and choice.prediction.tpot_s <= tightest
