"""Models, tokens, health, metrics, keys and cross-origin requests."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tightpack.server.app import create_app
from tightpack.server.service import Lifecycle


def make_client(engine: Any, **options: Any) -> httpx.AsyncClient:
    app = create_app(engine, model_name="fake", **options)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server")


async def scrape(client: httpx.AsyncClient) -> dict[tuple[str, str], float]:
    """(sample, its labels but for the model) to value."""
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    values = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            assert sample.labels.pop("model_name", "fake") == "fake"
            values[sample.name, ",".join(sample.labels.values())] = sample.value
    return values


async def test_models(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    [model] = listed["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == ("fake", "model", 200)
    assert (await client.get("/v1/models/fake")).json() == model


async def test_model_names_may_be_paths(engine: Any) -> None:
    app = create_app(engine, model_name="org/model")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
        assert (await client.get("/v1/models/org/model")).json()["id"] == "org/model"


async def test_tokenize_and_back(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/tokenize", json={"prompt": "aé", "return_token_strs": True})).json()
    assert answer == {
        "count": 4,
        "max_model_len": 200,
        "tokens": [256, 97, 195, 169],
        "token_strs": ["<s>", "a", "\ufffd", "\ufffd"],
    }
    plain = (await client.post("/tokenize", json={"prompt": "a", "add_special_tokens": False})).json()
    assert (plain["tokens"], plain["token_strs"]) == ([97], None)
    back = await client.post("/detokenize", json={"tokens": [256, 97, 195, 169]})
    assert back.json() == {"prompt": "<s>aé"}


async def test_tokenize_messages(client: httpx.AsyncClient) -> None:
    messages = [{"role": "user", "content": "hi"}]
    for asked, text in ((None, "user: hi\nassistant: "), (False, "user: hi")):
        body = {"messages": messages, "add_generation_prompt": asked}
        answer = (await client.post("/tokenize", json=body)).json()
        assert bytes(answer["tokens"]).decode() == text


async def test_request_ids(client: httpx.AsyncClient) -> None:
    ids = {(await client.get("/health")).headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
    kept = await client.get("/health", headers={"x-request-id": "mine-1"})
    assert kept.headers["x-request-id"] == "mine-1"
    replaced = await client.get("/health", headers={"x-request-id": "x" * 500})
    assert len(replaced.headers["x-request-id"]) < 100


async def test_health(engine: Any) -> None:
    lifecycle = Lifecycle()
    async with make_client(engine, lifecycle=lifecycle) as client:
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/version")).json()["version"]
        lifecycle.draining = True
        for method, path in (("GET", "/health"), ("POST", "/v1/completions"), ("GET", "/v1/models")):
            answer = await client.request(method, path)
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "server_shutting_down"
            assert "retry-after" in answer.headers
        assert (await client.get("/metrics")).status_code == 200
        lifecycle.draining = False
        engine.is_running = False
        assert (await client.get("/health")).status_code == 503


async def test_head(engine: Any) -> None:
    lifecycle = Lifecycle()
    async with make_client(engine, lifecycle=lifecycle) as client:
        for path in ("/health", "/metrics", "/v1/models"):
            answer = await client.head(path)
            assert (answer.status_code, answer.content) == (200, b"")
            assert int(answer.headers["content-length"]) > 0
        assert (await client.head("/nowhere")).status_code == 404
        assert (await client.head("/v1/completions")).status_code == 405
        lifecycle.draining = True
        assert (await client.head("/health")).status_code == 503


async def test_api_key(engine: Any) -> None:
    async with make_client(engine, api_key="sécret") as client:
        for header in (None, "Bearer wrong", "Bearer", "Basic sécret", "sécret", "Bearer sécret2"):
            headers = {"authorization": header.encode()} if header else {}
            answer = await client.get("/v1/models", headers=headers)
            assert answer.status_code == 401, header
            error = answer.json()["error"]
            assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
            assert answer.headers["www-authenticate"] == "Bearer"
        answer = await client.get("/v1/models", headers={"authorization": "Bearer sécret".encode()})
        assert answer.status_code == 200
        assert (await client.post("/tokenize", json={"prompt": "a"})).status_code == 401
        assert (await client.get("/nowhere")).status_code == 401
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/metrics")).status_code == 200


async def test_cross_origin(engine: Any) -> None:
    preflight = {
        "origin": "https://chat.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    async with make_client(engine, api_key="k", allowed_origins=["https://chat.example"]) as client:
        allowed = await client.options("/v1/completions", headers=preflight)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://chat.example"
        refused = await client.options("/v1/completions", headers={**preflight, "origin": "https://evil"})
        assert "access-control-allow-origin" not in refused.headers
        # An error must be readable by the page as well.
        failed = await client.get("/v1/models", headers={"origin": "https://chat.example"})
        assert failed.status_code == 401
        assert failed.headers["access-control-allow-origin"] == "https://chat.example"
    async with make_client(engine) as client:
        answer = await client.get("/health", headers={"origin": "https://chat.example"})
        assert "access-control-allow-origin" not in answer.headers


async def test_metrics_of_requests(client: httpx.AsyncClient) -> None:
    before = await scrape(client)
    assert before["vllm:request_success_total", "stop"] == 0
    body = {"model": "fake", "prompt": [97] * 9, "n": 2, "service_tier": "priority", "max_tokens": 4}
    assert (await client.post("/v1/completions", json=body)).status_code == 200
    assert (await client.post("/v1/completions", json={**body, "max_tokens": 16, "n": 1})).status_code == 200
    after = await scrape(client)
    assert after["vllm:request_success_total", "length"] == 2
    assert after["vllm:request_success_total", "stop"] == 1
    assert after["vllm:time_to_first_token_seconds_count", ""] == 3
    assert after["vllm:inter_token_latency_seconds_count", ""] == 2 * 3 + 9
    assert after["vllm:request_time_per_output_token_seconds_count", ""] == 3
    assert after["vllm:e2e_request_latency_seconds_count", ""] == 3
    assert after["vllm:request_prompt_tokens_sum", ""] == 2 * 9
    assert after["vllm:request_prompt_tokens_count", ""] == 2
    assert after["vllm:request_generation_tokens_sum", ""] == 2 * 4 + 10
    assert after["tightpack:slo_requests_total", "interactive"] == 3
    assert after["tightpack:slo_attained_total", "interactive"] == 3
    assert after["tightpack:slo_requests_total", "standard"] == 0
    assert after["tightpack:time_to_first_token_seconds_count", "interactive"] == 3


async def test_a_missed_target_is_no_attainment(client: httpx.AsyncClient, engine: Any) -> None:
    engine.delay = 0.06
    body = {"model": "fake", "prompt": [*b"slow"], "max_tokens": 3}
    for tier in ("priority", "flex"):
        assert (await client.post("/v1/completions", json={**body, "service_tier": tier})).status_code == 200
    after = await scrape(client)
    # 0.06 s a token misses interactive's 0.05 s; batch was promised nothing.
    assert after["tightpack:slo_requests_total", "interactive"] == 1
    assert after["tightpack:slo_attained_total", "interactive"] == 0
    assert after["tightpack:slo_attained_total", "batch"] == 1
    assert 0.1 < after["tightpack:time_per_output_token_seconds_sum", "interactive"] * 2 < 0.5


async def test_misses_count_by_cause(client: httpx.AsyncClient, engine: Any) -> None:
    engine.delay = 0.06
    body = {"model": "fake", "prompt": [*b"slow"], "max_tokens": 3, "service_tier": "priority"}
    assert (await client.post("/v1/completions", json=body)).status_code == 200
    text = (await client.get("/metrics")).text
    counts = dict(re.findall(r'slo_missed_total\{cause="(\w+)".*?service_class="interactive"\} (\S+)', text))
    assert counts == {"queue": "0.0", "prefill": "0.0", "decode": "1.0", "preemption": "0.0"}


async def test_an_unattainable_target_is_refused_with_a_time_to_come_again(client: httpx.AsyncClient) -> None:
    body = {"model": "fake", "prompt": [*b"late"], "service_tier": "priority"}
    answer = await client.post("/v1/completions", json=body)
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "3"
    assert answer.json()["error"]["code"] == "slo_unattainable"
    after = await scrape(client)
    assert after["tightpack:slo_rejected_total", "interactive"] == 1
    assert after["tightpack:slo_requests_total", "interactive"] == 0


async def test_failures_count_as_such(client: httpx.AsyncClient) -> None:
    await client.post("/v1/completions", json={"model": "fake", "prompt": [*b"broken"]})
    await client.post("/v1/completions", json={"model": "fake", "prompt": [*b"full"]})
    after = await scrape(client)
    assert after["vllm:request_success_total", "error"] == 1
    assert sum(value for (name, _), value in after.items() if name == "vllm:request_success_total") == 1
    assert after["tightpack:slo_requests_total", "standard"] == 0


async def test_engine_counters(client: httpx.AsyncClient, engine: Any) -> None:
    engine.counters.num_waiting = 3
    engine.counters.kv_cache_usage = 0.25
    engine.counters.prompt_tokens = 70
    engine.counters.prefix_cache_hits = 64
    engine.counters.unrounded_layers = 2
    values = await scrape(client)
    assert values["vllm:num_requests_running", ""] == 0
    assert values["vllm:num_requests_waiting", ""] == 3
    assert values["vllm:kv_cache_usage_perc", ""] == 0.25
    assert values["vllm:prompt_tokens_total", ""] == 70
    assert values["vllm:prefix_cache_hits_total", ""] == 64
    assert values["tightpack:unrounded_layers", ""] == 2
    for name in ("generation_tokens", "num_preemptions", "prefix_cache_queries"):
        assert values[f"vllm:{name}_total", ""] == 0


async def test_two_servers_in_one_process(engine: Any) -> None:
    """Metrics are each server's own."""
    async with make_client(engine) as one, make_client(engine) as other:
        await one.post("/v1/completions", json={"model": "fake", "prompt": [97]})
        assert (await scrape(one))["vllm:request_success_total", "stop"] == 1
        assert (await scrape(other))["vllm:request_success_total", "stop"] == 0


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
async def test_description(client: httpx.AsyncClient, path: str) -> None:
    """Every operation describes its body, its answer and its errors by schemas that are there."""
    description = (await client.get("/openapi.json")).json()
    operation = description["paths"][path]["post"]
    assert operation["summary"]
    schemas = description["components"]["schemas"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].split("/")[-1]
    assert schemas[body]["additionalProperties"] is False
    assert schemas[body]["examples"]
    for status, answer in operation["responses"].items():
        name = answer["content"]["application/json"]["schema"]["$ref"].split("/")[-1]
        assert name in schemas
        assert (name == "ErrorResponse") == (status != "200")
