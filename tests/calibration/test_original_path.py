from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tightpack.calibration.layer_linears import original_linears
from tightpack.calibration.layer_walk import Walk
from tightpack.calibration.original_path import original_inputs
from tightpack.calibration.sites import SITES
from tightpack.checkpoints.open import open_checkpoint


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_sites_read_what_the_layer_gives_them(family: str, tiny_model: Callable[[str], Path]) -> None:
    """The layer's own forward pass, its linears watched, is the oracle."""
    walk = Walk(open_checkpoint(str(tiny_model(family))), 16, torch.float32, torch.device("cpu"))
    sequences = np.random.default_rng(3).integers(0, 90, (5, 16))
    with torch.inference_mode():
        before = walk.embed(sequences)
        seen: dict[str, torch.Tensor] = {}
        watched = {}
        for name, apply in original_linears(walk, 1).items():

            def watch(x: torch.Tensor, name: str = name, apply: object = apply) -> torch.Tensor:
                seen[name] = x
                return apply(x)  # type: ignore[operator]

            watched[name] = watch
        after = walk.layer(1).forward(before, watched)
        walked = before.clone()
        inputs = [given.clone() for given in original_inputs(walk, 1, walked)]
    assert len(inputs) == len(SITES)
    for site, found in zip(SITES, inputs, strict=True):
        torch.testing.assert_close(found, seen[site.linears[0]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(walked, after, rtol=1e-4, atol=1e-5)
