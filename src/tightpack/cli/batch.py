"""`tightpack batch`: OpenAI's batch files, offline."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tightpack.cli.cluster import quiet_ray, require_ray
from tightpack.cli.options import ExecutorOption, KVCacheDtypeOption, QuantizationOption, ThreadsOption
from tightpack.engine_args import DEFAULT_MODEL, EngineArgs

if TYPE_CHECKING:
    from tightpack.cluster.batch_file import BatchLine

_DEFAULTS = EngineArgs()
Take = Callable[["BatchLine", Mapping[str, Any]], None]


def batch(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSON lines of custom_id, method, url and body.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="Answers, in FILE's order.")],
    model: Annotated[
        str | None, typer.Option(help="What to load: smollm2-135m, a directory, a GGUF file or a hub id.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="A server or cluster that runs already, instead of --model.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(envvar="TIGHTPACK_API_KEY", help="Of --url.")] = None,
    replicas: Annotated[int, typer.Option(min=1, help="Engines; more than one run on Ray Data.")] = 1,
    ray_address: Annotated[
        str | None, typer.Option(help="A Ray cluster for the replicas; auto finds it. Else on this machine.")
    ] = None,
    num_cpus: Annotated[float, typer.Option(help="What Ray sets aside for a replica.")] = 1.0,
    num_gpus: Annotated[float, typer.Option(help="What Ray sets aside for a replica.")] = 0.0,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests under way at --url at the most.")] = 64,
    served_model_name: Annotated[str | None, typer.Option(help="The name that bodies may carry.")] = None,
    max_num_seqs: Annotated[int, typer.Option(help="Requests a step at the most.")] = _DEFAULTS.max_num_seqs,
    max_model_len: Annotated[
        int | None, typer.Option(help="Prompt and output tokens of a request at the most.")
    ] = None,
    num_blocks: Annotated[int | None, typer.Option(help="KV blocks; sized by memory if not given.")] = None,
    policy: Annotated[str, typer.Option(help="As of tightpack serve.")] = _DEFAULTS.policy,
    quantization: QuantizationOption = None,
    kv_cache_dtype: KVCacheDtypeOption = _DEFAULTS.kv_cache_dtype,
    executor: ExecutorOption = "auto",
    num_threads: ThreadsOption = None,
) -> None:
    """Answer the requests of an OpenAI batch file. A run that was cut off goes on where it was.

    Example: `tightpack batch requests.jsonl -o answers.jsonl --model smollm2-135m`
    """
    if url is not None and (model is not None or replicas > 1):
        raise ValueError(
            "--url asks a server that runs; --model and --replicas start engines. Give one of them"
        )
    if replicas > 1 or ray_address is not None:
        require_ray("tightpack batch with --replicas")
    engine = {
        "model": model or DEFAULT_MODEL,
        "served_model_name": served_model_name,
        "max_num_seqs": max_num_seqs,
        "max_model_len": max_model_len,
        "num_blocks": num_blocks,
        "policy": policy,
        "quantization": quantization,
        "kv_cache_dtype": kv_cache_dtype,
        "executor": executor,
        "num_threads": num_threads,
    }
    EngineArgs.from_keywords("tightpack batch", dict(engine))

    from tightpack.cluster.batch_file import failed, output_tokens, read_batch, succeeded
    from tightpack.cluster.batch_journal import Journal
    from tightpack.progress import progress_bar

    if output.resolve() == file.resolve():
        raise ValueError("the output must be another file than the input")
    with file.open("rb") as opened:
        lines = read_batch(opened)
    if not lines:
        raise ValueError(f"{file} has no lines")
    head = {"url": url, **{key: value for key, value in engine.items() if url is None}}
    with Journal(output, lines, head) as journal:
        done = len(journal.outputs)
        if done:
            print(f"{done} of {len(lines)} lines were answered before", file=sys.stderr)
        with progress_bar(len(lines), "Lines") as advance:
            advance(done, 0)

            def take(line: BatchLine, answer: Mapping[str, Any]) -> None:
                if journal.add(line, answer):
                    advance(1, output_tokens(answer))

            for line in journal.missing:
                if line.error is not None:
                    take(line, failed(line, line.error))
            missing = journal.missing
            if not missing:
                pass
            elif url is not None:
                asyncio.run(_ask_server(url, api_key, missing, concurrency, take))
            elif replicas > 1 or ray_address is not None:
                _ask_replicas(missing, engine, replicas, num_cpus, num_gpus, ray_address, take)
            else:
                asyncio.run(_ask_engine(missing, engine, take))
        import json

        answers = (json.loads(journal.outputs[number]) for number in sorted(journal.outputs))
        bad = [answer for answer in answers if not succeeded(answer)]
        journal.finish()
    print(f"{len(lines)} lines in {output}", file=sys.stderr)
    if bad:
        print(f"{len(bad)} of them are errors, the first: {_what_went_wrong(bad[0])}", file=sys.stderr)
        raise typer.Exit(1)


def _what_went_wrong(answer: Mapping[str, Any]) -> str:
    error = answer["error"] or answer["response"]["body"].get("error", {})
    name = answer["custom_id"]
    return (f"{name}: " if name else "") + str(error.get("message", error))


async def _ask_server(
    url: str, api_key: str | None, lines: Sequence[BatchLine], concurrency: int, take: Take
) -> None:
    import httpx

    from tightpack.cluster.batch_http import answer_lines

    if not url.startswith(("http://", "https://")):
        raise ValueError(f"a server's URL begins with http:// or https://, got {url!r}")
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    timeout = httpx.Timeout(None, connect=30)
    root = url.rstrip("/").removesuffix("/v1")
    async with httpx.AsyncClient(
        base_url=root, headers=headers, limits=limits, timeout=timeout, trust_env=False
    ) as client:
        try:
            (await client.get("/v1/models")).raise_for_status()
        except httpx.HTTPError as error:
            raise OSError(f"{root} does not answer as an OpenAI-compatible server: {error}") from error
        async for line, answer in answer_lines(client, lines, concurrency=concurrency):
            take(line, answer)


async def _ask_engine(lines: Sequence[BatchLine], engine: Mapping[str, Any], take: Take) -> None:
    from tightpack.cluster.batch_engine import BatchEngine

    answering = BatchEngine(engine)
    try:
        async for line, answer in answering.answer(lines):
            take(line, answer)
    finally:
        answering.close()


def _ask_replicas(
    lines: Sequence[BatchLine],
    engine: Mapping[str, Any],
    replicas: int,
    num_cpus: float,
    num_gpus: float,
    ray_address: str | None,
    take: Take,
) -> None:
    quiet_ray()
    from tightpack.cluster.batch_replicas import answer_on_replicas

    for line, answer in answer_on_replicas(
        lines, engine, replicas=replicas, num_cpus=num_cpus, num_gpus=num_gpus, address=ray_address
    ):
        take(line, answer)
