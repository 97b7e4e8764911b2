"""The cluster process: the router's socket in front, the fleet behind it."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable

from tightpack.cluster.app import create_cluster_app
from tightpack.cluster.config import ClusterConfig
from tightpack.cluster.router import Router
from tightpack.server.run import DrainingServer
from tightpack.server.service import Lifecycle


def run_cluster(
    config: ClusterConfig,
    sock: socket.socket,
    *,
    api_key: str | None = None,
    log_level: str = "warning",
    on_ready: Callable[[], None] = lambda: None,
    on_drain: Callable[[int], None] = lambda in_flight: None,
) -> None:
    """Serve until SIGTERM or SIGINT, as `tightpack serve` does; leaves no replica behind.

    Requests are taken from the start, and wait for the first replica that is ready. on_ready: called when
    every pool has one. Raises ModuleNotFoundError where Ray is not installed, and RuntimeError for a pool
    that cannot start.
    """
    from tightpack.cluster.ray_fleet import RayFleet

    # Replicas listen on the network of the cluster's machines; only who has this key is served there.
    key = secrets.token_urlsafe(32)
    fleet = RayFleet(config, key, show_logs=log_level in ("debug", "info"))
    try:
        fleet.start()
        router = Router(config, fleet, key)
        serve_router(router, sock, api_key, log_level == "debug", on_ready, on_drain)
    finally:
        fleet.stop()


def serve_router(
    router: Router,
    sock: socket.socket,
    api_key: str | None = None,
    access_log: bool = False,
    on_ready: Callable[[], None] = lambda: None,
    on_drain: Callable[[int], None] = lambda in_flight: None,
) -> None:
    """The router over its fleet, until it is told to stop. RuntimeError for a pool that cannot start."""
    lifecycle = Lifecycle()
    beginning: list[asyncio.Task[None]] = []

    async def begin() -> None:
        await router.start()
        try:
            await router.until_all_ready()
        except RuntimeError:
            server.should_exit = True
            await router.stop()
            raise
        on_ready()

    server = DrainingServer(
        create_cluster_app(router, api_key=api_key, lifecycle=lifecycle),
        router,
        lifecycle,
        drain_timeout=router.config.drain_timeout,
        access_log=access_log,
        on_ready=lambda: beginning.append(asyncio.get_running_loop().create_task(begin())),
        on_drain=on_drain,
    )
    server.run_until_drained(sock)
    for task in beginning:
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            raise error
