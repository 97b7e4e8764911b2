"""What every runner does alike, so that engines differ in nothing but their `generate`.

A runner is one process. Its standard input brings a job as one line of JSON; its standard output carries one
line of JSON an event, and whatever else the engine prints there goes to standard error. After the last
measurement the runner waits for the end of its input, so that the parent can look at its memory.

    loaded        the engine and its version, as soon as the weights are there
    first token   one prompt has given its first token
    measured      seconds of one shape: `first_s` for one output token a stream, `whole_s` for all of them
    done

Standard library only: each runner has the interpreter of its engine.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol


@dataclass(frozen=True)
class Shape:
    """`streams` prompts of `input_len` tokens at once, each continued by `output_len` tokens."""

    name: str
    streams: int
    input_len: int
    output_len: int


@dataclass(frozen=True)
class Job:
    """What to load and what to measure.

    settings: keyword arguments for the engine, beyond those that the protocol fixes.
    threads: compute threads.
    kv_tokens: positions that the KV cache must hold, where the engine lets one say so.
    max_model_len: longest prompt and output together.
    vocabulary: prompts are drawn from token ids 100 to this one.
    repeats: times that each shape is measured.
    """

    model: str
    shapes: tuple[Shape, ...]
    threads: int
    kv_tokens: int
    max_model_len: int
    vocabulary: int
    repeats: int
    settings: dict[str, Any]

    @classmethod
    def from_json(cls, text: str) -> Job:
        given = json.loads(text)
        unknown = set(given) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"a job has no field {min(unknown)!r}")
        return cls(**given | {"shapes": tuple(Shape(**shape) for shape in given["shapes"])})

    @property
    def max_streams(self) -> int:
        return max(shape.streams for shape in self.shapes)


class PeerEngine(Protocol):
    """An engine with its weights loaded."""

    name: str
    version: str

    def prepare(self, streams: int, tokens: int) -> None:
        """Make room for `streams` sequences of `tokens` positions; not timed."""

    def generate(self, prompts: Sequence[Sequence[int]], output_len: int) -> list[int]:
        """Continue every prompt greedily, past any end of sequence; the number of tokens of each."""


def run(load: Callable[[Job], PeerEngine]) -> None:
    """Carry out the job on standard input."""
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def emit(event: str, **values: Any) -> None:
        print(json.dumps({"event": event, **values}), file=events, flush=True)

    job = Job.from_json(sys.stdin.readline())
    engine = load(job)
    emit("loaded", engine=engine.name, version=engine.version)
    shape = job.shapes[0]
    engine.prepare(1, shape.input_len + 1)
    _generate(engine, _prompts(job, shape, "first token")[:1], 1)
    emit("first token")
    for shape in job.shapes:
        engine.prepare(shape.streams, shape.input_len + shape.output_len)
        first_s, whole_s = [], []
        for repeat in range(job.repeats):
            prompts = _prompts(job, shape, str(repeat))
            first_s.append(_generate(engine, prompts, 1))
            if shape.output_len > 1:
                whole_s.append(_generate(engine, prompts, shape.output_len))
        emit("measured", shape=shape.name, first_s=first_s, whole_s=whole_s)
    emit("done")
    sys.stdin.read()


def _prompts(job: Job, shape: Shape, salt: str) -> list[list[int]]:
    """The same in every runner, and others in every repeat, so that no cache can answer."""
    stream = random.Random(f"{shape.name}/{salt}")
    return [
        [stream.randrange(100, job.vocabulary) for _ in range(shape.input_len)] for _ in range(shape.streams)
    ]


def _generate(engine: PeerEngine, prompts: Sequence[Sequence[int]], output_len: int) -> float:
    started = time.perf_counter()
    lengths = engine.generate(prompts, output_len)
    seconds = time.perf_counter() - started
    if lengths != [output_len] * len(prompts):
        raise RuntimeError(
            f"{len(prompts)} streams of {output_len} tokens were asked for, and {lengths} came"
        )
    return seconds
