"""Steps with prompt tokens in pieces between attentions: padded, recorded, and the same numbers as in one."""

from __future__ import annotations

import pytest
import torch

from tightpack.scheduling.plan import StepPlan
from tightpack.torch_backend.prompt_step import PromptStep, token_counts

PIECEWISE = {"static_decode": True, "prompt_graph_tokens": 16}


@pytest.mark.parametrize("largest", [1, 16, 64, 100, 512, 700, 2048, 3000])
def test_counts_waste_little(largest):
    counts = token_counts(largest)
    assert counts[-1] == largest
    assert list(counts) == sorted(set(counts))
    for tokens in range(1, largest + 1):
        padded = next(count for count in counts if count >= tokens)
        assert padded < tokens + 64 or padded < 1.25 * tokens
    assert len(counts) <= 24


@pytest.fixture
def sizes_of_two(monkeypatch):
    """Sizes small enough for tiny prompts: 4, 8 and 16."""
    from tightpack.torch_backend import model_runner

    monkeypatch.setattr(model_runner, "token_counts", lambda largest: (4, 8, largest))


def steps(executor, make_request, family, sequencer):
    """Logits of steps that mix prompt chunks and decodes; 18 tokens are beyond the largest size."""
    blocks = sequencer(executor)
    a, b, c = (make_request(family.tokens(30, i), f"r{i}") for i in range(3))
    found = []
    for chunks in (
        [(a, 3)],
        [(a, 1), (b, 5)],
        [(a, 4), (b, 1), (c, 11)],
        [(a, 1), (b, 17)],
        [(c, 7), (b, 2)],
    ):
        found.append(executor.logits([blocks.chunk(request, count) for request, count in chunks]).clone())
    return found, blocks


def test_every_family_computes_alike(family, make_request, sequencer, sizes_of_two):
    plain, _ = steps(family.executor(), make_request, family, sequencer)
    executor = family.executor(**PIECEWISE)
    # A mixture on a CPU waits for the counts of its experts' rows, which no graph can hold.
    assert (executor._runner._prompt is None) == family.checkpoint.spec.is_mixture
    found, _ = steps(executor, make_request, family, sequencer)
    for one, other in zip(plain, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kv_precision", ["fp8", "int8"])
def test_rounded_caches(llama, make_request, sequencer, sizes_of_two, kv_precision):
    from tightpack.schemes.quantized import KVCacheFormat

    cache = KVCacheFormat(precision=kv_precision)
    plain, _ = steps(llama.executor(kv_cache=cache), make_request, llama, sequencer)
    found, _ = steps(llama.executor(kv_cache=cache, **PIECEWISE), make_request, llama, sequencer)
    for one, other in zip(plain, found, strict=True):
        assert (other - one).norm() < 1e-2 * one.norm()


def test_which_steps_run_in_pieces(llama, make_request, sequencer, sizes_of_two, monkeypatch):
    seen = []
    call = PromptStep.__call__

    def noted(self, inputs):
        seen.append((inputs.num_tokens, self.size_for(inputs.num_tokens)))
        return call(self, inputs)

    monkeypatch.setattr(PromptStep, "__call__", noted)
    steps(llama.executor(**PIECEWISE), make_request, llama, sequencer)
    assert seen == [(3, 4), (6, 8), (16, 16), (9, 16)]


def test_padding_writes_to_nobodys_block(llama, make_request, sequencer, sizes_of_two):
    """Also rows of a larger step before, whose slots are still there."""
    executor = llama.executor(num_blocks=32, **PIECEWISE)
    plain = llama.executor(num_blocks=32)
    _, blocks = steps(executor, make_request, llama, sequencer)
    steps(plain, make_request, llama, sequencer)
    used = {block for table in blocks.tables.values() for block in table}
    for layer in range(llama.checkpoint.spec.num_layers):
        pool = executor._runner._cache.pool(layer)
        written = set(pool.flatten(1).any(1).nonzero().flatten().tolist())
        assert written == used | {32}
        torch.testing.assert_close(pool[:32], plain._runner._cache.pool(layer), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"static_decode": False}, {"static_decode": True}])
def test_nothing_is_recorded_unasked(llama, options):
    """On a CPU, with `enforce_eager`, and with prompt_graph_tokens=0."""
    given = options if options.get("static_decode") else {"prompt_graph_tokens": 16, **options}
    assert llama.executor(**given)._runner._prompt is None


def test_each_stretch_is_recorded_once_a_size_and_replayed(
    llama, make_request, sequencer, sizes_of_two, fake_cuda_graphs, monkeypatch
):
    executor = llama.executor(**PIECEWISE)
    runner, layers = executor._runner, llama.checkpoint.spec.num_layers
    with torch.inference_mode():
        runner._prompt.record((0, 1))
    assert len(fake_cuda_graphs) == 3 * (layers + 1)
    spare = executor.num_blocks
    assert runner._cache.pool(0).flatten(1).any(1).nonzero().flatten().tolist() == [spare]

    def computed(*_):
        raise AssertionError("computed beside the graph")

    monkeypatch.setattr(runner._prompt, "_stretch", computed)
    blocks = sequencer(executor)
    request = make_request(llama.tokens(30), "r")
    result = executor.execute(StepPlan((blocks.chunk(request, 6),)))
    assert not result.failed
    # Recorded from the largest size on: 16, 8, 4.
    by_size = [fake_cuda_graphs[i : i + layers + 1] for i in range(0, len(fake_cuda_graphs), layers + 1)]
    assert [[graph.replays for graph in size] for size in by_size] == [[0] * 4, [1] * 4, [0] * 4]
    assert runner._replayed_rows == 8, "the saturation guard knows the rows that pad"
