"""The HTTP driver against a real server process, over an engine without a model.

It answers with the prompt reversed; what a prompt begins with says what happens to it, as
tests/server/fake_engine.py has it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tightpack.benchmarking.openai_api import AnswerError, Server, StreamedAnswer, served_models
from tightpack.benchmarking.outcomes import Drive, Outcome, Progress
from tightpack.benchmarking.remote import Remote
from tightpack.benchmarking.workload import RequestShape, Workload, WorkloadRequest
from tightpack.cli.bench import bench
from tightpack.requests.service_class import BATCH, INTERACTIVE, ServiceClass

FAKE_SERVER = Path(__file__).parent.parent / "server" / "fake_server.py"
DELAY = 0.03  # seconds a token of a prompt that begins with "slow"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-u", str(FAKE_SERVER), str(DELAY), "1"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    yield process.stdout.readline().removeprefix("ready ").strip()
    process.kill()
    process.wait()


def request(text: str, output_len: int, arrival: float = 0.0, tier: ServiceClass = BATCH) -> WorkloadRequest:
    shape = RequestShape(arrival, len(text), output_len, tier)
    return WorkloadRequest(shape, tuple(text.encode()))


def run(url: str, *requests: WorkloadRequest, clients: int | None = None, **options: object) -> Drive:
    return Remote(Server(url, "fake")).run("server", Workload("test", requests, clients=clients), **options)


def test_tokens_are_timed_as_they_come(url: str) -> None:
    result = run(url, request("slow and steady", 8))
    [outcome] = result.outcomes
    assert outcome.completed
    assert outcome.finish_reason == "length"
    assert len(outcome.token_times) == 8
    # Each token sleeps so long; how much longer it takes is the machine's affair.
    assert outcome.latency.ttft_s >= DELAY
    assert outcome.latency.tpot_s >= 0.8 * DELAY
    assert len(set(outcome.token_times)) >= 5
    assert result.start <= outcome.arrival_time
    assert result.steps == ()


def test_open_loop_sends_when_requests_are_due(url: str) -> None:
    requests = [request(f"slow {i}", 6, arrival=0.05 * i) for i in range(5)]
    result = run(url, *requests)
    assert [one.arrival_time - result.start for one in result.outcomes] == pytest.approx(
        [0.0, 0.05, 0.1, 0.15, 0.2]
    )
    # The second was sent before the first had ended.
    first, second, *_ = result.outcomes
    assert second.arrival_time < first.token_times[-1]
    assert all(one.completed for one in result.outcomes)


def test_closed_loop_has_as_many_under_way_as_clients(url: str) -> None:
    result = run(url, *[request(f"slow {i}", 4, arrival=99.0) for i in range(6)], clients=2)
    spans = [(one.arrival_time, one.token_times[-1]) for one in result.outcomes]
    for start, _ in spans:
        assert sum(begin <= start < end for begin, end in spans) <= 2
    assert spans[2][0] >= min(spans[0][1], spans[1][1])


def test_failures_and_refusals_are_outcomes(url: str) -> None:
    result = run(url, request("fine", 3), request("full", 3), request("broken", 6), request("crash", 6))
    fine, full, broken, crash = result.outcomes
    assert (fine.completed, fine.error) == (True, None)
    assert full.error == "HTTP 429: the queue holds 4 requests, its limit"
    assert "out of luck" in (broken.error or "")
    assert "internal error" in (crash.error or "")
    assert not any(one.completed for one in (full, broken, crash))


def test_a_server_that_is_not_there_fails_every_request() -> None:
    result = run("http://127.0.0.1:9", request("fine", 3))
    assert (result.outcomes[0].error or "").startswith("ConnectError")
    with pytest.raises(OSError, match=r"http://127\.0\.0\.1:9/v1/models does not answer"):
        served_models(Server("http://127.0.0.1:9", ""))


class GivesUpAtOnce:
    def ended(self, outcome: Outcome) -> None: ...

    def gives_up(self, now: float, waiting_since: float | None) -> bool:
        return waiting_since is not None and now - waiting_since > 0.1


def test_a_watch_ends_a_drive_that_hears_nothing(url: str) -> None:
    result = run(url, request("fine", 3), request("never", 3), request("later", 3, 60), watch=GivesUpAtOnce())
    assert result.given_up
    assert [one.completed for one in result.outcomes] == [True, False, False]


def test_progress_ends_complete(url: str) -> None:
    seen: list[Progress] = []
    run(url, request("hello", 5), request("there", 2), on_progress=seen.append)
    last = seen[-1]
    assert (last.arrived, last.ended, last.total, last.output_tokens) == (2, 2, 2, 7)


def test_what_is_asked_for() -> None:
    outcome = Outcome(request("abc", 4, tier=INTERACTIVE), 0.0)
    body = Server("http://h/v1/", "m").body(outcome, name_tier=True)
    assert body["prompt"] == [97, 98, 99]
    assert (body["max_tokens"], body["ignore_eos"], body["service_tier"]) == (4, True, "priority")
    assert Server("http://h/v1/", "m").base_url == Server("http://h", "m").base_url == "http://h/v1"
    plain = Server("http://h", "m", ignore_eos=False, endpoint="chat").body(outcome, name_tier=False)
    assert not {"ignore_eos", "service_tier", "prompt"} & plain.keys()
    [message] = plain["messages"]
    assert len(message["content"].split()) == 3
    assert "continuous_usage_stats" not in plain["stream_options"]


def streamed(*events: dict[str, object]) -> Outcome:
    """An answer of which an event comes each second, from second 1."""
    outcome = Outcome(request("abc", 4), 0.0)
    answer = StreamedAnswer(outcome)
    for second, event in enumerate(events, 1):
        answer.take(json.dumps(event).encode(), float(second))
    answer.end()
    return outcome


def text_chunk(text: str, finish: str | None = None, tokens: int | None = None) -> dict[str, object]:
    usage = {} if tokens is None else {"usage": {"completion_tokens": tokens}}
    return {"choices": [{"text": text, "finish_reason": finish}], **usage}


def test_usage_in_every_chunk_counts_tokens_exactly() -> None:
    outcome = streamed(text_chunk("a", tokens=1), text_chunk("bcd", tokens=4), text_chunk("", "length", 5))
    assert outcome.token_times == [1.0, 2.0, 2.0, 2.0, 3.0]


def test_without_usage_a_chunk_is_a_token() -> None:
    outcome = streamed(text_chunk("a"), text_chunk("b"), text_chunk("", "stop"))
    assert outcome.token_times == [1.0, 2.0]
    assert outcome.completed


def test_a_final_usage_corrects_the_count() -> None:
    total = {"choices": [], "usage": {"completion_tokens": 4}}
    assert streamed(text_chunk("a"), text_chunk("bcd", "length"), total).token_times == [1.0, 2.0, 2.0, 2.0]
    total["usage"] = {"completion_tokens": 1}
    assert streamed(text_chunk("a"), text_chunk("b", "length"), total).token_times == [1.0]


def test_chat_chunks() -> None:
    first = {"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    second = {"choices": [{"delta": {"content": "hi"}, "finish_reason": None}]}
    last = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
    assert streamed(first, second, last).token_times == [2.0]


def test_a_stream_that_breaks_off_is_no_answer() -> None:
    with pytest.raises(AnswerError, match="without a finish_reason"):
        streamed(text_chunk("a"))


def test_the_command_measures_a_server(url: str, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(bench)
    out = tmp_path / "out.json"
    options = f"--url {url} --endpoint chat --requests 6 --input-len 6 --output-len 5 --rate 50 --repeats 2"
    given = (*options.split(), "--json", str(out), "--api-key", "sesame", "--label", "fake engine", "--quiet")
    result = CliRunner().invoke(app, list(given), catch_exceptions=False)
    assert result.exit_code == 0
    report = json.loads(out.read_text())
    assert (report["model"], report["where"], report["label"]) == ("fake", url, "fake engine")
    [measured] = report["runs"]
    assert measured["policy"] == "fake engine"
    assert (measured["completed"], measured["output_tokens"], measured["repeats"]) == (6, 30, 2)
    assert report["conditions"] == {
        "warm_up_requests": 6,
        "prefix_caching": None,
        "kv_cache_at_start": "unknown",
    }
    assert measured["timeline"] is None
    assert "sesame" not in out.read_text()


def test_a_model_that_is_not_served_is_refused(url: str) -> None:
    app = typer.Typer()
    app.command()(bench)
    result = CliRunner().invoke(app, ["--url", url, "--model", "other"])
    assert isinstance(result.exception, ValueError)
    assert "serves no model 'other'; it serves fake" in str(result.exception)
