"""Concurrent streaming clients for OpenAI's completions endpoint, as cheap as Python allows.

They share the cores with the server that they measure. So one thread holds all connections, what arrives is
kept as bytes, and nothing is parsed before the clock has stopped. What they cost is in the result.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

_READ_BYTES = 1 << 16


@dataclass(frozen=True)
class LoadResult:
    """seconds: from the first byte sent to the last received. client_cpu_s: of this process meanwhile."""

    seconds: float
    first_token_s: tuple[float, ...]
    output_tokens: int
    client_cpu_s: float


def random_prompts(streams: int, input_len: int, vocabulary: int, salt: str) -> list[list[int]]:
    stream = random.Random(salt)
    return [[stream.randrange(100, vocabulary) for _ in range(input_len)] for _ in range(streams)]


def run_load(url: str, model: str, prompts: Sequence[Sequence[int]], output_len: int) -> LoadResult:
    """Send all prompts at once and read every stream to its end. Raises RuntimeError if any is short."""
    bodies = [_request(url, model, prompt, output_len) for prompt in prompts]
    cpu = time.process_time()
    seconds, answers = asyncio.run(_all(url, bodies))
    cpu = time.process_time() - cpu
    counts = [_completion_tokens(received) for received, _ in answers]
    if counts != [output_len] * len(prompts):
        raise RuntimeError(f"streams of {output_len} tokens were asked for, and {counts} came")
    return LoadResult(seconds, tuple(first for _, first in answers), sum(counts), cpu)


def _request(url: str, model: str, prompt: Sequence[int], output_len: int) -> bytes:
    body = json.dumps(
        {
            "model": model,
            "prompt": list(prompt),
            "max_tokens": output_len,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


async def _all(url: str, requests: Sequence[bytes]) -> tuple[float, list[tuple[bytes, float]]]:
    started = time.perf_counter()
    answers = await asyncio.gather(*(_one(url, request) for request in requests))
    return time.perf_counter() - started, answers


async def _one(url: str, request: bytes) -> tuple[bytes, float]:
    """All bytes of the answer, and the seconds to its first event."""
    started = time.perf_counter()
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=_READ_BYTES)
    try:
        writer.write(request)
        received: list[bytes] = []
        first = 0.0
        while block := await reader.read(_READ_BYTES):
            if not first and b"data:" in block:
                first = time.perf_counter() - started
            received.append(block)
        return b"".join(received), first
    finally:
        writer.close()


def _completion_tokens(received: bytes) -> int:
    head, _, body = received.partition(b"\r\n\r\n")
    status = head.split(b"\r\n", 1)[0].decode("latin-1")
    if " 200 " not in f"{status} ":
        raise RuntimeError(f"the server answered {status}: {body[:500].decode(errors='replace')}")
    chunked = b"transfer-encoding: chunked" in head.lower()
    text = (_dechunk(body) if chunked else body).decode()
    events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    if not events or events[-1] != "[DONE]":
        raise RuntimeError(f"a stream ended early, after {events[-1:]}")
    parsed: list[dict[str, Any]] = [json.loads(event) for event in events[:-1]]
    failed = next((event["error"] for event in parsed if "error" in event), None)
    if failed is not None:
        raise RuntimeError(f"the server failed on the way: {failed}")
    return int(parsed[-1]["usage"]["completion_tokens"])


def _dechunk(body: bytes) -> bytes:
    """HTTP/1.1 chunked transfer coding (RFC 9112, section 7.1), undone."""
    data, at = [], 0
    while True:
        end = body.index(b"\r\n", at)
        size = int(body[at:end].split(b";")[0], 16)
        if size == 0:
            return b"".join(data)
        data.append(body[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
