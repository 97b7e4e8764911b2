"""A batch over replicas on Ray Data.

Ray Data streams blocks of lines to a pool of actors, holds back while they are busy, starts an actor again
that has died, and gives the lines that it had to another: what a batch needs, and what would have to be
written again over plain actors or HTTP. Each actor is an engine of its own behind the server's application,
so that a line is answered exactly as over HTTP.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray

from tightpack.cluster.batch_engine import BatchEngine
from tightpack.cluster.batch_file import BatchLine
from tightpack.cluster.ray_local import join_ray, start_ray

# Lines a block: small, so that what dies with an actor is little, and an actor has several at once.
_BLOCK_LINES = 8


class LineAnswerer:
    """An actor of the pool. Calls come several at once, on threads; one event loop answers their lines."""

    def __init__(self, engine: Mapping[str, Any]) -> None:
        self._engine = BatchEngine(engine)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="batch", daemon=True).start()

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        lines = [BatchLine(**json.loads(text)) for text in block["line"]]
        outputs = asyncio.run_coroutine_threadsafe(self._engine.answer_all(lines), self._loop).result()
        return {
            "number": [line.number for line in lines],
            "output": [json.dumps(output) for output in outputs],
        }


def answer_on_replicas(
    lines: Sequence[BatchLine],
    engine: Mapping[str, Any],
    *,
    replicas: int,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    address: str | None = None,
    object_store_memory: int = 80 * 2**20,
) -> Iterator[tuple[BatchLine, dict[str, Any]]]:
    """Each line with its output, in any order; one may come twice after a replica has died.

    Raises ValueError when the replicas cannot be started.

    engine: keywords of EngineArgs. num_cpus, num_gpus: of a replica. address: of a Ray cluster, else one is
    started here and ended with the iteration.
    """
    from ray.data import ActorPoolStrategy, DataContext, from_items

    if address is None:
        # One more for the task that reads the lines.
        start_ray(replicas * num_cpus + 1, num_gpus > 0, object_store_memory)
    else:
        join_ray(address)
    try:
        context = DataContext.get_current()
        context.enable_progress_bars = False
        # What fails comes as an exception, which is told in one line.
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        by_number = {line.number: line for line in lines}
        rows = [{"line": json.dumps(_fields(line))} for line in lines]
        blocks = max(1, -(-int(engine.get("max_num_seqs", 32)) // _BLOCK_LINES))
        # As many lines at once as an actor has places, and the next blocks already there. One that dies is
        # started again and its blocks are answered again: that is Ray Data's default.
        pool = ActorPoolStrategy(
            size=replicas, max_concurrent_calls_per_actor=blocks, max_tasks_in_flight_per_actor=2 * blocks
        )
        answers = from_items(rows, override_num_blocks=-(-len(rows) // _BLOCK_LINES)).map_batches(
            LineAnswerer,
            fn_constructor_args=(dict(engine),),
            batch_size=_BLOCK_LINES,
            compute=pool,
            num_cpus=num_cpus,
            num_gpus=num_gpus or None,
        )
        for row in answers.iter_rows():
            yield by_number[int(row["number"])], json.loads(row["output"])
    except ray.exceptions.RayError as error:
        # Of a traceback through all of Ray, the last line is the error itself.
        raise ValueError(f"the replicas failed: {str(error).strip().splitlines()[-1]}") from error
    finally:
        ray.shutdown()


def _fields(line: BatchLine) -> dict[str, Any]:
    return {
        "number": line.number,
        "digest": line.digest,
        "custom_id": line.custom_id,
        "url": line.url,
        "body": line.body,
    }
