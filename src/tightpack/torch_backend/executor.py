"""The executor in PyTorch: the reference on a CPU, and CUDA, from the same code."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from tightpack.architectures.kv_memory import describe
from tightpack.checkpoints.checkpoint import Checkpoint
from tightpack.requests.outputs import TokenLogprobs
from tightpack.scheduling.plan import Chunk, StepPlan
from tightpack.schemes.quantized import KVCacheFormat
from tightpack.serving_loop.chunk_check import reason_against
from tightpack.serving_loop.executor import UNREAD_TOKEN, StepOutcome, StepResult
from tightpack.torch_backend.launched import LaunchedChunks, LaunchedStep
from tightpack.torch_backend.logit_edits import needs_tokens
from tightpack.torch_backend.logprobs import token_logprobs
from tightpack.torch_backend.model_runner import ModelRunner, Runner, RunnerOptions, taken
from tightpack.torch_backend.profiling import step_range
from tightpack.torch_backend.ranks import LeadingRunner, OpenCheckpoint
from tightpack.torch_backend.rounded_kv_cache import unrounded
from tightpack.torch_backend.sampler import ChosenTokens
from tightpack.torch_backend.step_inputs import Piece
from tightpack.torch_backend.transfer import Readback

# Float32 logits that prompt log-probabilities hold at a time: 64 MiB.
_LOGITS_AT_A_TIME = 2**24
# What a draw looks at before the next step takes its token: a draw that needs more costs that step. A GPU
# finds the 4,096 likeliest by the same two sorts as fewer.
_DRAWN_AT_ONCE = {"cpu": 128, "cuda": 4096}


class TorchExecutor:
    """Implements `serving_loop.executor.LaunchingExecutor`.

    num_blocks: KV blocks; None takes `sizing.default_num_blocks` once the weights are loaded.
    kv_cache: what the KV cache holds; None for numbers of `dtype`.
    num_threads: CPU threads of this process's PyTorch; None leaves them as they are.
    tensor_parallel_size: ranks that divide the model (`split`); this process is rank 0 and starts the others,
        which open the checkpoint with `open_checkpoint` (see `ranks.LeadingRunner`).
    static_decode, prompt_graph_tokens, attention_backend: see `model_runner.RunnerOptions`.
    async_scheduling: let steps be launched before the tokens of the one before are read; None on CUDA, where
        the host has something else to do meanwhile. Of one rank alone.
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
        prompt_graph_tokens: int = 0,
        attention_backend: str = "auto",
        async_scheduling: bool | None = None,
    ) -> None:
        self._device = torch.device(device)
        if async_scheduling and tensor_parallel_size > 1:
            raise ValueError(
                f"async_scheduling needs tensor_parallel_size=1, got {tensor_parallel_size}: other ranks get "
                "tokens from this one's host"
            )
        if async_scheduling is None:
            async_scheduling = self._device.type == "cuda" and tensor_parallel_size == 1
        self._async_scheduling = async_scheduling
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
            prompt_graph_tokens=prompt_graph_tokens,
            attention_backend=attention_backend,
            keeps_tokens=async_scheduling,
        )
        self._kv_cache = describe(options.kv_format)
        self._runner = _make_runner(checkpoint, options, tensor_parallel_size, open_checkpoint)
        self._num_blocks = self._runner.num_blocks
        self._collected = 0.0  # when the last step had been

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
            "async_scheduling": "on" if self._async_scheduling else "off",
        }

    @property
    def async_scheduling(self) -> bool:
        return self._async_scheduling

    def may_be_followed(self, plan: StepPlan) -> bool:
        return not any(needs_tokens(chunk.request) for chunk in plan.chunks)

    def execute(self, plan: StepPlan) -> StepResult:
        """One forward pass over the plan's tokens. A chunk that cannot be computed (a token outside the
        vocabulary, numbers that are not finite, memory) fails alone; see `StepResult.failed`."""
        return self.collect(self._launch(plan.chunks))

    def launch(self, plan: StepPlan, after: LaunchedStep | None = None) -> LaunchedStep | None:
        if after is None:
            return self._launch(plan.chunks)
        goes_on = [chunk.request.token_ids[-1] == UNREAD_TOKEN for chunk in plan.chunks]
        rows = {
            chunk.request.request_id: after.rows.get(chunk.request.request_id)
            for chunk, unread in zip(plan.chunks, goes_on, strict=True)
            if unread
        }
        known = {request_id: row for request_id, row in rows.items() if row is not None}
        if len(known) < len(rows):  # it failed, or was computed in parts
            return None
        try:
            return self._launch(plan.chunks, known)
        except torch.cuda.OutOfMemoryError:
            return None

    def collect(self, launched: LaunchedStep) -> StepResult:
        outcome, misled = launched.outcome, False
        if launched.together is not None:
            with torch.inference_mode():
                misled = self._read(launched.together, outcome)
        end = time.perf_counter()
        elapsed, self._collected = end - max(launched.start, self._collected), end
        return outcome.result(elapsed, unrounded_layers=len(self._runner.unrounded), misled_next=misled)

    def logits(self, chunks: Sequence[Chunk]) -> Tensor:
        """Float32 logits after every token of the chunks, in the order given: [tokens, vocab_size].

        Writes the cache as `execute` does. For evaluation and tests; a serving step never needs them all.
        """
        with torch.inference_mode():
            pieces = [_piece(chunk, {}) for chunk in chunks]
            starts = self._runner.forward(pieces).starts
            rows = [s + i for s, piece in zip(starts, pieces, strict=True) for i in range(piece.num_tokens)]
            return self._runner.logits(rows)

    def close(self) -> None:
        self._runner.close()

    def _refusal(self, chunk: Chunk) -> str | None:
        """Why the chunk cannot be computed. On CUDA an index out of range would take the process down."""
        return reason_against(chunk, max_model_len=self._max_model_len, vocab_size=self._vocab_size)

    def _launch(self, chunks: Iterable[Chunk], rows: Mapping[str, int] | None = None) -> LaunchedStep:
        """rows: of requests whose last token nobody has read, where the device keeps it."""
        start = time.perf_counter()
        outcome, sound = StepOutcome(), []
        for chunk in chunks:
            unread = rows is not None and chunk.request.request_id in rows
            reason = None if unread else self._refusal(chunk)
            if reason is None:
                sound.append(chunk)
            else:
                outcome.failed[chunk.request.request_id] = reason
        together = None
        if sound:
            with torch.inference_mode():
                together = self._start(sound, rows or {}) if rows else self._compute(sound, outcome)
        kept = together.sampling if together is not None else ()
        return LaunchedStep(
            start, outcome, together, {chunk.request.request_id: row for row, chunk in enumerate(kept)}
        )

    def _compute(self, chunks: Sequence[Chunk], outcome: StepOutcome) -> LaunchedChunks | None:
        """Start the chunks together; when memory runs out, compute them in halves to their end, until only
        what does not fit fails.

        Keys and values written twice are the same ones, so a retry is safe.
        """
        try:
            return self._start(chunks, {})
        except torch.cuda.OutOfMemoryError as error:
            reason = f"out of GPU memory: {error}"
        # Outside the handler, which would keep the failed step's tensors alive through the traceback.
        torch.cuda.empty_cache()
        if len(chunks) == 1:
            outcome.failed[chunks[0].request.request_id] = reason
            return None
        middle = len(chunks) // 2
        for half in (chunks[:middle], chunks[middle:]):
            together = self._compute(half, outcome)
            if together is not None:
                self._read(together, outcome)
        return None

    def _start(self, chunks: Sequence[Chunk], rows: Mapping[str, int]) -> LaunchedChunks:
        computed = self._runner.forward([_piece(chunk, rows) for chunk in chunks])
        # Whatever is not finite anywhere in a token's pass ends in its residual stream, so this sees it all.
        finite = Readback(computed.hidden.sum(-1, dtype=torch.float32).isfinite())
        sampling = [
            (chunk, start + chunk.num_tokens - 1)
            for chunk, start in zip(chunks, computed.starts, strict=True)
            if chunk.samples
        ]
        # Before the logits of the decodes are overwritten.
        prompt_logprobs = {
            chunk.request.request_id: self._prompt_logprobs(chunk, start)
            for chunk, start in zip(chunks, computed.starts, strict=True)
            if chunk.request.params.prompt_logprobs is not None
        }
        chosen = None
        if sampling:
            logits = self._runner.logits([row for _, row in sampling])
            with step_range(f"sample {len(sampling)}", self._device):
                at_once = _DRAWN_AT_ONCE[self._device.type] if self._async_scheduling else 0
                chosen = ChosenTokens(logits, [chunk.request for chunk, _ in sampling], at_once)
                if self._async_scheduling:
                    self._runner.keep(chosen.ids)
        return LaunchedChunks(
            chunks, computed.starts, finite, [chunk for chunk, _ in sampling], chosen, prompt_logprobs
        )

    def _read(self, together: LaunchedChunks, outcome: StepOutcome) -> bool:
        """Wait for the chunks; whether a token is another than the device had kept."""
        [flags] = together.finite.wait()
        misled = False
        if not bool(flags.all()):
            finite = flags.tolist()
            for chunk, start in zip(together.chunks, together.starts, strict=True):
                if not all(finite[start : start + chunk.num_tokens]):
                    self._fail(chunk, "activations", outcome)
        if together.chosen is not None:
            tokens, misled = together.chosen.read()
            for chunk, token in zip(together.sampling, tokens, strict=True):
                request_id = chunk.request.request_id
                if request_id in outcome.failed:
                    continue
                if token is None:
                    self._fail(chunk, "logits", outcome)
                else:
                    outcome.sampled[request_id] = token
        for request_id, entries in together.prompt_logprobs.items():
            if request_id not in outcome.failed:
                outcome.prompt_logprobs[request_id] = entries
        return misled

    def _fail(self, chunk: Chunk, what: str, outcome: StepOutcome) -> None:
        """Fail a request and clear what this step wrote for it: its blocks go to others (see `KVCache`)."""
        self._runner.clear([_piece(chunk, {})])
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


def _piece(chunk: Chunk, rows: Mapping[str, int]) -> Piece:
    row = rows.get(chunk.request.request_id)
    if row is not None:
        return Piece((taken(row),), chunk.first_token, chunk.block_table)
    tokens = chunk.request.token_ids[chunk.first_token : chunk.first_token + chunk.num_tokens]
    return Piece(tuple(tokens), chunk.first_token, chunk.block_table)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
