"""Reading, casting and packing weights."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from tightpack.torch_backend.arrays import as_tensor
from tightpack.torch_backend.linear import Linear
from tightpack.torch_backend.weights import load_weights

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("numpy_dtype", "dtype"),
    [(np.float32, torch.float32), (np.float16, torch.float16), (ml_dtypes.bfloat16, torch.bfloat16)],
)
def test_a_read_only_array_becomes_a_tensor_over_the_same_memory(numpy_dtype, dtype, recwarn):
    array = np.linspace(-3, 3, 24).astype(numpy_dtype).reshape(4, 6)
    array.flags.writeable = False
    tensor = as_tensor(array)
    assert tensor.dtype == dtype
    assert tensor.data_ptr() == array.ctypes.data
    assert tensor.float().tolist() == array.astype(np.float32).tolist()
    assert not recwarn.list


def test_a_tied_head_is_the_embedding(family):
    weights = load_weights(family.checkpoint, torch.float32, CPU)
    tied = family.checkpoint.spec.tied_embeddings
    assert (weights.head.weight is weights.embedding) == tied


def test_weights_are_cast_once(llama):
    weights = load_weights(llama.checkpoint, torch.bfloat16, CPU)
    stored = torch.from_numpy(np.array(llama.checkpoint.read("model.embed_tokens.weight")))
    assert torch.equal(weights.embedding, stored.bfloat16())


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("biased", [False, True])
def test_a_linear_is_a_linear_in_every_layout(rows, dtype, biased):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 96, generator=generator).to(dtype)
    weight = torch.randn(160, 96, generator=generator).to(dtype)
    bias = torch.randn(160, generator=generator).to(dtype) if biased else None
    exact = torch.nn.functional.linear(x.double(), weight.double(), bias.double() if biased else None)
    with torch.inference_mode():
        ours = Linear(weight, bias)(x)
    assert ours.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(ours.double(), exact, rtol=tolerance, atol=40 * tolerance)
