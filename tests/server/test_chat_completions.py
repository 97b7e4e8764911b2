"""/v1/chat/completions over an engine without a model."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tightpack.server.response_models import ChatCompletionResponse

HELLO = [{"role": "user", "content": "hello"}]
RENDERED = "user: hello\nassistant: "


async def chat(client: httpx.AsyncClient, messages: Any = HELLO, **more: Any) -> dict[str, Any]:
    answer = await client.post("/v1/chat/completions", json={"model": "fake", "messages": messages, **more})
    assert answer.status_code == 200, answer.text
    ChatCompletionResponse.model_validate_json(answer.text, strict=True)
    body: dict[str, Any] = answer.json()
    return body


async def stream(client: httpx.AsyncClient, messages: Any = HELLO, **more: Any) -> list[dict[str, Any]]:
    body = {"model": "fake", "messages": messages, "stream": True, **more}
    answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    *lines, done, end = answer.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(line.removeprefix("data: ")) for line in lines]


async def test_whole(client: httpx.AsyncClient, engine: Any) -> None:
    body = await chat(client)
    assert body["id"].startswith("chatcmpl-")
    assert body["object"] == "chat.completion"
    [choice] = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": RENDERED[::-1], "refusal": None}
    assert choice["finish_reason"] == "stop"
    [(ids, params, _)] = engine.calls
    # The template writes special tokens itself: none is added, and the output may fill the context.
    assert bytes(ids).decode() == RENDERED
    assert params.max_tokens is None


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_both_names_of_the_limit(client: httpx.AsyncClient, name: str) -> None:
    body = await chat(client, **{name: 4})
    assert body["choices"][0]["message"]["content"] == RENDERED[::-1][:4]
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 4


async def test_stream_shape(client: httpx.AsyncClient) -> None:
    chunks = await stream(client, max_tokens=3)
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": "", "refusal": None},
        *({"content": character} for character in RENDERED[::-1][:3]),
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 4 + ["length"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert all("usage" not in chunk for chunk in chunks)


async def test_one_role_and_one_finish_chunk_a_choice(client: httpx.AsyncClient) -> None:
    chunks = await stream(client, n=3, max_tokens=2, stream_options={"include_usage": True})
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 6
    for index in range(3):
        of_choice = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert "role" in of_choice[0]["delta"]
        assert sum("role" in one["delta"] for one in of_choice) == 1
        assert [one["finish_reason"] for one in of_choice if one["finish_reason"]] == ["length"]
        assert of_choice[-1]["delta"] == {}


async def test_logprobs(client: httpx.AsyncClient) -> None:
    body = await chat(client, [{"role": "user", "content": "x"}], logprobs=True, top_logprobs=2, max_tokens=1)
    assert body["choices"][0]["logprobs"] == {
        "content": [
            {
                "token": " ",
                "logprob": -0.25,
                "bytes": [32],
                "top_logprobs": [
                    {"token": " ", "logprob": -0.25, "bytes": [32]},
                    {"token": "!", "logprob": -9999.0, "bytes": [33]},
                ],
            }
        ],
        "refusal": None,
    }


async def test_logprob_bytes_join_to_the_text(client: httpx.AsyncClient) -> None:
    chunks = await stream(client, logprobs=True)
    entries = [
        entry
        for chunk in chunks
        if (logprobs := chunk["choices"][0]["logprobs"])
        for entry in logprobs["content"]
    ]
    assert bytes(b for entry in entries for b in entry["bytes"]).decode() == RENDERED[::-1] + "</s>"
    assert all(entry["top_logprobs"] == [] for entry in entries)


async def test_content_parts_and_roles(client: httpx.AsyncClient, engine: Any) -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}],
            "name": "me",
        },
        {"role": "assistant", "content": "three", "refusal": None, "tool_calls": []},
        {"role": "user", "content": "four"},
    ]
    await chat(client, messages, max_tokens=1)
    text = bytes(engine.calls[0][0]).decode()
    assert text == "system: be brief\nuser: one\ntwo\nassistant: three\nuser: four\nassistant: "


async def test_neutral_values_of_unsupported_parameters(client: httpx.AsyncClient) -> None:
    neutral: dict[str, Any] = {
        "tools": [],
        "tool_choice": "none",
        "functions": None,
        "function_call": None,
        "parallel_tool_calls": None,
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "audio": None,
        "prediction": None,
        "reasoning_effort": None,
        "store": False,
        "user": "me",
        "metadata": {"a": "b"},
        "prompt_cache_key": "k",
        "safety_identifier": "s",
        "logprobs": False,
    }
    body = await chat(client, **neutral)
    assert body["choices"][0]["message"]["content"] == RENDERED[::-1]
