"""/v1/completions over an engine without a model: what is asked of it and what becomes of its deltas."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tightpack.requests.service_class import BATCH, INTERACTIVE, STANDARD
from tightpack.server.response_models import CompletionResponse


async def complete(client: httpx.AsyncClient, prompt: Any, **more: Any) -> dict[str, Any]:
    answer = await client.post("/v1/completions", json={"model": "fake", "prompt": prompt, **more})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    CompletionResponse.model_validate_json(answer.text, strict=True)
    return body


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    """The chunks of a stream, whose framing is checked."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = answer.text.split("\n\n")
    assert lines.pop() == ""
    assert lines.pop() == "data: [DONE]"
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    return [json.loads(line[6:]) for line in lines]


async def stream(client: httpx.AsyncClient, prompt: Any, **more: Any) -> list[dict[str, Any]]:
    body = {"model": "fake", "prompt": prompt, "stream": True, **more}
    return events(await client.post("/v1/completions", json=body))


async def test_whole(client: httpx.AsyncClient, engine: Any) -> None:
    body = await complete(client, "abc", temperature=0)
    assert body["id"].startswith("cmpl-")
    assert body["object"] == "text_completion"
    assert body["model"] == "fake"
    assert body["choices"] == [
        {"index": 0, "text": "cba", "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    ]
    assert body["usage"] == {
        "prompt_tokens": 4,
        "completion_tokens": 4,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    [(ids, params, service_class)] = engine.calls
    assert ids == [256, 97, 98, 99]
    assert (params.max_tokens, params.temperature, params.n) == (16, 0, 1)
    assert service_class is STANDARD


async def test_the_model_may_be_left_out(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/completions", json={"prompt": "abc"})
    assert answer.status_code == 200
    assert answer.json()["model"] == "fake"


async def test_every_sampling_parameter_reaches_the_engine(client: httpx.AsyncClient, engine: Any) -> None:
    given = {
        "n": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "presence_penalty": 0.1,
        "frequency_penalty": -0.1,
        "repetition_penalty": 1.1,
        "seed": -3,
        "stop_token_ids": [10],
        "include_stop_str_in_output": True,
        "ignore_eos": True,
        "min_tokens": 1,
        "skip_special_tokens": False,
        "max_tokens": 5,
        "logprobs": 1,
    }
    await complete(client, "a", **given, stop="x", logit_bias={"97": -100, "98": 1.5})
    params = engine.calls[0][1]
    assert {name: getattr(params, name) for name in given} == {**given, "stop_token_ids": (10,)}
    assert params.stop == ("x",)
    assert params.logit_bias == {97: -100.0, 98: 1.5}
    assert params.prompt_logprobs is None


async def test_null_means_the_default(client: httpx.AsyncClient, engine: Any) -> None:
    names = (
        "n",
        "temperature",
        "top_p",
        "max_tokens",
        "stop",
        "logit_bias",
        "seed",
        "logprobs",
        "stream",
        "echo",
    )
    await complete(client, "a", **dict.fromkeys(names))
    await complete(client, "a")
    assert engine.calls[0] == engine.calls[1]


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        (["ab", "cd"], ["ba", "dc"]),
        ([97, 98], ["ba"]),
        ([[97, 98], [99]], ["ba", "c"]),
    ],
)
async def test_prompt_shapes(client: httpx.AsyncClient, prompt: Any, texts: list[str]) -> None:
    body = await complete(client, prompt)
    assert [choice["text"] for choice in body["choices"]] == texts


async def test_choices_are_numbered_prompt_by_prompt(client: httpx.AsyncClient) -> None:
    body = await complete(client, ["ab", "xyz"], n=2)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in body["choices"]] == ["ba", "ba", "zyx", "zyx"]
    # Each prompt counts once: (1 + 2) + (1 + 3) tokens.
    assert body["usage"]["prompt_tokens"] == 7
    assert body["usage"]["completion_tokens"] == 2 * 3 + 2 * 4
    chunks = await stream(client, ["ab", "xyz"], n=2)
    texts = [""] * 4
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == ["ba", "ba", "zyx", "zyx"]


async def test_stream_is_the_whole_in_parts(client: httpx.AsyncClient) -> None:
    chunks = await stream(client, "hello", logprobs=1)
    whole = await complete(client, "hello", logprobs=1)
    parts = [chunk["choices"][0] for chunk in chunks]
    assert "".join(part["text"] for part in parts) == whole["choices"][0]["text"]
    assert [part["finish_reason"] for part in parts[:-1]] == [None] * (len(parts) - 1)
    assert parts[-1]["finish_reason"] == "stop"
    for name, values in whole["choices"][0]["logprobs"].items():
        assert [value for part in parts for value in part["logprobs"][name]] == values
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)


async def test_usage_chunk(client: httpx.AsyncClient) -> None:
    *chunks, last = await stream(client, "ab", stream_options={"include_usage": True})
    assert last["choices"] == []
    assert last["usage"]["prompt_tokens"] == 3
    assert last["usage"]["completion_tokens"] == 3
    assert all(chunk["usage"] is None for chunk in chunks)


