"""One rank's decoder and KV cache, and what it computes of a step: no requests, no sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from tightpack.checkpoints.checkpoint import Checkpoint
from tightpack.schemes.quantized import KVCacheFormat
from tightpack.torch_backend.attention import Attention, GatheredAttention
from tightpack.torch_backend.attention_choice import AttentionShape, choose_attention
from tightpack.torch_backend.decode_step import Decoded, DecodeStep, batch_sizes
from tightpack.torch_backend.decoder import Decoder
from tightpack.torch_backend.kernel_attention import StepInputBuilder
from tightpack.torch_backend.kv_cache import KVCache
from tightpack.torch_backend.profiling import largest_step, peak_bytes, step_range
from tightpack.torch_backend.prompt_step import PromptStep, token_counts
from tightpack.torch_backend.rank_group import ALONE, RankGroup
from tightpack.torch_backend.rounded_kv_cache import STORAGE, make_kv_cache
from tightpack.torch_backend.saturation_guard import SaturationGuard
from tightpack.torch_backend.sizing import default_num_blocks, estimated_step_bytes
from tightpack.torch_backend.step_inputs import DecodeBuffers, InputBuilder, Piece, StepInputs
from tightpack.torch_backend.transfer import send
from tightpack.torch_backend.triton_kernels import kernels_fit, make_context
from tightpack.torch_backend.weights import load_weights

# What recorded decode steps take beside what a step holds at its peak.
_GRAPH_BYTES = 256 * 2**20
# Saturation counters are read after so many steps, for that waits for the device, or after so many rows:
# int32 counts all their numbers in layers of up to 2**16 inputs.
_STEPS_A_POLL = 256
_ROWS_A_POLL = 2**14


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerOptions:
    """The same on every rank. device: of several ranks on CUDA, that of rank 0; others have the next ones.

    num_blocks: KV blocks; None takes what fits once the weights are loaded.
    static_decode: decode from buffers that stay (`decode_step`), recorded as graphs on CUDA; None: where that
        gains something and can be done.
    attention_backend: whose kernel attends in steps with prompt tokens (`attention_choice`).
    prompt_graph_tokens: where decodes run so, the largest step with prompt tokens that runs in recorded
        pieces (`prompt_step`); 0 for none.
    keeps_tokens: hold what was sampled for pieces that take it (`taken`).
    """

    dtype: torch.dtype
    kv_format: KVCacheFormat
    device: torch.device
    block_size: int
    num_blocks: int | None
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    num_threads: int | None = None
    gpu_memory_utilization: float = 0.9
    static_decode: bool | None = None
    prompt_graph_tokens: int = 0
    attention_backend: str = "auto"
    keeps_tokens: bool = False


def taken(row: int) -> int:
    """What stands in a piece for the token that `Runner.keep` was given at `row` and no host has read."""
    return -1 - row


@dataclass(frozen=True, slots=True)
class Computed:
    """hidden: [tokens, hidden_size] before the final norm; starts: the first row of each piece."""

    hidden: Tensor
    starts: tuple[int, ...]


class Runner(Protocol):
    """What an executor computes with: one rank, or one that leads others."""

    @property
    def num_blocks(self) -> int: ...

    @property
    def unrounded(self) -> Sequence[str]:
        """Layers that have left their static input scale (see `saturation_guard`)."""

    def forward(self, pieces: Sequence[Piece], /) -> Computed:
        """Write the pieces' keys and values; keep the hidden states for `logits`."""

    def logits(self, rows: Sequence[int], /) -> Tensor:
        """Float32 [rows, vocab_size], of rows of the last `forward`."""

    def keep(self, tokens: Tensor, /) -> None:
        """Hold int64 [rows], on the device, for the next `forward`; of one rank only."""

    def clear(self, pieces: Sequence[Piece], /) -> None:
        """Leave finite numbers where the pieces wrote (see `KVCache`)."""

    def close(self) -> None: ...


