"""The openai package against a real server process with the bundled model."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import httpx
import openai
import pytest

QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
PROMPT = "The capital of France is"
# The bundled model's own tokens, with letters that take several of them.
EMOJI = "Repeat after me: 🦜🦜🦜"


@pytest.fixture(scope="module")
def client(server: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def model(client: openai.OpenAI) -> str:
    [model] = client.models.list().data
    assert client.models.retrieve(model.id).id == model.id
    return model.id


def tokenize(server: Any, text: str) -> list[int]:
    tokens: list[int] = httpx.post(f"{server.url}/tokenize", json={"prompt": text}).json()["tokens"]
    return tokens


def test_capital_whole(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=QUESTION, temperature=0, max_tokens=32)
    content = answer.choices[0].message.content
    assert content is not None
    assert "Paris" in content
    assert "<|im_end|>" not in content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_capital_streamed(client: openai.OpenAI, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "messages": QUESTION, "temperature": 0, "max_tokens": 32}
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks[:-1] if c.choices[0].finish_reason] == ["stop"]
    assert all(c.usage is None for c in chunks[:-1])
    assert chunks[-1].choices == []
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens


def test_completion(client: openai.OpenAI, model: str) -> None:
    answer = client.completions.create(model=model, prompt=PROMPT, temperature=0, max_tokens=8)
    assert "Paris" in answer.choices[0].text
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8


def test_n_with_seeds(client: openai.OpenAI, model: str) -> None:
    asked: dict[str, Any] = {
        "model": model,
        "prompt": "Once upon a time",
        "max_tokens": 12,
        "temperature": 1.0,
    }
    first = client.completions.create(**asked, n=2, seed=7)
    again = client.completions.create(**asked, n=2, seed=7)
    texts = [choice.text for choice in first.choices]
    assert [choice.text for choice in again.choices] == texts
    assert texts[0] != texts[1]
    assert [choice.index for choice in first.choices] == [0, 1]
    other = client.completions.create(**asked, seed=8)
    assert other.choices[0].text != texts[0]


def test_stop_across_token_borders(client: openai.OpenAI, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "prompt": PROMPT, "temperature": 0, "max_tokens": 24}
    free = client.completions.create(**asked).choices[0].text
    # From the middle of one word to the middle of the next one.
    start = free.index("Paris") + 2
    stop = free[start : start + 8]
    for given in (stop, ["never there", stop]):
        cut = client.completions.create(**asked, stop=given).choices[0]
        assert (cut.text, cut.finish_reason) == (free[:start], "stop")
        streamed = list(client.completions.create(**asked, stop=given, stream=True))
        assert "".join(chunk.choices[0].text for chunk in streamed) == free[:start]
        assert streamed[-1].choices[0].finish_reason == "stop"
    kept = client.completions.create(**asked, stop=stop, extra_body={"include_stop_str_in_output": True})
    assert kept.choices[0].text == free[:start] + stop


def test_ignore_eos_and_min_tokens(client: openai.OpenAI, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "messages": QUESTION, "temperature": 0}
    for extra in ({"ignore_eos": True}, {"min_tokens": 20}):
        answer = client.chat.completions.create(**asked, max_completion_tokens=20, extra_body=extra)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 20


def test_logit_bias_and_stop_token(client: openai.OpenAI, model: str, server: Any) -> None:
    tokens = tokenize(server, " Paris")
    asked: dict[str, Any] = {"model": model, "prompt": PROMPT, "temperature": 0, "max_tokens": 4}
    banned = client.completions.create(**asked, logit_bias={str(token): -100 for token in tokens})
    assert "Paris" not in banned.choices[0].text
    stopped = client.completions.create(**asked, extra_body={"stop_token_ids": tokens}).choices[0]
    assert stopped.finish_reason == "stop"
    assert "Paris" not in stopped.text


def test_chat_logprobs(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, temperature=0, max_tokens=8, logprobs=True, top_logprobs=3
    )
    choice = answer.choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    text = b"".join(bytes(entry.bytes or ()) for entry in choice.logprobs.content)
    assert text.decode().startswith(choice.message.content or "?")
    for entry in choice.logprobs.content:
        assert len(entry.top_logprobs) == 3
        # Greedy: the chosen token is the likeliest.
        assert entry.top_logprobs[0].token == entry.token
        assert entry.top_logprobs[0].logprob == pytest.approx(entry.logprob)
        assert entry.logprob <= 0
        assert entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob >= entry.top_logprobs[2].logprob


def test_echo_scores_the_prompt(client: openai.OpenAI, model: str) -> None:
    """What a model generates greedily is scored as it was when it was generated."""
    made = client.completions.create(model=model, prompt=PROMPT, temperature=0, max_tokens=6, logprobs=1)
    text = PROMPT + made.choices[0].text
    for _ in range(2):  # the second time the prompt's keys and values are cached
        scored = client.completions.create(model=model, prompt=text, max_tokens=0, echo=True, logprobs=1)
        [choice] = scored.choices
        assert choice.text == text
        assert scored.usage is not None
        assert scored.usage.completion_tokens == 0
        assert choice.logprobs is not None
        assert made.choices[0].logprobs is not None
        assert choice.logprobs.token_logprobs is not None
        assert choice.logprobs.token_logprobs[0] is None
        assert len(choice.logprobs.token_logprobs) == scored.usage.prompt_tokens
        assert choice.logprobs.tokens is not None
        assert "".join(choice.logprobs.tokens) == text
        assert choice.logprobs.text_offset is not None
        for token, offset in zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True):
            assert text[offset:].startswith(token)
        assert choice.logprobs.token_logprobs[-6:] == pytest.approx(
            made.choices[0].logprobs.token_logprobs, abs=1e-3
        )


def test_token_prompts(client: openai.OpenAI, model: str, server: Any) -> None:
    ids = tokenize(server, PROMPT)
    back = httpx.post(f"{server.url}/detokenize", json={"tokens": ids})
    assert back.json() == {"prompt": PROMPT}
    asked: dict[str, Any] = {"model": model, "temperature": 0, "max_tokens": 5}
    text = client.completions.create(**asked, prompt=PROMPT).choices[0].text
    assert client.completions.create(**asked, prompt=ids).choices[0].text == text
    many = client.completions.create(**asked, prompt=[ids, ids[:3]], n=2)
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in many.choices[:2]] == [text, text]
    assert many.choices[2].text == client.completions.create(**asked, prompt=ids[:3]).choices[0].text


def test_characters_are_whole(client: openai.OpenAI, model: str) -> None:
    """Characters of several tokens are never shown in part, and chunks join to the whole text."""
    asked: dict[str, Any] = {"model": model, "prompt": EMOJI, "temperature": 0, "max_tokens": 20}
    whole = client.completions.create(**asked).choices[0].text
    parts = [chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True)]
    assert "".join(parts) == whole
    assert not any("\ufffd" in part for part in parts[:-1])


def test_service_tier(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=2, service_tier="priority"
    )
    assert answer.service_tier == "priority"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"n": 0}, "n"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logit_bias": {"99999999": 1}}, "logit_bias"),
        ({"extra_body": {"max_token": 1}}, "max_token"),
        ({"messages": [{"role": "user", "content": "word " * 2000}]}, "messages"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_requests(
    client: openai.OpenAI, model: str, change: dict[str, Any], param: str, stream: bool
) -> None:
    asked: Any = {"model": model, "messages": QUESTION, "max_tokens": 1, "stream": stream, **change}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**asked)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert param in caught.value.message
    assert caught.value.request_id


def test_other_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="gpt-5", prompt="a")
    assert caught.value.code == "model_not_found"


def test_queue_full(client: openai.OpenAI, model: str, server: Any) -> None:
    """Beside 40 completions, 16 of them running, 40 more do not fit a queue of 40: all are refused."""
    asked: dict[str, Any] = {"model": model, "prompt": PROMPT, "n": 40, "max_tokens": 900}
    first = client.completions.create(**asked, stream=True, extra_body={"ignore_eos": True})
    next(iter(first))
    for stream in (False, True):
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(**asked, stream=stream)
        assert int(caught.value.response.headers["retry-after"]) >= 1
    assert server.metric("vllm:num_requests_running") + server.metric("vllm:num_requests_waiting") == 40
    first.close()
    server.until_idle(5)


@pytest.mark.parametrize("stream", [False, True])
def test_more_than_the_queue_ever_holds(client: openai.OpenAI, model: str, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match=r"n=41 are 41 completions.*holds 40") as caught:
        client.completions.create(model=model, prompt=PROMPT, n=41, stream=stream)  # type: ignore[call-overload]
    assert caught.value.param == "n"


def test_leaving_a_stream_frees_its_blocks(client: openai.OpenAI, model: str, server: Any) -> None:
    chunks = client.completions.create(
        model=model, prompt=PROMPT, max_tokens=900, stream=True, n=2, extra_body={"ignore_eos": True}
    )
    next(iter(chunks))
    assert server.metric("vllm:num_requests_running") == 2
    chunks.close()
    server.until_idle(5)
    assert server.metric("vllm:kv_cache_usage_perc") == 0


def test_leaving_without_a_stream_frees_its_blocks(client: openai.OpenAI, model: str, server: Any) -> None:
    def give_up() -> None:
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=1.0).completions.create(
                model=model, prompt=PROMPT, max_tokens=900, extra_body={"ignore_eos": True}
            )

    thread = threading.Thread(target=give_up)
    thread.start()
    deadline = time.monotonic() + 5
    while not server.metric("vllm:num_requests_running"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    thread.join()
    server.until_idle(5)
    assert server.metric("vllm:kv_cache_usage_perc") == 0


async def test_sixteen_at_once(server: Any, model: str, client: openai.OpenAI) -> None:
    """Together they say what they say alone."""
    prompts = [f"{number} and {number + 1} are" for number in range(16)]
    asked: dict[str, Any] = {"model": model, "temperature": 0, "max_tokens": 8}
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as together:

        async def ask(number: int) -> str:
            prompt = prompts[number]
            if number % 2:
                return (await together.completions.create(**asked, prompt=prompt)).choices[0].text
            stream = await together.completions.create(**asked, prompt=prompt, stream=True)
            return "".join([chunk.choices[0].text async for chunk in stream])

        texts = await asyncio.gather(*(ask(number) for number in range(16)))
    alone = client.completions.create(**asked, prompt=prompts[5]).choices[0].text
    assert texts[5] == alone
    assert all(texts)
    server.until_idle()
