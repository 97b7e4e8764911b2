"""The table of docs/quantization.md: made from the newest result, and found stale when it is not."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def quality(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("quality", FOLDER / "quality.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "quality", module)
    spec.loader.exec_module(module)
    return module


def run_of(row: str, kl: float) -> dict[str, Any]:
    return {
        "row": row,
        "bits_per_weight": 4.3125,
        "perplexity": 30.0,
        "reference_perplexity": 27.5,
        "kl": kl,
        "top1_agreement": 0.8,
        "quantize_seconds": 90.4,
        "peak_memory_bytes": 2**30,
    }


def report_of(*runs: dict[str, Any]) -> dict[str, Any]:
    return {
        "date": "2026-01-02T03:04:05",
        "model": "smol",
        "text": "text.txt",
        "samples": 96,
        "sequence_length": 512,
        "evaluation_samples": 64,
        "machine": {"cores": 2, "cpu": "CPU"},
        "runs": list(runs),
    }


def test_rows_measured_the_same_day_are_kept_in_order(quality: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "quality-2026-01-02.json"
    quality.save(path, report_of(run_of("GPTQ", 0.2)))
    quality.save(path, report_of(run_of("RTN", 0.3)))
    quality.save(path, report_of(run_of("GPTQ", 0.1)))
    runs = json.loads(path.read_text())["runs"]
    assert [(run["row"], run["kl"]) for run in runs] == [("RTN", 0.3), ("GPTQ", 0.1)]


def test_the_table_and_its_staleness(quality: ModuleType, tmp_path: Path) -> None:
    document = tmp_path / "doc.md"
    document.write_text(f"# T\n{quality.BEGIN}\nold\n{quality.END}\n")
    quality.save(tmp_path / "quality-2026-01-02.json", report_of(run_of("GPTQ", 0.1)))
    places = ["--document", str(document), "--results", str(tmp_path)]
    assert quality.main(["--check", *places]) == 1
    assert quality.main(["--table", *places]) == 0
    assert "| GPTQ | 4.31 | 30.00 | 0.1000 | 0.800 | 90 |" in document.read_text()
    assert quality.main(["--check", *places]) == 0


def test_every_row_is_a_configuration(quality: ModuleType) -> None:
    from tightpack import QuantizationConfig

    for options in quality.ROWS.values():
        QuantizationConfig(**options)
    assert not any("," in row for row in quality.ROWS)
