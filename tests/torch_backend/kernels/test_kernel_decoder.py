"""The whole decoder over the Triton kernels against the same over PyTorch's operators."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("tightpack.torch_backend.paged_layer", reason="the kernels are not there")

from tightpack.on_load import quantize_on_load
from tightpack.schemes.quantized import KVCacheFormat
from tightpack.torch_backend import model_runner
from tightpack.torch_backend.model_runner import ModelRunner, RunnerOptions
from tightpack.torch_backend.step_inputs import Piece

OPTIONS = RunnerOptions(
    dtype=torch.bfloat16,
    kv_format=KVCacheFormat(precision="bf16"),
    device=torch.device("cpu"),
    block_size=16,
    num_blocks=16,
    max_num_seqs=4,
    max_num_batched_tokens=64,
    max_model_len=64,
    static_decode=False,
)
CASES = {
    "qwen3": ("qwen3", None, {}),
    "gemma3": ("gemma3", None, {"kv_format": KVCacheFormat(precision="fp8")}),
    "int4": ("llama3", "int4", {"kv_format": KVCacheFormat(precision="int8")}),
    "fp8": ("llama3", "fp8", {}),
    "w8a8 experts": ("mixtral", "w8a8", {}),
}


def job(runner, tokens):
    """A prompt beside a decode, then both decode: logits of all rows."""
    found = []
    with torch.inference_mode():
        for pieces in (
            [Piece(tuple(tokens[:1]), 0, (5,)), Piece(tuple(tokens[2:20]), 0, (3, 9))],
            [Piece((tokens[1],), 1, (5,)), Piece((tokens[20],), 18, (3, 9))],
        ):
            computed = runner.forward(pieces)
            rows = [s + i for s, p in zip(computed.starts, pieces, strict=True) for i in range(p.num_tokens)]
            found.append(runner.logits(rows).clone())
    return torch.cat(found)


@pytest.fixture
def with_kernels(monkeypatch, context):
    """Runners that are made from here on have the kernels."""

    def use():
        monkeypatch.setattr(model_runner, "kernels_fit", lambda *_: True)
        monkeypatch.setattr(model_runner, "make_context", lambda device: context)

    return use


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", ["llama3"], indirect=True)
def test_logits(case, family, tmp_path_factory, with_kernels):
    import sys

    build_family = sys.modules[type(family).__module__].build_family
    name, method, changes = CASES[case]
    checkpoint = build_family(name, tmp_path_factory.mktemp(name)).checkpoint
    if method is not None:
        checkpoint = quantize_on_load(checkpoint, method, llm_int8_threshold=6.0)
    options = replace(OPTIONS, **changes)
    tokens = family.tokens(30)
    plain = ModelRunner(checkpoint, options)
    plain.allocate()
    reference = job(plain, tokens)
    with_kernels()
    # The mixed step goes the eager way, the decode through static buffers.
    runner = ModelRunner(checkpoint, replace(options, static_decode=True))
    runner.allocate()
    assert runner._decode is not None
    found = job(runner, tokens)
    # Two ways of rounding to bfloat16, and with 8 bits of inputs or cache to steps of a hundredth.
    error = ((found - reference).norm() / reference.norm()).item()
    assert error < (0.1 if method or "kv_format" in changes else 0.03)


@pytest.mark.parametrize("family", ["llama3"], indirect=True)
def test_profiling_leaves_no_trace(family, with_kernels, monkeypatch):
    """Its cache is smaller than the one that is served from."""
    with_kernels()
    monkeypatch.setattr(model_runner, "peak_bytes", lambda run, device: run() or 1)
    runner = ModelRunner(family.checkpoint, replace(OPTIONS, max_num_seqs=1, max_num_batched_tokens=16))
    assert runner._profiled() == 1
    runner.allocate()
    job(runner, family.tokens(30))
    written = runner._cache.pool(0).flatten(1).any(1).nonzero().flatten()
    assert written.tolist() == [3, 5, 9]


class StaticInputs:
    """A TensorSource of quantized linears, all with one static input scale."""

    def __init__(self, source, scale):
        self.source, self.scale = source, scale
        self.infos, self.read = source.infos, source.read

    def read_linear(self, name):
        linear = self.source.read_linear(name)
        activation = linear.activation and replace(linear.activation, scale=self.scale)
        return replace(linear, activation=activation)


@pytest.mark.parametrize("family", ["llama3"], indirect=True)
def test_saturated_inputs_are_no_longer_rounded_by_the_kernels_before(family, with_kernels, monkeypatch):
    checkpoint = quantize_on_load(family.checkpoint, "w8a8", llm_int8_threshold=6.0)
    static = replace(checkpoint, tensors=StaticInputs(checkpoint.tensors, 1e-4))
    tokens = family.tokens(30)
    plain = ModelRunner(quantize_on_load(family.checkpoint, "int8", llm_int8_threshold=6.0), OPTIONS)
    plain.allocate()
    reference = job(plain, tokens)
    with_kernels()
    monkeypatch.setattr(model_runner, "_STEPS_A_POLL", 2)
    runner = ModelRunner(static, replace(OPTIONS, static_decode=True))
    runner.allocate()
    runner._guard._fewest_rows = 1
    clipped = job(runner, tokens)
    assert runner.unrounded == ()
    job(runner, tokens)
    # A down projection's inputs are small as long as those of gate and up are clipped.
    assert len(runner.unrounded) == 3 * family.checkpoint.spec.num_layers
    found = job(runner, tokens)
    assert len(runner.unrounded) == 4 * family.checkpoint.spec.num_layers
    assert (clipped - reference).norm() > 0.3 * reference.norm()
    assert (found - reference).norm() < 0.03 * reference.norm()
