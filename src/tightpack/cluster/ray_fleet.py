"""The fleet on Ray Serve: an application a pool, whose number of replicas the router sets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import ray
from ray import serve

from tightpack.cluster.config import ClusterConfig, PoolConfig
from tightpack.cluster.fleet import Announced
from tightpack.cluster.ray_local import join_ray, start_ray
from tightpack.cluster.ray_replica import Directory, ServingReplica, engine_keywords

# Seconds between Ray's looks at a replica. One that has died is noticed at once; this is for one that hangs.
_HEALTH_PERIOD_S, _HEALTH_TIMEOUT_S = 5.0, 30.0
# A model that cannot be loaded is not loaded for ever.
_MOST_STARTS = 3
# What ending takes beyond draining.
_CLOSING_S = 10.0


class RayFleet:
    """Implements `fleet.Fleet`. `start` and `stop` block; the rest is for the router's event loop."""

    def __init__(self, config: ClusterConfig, key: str, *, show_logs: bool = False) -> None:
        """show_logs: print what the replicas log, as Ray forwards it."""
        self._config = config
        self._show_logs = show_logs
        self._key = key
        self._directory: Any = None

    def start(self) -> None:
        """Connect to Ray (or start it here) and ask for the replicas of all pools; does not wait for them."""
        if self._config.ray.address is None:
            start_ray(
                num_cpus=sum(pool.num_cpus * pool.max_replicas for pool in self._config.pools),
                with_gpus=any(pool.num_gpus for pool in self._config.pools),
                object_store_memory=self._config.ray.object_store_memory,
                show_logs=self._show_logs,
            )
        else:
            join_ray(self._config.ray.address, show_logs=self._show_logs)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        # Clients do not come through Ray Serve, so it needs no proxies.
        serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})
        self._directory = ray.remote(num_cpus=0)(Directory).remote()
        self._deploy({pool.name: pool.min_replicas for pool in self._config.pools})

    async def members(self, known: int) -> tuple[int, Sequence[Announced]]:
        version, members = await self._directory.members.remote(known)
        return version, members

    async def forget(self, replica_id: str) -> None:
        await self._directory.remove.remote(replica_id)

    async def scale(self, pool: str, replicas: int) -> None:
        await asyncio.to_thread(self._deploy, {pool: replicas})

    async def failure(self) -> str | None:
        """Why a pool cannot start, once Ray Serve has given it up."""
        for name, application in (await asyncio.to_thread(serve.status)).applications.items():
            if application.status == "DEPLOY_FAILED":
                messages = (one.message for one in application.deployments.values())
                message = next(filter(None, messages), application.message)
                # Of a traceback through all of Ray, the last line is the error itself.
                return f"{name}: {message.strip().splitlines()[-1]}"
        return None

    def stop(self) -> None:
        """End the replicas, and Ray where it was started here."""
        try:
            serve.shutdown()
        finally:
            ray.shutdown()

    def _deploy(self, replicas: dict[str, int]) -> None:
        serve.run_many(
            [
                serve.RunTarget(
                    self._application(self._config.pool(name), count), name=_name(name), route_prefix=None
                )
                for name, count in replicas.items()
            ],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )

    def _application(self, pool: PoolConfig, replicas: int) -> Any:
        drain = self._config.drain_timeout
        # A change of the number alone leaves the replicas that there are in peace.
        deployment = ServingReplica.options(  # type: ignore[attr-defined]
            name=pool.name,
            num_replicas=replicas,
            ray_actor_options={"num_cpus": pool.num_cpus, "num_gpus": pool.num_gpus},
            graceful_shutdown_wait_loop_s=0.1,
            graceful_shutdown_timeout_s=drain + _CLOSING_S,
            health_check_period_s=_HEALTH_PERIOD_S,
            health_check_timeout_s=_HEALTH_TIMEOUT_S,
            max_constructor_retry_count=_MOST_STARTS,
        )
        return deployment.bind(pool.name, engine_keywords(pool.engine), self._key, drain, self._directory)


def _name(pool: str) -> str:
    return f"tightpack-{pool}"
