from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import importlib, pkgutil, sys
packages = ("tightpack.scheduling", "tightpack.serving_loop", "tightpack.requests", "tightpack.latency")
count = 0
for package in packages:
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        importlib.import_module(module.name)
        count += 1
heavy = {"torch", "numpy", "transformers", "pydantic", "fastapi"} & set(sys.modules)
print(count, sorted(heavy))
"""


def test_the_scheduler_and_its_loop_import_neither_torch_nor_numpy():
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    count, heavy = run.stdout.split(" ", 1)
    assert int(count) > 20
    assert heavy.strip() == "[]"
