"""The command from its options to its files, over an engine on a virtual clock."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from tightpack.cli.main import app


@dataclass
class FormulaEngine:
    """What the command uses of an engine."""

    make_loop: Callable[..., Any]
    executor: Any
    max_model_len: int = 64

    @property
    def checkpoint(self) -> Any:
        tokenizer = SimpleNamespace(
            vocab_size=50, special_token_ids=frozenset({0}), eos_token_ids=(1,), token=lambda i: f"t{i}"
        )
        return SimpleNamespace(name="formula", tokenizer=tokenizer)

    def with_policy(self, policy: str, **limits: int | None) -> Any:
        given = {name: value for name, value in limits.items() if value is not None}
        return SimpleNamespace(loop=self.make_loop(policy, **given, max_queue=5000))


@pytest.fixture
def bench(make_loop, executor, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    executor.description = {"backend": "formula", "device": "cpu", "dtype": "float32"}
    monkeypatch.setattr("tightpack.engine.load_engine", lambda args: FormulaEngine(make_loop, executor))

    def run(line: str, *more: str | Path) -> str:
        options = ["bench", *line.split(), *map(str, more)]
        result = CliRunner().invoke(app, options, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return " ".join(result.output.split())

    return run


def test_rates_repeats_and_classes(bench, tmp_path: Path) -> None:
    out, page = tmp_path / "out.json", tmp_path / "page.html"
    shown = bench(
        "--policies continuous,chunked-prefill --requests 12 --input-len 8 --output-len 4"
        " --rate 0.1,2 --repeats 2 --mix interactive=1,batch=1 --service-class interactive:ttft=4,tpot=3",
        *("--json", out, "--html", page),
    )
    assert "12 requests, 8 tokens in, 4 out, 0.1 a second" in shown
    assert "± continuous" in shown
    report = json.loads(out.read_text())
    assert [(run["policy"], run["rate"]) for run in report["runs"]] == [
        ("continuous", 0.1),
        ("chunked-prefill", 0.1),
        ("continuous", 2.0),
        ("chunked-prefill", 2.0),
    ]
    slow, _, fast, _ = report["runs"]
    assert slow["attained"] > fast["attained"]
    assert {one["name"]: one["requests"] for one in slow["classes"]} == {"interactive": 6, "batch": 6}
    assert [one["rate"] for one in report["workloads"]] == [0.1, 2.0]
    assert (report["label"], report["conditions"]["warm_up_requests"]) == ("float32", 8)
    assert "Latency against rate" in page.read_text()


def test_clients_in_closed_loop(bench, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    shown = bench(
        "--policies continuous --requests 6 --input-len 4 --output-len 3 --clients 2 --no-warmup",
        *("--json", out),
    )
    assert "6 requests, 4 tokens in, 3 out, 2 clients in closed loop" in shown
    report = json.loads(out.read_text())
    assert (report["workload"]["clients"], report["conditions"]["warm_up_requests"]) == (2, 0)
    [run] = report["runs"]
    assert max(run["timeline"]["decodes"]) == 2


def test_find_capacity(bench, tmp_path: Path) -> None:
    """A step takes a second and holds two requests: of requests of one token there go two a second."""
    out, page = tmp_path / "out.json", tmp_path / "page.html"
    shown = bench(
        "--find-capacity --policies continuous --requests 50 --input-len 1 --output-len 1 --rate 0.5"
        " --attainment 0.9 --max-num-seqs 2 --probe-seconds 200 --resolution 0.1",
        *("--json", out, "--html", page),
    )
    assert "at which 90 % of requests meet the targets of their class" in shown
    assert re.search(r"continuous at 0.5/s: 9\d.\d% met their targets; meets the level", shown)
    assert "continuous at 2/s" in shown
    report = json.loads(out.read_text())
    [found] = report["capacity"]["policies"]
    assert 1.0 <= found["rate"] <= 2.0
    probes = found["repeats"][0]["probes"]
    assert [probe["rate"] for probe in probes[:3]] == [0.5, 1.0, 2.0]
    assert report["capacity"]["probe_s"] == 200.0
    assert report["workload"]["description"].endswith("at the rates tried")
    assert report["runs"][0]["rate"] == found["rate"]
    assert "Largest capacity" in page.read_text()


def test_a_capacity_of_nothing_still_has_a_report(bench, tmp_path: Path) -> None:
    """Prompts of 40 tokens take over 5 s: nobody meets 2 s, whatever the rate."""
    out, page = tmp_path / "out.json", tmp_path / "page.html"
    with pytest.raises(ValueError, match="no policy met the service level at any rate tried"):
        bench(
            "--find-capacity --policies continuous --requests 3 --input-len 40 --output-len 1"
            " --probe-seconds 1",
            *("--json", out, "--html", page),
        )
    report = json.loads(out.read_text())
    assert report["runs"] == []
    assert report["capacity"]["policies"][0]["rate"] == 0.0
    assert not page.exists()
