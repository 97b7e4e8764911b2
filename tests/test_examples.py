"""The examples run as they stand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def test_offline() -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "offline.py"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "The capital of France is Paris" in done.stdout
    assert done.stdout.count("first token after") == 3
