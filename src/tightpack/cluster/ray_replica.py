"""A replica on Ray Serve: the engine and its HTTP server in the actor's process.

Requests do not pass through Ray: the router talks HTTP to the replica's own socket. Ray Serve's own path
(proxy and streamed actor calls) took 1.7 ms of CPU a token, more than a small model's step; docs/cluster.md
has the measurement. What Ray does: place the process, watch it, start it again, and end it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import uuid
from collections.abc import Sequence
from typing import Any

import ray
from ray import serve

from tightpack.cluster.fleet import Announced

# How long a call for the members waits for a change.
_LONG_POLL_S = 5.0


class Directory:
    """Who is in the fleet; an actor of its own, that replicas announce themselves to."""

    def __init__(self) -> None:
        self._members: dict[str, Announced] = {}
        self._version = 0
        self._changed = asyncio.Event()

    async def announce(self, member: Announced) -> None:
        if self._members.get(member.id) != member:
            self._members[member.id] = member
            self._tell()

    async def remove(self, replica_id: str) -> None:
        if self._members.pop(replica_id, None) is not None:
            self._tell()

    async def members(self, known: int) -> tuple[int, Sequence[Announced]]:
        """The version and members; waits some seconds while the version is still `known`."""
        if known == self._version:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), _LONG_POLL_S)
        return self._version, tuple(self._members.values())

    def _tell(self) -> None:
        self._version += 1
        self._changed.set()
        self._changed = asyncio.Event()


@serve.deployment
class ServingReplica:
    """Loads a model, serves it, and announces where. Ray Serve calls `check_health` and `__del__`."""

    def __init__(
        self, pool: str, engine: dict[str, Any], key: str, drain_timeout: float, directory: Any
    ) -> None:
        from tightpack.async_llm import AsyncLLM
        from tightpack.server.background import BackgroundServer
        from tightpack.server.listening import address_of, open_socket

        self._engine = AsyncLLM(**engine)
        host = ray.util.get_node_ip_address()
        sock = open_socket(host, 0)
        self._server = BackgroundServer(
            self._engine,
            model_name=self._engine.model_name,
            sock=sock,
            api_key=key,
            drain_timeout=drain_timeout,
        )
        node = ray.get_runtime_context().get_node_id()
        self._me = Announced(uuid.uuid4().hex[:8], pool, address_of(sock), os.getpid(), node)
        self._directory = directory
        ray.get(directory.announce.remote(self._me))

    async def check_health(self) -> None:
        if not self._server.is_running:
            raise RuntimeError("the engine or its server has stopped")
        # The router may have forgotten a replica that it could not reach for a while.
        await self._directory.announce.remote(self._me)

    async def __del__(self) -> None:
        # The router sees by the answers that this replica drains, and sends nothing more.
        await asyncio.to_thread(self._server.stop)
        await self._directory.remove.remote(self._me.id)


def engine_keywords(engine: Any) -> dict[str, Any]:
    """EngineArgs as the keywords that make them again."""
    return {field.name: getattr(engine, field.name) for field in dataclasses.fields(engine)}
