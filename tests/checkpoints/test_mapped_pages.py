"""A mapped file takes no memory once it is not needed, and can be read again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tightpack.checkpoints.checkpoint import Checkpoint
from tightpack.checkpoints.open import open_checkpoint
from tightpack.on_load import quantize_on_load

SMAPS = Path("/proc/self/smaps")


def resident(suffix: str) -> int:
    """KiB of the mapped files whose names end so."""
    total, counted = 0, False
    for line in SMAPS.read_text().splitlines():
        head, *rest = line.split()
        if "-" in head and not head.endswith(":"):
            counted = bool(rest) and line.endswith(suffix)
        elif head == "Rss:" and counted:
            total += int(rest[0])
    return total


def check(checkpoint: Checkpoint, suffix: str) -> None:
    name = "model.embed_tokens.weight"
    before = np.array(checkpoint.read(name))
    assert resident(suffix) > 8
    checkpoint.release_pages()
    assert resident(suffix) == 0
    np.testing.assert_array_equal(checkpoint.read(name), before)


@pytest.mark.skipif(not SMAPS.exists(), reason="the system does not say what is resident")
def test_released_pages(tiny_model, tmp_path: Path) -> None:
    check(open_checkpoint("smollm2-135m"), ".gguf")
    # A copy: other tests keep theirs open.
    copied = shutil.copytree(tiny_model("llama"), tmp_path / "copied")
    directory = open_checkpoint(str(copied))
    check(directory, f"{copied}/model.safetensors")
    check(quantize_on_load(directory, "int8", llm_int8_threshold=6.0), f"{copied}/model.safetensors")
