"""Random weights: every tensor of the spec, the same each time, and logits that a sampler can take."""

from __future__ import annotations

import numpy as np
import torch

from tightpack.on_load import quantize_on_load
from tightpack.torch_backend.random_checkpoint import random_checkpoint


def test_it_runs_like_a_model(llama, make_executor, make_request, sequencer):
    spec = llama.checkpoint.spec
    checkpoint = random_checkpoint(spec)
    for name, shape in spec.tensor_shapes().items():
        values = checkpoint.read(name).astype(np.float32)
        assert values.shape == shape
        np.testing.assert_array_equal(values, random_checkpoint(spec).read(name).astype(np.float32))
        assert np.std(values) > 0
    for variant in (checkpoint, quantize_on_load(checkpoint, "int4", llm_int8_threshold=6.0)):
        executor = make_executor(variant, dtype=torch.bfloat16)
        logits = executor.logits([sequencer(executor).chunk(make_request(llama.tokens(20)))])
        assert logits.isfinite().all()
        assert 0.1 < logits.std() < 10
