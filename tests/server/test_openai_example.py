"""examples/openai_client.py against a real server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "openai_client.py"


def test_the_example_streams_an_answer(server: Any) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLE, f"{server.url}/v1"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
