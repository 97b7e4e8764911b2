"""The executor over the C++ extension: a step is one call into the step program, and one into the sampler."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tightpack import _native
from tightpack.architectures import kv_memory
from tightpack.checkpoints.checkpoint import Checkpoint
from tightpack.native_cpu.block_tables import BlockTables
from tightpack.native_cpu.pack import ModelWeights, load_weights
from tightpack.native_cpu.program import build_program
from tightpack.native_cpu.sampling import Sampler
from tightpack.native_cpu.threads import cores_for, default_threads
from tightpack.requests.outputs import TokenLogprobs
from tightpack.scheduling.plan import Chunk, StepPlan
from tightpack.schemes.quantized import KVCacheFormat
from tightpack.serving_loop.chunk_check import reason_against
from tightpack.serving_loop.executor import StepOutcome, StepResult

# Float32 logits that are held at a time: 64 MiB.
_LOGITS_AT_A_TIME = 2**24
_BF16 = KVCacheFormat(precision="bf16")


class NativeExecutor:
    """Implements `serving_loop.executor.Executor`.

    kv_cache: bf16, fp8 or int8.
    activation_dtype: see `formats.row_rounding`.
    num_blocks: KV blocks; None takes what memory has room for, once the weights are loaded.
    num_threads: None takes one a physical core that this process may use.
    instruction_set: "auto" is the best that runs here. timed: keep what `profile` reports.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        kv_cache: KVCacheFormat = _BF16,
        activation_dtype: str = "auto",
        block_size: int = 16,
        num_blocks: int | None = None,
        max_num_seqs: int,
        max_model_len: int,
        num_threads: int | None = None,
        instruction_set: str = "auto",
        timed: bool = False,
    ) -> None:
        spec = checkpoint.spec
        kv_memory.check_scales(spec, kv_cache)
        threads = default_threads() if num_threads is None else num_threads
        team = _native.ThreadTeam(threads, cores=cores_for(threads))
        weights = load_weights(checkpoint, activation_dtype, threads)
        checkpoint.release_pages()
        program = build_program(
            team,
            spec,
            weights,
            max_model_len=max_model_len,
            instruction_set=instruction_set,
            timed=timed,
        )
        self._description = {
            "backend": "native",
            "instruction_set": program.instruction_set,
            "device": "cpu",
            "dtype": "bfloat16",
            "quantization": checkpoint.quantization.method if checkpoint.quantization else "none",
            "weights": _weights_in_words(weights),
            "activations": _activations_in_words(weights),
            "kv_cache_dtype": kv_memory.describe(kv_cache),
            "threads": str(threads),
        }
        if num_blocks is None:
            num_blocks = kv_memory.blocks_within(
                kv_memory.cpu_budget(),
                spec,
                block_size=block_size,
                kv_format=kv_cache,
                max_num_seqs=max_num_seqs,
                max_model_len=max_model_len,
            )
        cache = _native.KVCache(
            precision="dynamic_int8" if kv_memory.has_dynamic_scales(kv_cache) else kv_cache.precision,
            num_layers=spec.num_layers,
            num_blocks=num_blocks,
            block_size=block_size,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            key_scales=list(kv_cache.key_scales),
            value_scales=list(kv_cache.value_scales),
        )
        self._open: _Parts | None = _Parts(program, cache, Sampler(team), BlockTables())
        self._weight_bytes = weights.num_bytes
        self._num_blocks, self._block_size = num_blocks, block_size
        self._max_model_len, self._vocab_size = max_model_len, spec.vocab_size
        self._most_rows = max(1, _LOGITS_AT_A_TIME // spec.vocab_size)

    @property
    def num_blocks(self) -> int:
        return self._num_blocks

    @property
    def block_size(self) -> int:
        return self._block_size

    @property
    def weight_bytes(self) -> int:
        """What all weights take as the kernels stream them."""
        return self._weight_bytes

    @property
    def description(self) -> Mapping[str, str]:
        return self._description

    def execute(self, plan: StepPlan) -> StepResult:
        """One replay of the step program. A chunk that cannot be computed (a token outside the vocabulary,
        numbers that are not finite) fails alone; see `StepResult.failed`."""
        start = time.perf_counter()
        outcome = StepOutcome()
        together: list[Chunk] = []
        for chunk in plan.chunks:
            params = chunk.request.params
            if params.prompt_logprobs is not None and chunk.first_token < chunk.request.num_prompt_tokens:
                reason = self._refusal(chunk)
                if reason is None:
                    self._with_prompt_logprobs(chunk, outcome)
                else:
                    outcome.failed[chunk.request.request_id] = reason
            elif params.logit_bias and (reason := self._refusal(chunk)) is not None:
                outcome.failed[chunk.request.request_id] = reason
            else:
                together.append(chunk)
        if together:
            self._compute(together, outcome)
        return outcome.result(time.perf_counter() - start)

    def logits(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """Logits after every token of the chunks, in the order given: [tokens, vocab_size].

        Writes the cache as `execute` does. For evaluation and tests; a serving step never needs them all.
        Raises ValueError for a chunk that cannot be computed.
        """
        self._parts()
        for chunk in chunks:
            reason = self._refusal(chunk)
            if reason is not None:
                raise ValueError(f"request {chunk.request.request_id}: {reason}")
        out = np.empty((sum(chunk.num_tokens for chunk in chunks), self._vocab_size), np.float32)
        row = 0
        for parts in self._batches(chunks):
            logits, sound = self._run(parts, range(sum(part.num_tokens for part in parts)))
            for part, finite in zip(parts, sound.tolist(), strict=True):
                if not finite:
                    reason = _not_finite("activations", part)
                    raise ValueError(f"request {part.request.request_id}: {reason}")
            out[row : row + len(logits)] = logits
            row += len(logits)
        return out

    def profile(self) -> Mapping[str, float]:
        """Seconds since the last call by kind of operation, of an executor that is `timed`."""
        return self._parts().program.profile()

    def close(self) -> None:
        self._open = None

    def _parts(self) -> _Parts:
        if self._open is None:
            raise RuntimeError("the executor is closed")
        return self._open

    def _refusal(self, chunk: Chunk) -> str | None:
        """Why the chunk cannot be computed."""
        return reason_against(chunk, max_model_len=self._max_model_len, vocab_size=self._vocab_size)

    def _compute(self, chunks: Sequence[Chunk], outcome: StepOutcome) -> None:
        """One step; where the program refuses its numbers, one without the chunks that are to blame."""
        sampling, rows, end = [], [], 0
        for chunk in chunks:
            end += chunk.num_tokens
            if chunk.samples:
                sampling.append(chunk)
                rows.append(end - 1)
        try:
            logits, sound = self._run(chunks, rows)
        except (ValueError, OverflowError):
            refusals = {chunk.request.request_id: self._refusal(chunk) for chunk in chunks}
            refused = {name: reason for name, reason in refusals.items() if reason is not None}
            if not refused:
                raise
            outcome.failed.update(refused)
            others = [chunk for chunk in chunks if chunk.request.request_id not in refused]
            if others:
                self._compute(others, outcome)
            return
        if not sound.all():
            logits, sampling = self._drop_unsound(chunks, sound, logits, sampling, outcome)
        self._sample(sampling, logits, outcome)

    def _sample(self, chunks: Sequence[Chunk], logits: NDArray[np.float32], outcome: StepOutcome) -> None:
        """logits: a row a chunk."""
        if not chunks:
            return
        tokens = self._parts().sampler.sample(logits, [chunk.request for chunk in chunks])
        for chunk, token in zip(chunks, tokens, strict=True):
            if token is None:
                outcome.failed[chunk.request.request_id] = _not_finite("logits", chunk)
            else:
                outcome.sampled[chunk.request.request_id] = token

    def _drop_unsound(
        self,
        chunks: Sequence[Chunk],
        sound: NDArray[np.bool_],
        logits: NDArray[np.float32],
        sampling: Sequence[Chunk],
        outcome: StepOutcome,
    ) -> tuple[NDArray[np.float32], list[Chunk]]:
        """Fail the chunks whose numbers are not finite, and leave out their rows."""
        for chunk, finite in zip(chunks, sound.tolist(), strict=True):
            if not finite:
                outcome.failed[chunk.request.request_id] = _not_finite("activations", chunk)
        kept = [row for row, c in enumerate(sampling) if c.request.request_id not in outcome.failed]
        return logits[kept], [sampling[row] for row in kept]

    def _with_prompt_logprobs(self, chunk: Chunk, outcome: StepOutcome) -> None:
        """Compute the chunk by itself and in slices, since the logits of all its tokens would be large."""
        request = chunk.request
        entries: list[TokenLogprobs] = []
        for part in self._slices(chunk):
            logits, sound = self._run([part], range(part.num_tokens))
            if not sound[0]:
                outcome.failed[request.request_id] = _not_finite("activations", part)
                return
            targets = request.prompt_token_ids[part.first_token + 1 : part.first_token + part.num_tokens + 1]
            if targets:
                counts = [request.params.prompt_logprobs or 0] * len(targets)
                entries += self._parts().sampler.token_logprobs(logits[: len(targets)], targets, counts)
            if part.samples:
                self._sample([part], logits[-1:], outcome)
        if request.request_id not in outcome.failed:
            outcome.prompt_logprobs[request.request_id] = tuple(entries)

    def _slices(self, chunk: Chunk) -> Iterator[Chunk]:
        """The chunk in parts whose logits are few enough to be held."""
        most = self._most_rows
        end = chunk.first_token + chunk.num_tokens
        for first in range(chunk.first_token, end, most):
            yield Chunk(chunk.request, first, min(most, end - first), chunk.block_table)

    def _batches(self, chunks: Sequence[Chunk]) -> Iterator[list[Chunk]]:
        """Slices of the chunks, in order, as many together as `_slices` would take of one."""
        batch: list[Chunk] = []
        for chunk in chunks:
            for part in self._slices(chunk):
                if batch and sum(p.num_tokens for p in batch) + part.num_tokens > self._most_rows:
                    yield batch
                    batch = []
                batch.append(part)
        if batch:
            yield batch

    def _run(
        self, chunks: Sequence[Chunk], rows: Sequence[int]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Logits of the `rows` among the chunks' tokens, good until the next run, and which chunks are sound.

        Raises ValueError or OverflowError for what does not fit the vocabulary or the context.
        """
        parts = self._parts()
        tokens: list[int] = []
        layout: list[int] = []
        tables = []
        for chunk in chunks:
            first, count, table = chunk.first_token, chunk.num_tokens, chunk.block_table
            if count == 1:
                tokens.append(chunk.request.token_ids[first])
            else:
                tokens += chunk.request.token_ids[first : first + count]
            layout += (count, first, len(table))
            tables.append(table)
        return parts.program.run(
            np.array(tokens, np.int32),
            np.array(layout, np.int32).reshape(-1, 3),
            parts.tables.joined(tables),
            np.array(rows, np.int32),
            parts.cache,
        )


@dataclass(frozen=True, slots=True)
class _Parts:
    """All that holds memory and threads."""

    program: _native.Program
    cache: _native.KVCache
    sampler: Sampler
    tables: BlockTables


def _not_finite(what: str, chunk: Chunk) -> str:
    last = chunk.first_token + chunk.num_tokens - 1
    return f"{what} of tokens {chunk.first_token} to {last} are not finite in bfloat16"


def _weights_in_words(weights: ModelWeights) -> str:
    """ "uint4 63 MiB, uint8 29 MiB"."""
    sizes: Counter[str] = Counter()
    for weight in weights.packed():
        sizes[weight.codes] += weight.num_bytes
    return ", ".join(f"{codes} {size / 2**20:.0f} MiB" for codes, size in sizes.most_common())


def _activations_in_words(weights: ModelWeights) -> str:
    """ "int8 in groups of 64, bf16"."""
    runs = (run for linear in weights.linears for run in linear.runs)
    return ", ".join(dict.fromkeys(run.rounding.in_words for run in runs))
