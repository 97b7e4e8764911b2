"""Several ranks against one: logits and tokens of every scheme, and what happens when a rank is gone.

Ranks are threads with a gloo group of their own where only the arithmetic matters, and processes where
starting, leading and losing them does.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from tightpack import LLM, AsyncLLM, SamplingParams
from tightpack.architectures.model_spec import ModelSpec
from tightpack.checkpoints.open import open_checkpoint
from tightpack.on_load import quantize_on_load
from tightpack.schemes.part import Part
from tightpack.schemes.quantized import KVCacheFormat
from tightpack.serving_loop.executor import ExecutorDiedError
from tightpack.torch_backend.model_runner import ModelRunner, RunnerOptions
from tightpack.torch_backend.rank_group import RankGroup, open_store
from tightpack.torch_backend.rounded_kv_cache import unrounded
from tightpack.torch_backend.split import Split, span
from tightpack.torch_backend.step_inputs import Piece


def options(**changes):
    defaults = RunnerOptions(
        dtype=torch.float32,
        kv_format=unrounded(torch.float32),
        device=torch.device("cpu"),
        block_size=4,
        num_blocks=64,
        max_num_seqs=4,
        max_num_batched_tokens=64,
        max_model_len=128,
    )
    return replace(defaults, **changes)


def logits_of_a_job(runner, tokens):
    """A prompt in two chunks, then single tokens, beside another sequence."""
    table, other = tuple(range(0, 40, 2)), tuple(range(1, 41, 2))
    rows = []
    with torch.inference_mode():
        for first, end in ((0, 13), (13, 30), *((i, i + 1) for i in range(30, 34))):
            pieces = [Piece(tuple(tokens[first:end]), first, table), Piece(tuple(tokens[:5]), 0, other)]
            computed = runner.forward(pieces)
            start = computed.starts[0]
            rows.append(runner.logits(range(start, start + end - first)).clone())
    return torch.cat(rows)


def by_ranks(checkpoint, size, job, **changes):
    """What `job` makes of each rank's runner."""
    store = open_store(0, size)

    def be(rank):
        torch.set_num_threads(1)
        group = RankGroup(rank, size)
        runner = ModelRunner(checkpoint, options(**changes), group)
        group.join(store if rank == 0 else open_store(store.port, size), runner.device)
        runner.allocate()
        return job(runner)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(be, range(size)))


def by_one(checkpoint, job, **changes):
    runner = ModelRunner(checkpoint, options(**changes))
    runner.allocate()
    return job(runner)


def assert_ranks_agree_with_one(checkpoint, tokens, size=2, *, tolerance=1e-4, **changes):
    def job(runner):
        return logits_of_a_job(runner, tokens)

    alone = by_one(checkpoint, job, **changes)
    first, *others = by_ranks(checkpoint, size, job, **changes)
    for other in others:
        assert torch.equal(first, other), "all ranks have the same bits"
    error = ((first - alone).abs().max() / alone.abs().max()).item()
    assert error < tolerance
    assert torch.equal(first.argmax(-1), alone.argmax(-1)), "greedy tokens"


def test_every_family(family):
    size = 3 if family.checkpoint.spec.num_heads == 9 else 2
    assert_ranks_agree_with_one(family.checkpoint, family.tokens(34), size)


def test_fewer_kv_heads_than_ranks(llama):
    """Four ranks of two KV heads: neighbours have the same one."""
    assert_ranks_agree_with_one(llama.checkpoint, llama.tokens(34), 4)


@pytest.mark.parametrize("method", ["int4", "int8", "fp8", "w8a8", "llm.int8"])
@pytest.mark.parametrize("family", ["llama3", "mixtral"], indirect=True)
def test_quantized_on_loading(family, method):
    """With dynamic scales of activations, which are those of a rank's own inputs, the ranks are a little
    nearer to the unrounded model than one is."""
    checkpoint = quantize_on_load(family.checkpoint, method, llm_int8_threshold=6.0)
    exact = method in ("int4", "int8")
    tokens = family.tokens(34)
    if exact:
        assert_ranks_agree_with_one(checkpoint, tokens)
        return
    alone = by_one(checkpoint, lambda runner: logits_of_a_job(runner, tokens))
    first, second = by_ranks(checkpoint, 2, lambda runner: logits_of_a_job(runner, tokens))
    assert torch.equal(first, second)
    reference = family.reference_logits(tokens)
    assert (first - reference).norm() < 1.1 * (alone - reference).norm()


