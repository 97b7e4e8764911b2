"""KV caches in 8 bits: what goes in comes out rounded, at half the bytes, however the tokens are cut."""

from __future__ import annotations

import pytest
import torch

from tightpack.schemes.quantized import KVCacheFormat
from tightpack.torch_backend.fp8_decode import decode_fp8
from tightpack.torch_backend.rounded_kv_cache import make_kv_cache

FORMATS = {
    "fp8": KVCacheFormat(precision="fp8"),
    "fp8-scales": KVCacheFormat(precision="fp8", key_scales=(0.01, 0.02, 0.03), value_scales=(0.5, 0.6, 0.7)),
    "int8": KVCacheFormat(precision="int8"),
    "int8-scales": KVCacheFormat(
        precision="int8", key_scales=(0.03, 0.04, 0.05), value_scales=(0.1, 0.2, 0.3)
    ),
    "bf16": KVCacheFormat(precision="bf16"),
}


def pool_bytes(cache):
    return sum(pool.numel() * pool.element_size() for pool in cache._by_block)


def expected(values, kv_format, layer):
    """values: [tokens, heads, head_dim], keys first."""
    heads = values.shape[1]
    if kv_format.precision == "bf16":
        return values.bfloat16().float()
    if kv_format.key_scales:
        pair = [kv_format.key_scales[layer], kv_format.value_scales[layer]]
        scales = torch.tensor(pair).repeat_interleave(heads // 2).view(1, heads, 1)
    elif kv_format.precision == "fp8":
        scales = torch.ones(1, 1, 1)
    else:
        scales = values.abs().amax(-1, keepdim=True) / 127
    if kv_format.precision == "int8":
        return (values / scales).round().clamp(-127, 127) * scales
    return (values / scales).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scales


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_is_gathered_rounded(llama, name, dtype):
    spec, kv_format = llama.checkpoint.spec, FORMATS[name]
    cache = make_kv_cache(spec, 6, 4, kv_format, dtype, torch.device("cpu"))
    heads, width, layer, tokens = 2 * spec.num_kv_heads, spec.head_dim, 1, 8
    values = 3 * torch.randn(tokens, heads * width, generator=torch.Generator().manual_seed(0))
    values[2] *= 300
    given = torch.cat([torch.zeros(tokens, 5), values], 1).to(dtype)
    keys_values = given[:, 5:]
    exact = keys_values.float().view(tokens, heads, width).clone()
    blocks = torch.tensor([4, 1])
    slots = torch.stack(
        [(blocks[t // 4] * heads + torch.arange(heads)) * 4 + t % 4 for t in range(tokens)]
    ).flatten()
    cache.write(layer, slots, keys_values)
    rows = (blocks * heads + torch.arange(heads)[:, None]).flatten()
    gathered = cache.gather(layer, rows).view(heads, tokens, width).transpose(0, 1)
    assert gathered.dtype == dtype
    if name != "bf16" or dtype == torch.float32:
        # Attention within the step sees what the cache will give.
        assert torch.equal(keys_values.view(tokens, heads, width), gathered)
    want = expected(exact, kv_format, layer).to(dtype)
    torch.testing.assert_close(gathered.float(), want.float(), rtol=8e-3, atol=1e-6)
    cache.clear(slots)
    assert not cache.gather(layer, rows).any()


def test_half_the_bytes(llama):
    def size(kv_format):
        cache = make_kv_cache(llama.checkpoint.spec, 8, 4, kv_format, torch.bfloat16, torch.device("cpu"))
        return pool_bytes(cache)

    assert size(FORMATS["fp8"]) == size(FORMATS["int8"]) == size(FORMATS["bf16"]) // 2


@pytest.mark.parametrize(
    ("scales", "said"),
    [((1.0,), "has 1 key"), ((1.0, 0.0, 1.0), "positive"), ((1.0, float("nan"), 1.0), "positive")],
)
def test_wrong_scales(llama, scales, said):
    wrong = KVCacheFormat(precision="fp8", key_scales=scales, value_scales=scales)
    with pytest.raises(ValueError, match=said):
        make_kv_cache(llama.checkpoint.spec, 8, 4, wrong, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("name", FORMATS)
def test_chunks_change_nothing(llama, make_request, sequencer, name):
    def logits(cuts):
        executor = llama.executor(kv_cache=FORMATS[name])
        blocks = sequencer(executor)
        request = make_request(llama.tokens(40))
        return torch.cat([executor.logits([blocks.chunk(request, count)]) for count in cuts])

    whole = logits([40])
    for cuts in ([17, 1, 1, 21], [1] * 40):
        difference = (logits(cuts) - whole).abs().max() / whole.abs().max()
        # A number that lies at the border of two codes may fall to either side.
        assert difference < 0.02
    difference = (whole - llama.reference_logits(llama.tokens(40))).abs().max() / whole.abs().max()
    assert 0 < difference < 0.6


def test_a_failed_request_leaves_finite_numbers(llama):
    cache = make_kv_cache(llama.checkpoint.spec, 4, 4, FORMATS["int8"], torch.float32, torch.device("cpu"))
    heads = 2 * llama.checkpoint.spec.num_kv_heads
    slots = torch.arange(heads) * 4
    cache.write(0, slots, torch.full((1, heads * cache.head_dim), torch.nan))
    cache.clear(slots)
    assert not cache.gather(0, torch.arange(heads)).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_eight_bit_float_is_decoded_exactly(dtype):
    codes = torch.arange(-128, 128).to(torch.int8)
    exact = codes.view(torch.float8_e4m3fn).to(dtype)
    ours = decode_fp8(codes, torch.empty(256, dtype=dtype))
    assert torch.equal(ours[exact.isfinite()], exact[exact.isfinite()])
    assert exact.isfinite().sum() == 254
    assert ours.isfinite().all()
