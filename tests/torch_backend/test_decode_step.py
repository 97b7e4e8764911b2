"""Decoding from static buffers: padding, reuse, recording, and the same numbers as any other step."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tightpack.scheduling.plan import StepPlan
from tightpack.torch_backend.decode_step import Decoded, DecodeStep, batch_sizes
from tightpack.torch_backend.profiling import largest_step, peak_bytes, step_range
from tightpack.torch_backend.step_inputs import Piece

CPU = torch.device("cpu")


@pytest.mark.parametrize("largest", [1, 3, 8, 33, 64, 256, 300, 1024])
def test_sizes_waste_little(largest):
    sizes = batch_sizes(largest)
    assert sizes[-1] == largest
    assert list(sizes) == sorted(set(sizes))
    for count in range(1, largest + 1):
        padded = next(size for size in sizes if size >= count)
        assert padded <= max(2 * count, count + 7) if count <= 32 else padded <= 1.25 * count + 1
    assert len(sizes) < 64


def recorded_calls(sizes=(1, 2, 4), width=3):
    """A step whose model notes what it is given."""
    calls = []

    def compute(buffers):
        calls.append(buffers)
        rows = buffers.token_ids.float().unsqueeze(1)
        return Decoded(rows.clone(), rows + 100)

    return DecodeStep(compute, sizes=sizes, width=width, spare_block=99, device=CPU), calls


def test_padding_and_reuse_of_buffers():
    step, calls = recorded_calls()
    pieces = [Piece((7 + i,), 4 + i, (i, 10 + i)) for i in range(3)]
    decoded = step(pieces)
    assert decoded.hidden.tolist() == [[7], [8], [9]]
    assert decoded.logits.tolist() == [[107], [108], [109]]
    first = calls[0]
    assert first.size == 4
    assert first.token_ids.tolist() == [7, 8, 9, 0]
    assert first.positions.tolist() == [4, 5, 6, 0]
    assert first.block_tables.tolist() == [[0, 10, 0], [1, 11, 1], [2, 12, 2], [99, 99, 99]]
    step(pieces[:1])
    step([Piece((5,), 0, (3,))] * 4)
    assert [call.size for call in calls] == [4, 1, 4]
    assert calls[2].token_ids.tolist() == [5] * 4
    for name in ("token_ids", "positions", "block_tables"):
        assert getattr(calls[0], name).data_ptr() == getattr(calls[2], name).data_ptr()


def test_tables_longer_than_what_can_be_decoded_are_cut():
    """Blocks kept for tokens to come may be more than the context has."""
    step, calls = recorded_calls(width=2)
    step([Piece((1,), 3, (4, 5, 6))])
    assert calls[0].block_tables.tolist() == [[4, 5]]


def test_each_size_is_recorded_once_and_replayed(fake_cuda_graphs):
    step, calls = recorded_calls()
    step.record((0, 1))
    # Three runs of each size, the last of them recorded; the others fit the memory of the largest.
    assert [call.size for call in calls] == [4, 4, 4, 2, 2, 2, 1, 1, 1]
    decoded = step([Piece((7,), 0, (1,)), Piece((8,), 0, (2,)), Piece((9,), 0, (3,))])
    assert len(calls) == 9, "nothing is computed but by the graph"
    assert [graph.replays for graph in fake_cuda_graphs] == [1, 0, 0]
    assert decoded.logits.shape == (3, 1)
    step([Piece((7,), 0, (1,))])
    assert [graph.replays for graph in fake_cuda_graphs] == [1, 0, 1]


def generate(executor, blocks, requests, steps):
    outputs = {request: [] for request in requests}
    for _ in range(steps):
        chunks = tuple(blocks.chunk(request) for request in requests)
        result = executor.execute(StepPlan(chunks))
        assert not result.failed
        for request in requests:
            token = result.sampled[request.request_id].token_id
            outputs[request].append(token)
            request.token_ids.append(token)
    return list(outputs.values())


def test_every_family_decodes_alike(family, make_request, sequencer):
    """Static and not, past windows and blocks, with a batch that shrinks to other sizes."""
    outputs = []
    for static in (False, True):
        executor = family.executor(static_decode=static)
        blocks = sequencer(executor)
        requests = [make_request(family.tokens(3 + 9 * i, i), f"r{i}") for i in range(5)]
        tokens = generate(executor, blocks, requests, 8)
        tokens += generate(executor, blocks, requests[1:4], 6)
        outputs.append(tokens)
        recorded = executor._runner._decode is not None
        # A mixture on a CPU waits for the counts of its experts' rows, which no graph can hold.
        assert recorded == (static and not family.checkpoint.spec.is_mixture)
    assert outputs[0] == outputs[1]


def test_logits_are_those_of_transformers(llama, make_request, sequencer):
    executor = llama.executor(static_decode=True)
    blocks = sequencer(executor)
    request = make_request(llama.tokens(40))
    parts = [executor.logits([blocks.chunk(request, count)]) for count in [20] + [1] * 20]
    reference = llama.reference_logits(request.token_ids)
    assert (torch.cat(parts) - reference).abs().max() < 1e-4 * reference.abs().max()


def test_padding_writes_to_nobodys_block(llama, make_request, sequencer):
    executor = llama.executor(static_decode=True, num_blocks=32, max_num_seqs=8)
    assert executor.num_blocks == 32
    runner = executor._runner
    blocks = sequencer(executor)
    requests = [make_request(llama.tokens(6, i), f"r{i}") for i in range(5)]  # padded to 8
    generate(executor, blocks, requests, 3)
    used = {block for table in blocks.tables.values() for block in table}
    for layer in range(3):
        pool = runner._cache.pool(layer)
        written = set(pool.flatten(1).any(1).nonzero().flatten().tolist())
        assert written == used | {32}
    assert 32 not in blocks.free


def test_out_of_memory_while_decoding_fails_who_does_not_fit(llama, make_request, sequencer, monkeypatch):
    """Halves of a step are padded to other sizes; here only batches of two fit."""
    executor = llama.executor(static_decode=True)
    blocks = sequencer(executor)
    requests = [make_request(llama.tokens(5, i), f"r{i}") for i in range(6)]
    plain = llama.executor()
    expected = generate(
        plain, sequencer(plain), [make_request(llama.tokens(5, i), f"r{i}") for i in range(6)], 4
    )
    generated = generate(executor, blocks, requests, 2)
    step, seen = executor._runner._decode, []
    compute = step._compute

    def limited(buffers):
        seen.append(buffers.size)
        if buffers.size > 2:
            raise torch.cuda.OutOfMemoryError("no room")
        return compute(buffers)

    monkeypatch.setattr(step, "_compute", limited)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    more = generate(executor, blocks, requests, 2)
    assert [a + b for a, b in zip(generated, more, strict=True)] == expected
    assert seen[:3] == [8, 4, 1]

    def never(buffers):
        raise torch.cuda.OutOfMemoryError("no room")

    monkeypatch.setattr(step, "_compute", never)
    result = executor.execute(StepPlan(tuple(blocks.chunk(request) for request in requests[:3])))
    assert set(result.failed) == {"r0", "r1", "r2"}
    assert "out of GPU memory: no room" in result.failed["r0"]


@pytest.mark.parametrize(
    ("seqs", "tokens", "longest"),
    [(32, 2048, 8192), (4, 64, 16), (16, 8, 100), (1, 100, 100), (256, 256, 64)],
)
def test_the_largest_step(seqs, tokens, longest):
    pieces = largest_step(
        max_num_seqs=seqs, max_num_batched_tokens=tokens, max_model_len=longest, block_size=4
    )
    counts = [piece.num_tokens for piece in pieces]
    assert len(pieces) == min(seqs, tokens)
    assert min(counts) >= 1
    assert max(counts) <= longest
    assert sum(counts) == min(tokens, seqs * longest)
    blocks = [block for piece in pieces for block in piece.block_table]
    assert len(set(blocks)) == len(blocks)
    assert all(len(piece.block_table) * 4 >= piece.num_tokens for piece in pieces)


def test_memory_is_sized_by_the_largest_step(llama, monkeypatch):
    """The pass runs on a CPU as well; what CUDA counts is made up."""
    from tightpack.torch_backend import model_runner

    runner = llama.executor(max_num_seqs=4, max_num_batched_tokens=64)._runner
    ran = []

    def measured(run, device):
        run()
        ran.append(runner._hidden.shape)
        return 12345

    monkeypatch.setattr(model_runner, "peak_bytes", measured)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    with torch.inference_mode():
        assert runner._profiled() == 12345
    assert ran == [(64, 64)]
    assert runner._cache is None, "the cache of the trial is gone"


def test_the_measured_step_leaves_that_much_less(monkeypatch, llama):
    from tightpack.torch_backend.rounded_kv_cache import unrounded
    from tightpack.torch_backend.sizing import default_num_blocks

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 * 2**30, 10 * 2**30))

    def blocks(step_bytes):
        return default_num_blocks(
            llama.checkpoint.spec,
            block_size=16,
            dtype=torch.bfloat16,
            kv_format=unrounded(torch.bfloat16),
            device=torch.device("cuda"),
            max_num_seqs=10**6,
            max_num_batched_tokens=64,
            max_model_len=256,
            step_bytes=step_bytes,
        )

    block = 2 * 3 * 2 * 16 * 16 * 2
    assert blocks(0) - blocks(2**30) == pytest.approx(2**30 / block, abs=1)


def test_peak_bytes(monkeypatch):
    held = iter([1000])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: next(held))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1700)
    runs = []
    assert peak_bytes(lambda: runs.append(1), torch.device("cuda")) == 700
    assert len(runs) == 2


def test_ranges_cost_nothing_on_a_cpu():
    with step_range("decode", CPU) as nothing:
        assert nothing is None


def test_buffers_are_frozen():
    step, calls = recorded_calls()
    step([Piece((1,), 0, (0,))])
    with pytest.raises(dataclasses.FrozenInstanceError):
        calls[0].token_ids = torch.from_numpy(np.zeros(1))
