"""What is refused, and how: {"error": {"message", "type", "param", "code"}} with the parameter's name."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tightpack.server.app import create_app
from tightpack.server.response_models import ErrorResponse

COMPLETION: dict[str, Any] = {"model": "fake", "prompt": "abc"}
CHAT: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    ErrorResponse.model_validate_json(answer.text, strict=True)
    assert answer.headers["x-request-id"]
    error: dict[str, Any] = answer.json()["error"]
    return error


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"prompt": None}, "prompt", "invalid_type"),
        ({"prompt": ""}, None, None),  # BOS alone is a prompt
        ({"prompt": []}, "prompt", "invalid_type"),
        ({"prompt": [[]]}, "prompt", "invalid_value"),
        ({"prompt": ["a", 1]}, "prompt", "invalid_type"),
        ({"prompt": [1.5]}, "prompt", "invalid_type"),
        ({"prompt": [True]}, "prompt", "invalid_type"),
        ({"prompt": [-1]}, "prompt", "invalid_value"),
        ({"prompt": [258]}, "prompt", "invalid_value"),
        ({"prompt": [[1], [10**30]]}, "prompt[1]", "invalid_value"),
        ({"prompt": "a" * 199}, "prompt", "context_length_exceeded"),
        ({"prompt": ["a", "a" * 500]}, "prompt[1]", "context_length_exceeded"),
        ({"max_tokens": "16"}, "max_tokens", "invalid_type"),
        ({"max_tokens": 1.5}, "max_tokens", "invalid_type"),
        ({"max_tokens": True}, "max_tokens", "invalid_type"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": -1}, "max_tokens", "invalid_value"),
        ({"max_tokens": 10**40}, "max_tokens", "invalid_value"),
        ({"min_tokens": 17}, "min_tokens", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 129}, "n", "invalid_value"),
        ({"n": 128, "prompt": ["a"] * 17}, "n", "invalid_value"),
        ({"best_of": 2}, "best_of", "unsupported_value"),
        ({"temperature": -0.1}, "temperature", "invalid_value"),
        ({"temperature": 1e9}, "temperature", "invalid_value"),
        ({"temperature": [1]}, "temperature", "invalid_type"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"top_p": 1.1}, "top_p", "invalid_value"),
        ({"top_k": -2}, "top_k", "invalid_value"),
        ({"min_p": 2}, "min_p", "invalid_value"),
        ({"presence_penalty": 3}, "presence_penalty", "invalid_value"),
        ({"frequency_penalty": -3}, "frequency_penalty", "invalid_value"),
        ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"seed": 1.0}, "seed", "invalid_type"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"stop": ["a", 1]}, "stop", "invalid_type"),
        ({"stop": ["a"] * 65}, "stop", "invalid_value"),
        ({"stop_token_ids": [258]}, "stop_token_ids", "invalid_value"),
        ({"stop_token_ids": ["1"]}, "stop_token_ids[0]", "invalid_type"),
        ({"logit_bias": {"258": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"1": True}}, "logit_bias", "invalid_value"),
        ({"logit_bias": [1]}, "logit_bias", "invalid_type"),
        ({"logprobs": 21}, "logprobs", "invalid_value"),
        ({"logprobs": True}, "logprobs", "invalid_type"),
        ({"echo": 1}, "echo", "invalid_type"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"max_tokens": 5000}, "max_tokens", "context_length_exceeded"),
        (
            {"stream": True, "stream_options": {"continuous_usage_stats": True}},
            "stream_options.continuous_usage_stats",
            "invalid_value",
        ),
        (
            {"stream": True, "stream_options": {"include_usage": 1}},
            "stream_options.include_usage",
            "invalid_type",
        ),
        ({"service_tier": "gold"}, "service_tier", "invalid_value"),
        ({"suffix": "x"}, "suffix", "unsupported_parameter"),
        ({"store": True}, "store", "unsupported_parameter"),
        ({"store": 0}, "store", "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        ({"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
        ({"model": 1}, "model", "invalid_type"),
    ],
)
async def test_completion_parameters(
    client: httpx.AsyncClient, change: dict[str, Any], param: str | None, code: str | None
) -> None:
    answer = await client.post("/v1/completions", json={**COMPLETION, **change})
    if code is None:
        assert answer.status_code == 200
        return
    error = error_of(answer, 400)
    assert error["type"] == "invalid_request_error"
    assert (error["param"], error["code"]) == (param, code)
    assert str(param).split("[")[0].split(".")[0] in error["message"]


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "hi"}, "messages", "invalid_type"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role", "missing_required_parameter"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{"role": "user", "content": ["hi"]}]}, "messages[0].content", "invalid_type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content",
            "invalid_type",
        ),
        (
            {"messages": [*CHAT["messages"], {"role": "user", "content": "x", "contnt": "y"}]},
            "messages[1].contnt",
            "unknown_parameter",
        ),
        (
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]},
            "messages[0].tool_calls",
            "unsupported_parameter",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages", "invalid_messages"),
        ({"messages": [{"role": "user", "content": "x" * 400}]}, "messages", "context_length_exceeded"),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
        ({"tool_choice": "auto"}, "tool_choice", "unsupported_parameter"),
        ({"functions": [{}]}, "functions", "unsupported_parameter"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "unsupported_parameter"),
        ({"parallel_tool_calls": True}, "parallel_tool_calls", "unsupported_parameter"),
        ({"modalities": ["audio"]}, "modalities", "unsupported_parameter"),
        ({"audio": {"voice": "x"}}, "audio", "unsupported_parameter"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "unsupported_parameter"),
        ({"logprobs": 2}, "logprobs", "invalid_type"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "invalid_value"),
        ({"max_completion_tokens": 5000}, "max_completion_tokens", "context_length_exceeded"),
        ({"echo": True}, "echo", "unknown_parameter"),
    ],
)
async def test_chat_parameters(
    client: httpx.AsyncClient, change: dict[str, Any], param: str, code: str
) -> None:
    error = error_of(await client.post("/v1/chat/completions", json={**CHAT, **change}), 400)
    assert (error["param"], error["code"]) == (param, code)


async def test_the_kind_of_an_unsupported_part_is_named(client: httpx.AsyncClient) -> None:
    part = {"type": "image_url", "image_url": {"url": "http://x"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "see"}, part]}]
    error = error_of(await client.post("/v1/chat/completions", json={**CHAT, "messages": messages}), 400)
    assert "'image_url'" in error["message"]
    assert error["param"] == "messages[0].content"
    assert error["code"] == "unsupported_value"


async def test_nearest_name(client: httpx.AsyncClient) -> None:
    error = error_of(await client.post("/v1/completions", json={**COMPLETION, "max_token": 3}), 400)
    assert error["message"] == "unknown parameter 'max_token'; did you mean 'max_tokens'?"
    # A misspelt name explains the missing one, so it is what the answer speaks of.
    error = error_of(await client.post("/v1/completions", json={"model": "fake", "promt": "a"}), 400)
    assert error["message"] == "unknown parameter 'promt'; did you mean 'prompt'?"


async def test_both_numbers_of_a_long_prompt(client: httpx.AsyncClient) -> None:
    error = error_of(await client.post("/v1/completions", json={**COMPLETION, "prompt": "a" * 299}), 400)
    assert "200 tokens" in error["message"]
    assert "has 300" in error["message"]


async def test_context_limit_is_exact(client: httpx.AsyncClient) -> None:
    """One token must fit behind the prompt (199 of 200 with its BOS)."""
    fits = await client.post("/v1/completions", json={**COMPLETION, "prompt": "a" * 198})
    assert fits.json()["usage"]["completion_tokens"] == 1
    error_of(await client.post("/v1/completions", json={**COMPLETION, "prompt": "a" * 199}), 400)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"model": "fake", "prompt": "a"} x',
        b"\xff\xfe",
        b'{"model": "fake", "prompt": "\\ud800"}',
        b"[" * 100_000,
        b'{"model": "fake", "prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)
async def test_invalid_json(client: httpx.AsyncClient, raw: bytes) -> None:
    answer = await client.post("/v1/completions", content=raw, headers={"content-type": "application/json"})
    assert error_of(answer, 400)["code"] == "invalid_json"


@pytest.mark.parametrize("raw", [b"[]", b"1", b'"x"', b"null"])
async def test_not_an_object(client: httpx.AsyncClient, raw: bytes) -> None:
    answer = await client.post("/v1/completions", content=raw, headers={"content-type": "application/json"})
    assert error_of(answer, 400)["message"] == "the body must be a JSON object"


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e400", "9" * 5000])
@pytest.mark.parametrize("name", ["temperature", "seed", "logit_bias"])
async def test_numbers_that_are_none(client: httpx.AsyncClient, name: str, value: str) -> None:
    raw = f'{{"97": {value}}}' if name == "logit_bias" else value
    body = f'{{"model": "fake", "prompt": "a", "{name}": {raw}}}'
    answer = await client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert error_of(answer, 400)["param"] in (name, None)


async def test_content_type(client: httpx.AsyncClient) -> None:
    raw = json.dumps(COMPLETION)
    for kind in ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data"):
        answer = await client.post("/v1/completions", content=raw, headers={"content-type": kind})
        assert error_of(answer, 415)["code"] == "unsupported_content_type"
    for kind in ("application/json; charset=utf-8", "Application/JSON"):
        answer = await client.post("/v1/completions", content=raw, headers={"content-type": kind})
        assert answer.status_code == 200


async def test_large_body(engine: Any) -> None:
    app = create_app(engine, model_name="fake", max_body_bytes=1000)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
        for size in (1100, 100_000):
            answer = await client.post("/v1/completions", json={**COMPLETION, "prompt": "a" * size})
            assert error_of(answer, 413)["code"] == "request_too_large"
        assert (await client.post("/v1/completions", json=COMPLETION)).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "unknown_path"),
        ("POST", "/v1/completions/", 404, "unknown_path"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
        ("GET", "/v1/models/other", 404, "model_not_found"),
    ],
)
async def test_paths(client: httpx.AsyncClient, method: str, path: str, status: int, code: str) -> None:
    answer = await client.request(method, path)
    assert error_of(answer, status)["code"] == code
    assert ("allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
async def test_wrong_model(client: httpx.AsyncClient, path: str) -> None:
    extra: dict[str, Any] = {
        "/v1/completions": {"prompt": "a"},
        "/v1/chat/completions": {"messages": CHAT["messages"]},
        "/tokenize": {"prompt": "a"},
        "/detokenize": {"tokens": [1]},
    }[path]
    error = error_of(await client.post(path, json={"model": "gpt-5", **extra}), 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "'fake'" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_queue_full(client: httpx.AsyncClient, engine: Any, stream: bool) -> None:
    for prompt in ("full", ["slow", "full"]):
        answer = await client.post(
            "/v1/completions", json={"model": "fake", "prompt": "full", "stream": stream}
        )
        error = error_of(answer, 429)
        assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
        assert int(answer.headers["retry-after"]) >= 1
        assert not engine.active, prompt


async def test_more_than_the_queue_ever_holds(client: httpx.AsyncClient, engine: Any) -> None:
    """Coming again would not help, so it is no 429."""
    engine.max_queue = 4
    asked = {"model": "fake", "prompt": ["a", "b", "c"], "n": 2}
    error = error_of(await client.post("/v1/completions", json=asked), 400)
    assert error["param"] == "prompt"
    assert "6 completions" in error["message"]
    assert "holds 4" in error["message"]
    messages = [{"role": "user", "content": "a"}]
    answer = await client.post("/v1/chat/completions", json={"messages": messages, "n": 5})
    assert error_of(answer, 400)["param"] == "n"
    assert (await client.post("/v1/completions", json={**asked, "n": 1})).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_all_prompts_or_none(client: httpx.AsyncClient, engine: Any, stream: bool) -> None:
    """One refused prompt refuses the request, before anything of the others is shown."""
    ids = [[*text.encode()] for text in ("ab", "slow", "full")]
    body = {"model": "fake", "prompt": ids, "stream": stream}
    error_of(await client.post("/v1/completions", json=body), 429)
    assert not engine.active


@pytest.mark.parametrize("stream", [False, True])
async def test_refused_by_the_engine(client: httpx.AsyncClient, stream: bool) -> None:
    ids = [*b"invalid"]
    answer = await client.post("/v1/completions", json={"model": "fake", "prompt": ids, "stream": stream})
    error = error_of(answer, 400)
    assert (error["param"], error["message"]) == ("seed", "seed must be lucky, got 4")


async def test_a_request_that_fails_fails_alone(client: httpx.AsyncClient, engine: Any) -> None:
    for prompt, message in (("broken", "out of luck"), ("crash", "internal error")):
        answer = await client.post("/v1/completions", json={"model": "fake", "prompt": [*prompt.encode()]})
        error = error_of(answer, 500)
        assert error["type"] == "server_error"
        assert message in error["message"]
        assert not engine.active
    assert (await client.post("/v1/completions", json=COMPLETION)).status_code == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("prompt", ["broken", "crash"])
async def test_failure_within_a_stream(
    client: httpx.AsyncClient, engine: Any, path: str, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.tokenizer.render_chat = lambda messages, **more: prompt
    body = {**CHAT} if "chat" in path else {"model": "fake", "prompt": [*prompt.encode()]}
    answer = await client.post(path, json={**body, "stream": True})
    assert answer.status_code == 200
    *chunks, failure, done, end = answer.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    assert json.loads(failure[6:])["error"]["type"] == "server_error"
    assert len(chunks) >= 2
    assert not engine.active


async def test_detokenize_range(client: httpx.AsyncClient) -> None:
    error = error_of(await client.post("/detokenize", json={"tokens": [1, 999]}), 400)
    assert error["param"] == "tokens"


@pytest.mark.parametrize(
    "body",
    [{}, {"prompt": "a", "messages": CHAT["messages"]}, {"prompt": "a", "add_generation_prompt": True}],
)
async def test_tokenize_takes_a_prompt_or_messages(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    error_of(await client.post("/tokenize", json=body), 400)
