"""`tightpack quantize` and `tightpack evaluate` from the outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tightpack.cli.main import app

SMALL = ["--samples", "6", "--sequence-length", "48", "--evaluation-samples", "3"]


def run(*arguments: object) -> tuple[int, str, BaseException | None]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output, result.exception


@pytest.fixture
def model(tiny_model: Callable[[str], Path]) -> Path:
    return tiny_model("llama")


def test_quantize_then_evaluate(model: Path, tiny_text: Path, tmp_path: Path) -> None:
    code, output, _ = run(
        "quantize", model, "-o", tmp_path / "out", "--method", "gptq", "--calibration", tiny_text, *SMALL
    )
    assert code == 0
    assert "int4 g64 asymmetric" in output
    assert "top-1 agreement" in output
    report = json.loads((tmp_path / "out" / "tightpack_report.json").read_text())
    code, output, _ = run(
        "evaluate",
        tmp_path / "out",
        *("--reference", model, "--text", tiny_text, "--skip=-3", "--sequence-length", "48"),
        *("--json", tmp_path / "quality.json"),
    )
    assert code == 0
    assert "KL(reference" in output
    quality = json.loads((tmp_path / "quality.json").read_text())
    assert quality["kl"] == pytest.approx(report["quality"]["kl"], rel=1e-3)
    assert quality["tokens"] == 3 * 47
    assert quality["arguments"]["skip"] == -3


def test_what_the_arithmetic_of_the_native_executor_costs(
    model: Path, tiny_text: Path, tmp_path: Path
) -> None:
    """Against the same weights in exact arithmetic; int8 inputs cost more than bfloat16 ones."""
    out = tmp_path / "out"
    run("quantize", model, "-o", out, "--method", "rtn", "--calibration", tiny_text, *SMALL)
    costs = {}
    for activation_dtype in ("auto", "bfloat16"):
        code, output, _ = run(
            "evaluate",
            out,
            *("--executor", "native", "--activation-dtype", activation_dtype),
            *("--text", tiny_text, "--samples", "3", "--sequence-length", "48"),
            *("--json", tmp_path / "quality.json"),
        )
        assert code == 0
        assert "KL(reference" in output
        costs[activation_dtype] = json.loads((tmp_path / "quality.json").read_text())["kl"]
    assert 0 < costs["bfloat16"] < costs["auto"] < 5e-3


def test_perplexity_alone(model: Path, tiny_text: Path) -> None:
    code, output, _ = run("evaluate", model, "--text", tiny_text, "--samples", "2", "--sequence-length", "32")
    assert code == 0
    assert "perplexity" in output
    assert "KL" not in output


def test_a_text_shorter_than_asked_for(model: Path, tiny_text: Path) -> None:
    _, _, error = run("evaluate", model, "--text", tiny_text, "--samples", "90", "--sequence-length", "48")
    assert "the text has 1,200 tokens, 25 sequences of 48, and 90 x 48 were asked for" in str(error)


def test_vocabularies_that_differ(model: Path, tiny_text: Path) -> None:
    _, _, error = run("evaluate", model, "--reference", "smollm2-135m", "--text", tiny_text)
    assert "cannot be compared" in str(error)


def test_contradictions_are_said_before_anything_is_read(tmp_path: Path) -> None:
    _, _, error = run("quantize", "no-such-model", "-o", tmp_path / "out", "--method", "fp8", "--bits", "4")
    assert "method='fp8' has 8 bits" in str(error)


def test_help_has_examples() -> None:
    code, output, _ = run("quantize", "--help")
    assert code == 0
    assert "tightpack quantize smollm2-135m" in output


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_leaves_a_run_that_resumes(model: Path, tiny_text: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tightpack.cli.main",
        "quantize",
        str(model),
        "-o",
        str(tmp_path / "out"),
    ]
    command += ["--method", "gptq", "--calibration", str(tiny_text), "--samples", "20", *SMALL[2:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    state = tmp_path / "out.partial" / "state.json"
    deadline = time.monotonic() + 60
    while not state.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("it was done before the signal came")
    assert process.returncode == 130
    assert "--resume goes on" in messages
    assert not (tmp_path / "out").exists()
    resumed = subprocess.run([*command, "--resume"], capture_output=True, text=True, env=environment)
    assert resumed.returncode == 0, resumed.stderr
    assert (tmp_path / "out" / "config.json").is_file()
    assert not (tmp_path / "out.partial").exists()


def test_smollm2_rounded(tmp_path: Path) -> None:
    """The bundled model, rounded to nearest without calibration, and measured on a few sentences."""
    text = tmp_path / "text.txt"
    text.write_text("The river runs through the old town and then to the sea. " * 12)
    code, output, _ = run(
        "quantize",
        *("smollm2-135m", "-o", tmp_path / "out", "--method", "rtn", "--group-size", "64", "--max-kl", "2"),
        *("--calibration", text, "--sequence-length", "64", "--evaluation-samples", "2"),
    )
    assert code == 0, output
    report = json.loads((tmp_path / "out" / "tightpack_report.json").read_text())
    assert report["bits_per_weight"] == pytest.approx(4.3125)
    assert 0 < report["quality"]["kl"] < 2
    assert report["smoke_test"]["continuation"]
