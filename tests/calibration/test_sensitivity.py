from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tightpack import QuantizationConfig
from tightpack.calibration.config import resolve
from tightpack.calibration.layer_walk import Walk
from tightpack.calibration.sensitivity import measure
from tightpack.calibration.sites import SITES
from tightpack.checkpoints.open import open_checkpoint

SEQUENCES = np.random.default_rng(0).integers(4, 96, (6, 32))


@pytest.fixture
def walk(tiny_model: Callable[[str], Path]) -> Walk:
    checkpoint = open_checkpoint(str(tiny_model("llama")))
    return Walk(checkpoint, 32, torch.float32, torch.device("cpu"))


def test_finer_schemes_cost_more_bytes_and_less_error(walk: Walk) -> None:
    recipe = resolve(QuantizationConfig(method="gptq", target_bits=5.0, group_size=32), walk.spec)
    measured = measure(walk, recipe, SEQUENCES)
    assert list(measured) == [(layer, site.name) for layer in range(3) for site in SITES]
    for found in measured.values():
        labels = [candidate.scheme.label for candidate in found]
        assert labels[-2:] == ["int8 asymmetric", "bf16"]
        assert sorted(found, key=lambda c: c.num_bytes) == sorted(found, key=lambda c: -c.error)
        assert found[-1].error == 0