@pytest.mark.parametrize("cache", ["fp8", "int8"])
def test_a_rounded_cache(llama, cache):
    kv_format = KVCacheFormat(precision=cache)
    # An 8-bit cache rounds by steps: what differs in the last bit may fall on either side of one.
    assert_ranks_agree_with_one(llama.checkpoint, llama.tokens(34), kv_format=kv_format, tolerance=0.02)


QUANTIZED_FILES = ["rtn", "awq layout", "gptq layout"]


@pytest.fixture(scope="module", params=QUANTIZED_FILES)
def quantized_file(request, tiny_model, tiny_text, tmp_path_factory):
    from tightpack import quantize

    layouts = {"awq layout": "awq", "gptq layout": "gptq"}
    directory = tmp_path_factory.mktemp("quantized") / "model"
    quantize(
        str(tiny_model("llama")),
        directory,
        method="rtn",
        group_size=32,
        layout=layouts.get(request.param),
        evaluation=tiny_text,
        samples=2,
        sequence_length=16,
        evaluation_samples=1,
    )
    return open_checkpoint(str(directory))


def test_quantized_files(quantized_file):
    assert_ranks_agree_with_one(quantized_file, [(7 * i) % 96 for i in range(34)])


def test_a_rank_reads_its_part_alone(quantized_file, monkeypatch):
    """Every linear as a part; none whole, and of stored weights no more bytes than the share."""
    whole, parts = [], []
    read_linear = type(quantized_file.tensors).read_linear
    read_part = type(quantized_file.tensors).read_part

    def watch_part(self, name, part):
        linear = read_part(self, name, part)
        parts.append((name, part, linear.weight.num_bytes))
        return linear

    def watch_linear(self, name):
        whole.append(name)
        return read_linear(self, name)

    monkeypatch.setattr(type(quantized_file.tensors), "read_part", watch_part)
    monkeypatch.setattr(type(quantized_file.tensors), "read_linear", watch_linear)
    group = RankGroup(1, 2)
    ModelRunner(quantized_file, options(), group)
    assert set(whole) <= {"model.embed_tokens"}
    for name, part, num_bytes in parts:
        if name != "model.embed_tokens":
            assert part != Part()
            assert num_bytes == pytest.approx(read_linear(quantized_file.tensors, name).weight.num_bytes / 2)


def test_inner_dimensions_are_divided_in_whole_groups():
    spec = ModelSpec(
        family="x",
        vocab_size=50,
        hidden_size=32,
        intermediate_size=352,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        layers=(),
        norm_eps=1e-6,
        attention_scale=1.0,
        max_position_embeddings=16,
    )
    shares = [Split(spec, rank, 4) for rank in range(4)]
    assert [share.inner(352, 32) for share in shares] == [(0, 96), (96, 192), (192, 288), (288, 352)]
    assert [share.inner(350, 32) for share in shares][-1] == (288, 350)
    assert [share.vocabulary for share in shares] == [(0, 13), (13, 26), (26, 38), (38, 50)]
    assert shares[0].widest_vocabulary == 13
    assert [share.key_value_rows.rows for share in shares] == [(0, 8), (0, 8), (8, 16), (8, 16)]
    with pytest.raises(ValueError, match="352 in groups of 128: it makes 2 parts at the most"):
        shares[0].inner(352, 128)


@pytest.mark.parametrize(("count", "size"), [(7, 3), (3, 3), (48, 5)])
def test_spans_cover_everything_once(count, size):
    spans = [span(count, rank, size) for rank in range(size)]
    assert spans[0][0] == 0
    assert spans[-1][1] == count
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    assert max(b - a for a, b in spans) - min(b - a for a, b in spans) <= 1


