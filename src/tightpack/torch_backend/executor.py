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
from tightpack.serving_loop.executor import SampledToken, StepResult
from tightpack.torch_backend.decoder import Decoder
from tightpack.torch_backend.kv_cache import KVCache
from tightpack.torch_backend.logprobs import token_logprobs
from tightpack.torch_backend.rounded_kv_cache import make_kv_cache, unrounded
from tightpack.torch_backend.sampler import sample
from tightpack.torch_backend.sizing import default_num_blocks
from tightpack.torch_backend.step_inputs import InputBuilder, StepInputs
from tightpack.torch_backend.weights import load_weights

# Float32 logits that prompt log-probabilities hold at a time: 64 MiB.
_LOGITS_AT_A_TIME = 2**24


class TorchExecutor:
    """Implements `serving_loop.executor.Executor`.

    num_blocks: KV blocks; None takes `sizing.default_num_blocks` once the weights are loaded.
    kv_cache: what the KV cache holds; None for numbers of `dtype`.
    num_threads: CPU threads of this process's PyTorch; None leaves them as they are.
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
    ) -> None:
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        spec = checkpoint.spec
        self._device = torch.device(device)
        self._dtype = dtype
        self._max_model_len = max_model_len
        kv_format = kv_cache or unrounded(dtype)
        self._kv_cache = describe(kv_format)
        self._quantization = checkpoint.quantization.method if checkpoint.quantization else "none"
        with torch.inference_mode():
            weights = load_weights(checkpoint, dtype, self._device)
            self._decoder: Decoder | None = Decoder(spec, weights, max_model_len)
            if num_blocks is None:
                num_blocks = default_num_blocks(
                    spec,
                    block_size=block_size,
                    dtype=dtype,
                    kv_format=kv_format,
                    device=self._device,
                    max_num_seqs=max_num_seqs,
                    max_num_batched_tokens=max_num_batched_tokens,
                    max_model_len=max_model_len,
                    gpu_memory_utilization=gpu_memory_utilization,
                )
            self._cache: KVCache | None = make_kv_cache(
                spec, num_blocks, block_size, kv_format, dtype, self._device
            )
        self._inputs = InputBuilder(
            block_size=block_size,
            num_kv_heads=spec.num_kv_heads,
            windows=frozenset(layer.window for layer in spec.layers),
            dtype=dtype,
            device=self._device,
        )
        self._num_blocks = num_blocks
        self._vocab_size = spec.vocab_size

    @property
    def num_blocks(self) -> int:
        return self._num_blocks

    @property
    def block_size(self) -> int:
        return self._inputs.block_size

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
        }

    def execute(self, plan: StepPlan) -> StepResult:
        """One forward pass over the plan's tokens. A chunk that cannot be computed (a token outside the
        vocabulary, numbers that are not finite, memory) fails alone; see `StepResult.failed`."""
        start = time.perf_counter()
        outcome = _Outcome()
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
        return StepResult(
            sampled=outcome.sampled,
            elapsed_s=time.perf_counter() - start,
            prompt_logprobs=outcome.prompt_logprobs,
            failed=outcome.failed,
        )

    def logits(self, chunks: Sequence[Chunk]) -> Tensor:
        """Float32 logits after every token of the chunks, in the order given: [tokens, vocab_size].

        Writes the cache as `execute` does. For evaluation and tests; a serving step never needs them all.
        """
        decoder, cache = self._parts()
        with torch.inference_mode():
            inputs = self._inputs.build(chunks)
            logits = decoder.logits(decoder.forward(inputs, cache))
            start_of = {id(chunk): start for chunk, start in zip(inputs.chunks, inputs.starts, strict=True)}
            return torch.cat([logits[start_of[id(c)] : start_of[id(c)] + c.num_tokens] for c in chunks])

    def close(self) -> None:
        self._decoder = None
        self._cache = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _parts(self) -> tuple[Decoder, KVCache]:
        if self._decoder is None or self._cache is None:
            raise RuntimeError("the executor is closed")
        return self._decoder, self._cache

    def _refusal(self, chunk: Chunk) -> str | None:
        """Why the chunk cannot be computed. On CUDA an index out of range would take the process down."""
        return reason_against(chunk, max_model_len=self._max_model_len, vocab_size=self._vocab_size)

    def _compute(self, chunks: Sequence[Chunk], outcome: _Outcome) -> None:
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

    def _compute_together(self, chunks: Sequence[Chunk], outcome: _Outcome) -> None:
        decoder, cache = self._parts()
        inputs = self._inputs.build(chunks)
        hidden = decoder.forward(inputs, cache)
        sound = self._drop_unsound(hidden, inputs, cache, outcome)
        sampling = [(chunk, start + chunk.num_tokens - 1) for chunk, start in sound if chunk.samples]
        if sampling:
            logits = decoder.logits(hidden[[row for _, row in sampling]])
            requests = [chunk.request for chunk, _ in sampling]
            for (chunk, _), token in zip(sampling, sample(logits, requests), strict=True):
                if token is None:
                    self._fail(chunk, "logits", cache, outcome)
                else:
                    outcome.sampled[chunk.request.request_id] = token
        for chunk, start in sound:
            request = chunk.request
            if request.params.prompt_logprobs is not None and request.request_id not in outcome.failed:
                outcome.prompt_logprobs[request.request_id] = self._prompt_logprobs(chunk, hidden[start:])

    def _drop_unsound(
        self, hidden: Tensor, inputs: StepInputs, cache: KVCache, outcome: _Outcome
    ) -> list[tuple[Chunk, int]]:
        """Fail the chunks with a row that is not finite; return the others with their first rows.

        Whatever is not finite anywhere in a token's pass ends in its residual stream, so this sees it all.
        """
        finite = hidden.sum(-1, dtype=torch.float32).isfinite()
        rows = list(zip(inputs.chunks, inputs.starts, strict=True))
        if bool(finite.all()):
            return rows
        flags = finite.tolist()
        sound = []
        for chunk, start in rows:
            if all(flags[start : start + chunk.num_tokens]):
                sound.append((chunk, start))
            else:
                self._fail(chunk, "activations", cache, outcome)
        return sound

    def _fail(self, chunk: Chunk, what: str, cache: KVCache, outcome: _Outcome) -> None:
        """Fail a request and clear what this step wrote for it: its blocks go to others (see `KVCache`)."""
        cache.clear(self._inputs.slots_of(chunk))
        outcome.failed[chunk.request.request_id] = (
            f"{what} of tokens {chunk.first_token} to {chunk.first_token + chunk.num_tokens - 1} "
            f"are not finite in {_name(self._dtype)}"
        )

    def _prompt_logprobs(self, chunk: Chunk, hidden: Tensor) -> tuple[TokenLogprobs, ...]:
        """hidden: rows from the chunk's first on."""
        decoder, _ = self._parts()
        request = chunk.request
        end = min(chunk.first_token + chunk.num_tokens, request.num_prompt_tokens - 1)
        rows_at_a_time = max(1, _LOGITS_AT_A_TIME // self._vocab_size)
        entries: list[TokenLogprobs] = []
        for first in range(chunk.first_token, end, rows_at_a_time):
            last = min(end, first + rows_at_a_time)
            logits = decoder.logits(hidden[first - chunk.first_token : last - chunk.first_token])
            counts = [request.params.prompt_logprobs or 0] * (last - first)
            entries += token_logprobs(logits, request.prompt_token_ids[first + 1 : last + 1], counts)
        return tuple(entries)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class _Outcome:
    """What a step has given so far."""

    def __init__(self) -> None:
        self.sampled: dict[str, SampledToken] = {}
        self.prompt_logprobs: dict[str, tuple[TokenLogprobs, ...]] = {}
        self.failed: dict[str, str] = {}
