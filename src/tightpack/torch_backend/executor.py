"""The executor in PyTorch: the reference on a CPU, and CUDA, from the same code."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tightpack.architectures.kv_memory import describe
from tightpack.checkpoints.checkpoint import Checkpoint
from tightpack.requests.outputs import TokenLogprobs
from tightpack.scheduling.plan import Chunk, StepPlan
from tightpack.schemes.quantized import KVCacheFormat
from tightpack.serving_loop.chunk_check import reason_against
from tightpack.serving_loop.executor import StepOutcome, StepResult
from tightpack.torch_backend.logprobs import token_logprobs
from tightpack.torch_backend.model_runner import Computed, ModelRunner, Runner, RunnerOptions
from tightpack.torch_backend.profiling import step_range
from tightpack.torch_backend.ranks import LeadingRunner, OpenCheckpoint
from tightpack.torch_backend.rounded_kv_cache import unrounded
from tightpack.torch_backend.sampler import sample
from tightpack.torch_backend.step_inputs import Piece

# Float32 logits that prompt log-probabilities hold at a time: 64 MiB.
_LOGITS_AT_A_TIME = 2**24


class TorchExecutor:
    """Implements `serving_loop.executor.Executor`.

    num_blocks: KV blocks; None takes `sizing.default_num_blocks` once the weights are loaded.
    kv_cache: what the KV cache holds; None for numbers of `dtype`.
    num_threads: CPU threads of this process's PyTorch; None leaves them as they are.
    tensor_parallel_size: ranks that divide the model (`split`); this process is rank 0 and starts the others,
        which open the checkpoint with `open_checkpoint` (see `ranks.LeadingRunner`).
    static_decode: see `model_runner.RunnerOptions`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype,
        kv_cache: KVCacheFormat | None = None,
        device: torch.device | str,
        block_size: int,
        num_blocks: int | None,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        num_threads: int | None = None,
        gpu_memory_utilization: float = 0.9,
        tensor_parallel_size: int = 1,
        open_checkpoint: OpenCheckpoint | None = None,
        static_decode: bool | None = None,
    ) -> None:
        self._device = torch.device(device)
        self._dtype = dtype
        self._max_model_len = max_model_len
        self._vocab_size = checkpoint.spec.vocab_size
        self._block_size = block_size
        self._tensor_parallel_size = tensor_parallel_size
        self._quantization = checkpoint.quantization.method if checkpoint.quantization else "none"
        options = RunnerOptions(
            dtype=dtype,
            kv_format=kv_cache or unrounded(dtype),
            device=self._device,
            block_size=block_size,
            num_blocks=num_blocks,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=max_model_len,
            num_threads=num_threads,
            gpu_memory_utilization=gpu_memory_utilization,
            static_decode=static_decode,
        )
        self._kv_cache = describe(options.kv_format)
        self._runner = _make_runner(checkpoint, options, tensor_parallel_size, open_checkpoint)
        self._num_blocks = self._runner.num_blocks

    @property
    def num_blocks(self) -> int:
        return self._num_blocks

    @property
    def block_size(self) -> int:
        return self._block_size

    @property
    def description(self) -> Mapping[str, str]:
        on_cpu = self._device.type == "cpu"
        return {
            "backend": "torch",
            "torch": torch.__version__,
            "device": "cpu" if on_cpu else torch.cuda.get_device_name(self._device),
            "dtype": _name(self._dtype),
            "quantization": self._quantization,
            "kv_cache_dtype": self._kv_cache,
            "threads": str(torch.get_num_threads()),
            "tensor_parallel_size": str(self._tensor_parallel_size),
        }

    def execute(self, plan: StepPlan) -> StepResult:
        """One forward pass over the plan's tokens. A chunk that cannot be computed (a token outside the
        vocabulary, numbers that are not finite, memory) fails alone; see `StepResult.failed`."""
        start = time.perf_counter()
        outcome = StepOutcome()
        chunks = []
        for chunk in plan.chunks:
            reason = self._refusal(chunk)
            if reason is None:
                chunks.append(chunk)
            else:
                outcome.failed[chunk.request.request_id] = reason
        if chunks:
            with torch.inference_mode():
                self._compute(chunks, outcome)
        return outcome.result(time.perf_counter() - start, unrounded_layers=len(self._runner.unrounded))

    def logits(self, chunks: Sequence[Chunk]) -> Tensor:
        """Float32 logits after every token of the chunks, in the order given: [tokens, vocab_size].

        Writes the cache as `execute` does. For evaluation and tests; a serving step never needs them all.
        """
        with torch.inference_mode():
            pieces = [_piece(chunk) for chunk in chunks]
            starts = self._runner.forward(pieces).starts
            rows = [s + i for s, piece in zip(starts, pieces, strict=True) for i in range(piece.num_tokens)]
            return self._runner.logits(rows)

    def close(self) -> None:
        self._runner.close()

    def _refusal(self, chunk: Chunk) -> str | None:
        """Why the chunk cannot be computed. On CUDA an index out of range would take the process down."""
        return reason_against(chunk, max_model_len=self._max_model_len, vocab_size=self._vocab_size)

    def _compute(self, chunks: Sequence[Chunk], outcome: StepOutcome) -> None:
        """Compute the chunks together; when memory runs out, in halves, until only what does not fit fails.

        Keys and values written twice are the same ones, so a retry is safe.
        """
        try:
            self._compute_together(chunks, outcome)
            return
        except torch.cuda.OutOfMemoryError as error:
            reason = f"out of GPU memory: {error}"
        # Outside the handler, which would keep the failed step's tensors alive through the traceback.
        torch.cuda.empty_cache()
        if len(chunks) == 1:
            outcome.failed[chunks[0].request.request_id] = reason
            return
        middle = len(chunks) // 2
        self._compute(chunks[:middle], outcome)
        self._compute(chunks[middle:], outcome)

    def _compute_together(self, chunks: Sequence[Chunk], outcome: StepOutcome) -> None:
        computed = self._runner.forward([_piece(chunk) for chunk in chunks])
        sound = self._drop_unsound(chunks, computed, outcome)
        sampling = [(chunk, start + chunk.num_tokens - 1) for chunk, start in sound if chunk.samples]
        if sampling:
            logits = self._runner.logits([row for _, row in sampling])
            requests = [chunk.request for chunk, _ in sampling]
            with step_range(f"sample {len(requests)}", self._device):
                tokens = sample(logits, requests)
            for (chunk, _), token in zip(sampling, tokens, strict=True):
                if token is None:
                    self._fail(chunk, "logits", outcome)
                else:
                    outcome.sampled[chunk.request.request_id] = token
        for chunk, start in sound:
            request = chunk.request
            if request.params.prompt_logprobs is not None and request.request_id not in outcome.failed:
                outcome.prompt_logprobs[request.request_id] = self._prompt_logprobs(chunk, start)

    def _drop_unsound(
        self, chunks: Sequence[Chunk], computed: Computed, outcome: StepOutcome
    ) -> list[tuple[Chunk, int]]:
        """Fail the chunks with a row that is not finite; return the others with their first rows.

        Whatever is not finite anywhere in a token's pass ends in its residual stream, so this sees it all.
        """
        finite = computed.hidden.sum(-1, dtype=torch.float32).isfinite()
        rows = list(zip(chunks, computed.starts, strict=True))
        if bool(finite.all()):
            return rows
        flags = finite.tolist()
        sound = []
        for chunk, start in rows:
            if all(flags[start : start + chunk.num_tokens]):
                sound.append((chunk, start))
            else:
                self._fail(chunk, "activations", outcome)
        return sound

    def _fail(self, chunk: Chunk, what: str, outcome: StepOutcome) -> None:
        """Fail a request and clear what this step wrote for it: its blocks go to others (see `KVCache`)."""
        self._runner.clear([_piece(chunk)])
        outcome.failed[chunk.request.request_id] = (
            f"{what} of tokens {chunk.first_token} to {chunk.first_token + chunk.num_tokens - 1} "
            f"are not finite in {_name(self._dtype)}"
        )

    def _prompt_logprobs(self, chunk: Chunk, start: int) -> tuple[TokenLogprobs, ...]:
        """start: the chunk's first row."""
        request = chunk.request
        end = min(chunk.first_token + chunk.num_tokens, request.num_prompt_tokens - 1)
        rows_at_a_time = max(1, _LOGITS_AT_A_TIME // self._vocab_size)
        entries: list[TokenLogprobs] = []
        for first in range(chunk.first_token, end, rows_at_a_time):
            last = min(end, first + rows_at_a_time)
            begin = start + first - chunk.first_token
            logits = self._runner.logits(range(begin, begin + last - first))
            counts = [request.params.prompt_logprobs or 0] * (last - first)
            entries += token_logprobs(logits, request.prompt_token_ids[first + 1 : last + 1], counts)
        return tuple(entries)


def _make_runner(
    checkpoint: Checkpoint, options: RunnerOptions, size: int, open_checkpoint: OpenCheckpoint | None
) -> Runner:
    if size == 1:
        runner = ModelRunner(checkpoint, options)
        runner.allocate()
        return runner
    if open_checkpoint is None:
        raise ValueError(f"tensor_parallel_size={size} needs open_checkpoint, for the other ranks")
    return LeadingRunner(checkpoint, options, size, open_checkpoint)


def _piece(chunk: Chunk) -> Piece:
    tokens = chunk.request.token_ids[chunk.first_token : chunk.first_token + chunk.num_tokens]
    return Piece(tuple(tokens), chunk.first_token, chunk.block_table)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
