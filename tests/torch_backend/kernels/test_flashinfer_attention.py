"""FlashInfer's attention behind the executor's seam, with a stand-in that takes what FlashInfer 0.6 takes."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tightpack.schemes.quantized import KVCacheFormat
from tightpack.torch_backend import attention_choice, model_runner
from tightpack.torch_backend.attention_choice import AttentionShape, choose_attention, trial_pieces
from tightpack.torch_backend.flashinfer_attention import FlashInferAttention
from tightpack.torch_backend.model_runner import ModelRunner, RunnerOptions
from tightpack.torch_backend.step_inputs import Piece

OPTIONS = RunnerOptions(
    dtype=torch.bfloat16,
    kv_format=KVCacheFormat(precision="bf16"),
    device=torch.device("cpu"),
    block_size=16,
    num_blocks=16,
    max_num_seqs=3,
    max_num_batched_tokens=24,
    max_model_len=64,
    static_decode=False,
)


class Wrapper:
    """BatchPrefillWithPagedKVCacheWrapper: the arguments, names and checks of 0.6.18, computed plainly."""

    runs = 0
    wrong = 1.0

    def __init__(
        self, float_workspace_buffer, kv_layout="NHD", use_cuda_graph=False, backend="auto", jit_args=None
    ):
        assert float_workspace_buffer.dtype == torch.uint8
        assert kv_layout == "HND", "the stand-in knows the layout of this cache alone"
        assert not use_cuda_graph

    def plan(
        self,
        qo_indptr,
        paged_kv_indptr,
        paged_kv_indices,
        paged_kv_last_page_len,
        num_qo_heads,
        num_kv_heads,
        head_dim_qk,
        page_size,
        head_dim_vo=None,
        causal=False,
        sm_scale=None,
        window_left=-1,
        logits_soft_cap=None,
        q_data_type="float16",
        kv_data_type=None,
    ):
        arrays = (qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len)
        assert all(array.dtype == torch.int32 and array.dim() == 1 for array in arrays)
        assert len(qo_indptr) == len(paged_kv_indptr) == len(paged_kv_last_page_len) + 1
        assert len(paged_kv_indices) == paged_kv_indptr[-1]
        assert ((paged_kv_last_page_len >= 1) & (paged_kv_last_page_len <= page_size)).all()
        assert num_qo_heads % num_kv_heads == 0
        self.starts, self.page_starts, self.pages, self.last = (array.tolist() for array in arrays)
        self.heads = (num_qo_heads, num_kv_heads, head_dim_qk, page_size)
        self.causal, self.window = causal, window_left
        self.scale = head_dim_qk**-0.5 if sm_scale is None else sm_scale
        self.cap = logits_soft_cap
        self.types = (q_data_type, q_data_type if kv_data_type is None else kv_data_type)

    def run(self, q, paged_kv_cache, *args, k_scale=None, v_scale=None, out=None, return_lse=False):
        heads, kv_heads, width, size = self.heads
        assert (q.dtype, paged_kv_cache.dtype) == self.types
        assert q.shape == (self.starts[-1], heads, width)
        assert paged_kv_cache.shape[1:] == (2, kv_heads, size, width)
        assert out.shape == q.shape
        assert out.dtype == q.dtype
        for request in range(len(self.last)):
            pages = self.pages[self.page_starts[request] : self.page_starts[request + 1]]
            length = (len(pages) - 1) * size + self.last[request]
            both = paged_kv_cache[pages].float().permute(1, 2, 0, 3, 4).reshape(2, kv_heads, -1, width)
            keys, values = both[:, :, :length].repeat_interleave(heads // kv_heads, 1)
            rows = slice(self.starts[request], self.starts[request + 1])
            queries = q[rows].float().transpose(0, 1)
            scores = queries @ keys.transpose(1, 2) * self.scale * (1.0 if k_scale is None else k_scale)
            if self.cap:
                scores = self.cap * torch.tanh(scores / self.cap)
            at = torch.arange(length - queries.shape[1], length)[:, None]
            place = torch.arange(length)
            hidden = (place > at) & self.causal
            if self.window >= 0:
                hidden |= place < at - self.window
            mixed = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ values
            out[rows] = mixed.transpose(0, 1).to(q.dtype)
        Wrapper.runs += 1
        return out.mul_((1.0 if v_scale is None else v_scale) * Wrapper.wrong)


@pytest.fixture
def flashinfer(monkeypatch):
    library = ModuleType("flashinfer")
    library.__spec__ = ModuleSpec("flashinfer", None)
    library.BatchPrefillWithPagedKVCacheWrapper = Wrapper
    monkeypatch.setitem(sys.modules, "flashinfer", library)
    monkeypatch.setattr(attention_choice, "_HEAD_DIMS", (16, 32, 64, 128, 256))  # those of the tiny models
    monkeypatch.setattr(Wrapper, "runs", 0)


@pytest.fixture
def times(monkeypatch):
    """What trials find FlashInfer and Triton to take, in seconds."""
    found = {"flashinfer": 1.0, "triton": 2.0}

    def seconds(run, device):
        theirs = isinstance(run.func.__self__, FlashInferAttention)
        return found["flashinfer" if theirs else "triton"]

    monkeypatch.setattr(attention_choice, "device_seconds", seconds)
    return found


@pytest.fixture
def with_kernels(monkeypatch, context):
    monkeypatch.setattr(model_runner, "kernels_fit", lambda *_: True)
    monkeypatch.setattr(model_runner, "make_context", lambda device: context)


def shape_of(spec, precision="bf16", **changes):
    given = {
        "spec": spec,
        "block_size": 16,
        "device": torch.device("cpu"),
        "dtype": torch.bfloat16,
        "kv_format": KVCacheFormat(precision=precision),
        "longest": 40,
        "most_tokens": 24,
    }
    return AttentionShape(**{**given, **changes})


def job(runner, tokens):
    """A prompt beside a decode, a chunk of a later prompt, then both decode: logits of all rows."""
    found = []
    with torch.inference_mode():
        for pieces in (
            [Piece(tuple(tokens[:1]), 0, (5,)), Piece(tuple(tokens[2:20]), 0, (3, 9))],
            [Piece(tuple(tokens[20:24]), 18, (3, 9))],
            [Piece((tokens[1],), 1, (5,)), Piece((tokens[24],), 22, (3, 9))],
        ):
            computed = runner.forward(pieces)
            rows = [s + i for s, p in zip(computed.starts, pieces, strict=True) for i in range(p.num_tokens)]
            found.append(runner.logits(rows).clone())
    return torch.cat(found)


@pytest.mark.parametrize("recorded", [False, True], ids=["eager", "pieces"])
@pytest.mark.parametrize(
    ("family", "precision", "scaled"),
    [("llama3", "bf16", False), ("gemma3", "fp8", False), ("mistral", "fp8", True)],
    indirect=["family"],
)
def test_logits(family, precision, scaled, recorded, flashinfer, times, with_kernels):
    """The decoder over FlashInfer is the one over Triton: windows, scales of the cache, recorded pieces."""
    scales = (0.02,) * family.checkpoint.spec.num_layers if scaled else ()
    kv_format = KVCacheFormat(precision=precision, key_scales=scales, value_scales=scales)
    options = replace(OPTIONS, kv_format=kv_format, attention_backend="triton")
    if recorded:
        options = replace(options, static_decode=True, prompt_graph_tokens=24)
    tokens, logits = family.tokens(30), []
    for backend in ("triton", "flashinfer"):
        runner = ModelRunner(family.checkpoint, replace(options, attention_backend=backend))
        runner.allocate()
        before = Wrapper.runs
        logits.append(job(runner, tokens))
        steps = 0 if backend == "triton" else 2 if recorded else 3
        assert Wrapper.runs - before == steps * family.checkpoint.spec.num_layers
    error = ((logits[1] - logits[0]).norm() / logits[0].norm()).item()
    assert error < 0.03


@pytest.mark.parametrize("family", ["gemma3"], indirect=True)
def test_soft_caps(family, flashinfer, times, context):
    """The trial compares the results of both."""
    spec = replace(family.checkpoint.spec, attention_softcap=0.7)
    assert isinstance(choose_attention(shape_of(spec), context, "flashinfer"), FlashInferAttention)


@pytest.mark.parametrize("family", ["llama3"], indirect=True)
class TestChoice:
    def test_the_faster_by_kind_of_step(self, family, flashinfer, times, context, monkeypatch, caplog):
        caplog.set_level(logging.INFO)
        compare = attention_choice.compare

        def slower_beside_decodes(ours, theirs, pieces, shape):
            times["flashinfer"] = 1.0 if len(pieces) == 1 else 3.0
            return compare(ours, theirs, pieces, shape)

        monkeypatch.setattr(attention_choice, "compare", slower_beside_decodes)
        chosen = choose_attention(shape_of(family.checkpoint.spec), context, "auto")
        assert chosen.kinds == {"prompts"}
        assert "in steps of prompts is FlashInfer's" in caplog.text
        assert "in steps of prompts and decodes is Triton's" in caplog.text

    def test_triton_where_it_is_faster(self, family, flashinfer, times, context):
        times["triton"] = 0.5
        chosen = choose_attention(shape_of(family.checkpoint.spec), context, "auto")
        assert not isinstance(chosen, FlashInferAttention)

    def test_wrong_numbers_are_not_served(self, family, flashinfer, times, context, monkeypatch, caplog):
        caplog.set_level(logging.INFO)
        monkeypatch.setattr(Wrapper, "wrong", 1.1)
        chosen = choose_attention(shape_of(family.checkpoint.spec), context, "auto")
        assert not isinstance(chosen, FlashInferAttention)
        assert "10.0% off the Triton kernel's" in caplog.text
        with pytest.raises(ValueError, match=r"attention_backend='flashinfer' cannot be had.*off the Triton"):
            choose_attention(shape_of(family.checkpoint.spec), context, "flashinfer")

    def test_not_installed(self, family, context, monkeypatch, caplog):
        caplog.set_level(logging.INFO)
        monkeypatch.setattr(attention_choice.importlib.util, "find_spec", lambda name: None)
        shape = shape_of(family.checkpoint.spec)
        assert not isinstance(choose_attention(shape, context, "auto"), FlashInferAttention)
        assert "not installed" in caplog.text
        with pytest.raises(ValueError, match=r"FlashInfer is not installed.*use auto or triton"):
            choose_attention(shape, context, "flashinfer")

    @pytest.mark.parametrize(("precision", "head_dim"), [("int8", 64), ("bf16", 80)])
    def test_what_it_does_not_take(self, family, flashinfer, context, precision, head_dim):
        spec = replace(family.checkpoint.spec, head_dim=head_dim)
        with pytest.raises(ValueError, match="FlashInfer takes"):
            choose_attention(shape_of(spec, precision), context, "flashinfer")

    @pytest.mark.parametrize("backend", ["triton", "flashinfer"])
    def test_needs_a_gpu(self, family, backend):
        with pytest.raises(ValueError, match=f"attention_backend='{backend}' needs CUDA"):
            ModelRunner(family.checkpoint, replace(OPTIONS, attention_backend=backend))

    @pytest.mark.parametrize("kind", ["prompts", "mixed"])
    @pytest.mark.parametrize(("longest", "most_tokens"), [(4, 2), (64, 64), (4096, 2048)])
    def test_trials_are_steps_that_can_be(self, family, kind, longest, most_tokens):
        pieces = trial_pieces(
            kind, shape_of(family.checkpoint.spec, longest=longest, most_tokens=most_tokens)
        )
        assert sum(piece.num_tokens for piece in pieces) <= most_tokens
        assert max(piece.first_token + piece.num_tokens for piece in pieces) <= longest
        blocks = [block for piece in pieces for block in piece.block_table]
        assert len(set(blocks)) == len(blocks)
        assert (min(piece.num_tokens for piece in pieces) == 1) == (kind == "mixed")


def test_gpu_check_times_it_on_the_shapes_of_ours(flashinfer, context, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[3] / "benchmarks"))
    from gpu.cases import TINY, all_cases
    from gpu.flashinfer_peer import flashinfer_cases

    cases = list(flashinfer_cases(TINY, torch.device("cpu")))
    ours = {(case.kernel, case.shape) for case in all_cases(TINY, context)}
    assert {case.kernel for case in cases} == {"FlashInfer, bf16 cache", "FlashInfer, fp8 cache"}
    assert {(case.kernel.replace("FlashInfer", "attention"), case.shape) for case in cases} <= ours
    assert all(case.run().isfinite().all() for case in cases)
