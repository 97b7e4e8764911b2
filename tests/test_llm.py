"""The Python API on the bundled model."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from tightpack import LLM, AsyncLLM, SamplingParams
from tightpack.requests.request_output import RequestOutput
from tightpack.scheduling.policy import QueueFullError
from tightpack.scheduling.registry import POLICY_NAMES

PROMPTS = [
    "The capital of France is",
    "Once upon a time there was a",
    "def fibonacci(n):",
    "Water boils at a temperature of",
    "Here is a long list of animals that live in the forest, by the river and in the mountains: the bear,",
    "2 + 2 =",
]


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def under(llm: LLM, policy: str, **changes: Any) -> LLM:
    """The same weights under another policy."""
    other = LLM.__new__(LLM)
    other.__dict__.update(llm.__dict__)
    other.engine = llm.engine.with_policy(policy, **changes)
    return other


@pytest.fixture(scope="module")
def alone(llm: LLM) -> list[list[int]]:
    greedy = SamplingParams(temperature=0, max_tokens=12)
    return [tokens(llm.generate(prompt, greedy, use_tqdm=False))[0] for prompt in PROMPTS]


def test_the_code_people_have_runs(llm: LLM) -> None:
    for out in llm.generate(["The capital of France is"], SamplingParams(temperature=0, max_tokens=16)):
        assert "Paris" in out.outputs[0].text
        assert out.finished
        assert len(out.outputs[0].token_ids) == 16
        assert out.outputs[0].finish_reason == "length"
        assert out.metrics is not None
        times = [out.metrics.arrival_time, out.metrics.first_scheduled_time, *out.metrics.token_times]
        assert times == sorted(times)  # type: ignore[type-var]
        assert len(out.metrics.token_times) == 16


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_greedy_tokens_are_those_of_each_request_alone_under_every_policy(
    llm: LLM, alone: list[list[int]], policy: str
) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=12)
    assert tokens(under(llm, policy).generate(PROMPTS, greedy, use_tqdm=False)) == alone


def test_greedy_tokens_survive_small_chunks_and_preemption(llm: LLM, alone: list[list[int]]) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=12)
    cramped = under(llm, "chunked-prefill", max_num_batched_tokens=8)
    assert tokens(cramped.generate(PROMPTS, greedy, use_tqdm=False)) == alone


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_a_seed_gives_the_same_output_under_every_policy(llm: LLM, policy: str) -> None:
    params = [SamplingParams(temperature=1.0, top_p=0.9, seed=i, max_tokens=8) for i in range(len(PROMPTS))]
    together = tokens(under(llm, policy).generate(PROMPTS, params, use_tqdm=False))
    assert together == [
        tokens(llm.generate(p, s, use_tqdm=False))[0] for p, s in zip(PROMPTS, params, strict=True)
    ]


def test_prompts_may_be_text_or_token_ids_one_or_many_with_parameters_each(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode(PROMPTS[0])
    params = SamplingParams(temperature=0, max_tokens=4)
    text = llm.generate(PROMPTS[0], params, use_tqdm=False)
    assert tokens(text) == tokens(llm.generate({"prompt": PROMPTS[0]}, params, use_tqdm=False))
    assert tokens(text) == tokens(llm.generate({"prompt_token_ids": ids}, params, use_tqdm=False))
    each = [SamplingParams(temperature=0, max_tokens=n) for n in (1, 3)]
    assert [len(t) for t in tokens(llm.generate(PROMPTS[:2], each, use_tqdm=False))] == [1, 3]
    assert text[0].prompt == PROMPTS[0]
    assert text[0].prompt_token_ids == ids


def test_n_completions_differ_and_each_equals_its_seed_alone(llm: LLM) -> None:
    both = llm.generate("Once", SamplingParams(n=2, seed=3, max_tokens=8), use_tqdm=False)[0].outputs
    assert [completion.index for completion in both] == [0, 1]
    assert both[0].token_ids != both[1].token_ids
    second = llm.generate("Once", SamplingParams(seed=4, max_tokens=8), use_tqdm=False)
    assert both[1].token_ids == second[0].outputs[0].token_ids


def test_a_stop_string_ends_the_text_before_it(llm: LLM) -> None:
    free = llm.generate(PROMPTS[0], SamplingParams(temperature=0, max_tokens=16), use_tqdm=False)[0].outputs[
        0
    ]
    params = SamplingParams(temperature=0, max_tokens=16, stop=["Paris"])
    cut = llm.generate(PROMPTS[0], params, use_tqdm=False)[0].outputs[0]
    assert cut.text == free.text[: free.text.index("Paris")]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", "Paris")
    assert llm.engine.loop.policy.kv_usage == 0


def test_logprobs_hold_the_chosen_token_and_the_likeliest(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=3, logprobs=2, prompt_logprobs=1)
    output = llm.generate(PROMPTS[0], params, use_tqdm=False)[0]
    completion = output.outputs[0]
    assert completion.logprobs is not None
    for token, entry in zip(completion.token_ids, completion.logprobs, strict=True):
        assert entry[token].rank == 1
        assert entry[token].logprob == max(e.logprob for e in entry.values()) < 0
        assert len(entry) == 2
    assert completion.cumulative_logprob == pytest.approx(
        sum(e[t].logprob for t, e in zip(completion.token_ids, completion.logprobs, strict=True))
    )
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    for token, prompt_entry in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True):
        assert prompt_entry is not None
        assert token in prompt_entry


def test_chat_goes_through_the_template(llm: LLM) -> None:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    params = SamplingParams(temperature=0, max_tokens=32)
    one = llm.chat(question, params, use_tqdm=False)
    assert "Paris" in one[0].outputs[0].text
    assert one[0].outputs[0].finish_reason == "stop"
    two = llm.chat([question, question], params, use_tqdm=False)
    assert tokens(two) == tokens(one) * 2


def test_a_bounded_queue_holds_back_an_offline_job_without_losing_any(llm: LLM) -> None:
    small = under(llm, "continuous", max_queue=2, max_num_seqs=2)
    outputs = small.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=2), use_tqdm=False)
    assert [output.prompt for output in outputs] == PROMPTS
    assert all(output.finished for output in outputs)


@pytest.mark.parametrize(
    ("prompts", "params", "error", "message"),
    [
        ("", SamplingParams(), ValueError, "prompt is empty"),
        ([1, 2, 3], SamplingParams(), TypeError, "prompt_token_ids"),
        ({"prompt_token_ids": [1, 49152]}, SamplingParams(), ValueError, "token id 49152"),
        ({"prompt_ids": [1]}, SamplingParams(), TypeError, "did you mean 'prompt_token_ids'"),
        ({"prompt_token_ids": [1] * 512}, SamplingParams(), ValueError, "512 tokens, and max_model_len=512"),
        (["a", "b"], [SamplingParams()], ValueError, "2 prompts came with 1 sampling_params"),
        ("a", {"temperature": 0}, TypeError, "it takes SamplingParams"),
        ("a", SamplingParams(logit_bias={99999: 1}), ValueError, "logit_bias holds token id 99999"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_runs(
    llm: LLM, prompts: Any, params: Any, error: type[Exception], message: str
) -> None:
    steps = llm.engine.loop.stats.steps
    with pytest.raises(error, match=message):
        llm.generate(prompts, params, use_tqdm=False)
    assert llm.engine.loop.stats.steps == steps


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_num_seq": 4}, TypeError, "LLM has no argument 'max_num_seq'; did you mean 'max_num_seqs'"),
        ({"dtype": "bfloat"}, ValueError, "did you mean 'bfloat16'"),
        ({"policy": "continous"}, ValueError, "did you mean 'continuous'"),
        ({"gpu_memory_utilization": 1.5}, ValueError, "gpu_memory_utilization must be in"),
        ({"max_num_seqs": "3"}, TypeError, "max_num_seqs must be an integer, got '3'"),
        ({"num_threads": 0}, ValueError, "num_threads must be at least 1"),
        ({"max_model_len": 10**6}, ValueError, "beyond the 8192 positions"),
        ({"model": "no-such-model"}, ValueError, "no-such-model"),
    ],
)
def test_unknown_arguments_and_values_are_refused_by_name(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        LLM(**arguments)


@pytest.fixture
def async_llm(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(
        "tightpack.async_llm.load_engine", lambda args: llm.engine.with_policy("chunked-prefill")
    )
    engine = AsyncLLM()
    yield engine
    engine._finalizer.detach()  # the executor is the other tests'
    engine._thread.close()


async def test_async_generation_gives_what_the_offline_one_gives(
    async_llm: AsyncLLM, alone: list[list[int]]
) -> None:
    async def last(prompt: str) -> RequestOutput:
        async for part in async_llm.generate(prompt, SamplingParams(temperature=0, max_tokens=12)):
            latest = part
        return latest

    assert tokens(await asyncio.gather(*map(last, PROMPTS))) == alone


async def test_leaving_a_stream_early_frees_its_blocks(async_llm: AsyncLLM) -> None:
    stream = async_llm.stream("Once upon a time", SamplingParams(max_tokens=400, ignore_eos=True))
    await anext(stream)
    await stream.aclose()
    assert await async_llm.drain(timeout=5)
    assert async_llm.stats().num_running == 0
    assert async_llm.engine.loop.policy.kv_usage == 0
    with pytest.raises(RuntimeError, match="draining"):
        await anext(async_llm.stream("more", SamplingParams()))


async def test_the_load_is_the_loops_own(async_llm: AsyncLLM) -> None:
    """What `GET /load` sends; the requests that run are counted by class."""
    stream = async_llm.stream("Once upon a time", SamplingParams(max_tokens=400, ignore_eos=True))
    await anext(stream)
    running = await async_llm.load()
    await stream.aclose()
    assert (running.num_running, list(running.by_class)) == (1, ["standard"])
    assert await async_llm.drain(timeout=5)
    assert (await async_llm.load()).num_running == 0


async def test_a_forgotten_engine_ends_its_thread(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tightpack.async_llm.load_engine", lambda args: llm.engine.with_policy("continuous"))
    closed: list[bool] = []
    monkeypatch.setattr(type(llm.engine.executor), "close", lambda self: closed.append(True))
    forgotten = AsyncLLM()
    thread = forgotten._thread
    assert [part async for part in forgotten.stream("a", SamplingParams(max_tokens=1))]
    del forgotten
    gc.collect()
    assert not thread.is_running
    assert closed == [True]


async def test_errors_come_with_the_first_item(async_llm: AsyncLLM) -> None:
    with pytest.raises(ValueError, match="prompt is empty"):
        await anext(async_llm.stream("", SamplingParams()))
    with pytest.raises(QueueFullError):
        await anext(async_llm.stream("a", SamplingParams(n=2000, max_tokens=1)))
    part = await anext(
        async_llm.stream("The capital of France is", SamplingParams(max_tokens=1, temperature=0))
    )
    assert part.num_output_tokens == 1
