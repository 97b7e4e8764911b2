"""What `tightpack bench` and `demo` refuse, before anything is loaded."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tightpack.cli.bench import bench
from tightpack.cli.bench_plan import make_plan
from tightpack.cli.bench_traffic import parse_mix
from tightpack.cli.demo import demo
from tightpack.requests.service_class import BATCH, INTERACTIVE, STANDARD, ServiceClass


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise AssertionError("the model was loaded before the options were checked")

    monkeypatch.setattr("tightpack.engine.load_engine", load)


def refusal(command: object, *arguments: str) -> str:
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code != 0
    assert isinstance(result.exception, (ValueError, FileNotFoundError)), result.output
    return str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--policies continous", "no policy is named 'continous'; did you mean 'continuous'?"),
        (
            "--policies static,zzz",
            "no policy is named 'zzz'; there are static, dynamic, continuous, chunked-prefill",
        ),
        ("--policies static,static", "names static twice"),
        ("--policies ,", "--policies names none"),
        ("--requests 0", "--requests must be at least 1, got 0"),
        ("--input-len -5", "--input-len must be at least 1, got -5"),
        ("--output-len 0", "--output-len must be at least 1"),
        ("--max-num-seqs 0", "--max-num-seqs must be at least 1"),
        ("--max-num-batched-tokens -1", "--max-num-batched-tokens must be at least 1"),
        ("--max-model-len 1", "--max-model-len must be at least 2"),
        ("--repeats 0", "--repeats must be at least 1"),
        ("--rate 0", "--rate must be above 0, got 0"),
        ("--rate -2.5", "--rate must be above 0, got -2.5"),
        ("--rate nan", "--rate must be above 0, got nan"),
        ("--trace absent.csv", "no trace file at absent.csv"),
        ("--rate 1,,2", "--rate takes numbers such as 4 or 1,2,4, got '1,,2'"),
        ("--rate 4,0", "--rate must be above 0, got 0"),
        ("--trace absent.csv --rate 3 --time-scale 2", "--rate scales the trace's gaps already"),
        ("--trace absent.csv --burstiness 2", "--trace brings its own lengths and gaps; drop --burstiness"),
        ("--trace absent.csv --mixed", "drop --mixed"),
        ("--time-scale 2", "--time-scale stretches a trace; give --trace FILE.csv"),
        ("--trace absent.csv --time-scale -1", "--time-scale must be above 0, got -1"),
        ("--scenario mixde", "no scenario is named 'mixde'; did you mean 'mixed'?"),
        ("--scenario mixed --requests 4", "--scenario brings its own workload and limits; drop --requests"),
        ("--scenario mixed --policies fast", "no policy is named 'fast'"),
        ("--json absent/out.json", "--json absent/out.json: there is no directory absent"),
        ("--html absent/out.html", "--html absent/out.html: there is no directory absent"),
        ("--beside absent.json", "no result file at absent.json"),
        ("--length-scale 0.5", "--length-scale is about a trace; give --trace FILE.csv"),
        ("--trace-skip -1", "--trace-skip must be at least 0, got -1"),
        ("--burstiness 0.5", "--burstiness shapes the gaps between arrivals; give a --rate"),
        ("--burstiness 0 --rate 1", "--burstiness must be above 0, got 0"),
        ("--clients 0", "--clients must be at least 1"),
        ("--clients 4 --rate 2", "--clients send when they are answered; drop --rate"),
        ("--clients 4 --find-capacity", "drop --find-capacity"),
        ("--service-class chat:ttft=1", "no service class is named 'chat'; there are"),
        ("--service-class standard:tfft=1", "has no setting 'tfft'; did you mean 'ttft'?"),
        ("--service-class standard:ttft=soon", "ttft must be a number, got 'soon'"),
        ("--service-class standard:ttft=0", "service class 'standard': ttft_s must be positive seconds"),
        ("--service-class batch:ttft=9", "is about requests of which --mix has none"),
        ("--mix standrad=1", "--mix: no service class is named 'standrad'; did you mean 'standard'?"),
        ("--mix standard", "--mix takes shares such as interactive=0.7,batch=0.3, got 'standard'"),
        ("--mix standard=0", "--mix: the share of standard must be above 0, got 0"),
        ("--attainment 0.9", "without --find-capacity there is no service level to meet; drop --attainment"),
        ("--find-capacity --attainment 99", "attainment must be a share above 0 and up to 1, got 99"),
        ("--find-capacity --rate 1,2", "--find-capacity starts at one --rate"),
        ("--find-capacity --probe-seconds 0", "--probe-seconds must be above 0, got 0"),
        ("--find-capacity --resolution 2", "--resolution must lie between 0 and 1, got 2"),
        ("--scenario mixed --find-capacity", "drop --find-capacity"),
        ("--url http://h --policies static", "--url measures a server"),
        ("--url http://h --quantization int8", "drop --quantization"),
        ("--url localhost:8000", "a server's URL begins with http:// or https://, got 'localhost:8000'"),
        ("--url http://h --endpoint embeddings", "the endpoint is completions or chat"),
    ],
)
def test_bad_options(arguments: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in refusal(bench, *arguments.split())


def test_the_json_file_must_be_a_file(tmp_path: Path) -> None:
    assert "is a directory; name a file" in refusal(bench, "--json", str(tmp_path))
    assert "is a directory; name a file" in refusal(demo, "--json", str(tmp_path))


def test_a_mix_of_classes_with_their_usual_targets_or_others() -> None:
    assert parse_mix(None, ()) == {STANDARD: 1.0}
    assert parse_mix("interactive=0.7,batch=0.3", ()) == {INTERACTIVE: 0.7, BATCH: 0.3}
    slower = ServiceClass("interactive", 1.0, 0.05)
    assert parse_mix("interactive=1", ["interactive:ttft=1"]) == {slower: 1.0}
    assert parse_mix(None, ["standard:ttft=none,tpot=0.2"]) == {ServiceClass("standard", None, 0.2): 1.0}


def test_repeats_beyond_the_end_of_a_trace_are_refused(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(f"{i},4,4\n" for i in range(9)))
    options = ("--trace", str(trace), "--requests", "4", "--repeats", "3")
    assert "ends within segment 3 of 4 requests" in refusal(bench, *options)


def test_a_plan_holds_rates_classes_and_limits() -> None:
    arguments = dict.fromkeys(inspect.signature(bench).parameters) | {
        "rate": "2,8,2",
        "policies": "continuous,chunked-prefill",
        "max_num_batched_tokens": 64,
        "mix": "interactive=3,batch=1",
        "seed": 5,
        "repeats": 1,
    }
    plan = make_plan(arguments)
    assert plan.rates == (2.0, 8.0)
    assert plan.policies == ["continuous", "chunked-prefill"]
    assert [limits["max_num_batched_tokens"] for limits in plan.limits.values()] == [None, 64]
    names = [shape.service_class.name for shape in plan.traffic.shapes(2.0, 0)]
    assert (names.count("interactive"), names.count("batch")) == (24, 8)
    assert plan.capacity is None
