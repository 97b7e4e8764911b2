"""The cluster process: the router's socket in front, the fleet behind it."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable

from starlette.types import ASGIApp

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
    access_log: bool = False,
    on_ready: Callable[[], None] = lambda: None,
    on_drain: Callable[[int], None] = lambda in_flight: None,
) -> None:
    """Serve until SIGTERM or SIGINT, as `tightpack serve` does; leaves no replica behind.

    Requests are taken from the start, and wait for the first replica that is ready. on_ready: called when
    every pool has one. Raises ModuleNotFoundError where Ray is not installed.
    """
    from tightpack.cluster.ray_fleet import RayFleet

    # Replicas listen on the network of the cluster's machines; only who has this key is served there.
    key = secrets.token_urlsafe(32)
    fleet = RayFleet(config, key)
    try:
        fleet.start()
        serve_router(config, Router(config, fleet, key), sock, api_key, access_log, on_ready, on_drain)
    finally:
        fleet.stop()


def serve_router(
    config: ClusterConfig,
    router: Router,
    sock: socket.socket,
    api_key: str | None = None,
    access_log: bool = False,
    on_ready: Callable[[], None] = lambda: None,
    on_drain: Callable[[int], None] = lambda in_flight: None,
) -> None:
    """The router over any fleet, until it is told to stop."""
    lifecycle = Lifecycle()
    app: ASGIApp = create_cluster_app(router, api_key=api_key, lifecycle=lifecycle)
    tasks = set()

    async def begin() -> None:
        await router.start()
        await router.until_all_ready()
        on_ready()

    def on_listening() -> None:
        tasks.add(asyncio.get_running_loop().create_task(begin()))

    DrainingServer(
        app,
        router,
        lifecycle,
        drain_timeout=config.drain_timeout,
        access_log=access_log,
        on_ready=on_listening,
        on_drain=on_drain,
    ).run_until_drained(sock)
