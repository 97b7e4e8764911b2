"""The kernels under Triton's interpreter, which tests/conftest.py chooses."""

from __future__ import annotations

import importlib.util

import pytest
import torch

collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["test_*.py"]


@pytest.fixture(scope="session")
def context():
    from tightpack.torch_backend.kernels.context import INTERPRETED, KernelContext

    assert INTERPRETED, "something imported Triton before TRITON_INTERPRET was set"
    return KernelContext(torch.device("cpu"))


@pytest.fixture(scope="session")
def random_int_weight():
    """(outputs, inputs, group, bits, kind) to an IntWeight; kind: symmetric, zeros, minimums or desc_act."""
    import numpy as np

    from tightpack.schemes.quantized import IntWeight

    def make(outputs, inputs, group, bits=4, kind="symmetric", seed=0):
        rng = np.random.default_rng(seed)
        groups = -(-inputs // group)
        shape = (outputs, groups)
        order = None
        if kind == "desc_act":
            order = rng.permutation(np.arange(inputs) // group).astype(np.int32)
        unsigned = kind != "symmetric"
        low, high = (0, 2**bits) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1))
        scales = rng.uniform(0.01, 0.03, shape).astype(np.float16).astype(np.float32)
        minimums = rng.normal(0, 0.1, shape).astype(np.float16).astype(np.float32)
        return IntWeight(
            codes=rng.integers(low, high, (outputs, inputs)).astype(np.uint8 if unsigned else np.int8),
            scales=scales,
            zeros=rng.integers(0, high, shape).astype(np.uint8) if kind in ("zeros", "desc_act") else None,
            bits=bits,
            group_size=group,
            group_of_input=order,
            minimums=minimums if kind == "minimums" else None,
        )

    return make


@pytest.fixture(scope="session")
def assert_product():
    """y [rows, outputs] against x W^T (+ bias) in float64, relative to each row's largest number."""

    def check(y, x, weight, bias=None):
        exact = x.double() @ torch.as_tensor(weight).double().t()
        if bias is not None:
            exact = exact + bias.double()
        largest = exact.abs().amax(1, keepdim=True).clamp_min(1e-30)
        tolerance = {torch.float32: 1e-5, torch.bfloat16: 1.5e-2, torch.float16: 1e-3}[y.dtype]
        assert ((y.double() - exact).abs() / largest).max() < tolerance

    return check
