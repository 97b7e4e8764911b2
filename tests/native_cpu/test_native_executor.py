"""The native executor against PyTorch's in float32, and what a step does beside the forward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tightpack import LLM, SamplingParams, _native
from tightpack.architectures.kv_memory import describe
from tightpack.checkpoints.checkpoint import Checkpoint
from tightpack.native_cpu.executor import NativeExecutor
from tightpack.on_load import quantize_on_load
from tightpack.scheduling.plan import StepPlan
from tightpack.schemes.quantized import KVCacheFormat
from tightpack.torch_backend.executor import TorchExecutor

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3", "capped")
MIXTURES = ("mixtral", "qwen3_moe")
TOKENS = [(7 * i + i * i) % 96 for i in range(60)]


@pytest.fixture(autouse=True)
def single_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def native(checkpoint: Checkpoint, **options: Any) -> NativeExecutor:
    defaults = {"num_blocks": 64, "max_num_seqs": 8, "max_model_len": 128, "num_threads": 2}
    return NativeExecutor(checkpoint, **(defaults | options))


def exact(checkpoint: Checkpoint) -> TorchExecutor:
    return TorchExecutor(
        checkpoint,
        dtype=torch.float32,
        device="cpu",
        block_size=16,
        num_blocks=64,
        max_num_seqs=8,
        max_num_batched_tokens=512,
        max_model_len=128,
    )


def divergence(reference: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """KL(reference || logits) in nats, of each row."""
    wanted, given = (torch.from_numpy(x).log_softmax(-1) for x in (reference, logits))
    return (wanted.exp() * (wanted - given)).sum(-1).numpy()


@pytest.fixture(scope="module")
def compare(make_request, sequencer) -> Callable[..., float]:
    """The divergence of the native executor's logits, computed in uneven chunks, from PyTorch's."""

    def compared(
        checkpoint: Checkpoint, over: Callable[[np.ndarray], float] = np.mean, **options: Any
    ) -> float:
        reference = exact(checkpoint)
        request = make_request(TOKENS)
        wanted = reference.logits([sequencer(reference).chunk(request)]).numpy()
        executor = native(checkpoint, **options)
        blocks, request = sequencer(executor), make_request(TOKENS)
        logits = [executor.logits([blocks.chunk(request, count)]) for count in (1, 20, 1, 30, 8)]
        executor.close()
        reference.close()
        return float(over(divergence(wanted, np.concatenate(logits))))

    return compared


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_every_family(tiny_checkpoint, compare, family):
    assert compare(tiny_checkpoint(family)) < 1e-3


@pytest.mark.parametrize("instruction_set", _native.instruction_sets())
def test_logits_on_every_instruction_set(tiny_checkpoint, compare, instruction_set):
    assert compare(tiny_checkpoint("gemma3"), instruction_set=instruction_set) < 1e-3


@pytest.mark.parametrize("method", ["int8", "w8a8", "llm.int8", "int4", "fp8"])
@pytest.mark.parametrize("activation_dtype", ["auto", "bfloat16"])
def test_logits_of_every_scheme(tiny_checkpoint, compare, method, activation_dtype):
    checkpoint = quantize_on_load(tiny_checkpoint(), method, llm_int8_threshold=2.0)
    assert compare(checkpoint, activation_dtype=activation_dtype) < 2e-3


# Where two of a router's scores are nearly equal, rounding decides which expert a token takes, and its logits
# are others'; hence the median over tokens, which every mistake in the mixture itself would move.
@pytest.mark.parametrize("instruction_set", _native.instruction_sets())
@pytest.mark.parametrize("family", MIXTURES)
def test_logits_of_mixtures(tiny_checkpoint, compare, family, instruction_set):
    assert compare(tiny_checkpoint(family), np.median, instruction_set=instruction_set) < 1e-4


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("method", ["int8", "w8a8", "llm.int8", "int4", "fp8"])
def test_logits_of_quantized_mixtures(tiny_checkpoint, compare, family, method):
    checkpoint = quantize_on_load(tiny_checkpoint(family), method, llm_int8_threshold=2.0)
    assert compare(checkpoint, np.median) < (5e-3 if method == "fp8" else 1e-3)


def test_logits_of_mixtures_in_the_schemes_of_files(tiny_checkpoint, rewritten, compare, scheme):
    assert compare(rewritten(tiny_checkpoint("qwen3_moe"), scheme), np.median) < 5e-3


def test_logits_of_the_schemes_of_files(tiny_checkpoint, rewritten, compare, scheme):
    assert compare(rewritten(tiny_checkpoint("qwen2"), scheme)) < 2e-3


KV_CACHES = [
    KVCacheFormat(precision="fp8"),
    KVCacheFormat(precision="int8"),
    KVCacheFormat(precision="int8", key_scales=(0.05,) * 3, value_scales=(0.03, 0.02, 0.02)),
    KVCacheFormat(precision="fp8", key_scales=(0.5, 1.0, 0.7), value_scales=(0.5,) * 3),
]


@pytest.mark.parametrize("kv_cache", KV_CACHES, ids=describe)
def test_logits_with_every_cache(tiny_checkpoint, compare, kv_cache):
    assert compare(tiny_checkpoint("qwen3"), kv_cache=kv_cache) < 2e-2


@pytest.fixture
def executor(tiny_checkpoint):
    made = native(tiny_checkpoint())
    yield made
    made.close()


def test_greedy_tokens_are_the_likeliest_of_the_logits(executor, make_request, sequencer):
    blocks = sequencer(executor)
    requests = [make_request(TOKENS[: 3 + 5 * i], name=str(i), logprobs=3) for i in range(4)]
    result = executor.execute(StepPlan(tuple(map(blocks.chunk, requests))))
    assert not result.failed
    for request in requests:
        again = make_request(request.prompt_token_ids)
        row = executor.logits([blocks.chunk(again)])[-1]
        sampled = result.sampled[request.request_id]
        assert sampled.token_id == row.argmax()
        assert sampled.logprobs.top[0] == (sampled.token_id, pytest.approx(sampled.logprobs.logprob))
        wanted = torch.from_numpy(row).log_softmax(-1)[sampled.token_id]
        assert sampled.logprobs.logprob == pytest.approx(float(wanted), abs=1e-5)


def test_prompt_logprobs_over_chunks(executor, make_request, sequencer):
    blocks = sequencer(executor)
    request = make_request(TOKENS[:40], prompt_logprobs=2)
    entries = []
    for count in (17, 1, 22):
        result = executor.execute(StepPlan((blocks.chunk(request, count),)))
        entries += result.prompt_logprobs["request"]
    assert list(result.sampled) == ["request"]
    logits = executor.logits([blocks.chunk(make_request(TOKENS[:40]))])
    logprobs = torch.from_numpy(logits).log_softmax(-1)
    assert [entry.token_id for entry in entries] == TOKENS[1:40]
    for position, entry in enumerate(entries):
        row = logprobs[position]
        assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=1e-5)
        assert entry.rank == int((row > row[entry.token_id]).sum()) + 1
        assert [token for token, _ in entry.top] == row.topk(2).indices.tolist()
    assert result.sampled["request"].token_id == int(logits[-1].argmax())


def test_only_what_cannot_be_computed_fails(executor, make_request, sequencer):
    blocks = sequencer(executor)
    sound = make_request(TOKENS[:9], name="sound")
    alone = executor.execute(StepPlan((blocks.chunk(make_request(TOKENS[:9], name="sound")),)))
    wrong = make_request([5, 96], name="wrong token")
    negative = make_request([5, -1], name="negative token")
    huge = make_request([5, 2**40], name="huge token")
    biased = make_request(TOKENS[:4], name="wrong bias", logit_bias={96: 1.0})
    long = make_request([3] * 129, name="long")
    requests = (wrong, sound, negative, huge, biased, long)
    result = executor.execute(StepPlan(tuple(map(blocks.chunk, requests))))
    assert result.sampled == alone.sampled
    assert result.failed == {
        "wrong token": "token id 96 is outside the vocabulary of 96",
        "negative token": "token id -1 is outside the vocabulary of 96",
        "huge token": f"token id {2**40} is outside the vocabulary of 96",
        "wrong bias": "logit_bias names token id 96, outside the vocabulary of 96",
        "long": "position 128 is outside the context of 128 tokens",
    }


class Poisoned:
    """A source whose embedding of one token is not finite."""

    def __init__(self, original, token):
        self.infos, self._original, self._token = original.infos, original, token

    def read(self, name):
        values = self._original.read(name)
        if name == "model.embed_tokens.weight":
            values = values.astype(np.float32)
            values[self._token] = np.nan
        return values


def test_numbers_that_are_not_finite_fail_their_request_alone(tiny_checkpoint, make_request, sequencer):
    checkpoint = tiny_checkpoint("qwen2")
    clean, poisoned = (
        native(replace(checkpoint, tensors=tensors), num_blocks=8)
        for tensors in (checkpoint.tensors, Poisoned(checkpoint.tensors, 33))
    )
    blocks = sequencer(poisoned)
    bad = make_request([3, 4, 33, 5], name="bad")
    good = make_request([3, 4, 5, 6], name="good")
    result = poisoned.execute(StepPlan((blocks.chunk(bad), blocks.chunk(good))))
    assert result.failed == {"bad": "activations of tokens 0 to 3 are not finite in bfloat16"}
    wanted = clean.execute(StepPlan((sequencer(clean).chunk(make_request([3, 4, 5, 6], name="good")),)))
    assert result.sampled == wanted.sampled
    # Its blocks serve others: what it left there must not reach them through the masked positions.
    blocks.release(bad)
    blocks.release(good)
    for _ in range(8):
        other = make_request([7, 8, 9], name="other")
        result = poisoned.execute(StepPlan((blocks.chunk(other),)))
        assert not result.failed


def test_what_it_says_of_itself(tiny_checkpoint):
    checkpoint = quantize_on_load(tiny_checkpoint(), "int4", llm_int8_threshold=6.0)
    executor = native(checkpoint, kv_cache=KVCacheFormat(precision="fp8"), num_threads=1)
    description = executor.description
    assert description["backend"] == "native"
    assert description["instruction_set"] in _native.instruction_sets()
    assert description["weights"].startswith("uint4 ")
    assert "bf16" in description["weights"]
    assert description["activations"] == "bf16, int8 by token, int8 in groups of 64"
    assert description["kv_cache_dtype"] == "fp8"
    assert description["threads"] == "1"
    assert (executor.num_blocks, executor.block_size) == (64, 16)
    executor.close()
    with pytest.raises(RuntimeError, match="the executor is closed"):
        executor.logits([])


def test_blocks_are_sized_by_memory(tiny_checkpoint, monkeypatch):
    from tightpack.architectures import kv_memory

    block = 2 * 3 * 2 * 16 * 16 * 2
    monkeypatch.setattr(kv_memory, "free_memory", lambda: 4 * 11 * block)
    assert native(tiny_checkpoint(), num_blocks=None).num_blocks == 11
    monkeypatch.setattr(kv_memory, "free_memory", lambda: 2**40)
    assert native(tiny_checkpoint(), num_blocks=None).num_blocks == 8 * 8


def test_the_capital_of_france():
    llm = LLM(max_model_len=256, max_num_seqs=2, num_blocks=32, executor="native")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    [output] = llm.chat(question, SamplingParams(temperature=0, max_tokens=16), use_tqdm=False)
    llm.engine.executor.close()
    assert "Paris" in output.outputs[0].text
