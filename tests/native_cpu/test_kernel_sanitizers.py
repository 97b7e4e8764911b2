"""The C++ tests of the kernels, built and run under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def run(*command: str | Path) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def test_kernels_are_clean_under_sanitizers(tmp_path: Path) -> None:
    compiler = os.environ.get("CXX") or "c++"
    for tool in ("cmake", compiler):
        if shutil.which(tool.split()[0]) is None:
            pytest.skip(f"{tool} is not installed")
    run(
        *("cmake", "-S", REPOSITORY, "-B", tmp_path),
        # -O1 keeps the vectorizer off: what is looked for here lies in the source, and the build is short.
        *("-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1 -g1"),
        "-DTIGHTPACK_PYTHON_MODULE=OFF",
        "-DTIGHTPACK_TESTS=ON",
        "-DTIGHTPACK_SANITIZE=address,undefined",
    )
    run("cmake", "--build", tmp_path, "--parallel", "2")
    for test in ("kernel_tests", "linear_tests"):
        assert "passed on:" in run(tmp_path / test)
