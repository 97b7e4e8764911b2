"""Whatever is sent, the answer to a wrong request is 4xx in OpenAI's shape, and the server goes on."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from tightpack.server.app import create_app
from tightpack.server.request_models import ChatCompletionRequest, ChatMessage, CompletionRequest
from tightpack.server.response_models import ErrorResponse


@dataclass(frozen=True)
class Call:
    """One HTTP request; content is sent as it is."""

    method: str
    path: str
    content: bytes = b""
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "application/json"})


texts = st.text(max_size=8)
objects = st.dictionaries(texts.filter(bool), texts, min_size=1, max_size=2)
arrays = st.lists(texts | st.integers(), min_size=1, max_size=3)
no_number = texts | st.booleans() | objects | arrays
no_integer = no_number | st.floats(0.1, 0.9)
no_boolean = texts | st.integers() | objects | arrays
no_text = st.integers() | st.booleans() | objects | arrays
huge = st.integers(2**64, 10**40) | st.integers(-(10**40), -(2**64))


def beyond(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers outside [low, high]."""
    return st.floats(high + 0.01, 1e300) | st.floats(-1e300, low - 0.01) | huge


# Wrong for both endpoints. Spellings of infinity and NaN are what json.dumps makes of the floats.
COMMON: dict[str, st.SearchStrategy[Any]] = {
    "model": no_text | texts,
    "n": no_integer | st.integers(max_value=0) | st.integers(129) | huge,
    "temperature": no_number | beyond(0, 100) | st.sampled_from([float("nan"), float("inf"), -float("inf")]),
    "top_p": no_number | beyond(0, 1) | st.just(0),
    "top_k": no_integer | st.integers(max_value=-2) | huge,
    "min_p": no_number | beyond(0, 1),
    "presence_penalty": no_number | beyond(-2, 2) | st.just(float("nan")),
    "frequency_penalty": no_number | beyond(-2, 2),
    "repetition_penalty": no_number | beyond(0.02, 100),
    "logit_bias": texts
    | st.integers()
    | arrays
    | st.dictionaries(st.integers(10**6) | st.integers(max_value=-1) | st.just("x"), st.just(1), min_size=1)
    | st.dictionaries(st.integers(0, 100), no_number | beyond(-100, 100), min_size=1, max_size=3),
    "seed": no_integer | huge,
    "stop": st.integers() | st.booleans() | objects | st.just("") | st.just(["a", ""]) | st.just([1]),
    "stop_token_ids": texts | st.integers() | objects | st.just(["1"]) | st.just([10**6]) | st.just([-1]),
    "min_tokens": no_integer | st.integers(max_value=-1) | huge,
    "ignore_eos": no_boolean,
    "include_stop_str_in_output": no_boolean,
    "skip_special_tokens": no_boolean,
    "stream": no_boolean,
    "stream_options": objects | arrays | texts | st.just({"include_usage": True}),
    "service_tier": texts | no_text,
    "user": no_text,
    "metadata": texts | arrays | st.dictionaries(texts, st.integers(), min_size=1),
    "store": st.just(True) | texts | st.integers(),
}
COMPLETION = COMMON | {
    "prompt": st.integers()
    | st.booleans()
    | objects
    | st.none()
    | st.sampled_from(
        [[], [[]], [1, "a"], [True], [1.5], [10**6], [-1], [[1], "a"], ["a"] * 2049, "word " * 3000]
    ),
    "max_tokens": no_integer | st.integers(max_value=0) | huge,
    "echo": no_boolean,
    "logprobs": no_integer | st.integers(21) | st.integers(max_value=-1),
    "best_of": no_integer | st.integers(2),
    "suffix": no_text | texts,
    "response_format": objects | texts | arrays,
}
parts = st.sampled_from(
    [[{"type": "image_url"}], [{"type": "text"}], [{}], ["a"], [1], [], 1, True, {}, None]
)
messages = st.builds(lambda content: [{"role": "user", "content": content}], parts) | st.builds(
    lambda role: [{"role": role, "content": "x"}], texts | no_text
)
CHAT = COMMON | {
    "messages": texts | no_text | st.none() | st.just([]) | messages,
    "max_tokens": no_integer | st.integers(max_value=0) | huge,
    "max_completion_tokens": no_integer | st.integers(max_value=0) | huge,
    "logprobs": no_boolean,
    "top_logprobs": no_integer | st.integers(),
    "tools": objects | texts | st.just([{"type": "function"}]),
    "tool_choice": objects | st.sampled_from(["auto", "required", ""]),
    "functions": objects | st.just([{}]),
    "response_format": objects | texts | arrays,
    "parallel_tool_calls": no_text,
    "audio": no_text | texts,
    "reasoning_effort": no_text | texts,
}


