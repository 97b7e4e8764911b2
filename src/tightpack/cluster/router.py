"""The router's state: replicas and their health, requests under way, and the loops that keep them true."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import aiohttp

from tightpack.cluster.asked import Asked
from tightpack.cluster.autoscaling import Autoscaler, Target
from tightpack.cluster.config import ClusterConfig, PoolConfig
from tightpack.cluster.fleet import Fleet
from tightpack.cluster.replica import Health, Replica, Sent, parse_load
from tightpack.cluster.routing import Choice, choose
from tightpack.cluster.traffic import Arrived, Traffic

logger = logging.getLogger(__name__)

_CONNECT_S = 5.0


class Router:
    """Routes over a fleet. Everything but `close` is called from one event loop, and nothing blocks it.

    key: the bearer token that replicas ask of whoever talks to them.
    """

    def __init__(
        self,
        config: ClusterConfig,
        fleet: Fleet,
        key: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.pools: dict[str, list[Replica]] = {pool.name: [] for pool in config.pools}
        self.traffic = {pool.name: Traffic() for pool in config.pools}
        self.targets = {pool.name: Target(pool.min_replicas, 1.0, "at the start") for pool in config.pools}
        self.now = clock
        self.num_waiting = 0
        self._fleet = fleet
        self._key = key
        self._known: dict[str, Replica] = {}
        self._changed = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._session: aiohttp.ClientSession | None = None

    # --- life

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        # A connection for each request under way: what bounds them is the replicas' queues.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
            headers={"Authorization": f"Bearer {self._key}"},
            auto_decompress=False,
        )
        self._spawn("members", self._follow_members())
        for pool in self.config.pools:
            if pool.min_replicas < pool.max_replicas:
                self._spawn(f"scale {pool.name}", self._autoscale(pool))

    @property
    def session(self) -> aiohttp.ClientSession:
        assert self._session is not None, "the router is not started"
        return self._session

    @property
    def num_under_way(self) -> int:
        return self.num_waiting + sum(len(one.under_way) for one in self._known.values())

    async def drain(self, timeout: float) -> None:
        """Wait for what is under way, `timeout` seconds at the most."""
        deadline = self.now() + timeout
        while self.num_under_way and self.now() < deadline:
            await asyncio.sleep(0.02)
        if not self.num_under_way:
            await self.stop()

    async def stop(self) -> None:
        """End the loops and close the connections."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def close(self) -> None:
        """Break off what is under way; from any thread."""

        def break_off() -> None:
            for replica in self._known.values():
                _abandon(replica)

        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(break_off)

    def _spawn(self, name: str, work: Any) -> None:
        self._tasks[name] = asyncio.create_task(work, name=name)

    # --- requests

    def choose(self, asked: Asked, tried: Collection[Replica]) -> Choice | None:
        return choose(asked, self.config, self.pools, tried)

    def arrived(self, asked: Asked) -> Arrived:
        """Enter a request into the traffic of its pool."""
        service_class = next(one for one in self.config.service_classes if one.name == asked.service_class)
        arrived = Arrived(self.now(), service_class, asked.prompt_tokens, asked.max_tokens)
        self.traffic[self.config.home(asked.service_class).name].add(arrived)
        return arrived

    def send(self, choice: Choice, asked: Asked) -> Sent:
        """Enter a request into a replica's books; `ended` takes it out."""
        sent = Sent(choice.work, self.now())
        choice.replica.under_way.add(sent)
        choice.replica.prefixes.note(asked.prefix)
        return sent

    def ended(self, replica: Replica, sent: Sent) -> None:
        replica.under_way.discard(sent)

    def suspect(self, replica: Replica) -> None:
        """A connection to it failed: nobody is sent there until it answers a look."""
        if replica.health is Health.READY:
            replica.health = Health.SUSPECT

    def leaves(self, replica: Replica) -> None:
        """It said that it is shutting down."""
        replica.health = Health.DRAINING

    async def until_changed(self, timeout: float) -> None:
        """Until a replica may have become ready, or `timeout` seconds."""
        try:
            await asyncio.wait_for(self._changed.wait(), timeout)
        except TimeoutError:
            return

    async def until_all_ready(self) -> None:
        """Until every pool has a replica that takes requests. Raises RuntimeError if one cannot start."""
        while not all(any(one.health is Health.READY for one in members) for members in self.pools.values()):
            await self.until_changed(1.0)
            if (failure := await self._fleet.failure()) is not None:
                raise RuntimeError(failure)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # --- replicas

    async def _follow_members(self) -> None:
        version = -1
        while True:
            try:
                version, members = await self._fleet.members(version)
            except Exception:
                logger.exception("the fleet cannot say who is in it; asking again")
                await asyncio.sleep(1.0)
                continue
            for one in members:
                if one.id not in self._known and one.pool in self.pools:
                    replica = Replica(one.id, one.pool, one.url, one.pid, one.node, answered_at=self.now())
                    self._known[one.id] = replica
                    self._spawn(one.id, self._watch(replica))

    async def _watch(self, replica: Replica) -> None:
        """Look at a replica again and again, until it is gone."""
        self.pools[replica.pool].append(replica)
        try:
            while await self._look(replica):
                # A suspect is looked at sooner: the pool is one short.
                ready = replica.health is Health.READY
                await asyncio.sleep(self.config.routing.poll_interval * (1.0 if ready else 0.2))
        finally:
            self.pools[replica.pool].remove(replica)
            self._known.pop(replica.id, None)
            self._tasks.pop(replica.id, None)
        logger.warning("replica %s of pool %s is gone", replica.id, replica.pool)
        _abandon(replica)
        await self._fleet.forget(replica.id)

    async def _look(self, replica: Replica) -> bool:
        """Whether it is worth looking at again."""
        routing = self.config.routing
        asked_at = self.now()
        was_ready = replica.health is Health.READY
        timeout = aiohttp.ClientTimeout(total=routing.dead_after)
        try:
            async with self.session.get(f"{replica.url}/load", timeout=timeout) as answer:
                if answer.status == 503:
                    replica.health, replica.answered_at = Health.DRAINING, self.now()
                    return True
                answer.raise_for_status()
                replica.answered(parse_load(await answer.json()), asked_at, self.now())
        except TimeoutError:
            # A step that takes longer than that is no death: the HTTP server answers beside it.
            return await self._answers_at_all(replica)
        except (aiohttp.ClientError, OSError, ValueError, TypeError, KeyError) as error:
            logger.debug("%s: %s: %s", replica.id, type(error).__name__, error)
            if replica.health is Health.DRAINING:
                return False
            self.suspect(replica)
            return self.now() - replica.answered_at < routing.dead_after
        if not was_ready:
            self._notify()
        return True

    async def _answers_at_all(self, replica: Replica) -> bool:
        try:
            timeout = aiohttp.ClientTimeout(total=self.config.routing.dead_after)
            async with self.session.get(f"{replica.url}/health", timeout=timeout) as answer:
                return bool(answer.status == 200)
        except (TimeoutError, aiohttp.ClientError, OSError):
            return False

    # --- how many

    async def _autoscale(self, pool: PoolConfig) -> None:
        scaler = Autoscaler(pool, self.config.autoscaling, self.config.routing.patience)
        while True:
            await asyncio.sleep(self.config.autoscaling.interval)
            before = self.targets[pool.name].replicas
            loads = [one.load for one in self.pools[pool.name] if one.load is not None]
            # The replica of the median step time stands for all.
            loads.sort(key=lambda one: one.step_seconds)
            load = loads[len(loads) // 2] if loads else None
            # Some tens of milliseconds of arithmetic: not on the event loop.
            target = await asyncio.to_thread(
                scaler.decide, self.now(), self.traffic[pool.name].arrivals(), load, before
            )
            self.targets[pool.name] = target
            if target.replicas != before:
                logger.warning(
                    "pool %s: %d -> %d replicas: %s", pool.name, before, target.replicas, target.reason
                )
                try:
                    await self._fleet.scale(pool.name, target.replicas)
                except Exception:
                    logger.exception("pool %s could not be scaled; trying again", pool.name)
                    self.targets[pool.name] = Target(before, target.attainment, "scaling failed")

    # --- for those who look

    def describe(self) -> Mapping[str, Any]:
        """Pools, replicas and what is predicted of them, as JSON."""
        return {
            "model": self.config.model,
            "pools": {
                pool.name: {
                    "classes": list(pool.classes),
                    "overflow": list(pool.overflow),
                    "target_replicas": self.targets[pool.name].replicas,
                    "predicted_attainment": self.targets[pool.name].attainment,
                    "reason": self.targets[pool.name].reason,
                    "replicas": [
                        {
                            "id": one.id,
                            "url": one.url,
                            "pid": one.pid,
                            "node": one.node,
                            "health": one.health.value,
                            "under_way": len(one.under_way),
                            "num_running": one.load.num_running if one.load else None,
                            "num_waiting": one.load.num_waiting if one.load else None,
                            "step_seconds": list(one.load.step_seconds) if one.load else None,
                        }
                        for one in self.pools[pool.name]
                    ],
                }
                for pool in self.config.pools
            },
        }


def _abandon(replica: Replica) -> None:
    """End its requests as lost: those of which nothing was streamed go elsewhere."""
    for sent in tuple(replica.under_way):
        sent.abandon()
