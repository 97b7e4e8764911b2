"""A random mixture of experts on the native executor and on PyTorch, in CPU time of one thread.

    python benchmarks/experts_time.py [--experts 8] [--used 2] [--inner 1024] [--quantization int4]

Eight layers, hidden size 512. Milliseconds of a prompt of 512 tokens and of decoding steps at context 128,
medians over alternating rounds. Processor time, so that it can be taken beside other work.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tokenizers
import torch
from safetensors.numpy import save_file

from tightpack.architectures.registry import model_spec
from tightpack.checkpoints.checkpoint import Checkpoint
from tightpack.checkpoints.open import open_checkpoint
from tightpack.native_cpu.executor import NativeExecutor
from tightpack.on_load import quantize_on_load
from tightpack.requests.request import Request
from tightpack.requests.sampling_params import SamplingParams
from tightpack.scheduling.plan import Chunk, StepPlan
from tightpack.serving_loop.executor import Executor
from tightpack.torch_backend.executor import TorchExecutor

VOCABULARY, PROMPT, CONTEXT, STEPS = 4096, 512, 128, 25
STREAMS = (1, 8, 32)
BLOCKS_A_REQUEST = 40  # of 16 positions
ENGINE: dict[str, Any] = {"block_size": 16, "num_blocks": 1300, "max_num_seqs": 32, "max_model_len": 640}


def random_checkpoint(directory: Path, experts: int, used: int, inner: int) -> Checkpoint:
    config = {
        "model_type": "mixtral",
        "architectures": ["MixtralForCausalLM"],
        "vocab_size": VOCABULARY,
        "hidden_size": 512,
        "intermediate_size": inner,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "num_local_experts": experts,
        "num_experts_per_tok": used,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
    }
    (directory / "config.json").write_text(json.dumps(config))
    words = {f"w{token}": token for token in range(VOCABULARY)}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0")).save(
        str(directory / "tokenizer.json")
    )
    draw = np.random.default_rng(0)
    tensors = {
        name: (
            np.ones(shape, np.float32)
            if len(shape) == 1
            else draw.standard_normal(shape, np.float32) / np.sqrt(np.float32(shape[1]))
        ).astype(ml_dtypes.bfloat16)
        for name, shape in model_spec(config).tensor_shapes().items()
    }
    save_file(tensors, directory / "model.safetensors")
    return open_checkpoint(str(directory))


def on_torch(checkpoint: Checkpoint) -> Executor:
    return TorchExecutor(
        checkpoint,
        dtype=torch.bfloat16,
        device="cpu",
        max_num_batched_tokens=PROMPT,
        num_threads=1,
        **ENGINE,
    )


def on_native(checkpoint: Checkpoint) -> Executor:
    return NativeExecutor(checkpoint, num_threads=1, **ENGINE)


def prompt_of(number: int, length: int) -> tuple[Request, tuple[int, ...]]:
    tokens = np.random.default_rng(number).integers(3, VOCABULARY, length).tolist()
    params = SamplingParams(temperature=0.0, max_tokens=100)
    request = Request(
        request_id=str(number), prompt_token_ids=tuple(tokens), params=params, seed=0, max_output_tokens=100
    )
    return request, tuple(range(number * BLOCKS_A_REQUEST, (number + 1) * BLOCKS_A_REQUEST))


def run(executor: Executor, *chunks: Chunk) -> float:
    """Milliseconds of this thread; the requests get their next tokens."""
    start = time.thread_time()
    result = executor.execute(StepPlan(chunks))
    spent = time.thread_time() - start
    for chunk in chunks:
        chunk.request.token_ids.append(result.sampled[chunk.request.request_id].token_id)
    return spent * 1e3


def times(executor: Executor) -> dict[str, float]:
    found: dict[str, list[float]] = {f"prompt of {PROMPT}": []}
    for _ in range(5):
        request, table = prompt_of(0, PROMPT)
        found[f"prompt of {PROMPT}"].append(run(executor, Chunk(request, 0, PROMPT, table)))
    for streams in STREAMS:
        requests = [prompt_of(number, CONTEXT) for number in range(streams)]
        for request, table in requests:
            run(executor, Chunk(request, 0, CONTEXT, table))
        found[f"{streams} streams"] = [
            run(executor, *(Chunk(request, CONTEXT + step, 1, table) for request, table in requests))
            for step in range(STEPS)
        ]
    executor.close()
    return {name: statistics.median(each) for name, each in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--used", type=int, default=2, help="Experts a token.")
    parser.add_argument("--inner", type=int, default=1024, help="Width of an expert.")
    parser.add_argument("--quantization", default="none", help="As of the engine, on loading.")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = random_checkpoint(Path(directory), args.experts, args.used, args.inner)
        if args.quantization != "none":
            checkpoint = quantize_on_load(checkpoint, args.quantization, llm_int8_threshold=6.0)
        executors: dict[str, Callable[[Checkpoint], Executor]] = {"native": on_native, "torch": on_torch}
        rounds = [
            {name: times(make(checkpoint)) for name, make in executors.items()} for _ in range(args.rounds)
        ]
    for name in executors:
        medians = {what: statistics.median(one[name][what] for one in rounds) for what in rounds[0][name]}
        print(name, ", ".join(f"{what} {value:.2f} ms" for what, value in medians.items()))


if __name__ == "__main__":
    main()
