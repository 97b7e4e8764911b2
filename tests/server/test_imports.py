"""Serving on a CPU imports no PyTorch."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import tightpack.server


def test_no_pytorch() -> None:
    names = [f"tightpack.server.{module.name}" for module in pkgutil.iter_modules(tightpack.server.__path__)]
    assert len(names) > 10
    code = (
        f"import sys, {', '.join(names)}\nprint([n for n in ('torch', 'transformers') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
