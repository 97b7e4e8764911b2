"""The C++ tests of the kernels, built and run under sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def run(*command: str | Path) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def build(directory: Path, sanitizers: str, target: str, *options: str) -> None:
    compiler = os.environ.get("CXX") or "c++"
    for tool in ("cmake", compiler):
        if shutil.which(tool.split()[0]) is None:
            pytest.skip(f"{tool} is not installed")
    run(
        *("cmake", "-S", REPOSITORY, "-B", directory),
        # -O1 keeps the vectorizer off: what is looked for here lies in the source, and the build is short.
        *("-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1 -g1"),
        "-DTIGHTPACK_PYTHON_MODULE=OFF",
        "-DTIGHTPACK_TESTS=ON",
        f"-DTIGHTPACK_SANITIZE={sanitizers}",
        *options,
    )
    run("cmake", "--build", directory, "--parallel", "2", "--target", target)


def test_kernels_are_clean_under_sanitizers(tmp_path: Path) -> None:
    build(tmp_path, "address,undefined", "all")
    for part in ("calibration", "kernel", "linear", "row_kernel", "concurrency"):
        assert "passed" in run(tmp_path / f"{part}_tests")


def test_threads_share_nothing_without_a_barrier(tmp_path: Path) -> None:
    # The threads are the same whatever the kernels; the portable ones are the quickest to build.
    build(tmp_path, "thread", "concurrency_tests", "-DTIGHTPACK_TARGETS_X86_64=OFF")
    assert "passed" in run(tmp_path / "concurrency_tests")