def bodies(model: str) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    """(path, body) with one to three wrong values, or one unknown or missing field."""
    completion = {"model": model, "prompt": "a", "max_tokens": 1}
    chat = {"model": model, "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}

    def wrong(path: str, base: dict[str, Any], table: dict[str, Any], known: set[str]) -> Any:
        values = st.lists(st.sampled_from(sorted(table)), min_size=1, max_size=3, unique=True).flatmap(
            lambda names: st.fixed_dictionaries({name: table[name] for name in names})
        )
        names = st.text(max_size=12).filter(lambda name: name not in known)
        extra = st.dictionaries(names, texts, min_size=1, max_size=1)
        missing = st.sampled_from(sorted(base.keys() - {"max_tokens", "model"}))
        return st.one_of(
            values.map(lambda change: (path, base | change)),
            extra.map(lambda change: (path, base | change)),
            missing.map(lambda name: (path, {key: base[key] for key in base if key != name})),
        )

    known_chat = set(ChatCompletionRequest.model_fields) | set(ChatMessage.model_fields)
    return wrong("/v1/completions", completion, COMPLETION, set(CompletionRequest.model_fields)) | wrong(
        "/v1/chat/completions", chat, CHAT, known_chat
    )


def calls(model: str) -> st.SearchStrategy[Call]:
    """Requests that must be answered with 4xx."""
    encoded = bodies(model).map(lambda one: (one[0], json.dumps(one[1]).encode()))
    posts = ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"]
    junk = st.binary(max_size=40) | st.sampled_from(
        [b"{", b"[]", b"null", b'{"a":1}', b'{"model":"\\ud800"}']
    )
    return st.one_of(
        encoded.map(lambda one: Call("POST", *one)),
        encoded.map(lambda one: Call("POST", *one)),
        encoded.map(lambda one: Call("POST", *one)),
        st.builds(lambda one, cut: Call("POST", one[0], one[1][: -1 - cut]), encoded, st.integers(0, 30)),
        st.builds(lambda path, raw: Call("POST", path, raw), st.sampled_from(posts), junk),
        st.builds(
            lambda path, method: Call(method, path), st.sampled_from(posts), st.sampled_from(["GET", "PUT"])
        ),
        st.builds(
            lambda one, kind: Call("POST", *one, headers={"content-type": kind}),
            encoded,
            st.sampled_from(["text/plain", "application/xml", "a/b;c=d", "json"]),
        ),
        st.builds(lambda name: Call("GET", f"/v1/{name}"), st.from_regex(r"[a-z]{1,9}x", fullmatch=True)),
    )


FIXED = {
    "derandomize": True,
    "deadline": None,
    "database": None,
    "phases": [Phase.generate],
    "suppress_health_check": list(HealthCheck),
}


def check(answer: httpx.Response) -> None:
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text)
    ErrorResponse.model_validate_json(answer.text, strict=True)


def test_500_malformed_requests(server: Any) -> None:
    """Against a real process with a real model."""
    sent = 0
    with httpx.Client(base_url=server.url, timeout=60) as client:

        @settings(max_examples=500, **FIXED)
        @given(calls(server.model))
        def send(call: Any) -> None:
            nonlocal sent
            answer = client.request(call.method, call.path, content=call.content, headers=call.headers)
            check(answer)
            sent += 1

        send()
        assert sent >= 500
        body = {
            "model": server.model,
            "prompt": "The capital of France is",
            "max_tokens": 3,
            "temperature": 0,
        }
        assert "Paris" in client.post("/v1/completions", json=body).json()["choices"][0]["text"]


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_requests_from_the_description(engine: Any, mode: GenerationMode) -> None:
    """Right and wrong requests made from the OpenAPI description, in this process: never 5xx."""
    app = create_app(engine, model_name="fake")
    schema = schemathesis.openapi.from_dict(app.openapi())
    schema.config.generation.update(modes=[mode])
    engine.delay = 0.0
    statuses: list[int] = []
    accepted: list[tuple[str, Any]] = []

    async def send(case: Any) -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            arguments = case.as_transport_kwargs(base_url="http://server")
            arguments.pop("cookies", None)
            if isinstance(arguments.get("data"), str | bytes):
                arguments["content"] = arguments.pop("data")
            return await client.request(**arguments)

    operations = [result.ok() for result in schema.get_all_operations()]
    # Nothing about a GET without parameters can be wrong.
    wanted = [one for one in operations if mode is GenerationMode.POSITIVE or one.body]
    strategies = [one.as_strategy(generation_mode=mode) for one in wanted]

    @settings(max_examples=100, **FIXED)
    @given(st.one_of(strategies))
    def run(case: Any) -> None:
        answer = asyncio.run(send(case))
        statuses.append(answer.status_code)
        assert answer.status_code < 500, answer.text
        if answer.status_code >= 400:
            check(answer)
        else:
            accepted.append((case.path, case.body))

    run()
    assert len(statuses) >= 50
    assert bool(accepted) == (mode is GenerationMode.POSITIVE), accepted[:3]
    assert not engine.active