class ModelRunner:
    """A `Runner` of one rank. Making it loads the weights; `allocate` makes the cache, once all ranks have
    met."""

    def __init__(self, checkpoint: Checkpoint, options: RunnerOptions, group: RankGroup = ALONE) -> None:
        if options.num_threads is not None:
            torch.set_num_threads(options.num_threads)
        self._options, self._group = options, group
        self.device = rank_device(options.device, group)
        storage = STORAGE[options.kv_format.precision]
        kernels = kernels_fit(self.device, options.dtype, storage)
        if options.attention_backend != "auto" and not kernels:
            raise ValueError(
                f"attention_backend={options.attention_backend!r} needs CUDA, Triton and bfloat16 or "
                f"float16, not {options.dtype} on {self.device.type}; leave it out"
            )
        self._context = make_context(self.device) if kernels else None
        with torch.inference_mode():
            weights = load_weights(checkpoint, options.dtype, self.device, group, self._context)
            self._decoder: Decoder | None = Decoder(
                checkpoint.spec, weights, options.max_model_len, group, self._context
            )
        self._guard = SaturationGuard(weights.guarded, group)
        self._steps, self._rows, self._replayed_rows = 0, 0, 0  # since the guard was polled
        self._spec = self._decoder.spec
        self._inputs = InputBuilder(
            block_size=options.block_size,
            num_kv_heads=self._spec.num_kv_heads,
            windows=frozenset(layer.window for layer in self._spec.layers),
            dtype=options.dtype,
            device=self.device,
        )
        self._attention: Attention = GatheredAttention(self._spec)
        self._builder: StepInputBuilder = self._inputs
        if kernels:
            with torch.inference_mode():
                shape = AttentionShape(
                    spec=self._spec,
                    block_size=options.block_size,
                    device=self.device,
                    dtype=options.dtype,
                    kv_format=options.kv_format,
                    longest=options.max_model_len,
                    most_tokens=options.max_num_batched_tokens,
                )
                attention = choose_attention(shape, self._context, options.attention_backend)
            torch.cuda.empty_cache()  # of the trial; nothing without a GPU
            self._attention = self._builder = attention
        self._cache: KVCache | None = None
        self._decode: DecodeStep | None = None
        self._prompt: PromptStep | None = None
        self._hidden: Tensor | None = None
        self._logits: Tensor | None = None
        self._kept: Tensor | None = None
        if options.keeps_tokens:
            self._kept = torch.zeros(options.max_num_seqs, dtype=torch.int64, device=self.device)
        self._num_blocks = 0

    @property
    def records(self) -> bool:
        """Whether decode steps run from static buffers: gathering whole tables would cost more than it
        saves, so by default with kernels only."""
        wanted = self._options.static_decode
        if wanted is None:
            wanted = self._attention is self._builder
        return wanted and self._decoder is not None and self._decoder.capturable

    def allocate(self) -> None:
        """Make the KV cache, of several ranks as many blocks as fit in each, and record decode steps."""
        options = self._options
        with torch.inference_mode():
            num_blocks = options.num_blocks
            if num_blocks is None:
                num_blocks = self._group.least(self._fitting_blocks(), self.device)
            self._num_blocks = num_blocks
            # The spare block is where padding writes.
            self._make_cache(num_blocks + self.records)
            if self.records:
                self._decode = DecodeStep(
                    self._compute_decode,
                    sizes=batch_sizes(options.max_num_seqs),
                    width=-(-options.max_model_len // options.block_size),
                    spare_block=num_blocks,
                    device=self.device,
                )
                self._prompt = self._make_prompt_step(num_blocks)
            self._record()
            self._guard.reset()

    @property
    def num_blocks(self) -> int:
        return self._num_blocks

    @property
    def unrounded(self) -> Sequence[str]:
        return self._guard.switched

    def forward(self, pieces: Sequence[Piece]) -> Computed:
        # Not kept through the pass: a step that runs out of memory is tried again in halves.
        self._hidden = self._logits = None
        if self._steps >= _STEPS_A_POLL or self._rows >= _ROWS_A_POLL:
            self._poll_saturation()
        self._steps += 1
        self._rows += sum(piece.num_tokens for piece in pieces)
        return self._compute(pieces)

    def _compute(self, pieces: Sequence[Piece]) -> Computed:
        decoder, cache = self._parts()
        decode = self._decode
        if decode is not None and len(pieces) <= decode.largest and all(p.num_tokens == 1 for p in pieces):
            size = decode.size_for(len(pieces))
            with step_range(f"decode {len(pieces)} in {size}", self.device):
                decoded = decode(pieces)
            self._replayed_rows += size * decode.recorded(size)
            self._hidden, self._logits = decoded.hidden, decoded.logits
            return Computed(decoded.hidden, tuple(range(len(pieces))))
        with step_range(f"mixed {sum(p.num_tokens for p in pieces)} tokens", self.device):
            inputs = self._with_kept(self._builder.build(pieces))
            prompt = self._prompt
            if prompt is not None and inputs.num_tokens <= prompt.largest:
                size = prompt.size_for(inputs.num_tokens)
                self._replayed_rows += size * prompt.recorded(size)
                self._hidden = prompt(inputs)
            else:
                self._hidden = decoder.forward(inputs, cache, self._attention)
        return Computed(self._hidden, inputs.starts)

    def logits(self, rows: Sequence[int]) -> Tensor:
        decoder, _ = self._parts()
        if self._hidden is None:
            raise RuntimeError("logits were asked for before anything was computed")
        with step_range(f"logits {len(rows)}", self.device):
            if self._logits is not None:
                every = list(rows) == list(range(len(self._logits)))
                return self._logits if every else self._logits[self._index(rows)]
            return decoder.logits(self._hidden[self._index(rows)])

    def keep(self, tokens: Tensor) -> None:
        if self._kept is None:
            raise RuntimeError("this runner was not made to keep tokens")
        self._kept[: len(tokens)].copy_(tokens)

    def clear(self, pieces: Sequence[Piece]) -> None:
        _, cache = self._parts()
        for piece in pieces:
            cache.clear(self._inputs.slots_of(piece))

    def close(self) -> None:
        self._decoder = self._cache = self._decode = self._prompt = self._hidden = self._logits = (
            self._kept
        ) = None
        self._guard = SaturationGuard({})
        self._attention = GatheredAttention(self._spec)
        self._builder = self._inputs
        self._group.leave()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _record(self) -> None:
        steps = [step for step in (self._decode, self._prompt) if step is not None]
        if steps and self.device.type == "cuda":
            for step in steps:
                step.forget()
            torch.cuda.empty_cache()  # the memory of those before is not given back within a recording
            pool = torch.cuda.graph_pool_handle()
            for step in steps:
                step.record(pool)
        if self._context is not None:
            self._context.finish_tuning()

    def _poll_saturation(self) -> None:
        """Between steps: recording overwrites the results in the memory that graphs share."""
        replayed = self._replayed_rows
        self._steps, self._rows, self._replayed_rows = 0, 0, 0
        if self._guard.poll(replayed):
            self._record()
            self._guard.reset()

    def _compute_decode(self, buffers: DecodeBuffers) -> Decoded:
        decoder, cache = self._parts()
        hidden = decoder.forward(self._with_kept(self._builder.of_decode(buffers)), cache, self._attention)
        return Decoded(hidden, decoder.logits(hidden))

    def _with_kept(self, inputs: StepInputs) -> StepInputs:
        """With the tokens that stand for kept ones (`taken`) replaced by them, on the device."""
        if self._kept is None:
            return inputs
        ids = inputs.token_ids
        return replace(inputs, token_ids=torch.where(ids < 0, self._kept[(-1 - ids).clamp(min=0)], ids))

    def _index(self, rows: Sequence[int]) -> Tensor:
        return send(torch.tensor(rows), self.device)

    @property
    def _prompt_graph_tokens(self) -> int:
        options = self._options
        return min(options.prompt_graph_tokens, options.max_num_batched_tokens) if self.records else 0

    def _make_prompt_step(self, spare_block: int) -> PromptStep | None:
        largest = self._prompt_graph_tokens
        if largest == 0:
            return None
        decoder, cache = self._parts()
        return PromptStep(
            decoder,
            cache,
            self._attention,
            sizes=token_counts(largest),
            spare_slots=self._builder.slots_in(spare_block),
            dtype=self._options.dtype,
        )

    def _make_cache(self, num_blocks: int) -> None:
        options = self._options
        self._cache = make_kv_cache(
            self._spec, num_blocks, options.block_size, options.kv_format, options.dtype, self.device
        )

    def _fitting_blocks(self) -> int:
        options = self._options
        return default_num_blocks(
            self._spec,
            block_size=options.block_size,
            dtype=options.dtype,
            kv_format=options.kv_format,
            device=self.device,
            max_num_seqs=options.max_num_seqs,
            max_num_batched_tokens=options.max_num_batched_tokens,
            max_model_len=options.max_model_len,
            gpu_memory_utilization=options.gpu_memory_utilization,
            sharing=self._group.size,
            step_bytes=self._step_bytes() if self.device.type == "cuda" else None,
        )

    def _step_bytes(self) -> int:
        """Beside weights and cache. The largest step has no context yet, which only kernels attend to without
        gathering it."""
        options, measured = self._options, self._profiled()
        # Recorded pieces and the buffers between them hold no more than the same tokens do in a whole step.
        measured += measured * self._prompt_graph_tokens // options.max_num_batched_tokens
        measured += _GRAPH_BYTES * self.records
        if self._context is not None:
            return measured
        estimated = estimated_step_bytes(
            self._spec,
            options.dtype,
            options.max_num_seqs,
            options.max_num_batched_tokens,
            options.max_model_len,
        )
        return max(measured, estimated)

    def _profiled(self) -> int:
        """Bytes that the largest step takes beside weights and cache, from running one."""
        options, size = self._options, self._options.block_size
        pieces = largest_step(
            max_num_seqs=options.max_num_seqs,
            max_num_batched_tokens=options.max_num_batched_tokens,
            max_model_len=options.max_model_len,
            block_size=size,
        )
        self._make_cache(1 + max(max(piece.block_table) for piece in pieces))

        def run() -> None:
            computed = self._compute(pieces)
            rows = [s + p.num_tokens - 1 for s, p in zip(computed.starts, pieces, strict=True)]
            # Sampling copies, sorts and sums what the head gives.
            logits = self.logits(rows)
            logits.clone().softmax(-1, dtype=torch.float32).sum()

        try:
            return peak_bytes(run, self.device)
        finally:
            self._hidden = self._logits = self._cache = None
            torch.cuda.empty_cache()

    def _parts(self) -> tuple[Decoder, KVCache]:
        if self._decoder is None or self._cache is None:
            raise RuntimeError("the executor is closed")
        return self._decoder, self._cache


def rank_device(device: torch.device, group: RankGroup) -> torch.device:
    if device.type == "cpu" or group.size == 1:
        return device
    return torch.device("cuda", (device.index or 0) + group.rank)
