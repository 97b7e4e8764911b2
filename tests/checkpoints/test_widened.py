from __future__ import annotations

import ml_dtypes
import numpy as np

from tightpack.checkpoints.open import open_checkpoint
from tightpack.checkpoints.widened import widened
from tightpack.schemes.quantized import DenseWeight


def test_a_quantized_file_becomes_dense_and_keeps_its_values() -> None:
    stored = open_checkpoint("smollm2-135m")
    dense = widened(stored)
    assert dense.quantization is None
    name = "model.layers.3.self_attn.q_proj"
    linear = dense.read_linear(name)
    assert isinstance(linear.weight, DenseWeight)
    found = dense.read(f"{name}.weight")
    assert found.dtype == ml_dtypes.bfloat16
    expected = stored.read(f"{name}.weight").astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(found.view(np.uint16), expected.view(np.uint16))
    info = dense.tensors.infos[f"{name}.weight"]
    assert (info.precision, info.num_bytes) == ("bf16", 2 * expected.size)


def test_what_is_not_quantized_stays_as_it_is(tiny_model) -> None:
    checkpoint = open_checkpoint(str(tiny_model("llama")))
    assert widened(checkpoint) is checkpoint
