"""`make gpu-check` as far as it goes without a GPU: interpreted, compiled for Hopper, and its judgement."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
SCRIPT = FOLDER / "gpu_check.py"

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@pytest.fixture
def on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def run(*arguments):
    """In a process of its own: Triton is told before its import whether to interpret or to compile."""
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=500, check=False
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    done = run()
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "no GPU" in done.stderr
    assert "--interpret" in done.stderr


def test_every_kernel_interpreted(tmp_path):
    done = run("--interpret", "--output", str(tmp_path / "report.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    kernels = {line[:31].strip() for line in lines[2:-1]}
    assert {"W4A16 zero-points", "LLM.int8", "fp8 blocks", "add, norm to fp8", "experts W4A16"} <= kernels
    assert lines[-1].startswith("45 cases interpreted on the CPU, 0 wrong")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report == {"device": "CPU, interpreted", "cases": 45, "wrong": 0}


@pytest.mark.parametrize(
    ("only", "expected"),
    [("int4", {"HGMMA"}), ("fp8_block", {"QGMMA"}), ("rows", {""}), ("attention", {"HGMMA", "HMMA", ""})],
)
def test_kernels_compile_for_hopper(tmp_path, only, expected):
    """With the tensor cores meant for them, and without a register spilled."""
    done = run("--compile", "--guesses", "--only", only, "--output", str(tmp_path / "report.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    made = json.loads((tmp_path / "report.json").read_text())
    assert {each["kernel"]: each["spilled"] for each in made if each["spilled"]} == {}
    used = {
        next((name for name in ("HGMMA", "QGMMA", "IGMMA", "HMMA") if each["instructions"].get(name)), "")
        for each in made
    }
    assert used == expected


@pytest.mark.parametrize("scheme", ["bf16", "int4", "fp8", "int8"])
def test_whole_steps_on_random_weights(on_path, scheme):
    from gpu.random_model import tiny_llama
    from gpu.whole_step import measure

    results = measure(
        tiny_llama(), scheme, "bf16", torch.device("cpu"), streams=(1, 3), context=20, prompt=40, steps=2
    )
    assert [(each.what, each.rows) for each in results] == [("decode", 1), ("decode", 3), ("prefill", 40)]
    for each in results:
        assert each.tokens_per_second == pytest.approx(each.rows / each.seconds)
        assert each.gap_share is None
    linears = 2 * (128 * 128 * 2 + 64 * 128 * 2 + 3 * 128 * 256)
    share = {"bf16": 2, "int4": 0.5 + 2 / 128, "fp8": 1, "int8": 1}[scheme]
    assert results[0].weight_bytes == pytest.approx(linears * share + 2 * 128 * 128, rel=0.05)


def test_targets_are_judged(on_path):
    from gpu_check import judge

    def step(scheme, kv_cache, what, rows, speed):
        return {
            "scheme": scheme,
            "kv_cache": kv_cache,
            "what": what,
            "rows": rows,
            "seconds": rows / speed,
            "tokens_per_second": speed,
            "weight_bytes": 16e9,
            "gap_share": 0.01 if rows == 1 else None,
        }

    steps = [
        step("bf16", "bf16", "decode", 1, 160),
        step("bf16", "bf16", "decode", 64, 8000),
        step("bf16", "bf16", "prefill", 8192, 30000),
        step("int4", "bf16", "decode", 1, 420),
        step("int4", "bf16", "decode", 64, 7000),
        step("fp8", "bf16", "decode", 1, 250),
        step("fp8", "bf16", "decode", 64, 9000),
        step("fp8", "bf16", "prefill", 8192, 50000),
        step("fp8", "fp8", "decode", 64, 9500),
    ]
    ours = [{"kernel": "W4A16 zero-points", "shape": "1 x 2 x 3", "seconds": 1e-5}]
    peers = [{"kernel": "torch _weight_int4pack_mm", "shape": "1 x 2 x 3", "seconds": 2e-5}]
    judged = {
        each["target"]: (round(each["reached"], 2), each["met"]) for each in judge(steps, ours, peers, 3e12)
    }
    assert judged == {
        "bf16 decode, 1 stream: share of the bandwidth": (0.85, True),
        "W4A16 over bf16, 1 stream": (2.62, True),
        "W4A16 over bf16, 64 streams": (0.88, False),
        "FP8 over bf16, prefill of 8192": (1.67, True),
        "FP8 over bf16, 1 stream": (1.56, True),
        "FP8 over bf16 KV, 64 streams": (1.06, True),
        "gaps between kernels, 1 stream": (0.01, True),
        "W4A16 zero-points over torch _weight_int4pack_mm, 1 x 2 x 3": (2.0, True),
    }
