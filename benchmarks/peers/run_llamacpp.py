"""llama.cpp's C interface through llama-cpp-python's bindings; `settings` are context parameters.

The bindings' own generation loop handles one sequence, so the batch is filled here, as llama.cpp's parallel
example does: prompts of all streams one after the other, then one token a stream and step.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import llama_cpp
import numpy as np
from runner_protocol import Job, run

BATCH_TOKENS = 2048
CELLS_MULTIPLE = 256  # a sequence's share of the KV cache is rounded up to it


class LlamaCpp:
    name = "llama.cpp"
    version = f"llama-cpp-python {llama_cpp.__version__}"

    def __init__(self, job: Job) -> None:
        self._job = job
        self._model = llama_cpp.llama_model_load_from_file(
            job.model.encode(), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise ValueError(f"llama.cpp cannot load {job.model}")
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self._context = None
        self._batch = _Batch(BATCH_TOKENS, job.max_streams)

    def prepare(self, streams: int, tokens: int) -> None:
        """A context of its own for each shape: attention is fastest over a cache with nothing to skip."""
        if self._context is not None:
            llama_cpp.llama_free(self._context)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = -(-tokens // CELLS_MULTIPLE) * CELLS_MULTIPLE * streams
        params.n_batch = BATCH_TOKENS
        params.n_seq_max = streams
        params.n_threads = params.n_threads_batch = self._job.threads
        for name, value in self._job.settings.items():
            if not hasattr(params, name):
                raise ValueError(f"llama.cpp's context has no parameter {name!r}")
            setattr(params, name, value)
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise ValueError(f"llama.cpp cannot make a context of {params.n_ctx} positions")

    def generate(self, prompts: Sequence[Sequence[int]], output_len: int) -> list[int]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
        newest = self._prefill(prompts)
        streams = range(len(prompts))
        for step in range(output_len - 1):
            positions = [len(prompt) + step for prompt in prompts]
            self._decode(newest, positions, streams, [True] * len(prompts))
            newest = [self._likeliest(index) for index in streams]
        return [output_len] * len(prompts)

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """The first output token of each prompt."""
        flat = [
            (token, position, stream, position == len(prompt) - 1)
            for stream, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        newest = []
        for start in range(0, len(flat), BATCH_TOKENS):
            tokens, positions, streams, wanted = zip(*flat[start : start + BATCH_TOKENS], strict=True)
            self._decode(tokens, positions, streams, wanted)
            newest += [self._likeliest(index) for index, last in enumerate(wanted) if last]
        return newest

    def _decode(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        streams: Sequence[int],
        wanted: Sequence[bool],
    ) -> None:
        status = llama_cpp.llama_decode(self._context, self._batch.fill(tokens, positions, streams, wanted))
        if status != 0:
            raise RuntimeError(f"llama_decode gave status {status}")

    def _likeliest(self, index: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, index)
        return int(np.ctypeslib.as_array(logits, (self._vocab_size,)).argmax())


class _Batch:
    """llama_batch over numpy arrays, which are filled at once and not token by token."""

    def __init__(self, tokens: int, streams: int) -> None:
        self._tokens = np.zeros(tokens, np.int32)
        self._positions = np.zeros(tokens, np.int32)
        self._counts = np.ones(tokens, np.int32)
        self._wanted = np.zeros(tokens, np.int8)
        self._ids = np.arange(streams, dtype=np.int32)
        self._pointers = np.zeros(tokens, np.uintp)  # of each token, to its stream's place in `_ids`
        self._struct = llama_cpp.llama_batch(
            n_tokens=0,
            token=_pointer(self._tokens, ctypes.c_int32),
            embd=None,
            pos=_pointer(self._positions, ctypes.c_int32),
            n_seq_id=_pointer(self._counts, ctypes.c_int32),
            seq_id=_pointer(self._pointers, ctypes.POINTER(ctypes.c_int32)),
            logits=_pointer(self._wanted, ctypes.c_int8),
        )

    def fill(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        streams: Sequence[int],
        wanted: Sequence[bool],
    ) -> llama_cpp.llama_batch:
        count = len(tokens)
        self._struct.n_tokens = count
        self._tokens[:count] = tokens
        self._positions[:count] = positions
        self._wanted[:count] = wanted
        self._pointers[:count] = self._ids.ctypes.data + np.asarray(streams) * self._ids.itemsize
        return self._struct


def _pointer(array: np.ndarray, kind: type) -> ctypes._Pointer:
    return array.ctypes.data_as(ctypes.POINTER(kind))


if __name__ == "__main__":
    run(LlamaCpp)
