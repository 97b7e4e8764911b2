"""`tightpack cluster`: pools of replicas behind one address."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from tightpack.cli.yaml_file import read_mapping

_LEVELS = ("critical", "error", "warning", "info", "debug")
_EXAMPLE = "be a mapping with pools, such as pools: {main: {replicas: 2}}"


def cluster(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A YAML file; docs/cluster.md has its keys.")
    ],
    host: Annotated[str | None, typer.Option(help="Instead of the file's.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Instead of the file's.")] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="TIGHTPACK_API_KEY", help="Clients must bring it as a bearer token."),
    ] = None,
    log_level: Annotated[
        str, typer.Option(help=", ".join(_LEVELS) + " (which logs each access).")
    ] = "warning",
) -> None:
    """Serve pools of replicas on Ray behind one OpenAI-compatible address.

    Example: `tightpack cluster examples/cluster.yaml`
    """
    if log_level not in _LEVELS:
        raise ValueError(f"--log-level {log_level!r} is not known; it must be one of {', '.join(_LEVELS)}")
    if api_key == "":
        raise ValueError("--api-key (or TIGHTPACK_API_KEY) is empty; leave it out to ask clients for none")
    started = time.monotonic()
    from tightpack.cluster.config import parse_config

    changes = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    parsed = parse_config({**read_mapping(config, _EXAMPLE), **changes})
    require_ray("tightpack cluster")
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    from tightpack.server.listening import address_of, open_socket

    sock = open_socket(parsed.host, parsed.port)
    url = address_of(sock)
    quiet_ray()
    from tightpack.cluster.run import run_cluster

    pools = ", ".join(f"{pool.name} {_count(pool)}" for pool in parsed.pools)
    print(f"starting {parsed.model}: {pools}", file=sys.stderr, flush=True)

    def on_ready() -> None:
        took = time.monotonic() - started
        print(f"ready {parsed.model} at {url}  pools {pools}, ready {took:.1f} s after the start", flush=True)

    def on_drain(in_flight: int) -> None:
        print(
            f"draining: {in_flight} requests under way have {parsed.drain_timeout:g} s; "
            "a second signal stops at once",
            file=sys.stderr,
            flush=True,
        )

    try:
        run_cluster(parsed, sock, api_key=api_key, log_level=log_level, on_ready=on_ready, on_drain=on_drain)
    except RuntimeError as error:
        raise ValueError(f"the cluster cannot start: {error}") from error


def require_ray(who: str) -> None:
    """Raise ModuleNotFoundError that says how to install Ray, without importing it."""
    if importlib.util.find_spec("ray") is None:
        raise ModuleNotFoundError(
            f"{who} needs Ray, which is not installed: pip install 'tightpack[cluster]'"
        )


def quiet_ray() -> None:
    """No usage statistics, unless the user asks for them. Ray reads the environment when it is imported."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def _count(pool: Any) -> str:
    low, high = pool.min_replicas, pool.max_replicas
    return f"{low}" if low == high else f"{low} to {high}"
