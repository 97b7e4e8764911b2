"""One sitting: every row once a round, round after round, each in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from side_by_side.figures import TIGHTPACK, Row, ShapeTuple
from side_by_side.http_load import random_prompts, run_load
from side_by_side.process_memory import resident_bytes
from side_by_side.server_process import flags, serving

PEERS = Path(__file__).resolve().parent.parent / "peers"
MAX_MODEL_LEN = 2048
BLOCK_SIZE = 16
SERVED_NAME = "model"
# vLLM takes most of a minute, and killed before leaves hundreds of megabytes in shared memory.
_ENDS_WITHIN_S = 120


class RunnerError(RuntimeError):
    """A runner ended early; its last words are in the message."""


@dataclass(frozen=True)
class Protocol:
    """What every runner is asked.

    shapes: (name, streams, prompt tokens, output tokens). repeats: of each shape within a process.
    """

    shapes: tuple[ShapeTuple, ...]
    threads: int
    repeats: int
    vocabulary: int

    @property
    def kv_tokens(self) -> int:
        """Positions for the largest shape and a quarter more, for blocks that are not full."""
        most = max(streams * (prompt + output) for _, streams, prompt, output in self.shapes)
        return max(most * 5 // 4, MAX_MODEL_LEN)

    @property
    def max_streams(self) -> int:
        return max(streams for _, streams, _, _ in self.shapes)

    def job(self, model: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
        names = ("name", "streams", "input_len", "output_len")
        return {
            "model": str(model),
            "shapes": [dict(zip(names, shape, strict=True)) for shape in self.shapes],
            "threads": self.threads,
            "kv_tokens": self.kv_tokens,
            "max_model_len": MAX_MODEL_LEN,
            "vocabulary": self.vocabulary,
            "repeats": self.repeats,
            "settings": dict(settings),
        }


def measure_row(row: Row, python: str, model: Path, protocol: Protocol) -> dict[str, Any]:
    """One round of one row: seconds by shape, memory, seconds to the first token. Raises RunnerError."""
    job = json.dumps(protocol.job(model, row.settings))
    return run_job([python, str(PEERS / f"run_{row.runner}.py")], job)


def run_job(command: Sequence[str], job: str) -> dict[str, Any]:
    """Start a runner, give it the job, and take down what it says and when."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        started = time.monotonic()
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        try:
            return _follow(process, job, started, log)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # an engine may have processes of its own
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()


def _follow(process: subprocess.Popen[str], job: str, started: float, log: IO[str]) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    found: dict[str, Any] = {"seconds": {}}
    with suppress(BrokenPipeError):  # it has ended; why is in the log
        process.stdin.write(job + "\n")
        process.stdin.flush()
    for line in process.stdout:
        event = json.loads(line)
        kind = event.pop("event")
        if kind == "loaded":
            found |= event
        elif kind == "first token":
            found["first_token_s"] = time.monotonic() - started
        elif kind == "measured":
            found["seconds"][event.pop("shape")] = event
        elif kind == "done":
            found["memory_mib"] = resident_bytes(process.pid) / 2**20
            process.stdin.close()  # the runner's sign to end
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_ENDS_WITHIN_S)
            return found
    process.wait()
    log.seek(0)
    raise RunnerError(f"status {process.returncode}; it said last:\n{log.read()[-2000:]}")


def measure_http(row: Row, python: str, model: Path, protocol: Protocol) -> dict[str, Any]:
    """The largest shape through `tightpack serve`: one streaming client a request, all at once."""
    _, streams, input_len, output_len = max(protocol.shapes, key=lambda shape: shape[1])
    settings = {
        "served_model_name": SERVED_NAME,
        "num_threads": protocol.threads,
        "max_model_len": MAX_MODEL_LEN,
        "max_num_seqs": protocol.max_streams,
        "block_size": BLOCK_SIZE,
        "num_blocks": -(-protocol.kv_tokens // BLOCK_SIZE),
        "enable_prefix_caching": False,
    }
    with serving(python, str(model), flags(settings | row.settings)) as served:
        results = [
            run_load(
                served.url,
                SERVED_NAME,
                random_prompts(streams, input_len, protocol.vocabulary, str(repeat)),
                output_len,
            )
            for repeat in range(protocol.repeats)
        ]
        best = min(results, key=lambda result: result.seconds)
        return {
            "ready_s": served.ready_s,
            "output_tokens_per_s": best.output_tokens / best.seconds,
            "last_first_token_s": max(best.first_token_s),
            "client_cpu_s": best.client_cpu_s,
            "client_cpu_share": best.client_cpu_s / best.seconds,
        }


def has_http(row: Row) -> bool:
    return row.runner == TIGHTPACK
