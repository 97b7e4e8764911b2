"""Logits after every token of a sequence, from the executor that serves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tightpack.checkpoints.checkpoint import Checkpoint
from tightpack.checkpoints.precision import FloatPrecision, resolve_kv_cache
from tightpack.native_cpu.executor import NativeExecutor
from tightpack.requests.request import Request
from tightpack.requests.sampling_params import SamplingParams
from tightpack.scheduling.plan import Chunk
from tightpack.torch_backend.executor import TorchExecutor

_BLOCK_SIZE = 16
_UNROUNDED: Mapping[torch.dtype, FloatPrecision] = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}


class SequenceLogits:
    """A checkpoint in an executor, one sequence at a time. Close it, or use it as a context manager.

    dtype: of dense weights and activations; float32 measures the checkpoint and not the arithmetic.
    native: run in the executor that serves on CPUs, whose arithmetic is then measured as well; dtype and
        device do not count. activation_dtype: as of `EngineArgs`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        sequence_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        num_threads: int | None = None,
        native: bool = False,
        activation_dtype: str = "auto",
    ) -> None:
        longest = checkpoint.spec.max_position_embeddings
        if sequence_length > longest:
            raise ValueError(
                f"sequence_length={sequence_length} is beyond the {longest} positions of {checkpoint.name}"
            )
        self._blocks = tuple(range(-(-sequence_length // _BLOCK_SIZE)))
        self._executor: NativeExecutor | TorchExecutor
        if native:
            self._executor = NativeExecutor(
                checkpoint,
                activation_dtype=activation_dtype,
                kv_cache=resolve_kv_cache("auto", checkpoint, "bf16"),
                block_size=_BLOCK_SIZE,
                num_blocks=len(self._blocks),
                max_num_seqs=1,
                max_model_len=sequence_length,
                num_threads=num_threads,
            )
            return
        self._executor = TorchExecutor(
            checkpoint,
            dtype=dtype,
            kv_cache=resolve_kv_cache("auto", checkpoint, _UNROUNDED[dtype]),
            device=device,
            block_size=_BLOCK_SIZE,
            num_blocks=len(self._blocks),
            max_num_seqs=1,
            max_num_batched_tokens=sequence_length,
            max_model_len=sequence_length,
            num_threads=num_threads,
        )

    def each(self, sequences: NDArray[np.int64]) -> Iterator[Tensor]:
        """Float32 [length, vocabulary] for each row of `sequences` [count, length], computed when asked
        for."""
        for tokens in sequences:
            request = Request(
                request_id="evaluation",
                prompt_token_ids=tuple(tokens.tolist()),
                params=SamplingParams(max_tokens=1),
                seed=0,
                max_output_tokens=1,
            )
            logits = self._executor.logits([Chunk(request, 0, len(tokens), self._blocks)])
            yield logits if isinstance(logits, Tensor) else torch.from_numpy(logits)

    def close(self) -> None:
        self._executor.close()

    def __enter__(self) -> SequenceLogits:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
