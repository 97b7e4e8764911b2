"""What "auto" becomes, and how many blocks fit."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tightpack.architectures import kv_memory
from tightpack.architectures.kv_memory import describe
from tightpack.checkpoints.precision import resolve_kv_cache
from tightpack.schemes.quantized import KVCacheFormat
from tightpack.torch_backend import sizing
from tightpack.torch_backend.rounded_kv_cache import unrounded


@pytest.fixture
def count(llama, monkeypatch):
    """default_num_blocks on a machine with so much free memory; llama's KV: 3 layers, 2 heads of 16."""

    def blocks(free_bytes, **options):
        monkeypatch.setattr(kv_memory, "free_memory", lambda: free_bytes)
        defaults = {
            "block_size": 16,
            "dtype": torch.float32,
            "device": torch.device("cpu"),
            "max_num_seqs": 4,
            "max_num_batched_tokens": 64,
            "max_model_len": 250,
        }
        given = defaults | options
        given.setdefault("kv_format", unrounded(given["dtype"]))
        return sizing.default_num_blocks(llama.checkpoint.spec, **given)

    return blocks


def test_a_block_holds_keys_and_values_of_all_layers(llama):
    spec = llama.checkpoint.spec
    for dtype in (torch.float32, torch.bfloat16):
        assert kv_memory.kv_block_bytes(spec, 16, unrounded(dtype)) == 2 * 3 * 2 * 16 * 16 * dtype.itemsize


def test_eight_bits_a_number_and_four_bytes_a_dynamic_scale(llama, count):
    spec, bare = llama.checkpoint.spec, 2 * 3 * 2 * 16 * 16
    assert kv_memory.kv_block_bytes(spec, 16, KVCacheFormat(precision="fp8")) == bare
    assert kv_memory.kv_block_bytes(spec, 16, KVCacheFormat(precision="int8")) == bare + 2 * 3 * 2 * 16 * 4
    calibrated = KVCacheFormat(precision="int8", key_scales=(1.0,) * 3, value_scales=(1.0,) * 3)
    assert kv_memory.kv_block_bytes(spec, 16, calibrated) == bare
    assert count(4 * 12288 * 20, dtype=torch.bfloat16, kv_format=KVCacheFormat(precision="fp8")) == 64
    assert count(4 * 3072 * 63, max_model_len=16, max_num_seqs=99, kv_format=calibrated) == 63


def test_no_more_blocks_than_the_requests_can_use(count):
    assert count(2**40) == 4 * 16


def test_a_quarter_of_free_memory_on_a_cpu(count):
    assert count(4 * 12288 * 20) == 20
    assert count(4 * 12288 * 20, dtype=torch.bfloat16) == 40


def test_four_gibibytes_at_the_most_on_a_cpu(count):
    assert count(2**50, max_num_seqs=10**6) == 2**32 // 12288


def test_one_request_must_fit(count):
    assert count(4 * 12288 * 16) == 16
    with pytest.raises(MemoryError, match=r"max_model_len=250.*lower max_model_len"):
        count(4 * 12288 * 15)


def test_cuda_leaves_what_is_in_use_and_the_share_that_is_not_ours(count, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60 * 2**20, 100 * 2**20))
    cuda = {"device": torch.device("cuda"), "max_num_seqs": 10**4, "max_num_batched_tokens": 1}
    monkeypatch.setattr(sizing, "estimated_step_bytes", lambda *_: 10 * 2**20)
    assert count(0, **cuda, gpu_memory_utilization=0.9) == 40 * 2**20 // 12288
    with pytest.raises(MemoryError, match="gpu_memory_utilization"):
        count(0, **cuda, gpu_memory_utilization=0.5)


def test_names_of_dtypes(llama):
    for name, dtype in {"bfloat16": torch.bfloat16, "half": torch.float16, "float32": torch.float32}.items():
        assert sizing.resolve_dtype(name, llama.checkpoint) == dtype
    assert sizing.resolve_dtype(torch.float16, llama.checkpoint) == torch.float16
    with pytest.raises(ValueError, match="'int9' is not known; use auto, bfloat16"):
        sizing.resolve_dtype("int9", llama.checkpoint)


def test_what_a_cache_name_means(llama):
    def meant(name, **changes):
        return resolve_kv_cache(name, replace(llama.checkpoint, **changes), "bf16")

    calibrated = KVCacheFormat(precision="fp8", key_scales=(1.0,) * 3, value_scales=(2.0,) * 3)
    assert describe(meant("auto")) == "bfloat16"
    assert describe(meant("float32")) == "float32"
    assert describe(meant("fp8")) == describe(meant("fp8_e4m3")) == "fp8"
    assert describe(meant("int8")) == "int8 with a scale a token and head"
    for name in ("auto", "fp8"):
        assert meant(name, kv_cache_format=calibrated) == calibrated
    assert meant("int8", kv_cache_format=calibrated) == KVCacheFormat(precision="int8")
    assert describe(meant("bfloat16", kv_cache_format=calibrated)) == "bfloat16"
    with pytest.raises(ValueError, match="'int9' is not known"):
        meant("int9")


STORED = {"fp32": torch.bfloat16, "bf16": torch.bfloat16, "q4_1": torch.bfloat16, "fp16": torch.float16}


@pytest.mark.parametrize("stored", STORED)
def test_auto_follows_the_checkpoint(llama, stored):
    infos = {name: replace(info, precision=stored) for name, info in llama.checkpoint.tensors.infos.items()}
    checkpoint = replace(llama.checkpoint, tensors=SimpleNamespace(infos=infos))
    assert sizing.resolve_dtype("auto", checkpoint) == STORED[stored]


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert sizing.resolve_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="finds no usable GPU"):
        sizing.resolve_device("cuda:1")
    for name in ("gpu", "mps"):
        with pytest.raises(ValueError, match="use auto, cpu, cuda"):
            sizing.resolve_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert sizing.resolve_device("auto") == torch.device("cuda")
    assert sizing.resolve_device("cuda:1") == torch.device("cuda", 1)