async def test_continuous_usage(client: httpx.AsyncClient) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = await stream(client, "abcd", stream_options=options)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == [1, 2, 3, 4, 5, 5]
    assert chunks[-1]["choices"] == []


async def test_logprobs(client: httpx.AsyncClient) -> None:
    body = await complete(client, "ab", logprobs=1)
    assert body["choices"][0]["logprobs"] == {
        "tokens": ["b", "a", "</s>"],
        "token_logprobs": [-0.25, -0.5, -0.75],
        # The token itself is always there, after likelier ones.
        "top_logprobs": [{"b": -0.25}, {"b": -0.1, "a": -0.5}, {"\x02": -0.1, "</s>": -0.75}],
        "text_offset": [0, 1, 2],
    }


async def test_no_infinity_in_json(client: httpx.AsyncClient) -> None:
    body = await complete(client, "a", logprobs=2)
    assert body["choices"][0]["logprobs"]["top_logprobs"][0] == {"a": -0.25, "b": -9999.0}


async def test_parts_of_characters_in_logprobs(client: httpx.AsyncClient) -> None:
    """Tokens that are not whole characters get U+FFFD as text, and offsets count whole characters."""
    body = await complete(client, [*"é".encode()[::-1], 97], logprobs=0)
    logprobs = body["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["a", "\ufffd", "\ufffd", "</s>"]
    assert logprobs["text_offset"] == [0, 1, 1, 2]


async def test_echo(client: httpx.AsyncClient) -> None:
    body = await complete(client, "ab", echo=True)
    assert body["choices"][0]["text"] == "abba"
    assert body["choices"][0]["logprobs"] is None
    body = await complete(client, [97, 98], echo=True)
    assert body["choices"][0]["text"] == "abba"


async def test_echo_with_logprobs(client: httpx.AsyncClient) -> None:
    body = await complete(client, [97, 98, 99], echo=True, logprobs=2, max_tokens=1)
    [choice] = body["choices"]
    assert choice["text"] == "abcc"
    assert choice["logprobs"] == {
        "tokens": ["a", "b", "c", "c"],
        "token_logprobs": [None, -0.5, -0.5, -0.25],
        "top_logprobs": [None, {"c": -0.1, "b": -0.5}, {"d": -0.1, "c": -0.5}, {"c": -0.25, "d": -9999.0}],
        "text_offset": [0, 1, 2, 3],
    }
    offsets = choice["logprobs"]["text_offset"]
    assert [choice["text"][at] for at in offsets] == choice["logprobs"]["tokens"]


@pytest.mark.parametrize("streamed", [False, True])
async def test_scoring_generates_nothing(client: httpx.AsyncClient, streamed: bool) -> None:
    """echo, logprobs and max_tokens=0 is how evaluations score a text."""
    asked = {"echo": True, "logprobs": 1, "max_tokens": 0}
    if streamed:
        *parts, last = await stream(client, [97, 98, 99], **asked, stream_options={"include_usage": True})
        assert len(parts) == 1
        [choice], usage = parts[0]["choices"], last["usage"]
    else:
        body = await complete(client, [97, 98, 99], **asked)
        [choice], usage = body["choices"], body["usage"]
    assert choice["text"] == "abc"
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"]["token_logprobs"] == [None, -0.5, -0.5]
    assert usage["completion_tokens"] == 0
    assert usage["total_tokens"] == 3


async def test_echoed_special_tokens_take_no_room(client: httpx.AsyncClient) -> None:
    body = await complete(client, "ab", echo=True, logprobs=0, max_tokens=0)
    [choice] = body["choices"]
    assert choice["text"] == "ab"
    assert choice["logprobs"]["tokens"] == ["<s>", "a", "b"]
    assert choice["logprobs"]["text_offset"] == [0, 0, 1]


@pytest.mark.parametrize(
    ("tier", "service_class", "said"),
    [
        ("priority", INTERACTIVE, "priority"),
        ("default", STANDARD, "default"),
        ("auto", STANDARD, "default"),
        ("flex", BATCH, "flex"),
    ],
)
async def test_service_tier(
    client: httpx.AsyncClient, engine: Any, tier: str, service_class: Any, said: str
) -> None:
    body = await complete(client, "a", service_tier=tier)
    assert engine.calls[0][2] is service_class
    assert body["service_tier"] == said


async def test_a_tiny_temperature_is_greedy(client: httpx.AsyncClient, engine: Any) -> None:
    await complete(client, "a", temperature=1e-30)
    assert engine.calls[0][1].greedy


async def test_without_effect_but_accepted(client: httpx.AsyncClient) -> None:
    neutral = {"user": "me", "metadata": {"a": "b"}, "store": False, "best_of": 1, "suffix": None}
    body = await complete(client, "abc", **neutral)
    assert body["choices"][0]["text"] == "cba"
