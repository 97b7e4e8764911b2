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


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", ["llama3"], indirect=True)
def test_logits(case, family, tmp_path_factory, monkeypatch, context):
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
    monkeypatch.setattr(model_runner, "kernels_fit", lambda *_: True)
    monkeypatch.setattr(model_runner, "make_context", lambda device: context)
    # The mixed step goes the eager way, the decode through static buffers.
    runner = ModelRunner(checkpoint, replace(options, static_decode=True))
    runner.allocate()
    assert runner._decode is not None
    found = job(runner, tokens)
    # Two ways of rounding to bfloat16, and with 8 bits of inputs or cache to steps of a hundredth.
    error = ((found - reference).norm() / reference.norm()).item()
    assert error < (0.1 if method or "kv_format" in changes else 0.03)
