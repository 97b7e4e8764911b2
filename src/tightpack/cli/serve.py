"""`tightpack serve`: an OpenAI-compatible server."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated

import typer

from tightpack.cli.options import (
    ActivationDtypeOption,
    AsyncSchedulingOption,
    AttentionBackendOption,
    DeviceOption,
    DtypeOption,
    EnforceEagerOption,
    ExecutorOption,
    KVCacheDtypeOption,
    ModelArgument,
    PromptGraphTokensOption,
    QuantizationOption,
    ServiceClassesOption,
    ServiceClassOption,
    TensorParallelOption,
    ThreadsOption,
    ThresholdOption,
)
from tightpack.cli.service_classes import read_service_classes
from tightpack.engine_args import DEFAULT_MODEL, EngineArgs

if TYPE_CHECKING:
    from tightpack.async_llm import AsyncLLM

_DEFAULTS = EngineArgs()
_LEVELS = ("critical", "error", "warning", "info", "debug")


def serve(
    model: ModelArgument = DEFAULT_MODEL,
    host: Annotated[str, typer.Option(help="0.0.0.0 listens on every interface.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="TIGHTPACK_API_KEY", help="Clients must bring it as a bearer token."),
    ] = None,
    served_model_name: Annotated[str | None, typer.Option(help="The name clients use.")] = None,
    policy: Annotated[
        str, typer.Option(help="static, dynamic, continuous, chunked-prefill or slo.")
    ] = _DEFAULTS.policy,
    max_num_seqs: Annotated[int, typer.Option(help="Requests a step at the most.")] = _DEFAULTS.max_num_seqs,
    max_num_batched_tokens: Annotated[int | None, typer.Option(help="Tokens a step at the most.")] = None,
    max_model_len: Annotated[
        int | None, typer.Option(help="Prompt and output tokens of a request at the most.")
    ] = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    executor: ExecutorOption = "auto",
    activation_dtype: ActivationDtypeOption = "auto",
    quantization: QuantizationOption = None,
    llm_int8_threshold: ThresholdOption = _DEFAULTS.llm_int8_threshold,
    kv_cache_dtype: KVCacheDtypeOption = _DEFAULTS.kv_cache_dtype,
    gpu_memory_utilization: Annotated[
        float, typer.Option(help="The share of the device's memory to fill.")
    ] = _DEFAULTS.gpu_memory_utilization,
    block_size: Annotated[int, typer.Option(help="Token positions a KV block.")] = _DEFAULTS.block_size,
    num_blocks: Annotated[int | None, typer.Option(help="KV blocks; sized by memory if not given.")] = None,
    seed: Annotated[int, typer.Option(help="Of requests that bring none.")] = _DEFAULTS.seed,
    enable_prefix_caching: Annotated[
        bool, typer.Option(help="Share the KV blocks of equal prompt beginnings.")
    ] = _DEFAULTS.enable_prefix_caching,
    max_wait: Annotated[
        float | None, typer.Option(help="Seconds that static and dynamic wait for company.")
    ] = None,
    max_queue: Annotated[
        int, typer.Option(help="Waiting requests at the most; more get 429.")
    ] = _DEFAULTS.max_queue,
    service_class: ServiceClassOption = None,
    service_classes: ServiceClassesOption = None,
    reject_unattainable: Annotated[
        bool,
        typer.Option(
            "--reject-unattainable", help="With slo: 429 for a request whose first token would be late."
        ),
    ] = False,
    num_threads: ThreadsOption = None,
    tensor_parallel_size: TensorParallelOption = 1,
    enforce_eager: EnforceEagerOption = False,
    prompt_graph_tokens: PromptGraphTokensOption = 512,
    attention_backend: AttentionBackendOption = "auto",
    async_scheduling: AsyncSchedulingOption = None,
    drain_timeout: Annotated[
        float, typer.Option(min=0, help="Seconds that requests under way have after SIGTERM.")
    ] = 30.0,
    allowed_origins: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN", help="Web origins that may call from a browser (CORS), * for all; repeatable."
        ),
    ] = None,
    log_level: Annotated[
        str, typer.Option(help=", ".join(_LEVELS) + " (which logs each access).")
    ] = "warning",
) -> None:
    """Serve a model over OpenAI's HTTP API. SIGTERM or Ctrl-C drains and stops, a second one stops at once.

    Example: `tightpack serve --port 8000 --policy chunked-prefill`
    """
    given = locals()
    if log_level not in _LEVELS:
        raise ValueError(f"--log-level {log_level!r} is not known; it must be one of {', '.join(_LEVELS)}")
    if api_key == "":
        raise ValueError("--api-key (or TIGHTPACK_API_KEY) is empty; leave it out to ask clients for none")
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # Every engine argument is an option of the same name here.
    engine_args = {field.name: given[field.name] for field in fields(EngineArgs)}
    engine_args["service_classes"] = read_service_classes(service_class, service_classes)
    args = EngineArgs(**engine_args)

    from tightpack.server.listening import address_of, open_socket

    # The port comes first: loading a model for nothing would take far longer.
    sock = open_socket(host, port)
    url = address_of(sock)
    # Half of starting is importing the HTTP server, the other half is work that needs no interpreter lock.
    with ThreadPoolExecutor(1, thread_name_prefix="load") as pool:
        loading = pool.submit(_load, args)
        from tightpack.server.run import run_server

        engine = loading.result()

    def on_drain(in_flight: int) -> None:
        print(
            f"draining: {in_flight} requests under way have {drain_timeout:g} s; "
            "a second signal stops at once",
            file=sys.stderr,
            flush=True,
        )

    run_server(
        engine,
        model_name=engine.model_name,
        sock=sock,
        api_key=api_key,
        allowed_origins=allowed_origins or (),
        drain_timeout=drain_timeout,
        access_log=log_level == "debug",
        on_ready=lambda: _say_ready(engine, url, with_key=api_key is not None),
        on_drain=on_drain,
    )


def _load(args: EngineArgs) -> AsyncLLM:
    from tightpack.async_llm import AsyncLLM

    return AsyncLLM(**{field.name: getattr(args, field.name) for field in fields(args)})


def _say_ready(engine: AsyncLLM, url: str, *, with_key: bool) -> None:
    from rich.console import Console

    limits = engine.engine.limits
    capacity = limits.num_blocks * limits.block_size
    body = {
        "model": engine.model_name,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
    }
    key = ' -H "Authorization: Bearer $TIGHTPACK_API_KEY"' if with_key else ""
    console = Console(soft_wrap=True, highlight=False)
    console.print(
        f"[bold green]ready[/] [bold]{engine.model_name}[/] at [bold]{url}[/]  policy {engine.args.policy}, "
        f"KV cache {capacity} tokens{_phases(engine.engine.load_seconds)}, "
        f"ready {_process_age():.2f} s after the process began"
    )
    console.print(
        f"try: curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' "
        f"-d {shlex.quote(json.dumps(body))}",
        markup=False,
    )


def _phases(seconds: Mapping[str, float]) -> str:
    parts = ", ".join(f"{phase} {took:.2f} s" for phase, took in seconds.items())
    return f", loaded in {sum(seconds.values()):.2f} s ({parts})" if parts else ""


def _process_age() -> float:
    """Seconds since the process began, the interpreter's own start and all imports among them."""
    with open("/proc/self/stat", encoding="utf-8") as stat:
        # Behind the command's name, which may hold spaces: field 22 of proc(5), in clock ticks since boot.
        ticks = int(stat.read().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