def test_heads_that_do_not_divide(llama):
    with pytest.raises(ValueError, match="=3 does not divide 4 heads and 2 KV heads; it can be 1, 2, 4"):
        LLM(**ENGINE, model=str(llama_directory(llama)), tensor_parallel_size=3)


def test_a_gpu_a_rank(monkeypatch):
    from tightpack.torch_backend.sizing import check_ranks

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_ranks(torch.device("cuda"), 2)
    with pytest.raises(ValueError, match="=2 needs a GPU a rank, from cuda:1 on, and there are 2"):
        check_ranks(torch.device("cuda", 1), 2)


ENGINE = {"executor": "torch", "dtype": "float32", "num_blocks": 64, "num_threads": 1}


def llama_directory(family):
    return family.checkpoint.tensors._files["model.norm.weight"][0].path.parent


def prompts(count):
    return [{"prompt_token_ids": [(5 * i + j * j) % 90 + 3 for j in range(4 + i)]} for i in range(count)]


GREEDY = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)


def test_the_tokens_of_one(tiny_model):
    """Greedy and sampled, with prompt log-probabilities, through the front door."""
    params = [
        GREEDY,
        SamplingParams(temperature=0.8, seed=3, max_tokens=6, ignore_eos=True),
        SamplingParams(temperature=0, max_tokens=4, prompt_logprobs=2, logprobs=1, ignore_eos=True),
    ]
    outputs = []
    for size in (1, 2):
        llm = LLM(str(tiny_model("mixtral")), **ENGINE, tensor_parallel_size=size)
        assert llm.engine.executor.description["tensor_parallel_size"] == str(size)
        outputs.append(llm.generate(prompts(3), params, use_tqdm=False))
        llm.engine.executor.close()
    alone, together = outputs
    for one, two in zip(alone, together, strict=True):
        assert one.outputs[0].token_ids == two.outputs[0].token_ids
        assert one.outputs[0].finish_reason == two.outputs[0].finish_reason == "length"
    assert len(together[2].prompt_logprobs) == len(alone[2].prompt_logprobs)


def ranks_of(engine):
    return [rank._process.pid for rank in engine.executor._runner._ranks]


def test_a_dead_rank_ends_the_engine_with_an_error_that_names_it(tiny_model):
    """While a request is under way; nobody waits for ever."""

    async def scenario():
        llm = AsyncLLM(str(tiny_model("llama")), **ENGINE, tensor_parallel_size=2)
        [victim] = ranks_of(llm.engine)
        params = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)

        async def lose_a_rank():
            async for delta in llm.stream(prompts(1)[0], params):
                if delta.num_output_tokens == 3:
                    os.kill(victim, signal.SIGKILL)

        with pytest.raises(RuntimeError, match=rf"rank 1 \(process {victim}\) was ended by SIGKILL"):
            await asyncio.wait_for(lose_a_rank(), 60)
        while llm.is_running:
            await asyncio.sleep(0.001)
        with pytest.raises(RuntimeError, match="the engine is closed"):
            await anext(llm.stream(prompts(1)[0], params))
        llm.close()

    asyncio.run(scenario())


def test_a_rank_that_cannot_load_says_why(tiny_model, tmp_path, monkeypatch):
    """The other processes open the checkpoint anew: one that is no longer there fails them, not for ever."""
    import shutil

    from tightpack.torch_backend import ranks

    directory = shutil.copytree(tiny_model("llama"), tmp_path / "model")
    started = ranks._Rank.__init__

    def start(self, *given):
        shutil.rmtree(directory, ignore_errors=True)
        started(self, *given)

    monkeypatch.setattr(ranks._Rank, "__init__", start)
    with pytest.raises(ExecutorDiedError, match=r"rank 1 \(process \d+\) failed: CheckpointError: .*no such"):
        LLM(str(directory), **ENGINE, tensor_parallel_size=2)
    assert not [t for t in threading.enumerate() if t.name.startswith("tightpack-rank")]
