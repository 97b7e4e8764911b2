"""The README's table: made from the newest result, and found stale when it is not."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "make_table.py"


@pytest.fixture(scope="module")
def make_table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_table", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_table"] = module
    spec.loader.exec_module(module)
    return module


def run_of(policy: str, tokens_per_s: float, ttft: float, gap: float) -> dict[str, object]:
    def seconds(value: float) -> dict[str, float]:
        return {"p50": value, "p90": value, "p99": 2 * value, "mean": value, "max": 3 * value}

    latencies = {"ttft_s": seconds(ttft), "tpot_s": seconds(gap), "itl_s": seconds(gap)}
    late = {"ttft_s": seconds(99.0), "tpot_s": seconds(99.0), "itl_s": seconds(99.0)}
    return {
        "policy": policy,
        "output_tokens_per_s": tokens_per_s,
        "goodput_requests_per_s": 1.5,
        **latencies,
        "classes": [
            {"name": "batch", "attained": 1.0, **late},
            {"name": "interactive", "attained": 0.5, **latencies},
        ],
    }


def result_of(name: str, kl: float | None, *runs: dict[str, object]) -> dict[str, object]:
    quality = None if kl is None else {"kl": kl, "top1_agreement": 0.9, "tokens": 7}
    classes = {
        "batch": {"ttft_s": None, "tpot_s": None},
        "interactive": {"ttft_s": 0.5, "tpot_s": 0.05},
    }
    return {
        "model": "tiny",
        "machine": {"cpu": "A Processor", "cores": 2},
        "executor": {"dtype": "bfloat16", "device": "cpu", "threads": "2"},
        "date": "2026-01-02T03:04:05Z",
        "precision": {"name": name, "how": "as it is", "weight_bytes": 3 * 2**20, "quality": quality},
        "workload": {"description": "nine requests", "service_classes": classes},
        "runs": list(runs),
    }


REPORT = {
    "tour": [
        result_of("bf16", None, run_of("static", 100.4, 3.0, 0.0), run_of("slo", 250.0, 0.5, 0.03)),
        result_of("int4", 0.0123, run_of("static", 200.0, 2.0, 0.0), run_of("slo", 300.0, 0.4, 0.01)),
    ],
    "rounded_to_int4_anew": {"kl": 0.25, "top1_agreement": 0.8, "tokens": 7},
    "recommendation": {
        "winner": {"precision": "int4", "policy": "slo"},
        "why": ["It is better.", "By far."],
        "serve": "tightpack serve --policy slo",
    },
}


@pytest.fixture
def place(tmp_path: Path, make_table: ModuleType) -> Path:
    (tmp_path / "README.md").write_text(f"# Title\n\n{make_table.BEGIN}\nold\n{make_table.END}\n\nafter\n")
    results = tmp_path / "results"
    results.mkdir()
    older = {**REPORT, "tour": [result_of("bf16", None, run_of("static", 1.0, 1.0, 1.0))]}
    (results / "2025-12-31-policies.json").write_text(json.dumps(older))
    (results / "2026-01-02-policies.json").write_text(json.dumps(REPORT))
    return tmp_path


def call(make_table: ModuleType, place: Path, *options: str) -> int:
    return make_table.main(
        [*options, "--readme", str(place / "README.md"), "--results", str(place / "results")]
    )


def test_writes_the_newest_result_between_the_markers(make_table: ModuleType, place: Path) -> None:
    assert call(make_table, place) == 0
    text = (place / "README.md").read_text()
    assert text.startswith("# Title\n")
    assert text.endswith("\n\nafter\n")
    assert "old" not in text
    assert "| **bf16** | 3 | 0 | `static` | 100 | 6.00 | – | – | **50** | **1.50** |" in text
    assert "|  |  |  | `slo` | 250 | 1.00 | 30 | 60 | **50** | **1.50** |" in text
    assert "| **int4** | 3 | 0.012 | `static` | 200 | 4.00 | – | – | **50** | **1.50** |" in text
    assert "|  |  |  | `slo` ← | **300** | **0.80** | **10** | **20** | **50** | **1.50** |" in text
    assert "Nine requests; tiny on 2 threads of A Processor (2026-01-02, " in text
    assert "TTFT up to 0.5 s, TPOT up to 50 ms" in text
    assert "int4: as it is." in text
    assert "rounded to nearest on loading (groups of 64), KL 0.25;" in text
    assert "It is better. By far. `tightpack serve --policy slo`" in text
    assert "benchmarks/results/2026-01-02-policies.json" in text


def test_check_changes_nothing_and_tells_stale_from_fresh(
    make_table: ModuleType, place: Path, capsys
) -> None:
    before = (place / "README.md").read_text()
    assert call(make_table, place, "--check") == 1
    assert (place / "README.md").read_text() == before
    assert "python benchmarks/make_table.py" in capsys.readouterr().err
    assert call(make_table, place) == 0
    assert call(make_table, place, "--check") == 0
    assert call(make_table, place) == 0


def test_missing_markers_and_results_are_errors(make_table: ModuleType, place: Path, capsys) -> None:
    (place / "README.md").write_text("no markers")
    assert call(make_table, place) == 2
    assert "once each" in capsys.readouterr().err
    for path in (place / "results").iterdir():
        path.unlink()
    assert call(make_table, place) == 2
    assert "holds no YYYY-MM-DD-policies.json" in capsys.readouterr().err
