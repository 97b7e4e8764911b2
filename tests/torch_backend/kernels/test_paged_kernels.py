"""Rope with cache write, and paged attention, against the decoder's rotation and a plain softmax."""

from __future__ import annotations

import pytest
import torch

from tightpack.architectures.model_spec import RotarySpec
from tightpack.torch_backend.attention_tiles import decode_batch, mixed_batch
from tightpack.torch_backend.input_rounding import row_scales, to_codes
from tightpack.torch_backend.kernels.paged_attention import paged_attention
from tightpack.torch_backend.kernels.rope_cache import rope_cache
from tightpack.torch_backend.norm import rms_norm
from tightpack.torch_backend.paged_layer import PagedLayer
from tightpack.torch_backend.rotary import rotate_, rotation_table

CPU = torch.device("cpu")
STORES = ["bf16", "fp8", "fp8-scales", "int8-scales", "int8-token"]
# Heads, key-value heads, width: SmolLM2, Llama 3.1 8B (a quarter), Gemma 3, one that fills no power of two.
MODELS = [(9, 3, 64), (8, 2, 128), (4, 1, 256), (2, 2, 80)]


def empty_layer(store, blocks, kv_heads, block_size, width):
    dtype = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}.get(store.split("-")[0], torch.int8)
    shape = (blocks, 2 * kv_heads, block_size, width)
    scales = (0.03, 0.02) if store.endswith("scales") else (1.0, 1.0)
    by_token = torch.zeros(shape[:3]) if store == "int8-token" else None
    return PagedLayer(
        torch.zeros(shape, dtype=torch.int8 if dtype != torch.bfloat16 else dtype).view(dtype),
        *scales,
        by_token,
    )


def stored(values, layer, scale):
    """What the cache gives back for values [..., width]: float32."""
    values = values.float()
    if layer.pool.dtype == torch.bfloat16:
        return values
    if layer.token_scales is not None:
        scale = row_scales(values, 127.0)
    precision = "int8" if layer.pool.dtype == torch.int8 else "fp8"
    return to_codes(values / scale, precision).float() * scale


def read(layer, slots):
    """[tokens, 2 * kv_heads, width] of the cache as float32."""
    kv_heads, size = layer.num_kv_heads, layer.block_size
    entries = layer.pool.float()[slots // size, :, slots % size]
    if layer.token_scales is not None:
        return entries * layer.token_scales[slots // size, :, slots % size].unsqueeze(-1)
    scales = torch.tensor([layer.key_scale, layer.value_scale]).repeat_interleave(kv_heads)
    return entries * scales.view(1, -1, 1)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("model", MODELS[:3:2])
@pytest.mark.parametrize("normed", [False, True])
def test_rope_and_cache(context, store, model, normed):
    heads, kv_heads, width = model
    layer = empty_layer(store, 5, kv_heads, 16, width)
    table = rotation_table(RotarySpec(tuple(10000 ** (-2 * i / width) for i in range(width // 2))), 50, CPU)
    qkv = random(4, (heads + 2 * kv_heads) * width)
    positions, slots = torch.tensor([0, 7, 33, 2]), torch.tensor([17, 79, 3, -1])
    norm = torch.linspace(0.5, 1.5, (heads + kv_heads) * width).view(-1, width).bfloat16()
    expected = qkv.clone()
    turned = expected[:, : (heads + kv_heads) * width].view(4, -1, width)
    if normed:
        turned.copy_(rms_norm(turned, norm, 1e-5))
    rotate_(turned, table[positions].unsqueeze(1))
    rope_cache(
        qkv, table, positions, slots, layer, heads, context, qk_norm=norm if normed else None, eps=1e-5
    )
    queries = slice(0, heads * width)
    torch.testing.assert_close(qkv[:, queries], expected[:, queries], rtol=2e-2, atol=2e-2)
    entries = expected[:3, heads * width :].view(3, 2 * kv_heads, width)
    keys = stored(entries[:, :kv_heads], layer, layer.key_scale)
    values = stored(entries[:, kv_heads:], layer, layer.value_scale)
    # A rotation's last bit may bring a code to its neighbour.
    torch.testing.assert_close(read(layer, slots[:3]), torch.cat([keys, values], 1), rtol=0.13, atol=0.04)
    assert layer.pool.float().count_nonzero() <= 3 * 2 * kv_heads * width


def filled(store, kv_heads, width, contexts, block_size=16, seed=1):
    """A layer with random entries, block tables in a scattered order, and each request's keys and values."""
    counts = [-(-context // block_size) for context in contexts]
    layer = empty_layer(store, sum(counts) + 1, kv_heads, block_size, width)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(sum(counts), generator=generator) + 1
    tables = torch.zeros(len(contexts), max(counts), dtype=torch.int32)
    entries, start = [], 0
    for request, (context, count) in enumerate(zip(contexts, counts, strict=True)):
        blocks = order[start : start + count]
        tables[request, :count] = blocks
        start += count
        values = torch.randn(count * block_size, 2 * kv_heads, width, generator=generator)
        if layer.pool.dtype == torch.bfloat16:
            codes = values.bfloat16()
        else:
            scale = (
                torch.tensor([layer.key_scale, layer.value_scale]).repeat_interleave(kv_heads).view(1, -1, 1)
            )
            if layer.token_scales is not None:
                scale = row_scales(values, 127.0)
                layer.token_scales[blocks] = scale.view(count, block_size, -1).transpose(1, 2)
            codes = to_codes(values / scale, "int8" if layer.pool.dtype == torch.int8 else "fp8")
        paged = codes.view(count, block_size, 2 * kv_heads, width).transpose(1, 2)
        layer.pool.view(torch.int8 if codes.element_size() == 1 else codes.dtype)[blocks] = (
            paged.contiguous().view(torch.int8 if codes.element_size() == 1 else codes.dtype)
        )
        slots = (blocks[:, None] * block_size + torch.arange(block_size)).flatten()[:context]
        entries.append(read(layer, slots))
    return layer, tables, entries


def reference(queries, entries, scale, window=None, softcap=None):
    """queries [count, heads, width], the last of a context; entries [context, 2 * kv_heads, width]."""
    count, heads, _ = queries.shape
    context, kv_heads = len(entries), entries.shape[1] // 2
    keys, values = (
        part.repeat_interleave(heads // kv_heads, 1).double() for part in entries.split(kv_heads, 1)
    )
    scores = torch.einsum("qhd,khd->hqk", queries.double(), keys) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    at = torch.arange(context - count, context)[:, None]
    sees = torch.arange(context) <= at
    if window is not None:
        sees &= torch.arange(context) > at - window
    weights = scores.masked_fill(~sees, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, values).flatten(1)


def attend(context, model, store, contexts, counts, splits=1, window=None, softcap=None, block_size=16):
    heads, kv_heads, width = model
    layer, tables, entries = filled(store, kv_heads, width, contexts, block_size)
    qkv = random(sum(counts), (heads + 2 * kv_heads) * width)
    if splits > 1 or all(count == 1 for count in counts):
        lengths = torch.tensor(contexts, dtype=torch.int32)
        batch = decode_batch(
            tables, lengths, num_kv_heads=kv_heads, longest=256 * splits, multiprocessors=10**3
        )
        assert batch.splits == splits
    else:
        batch = mixed_batch(tables, counts, contexts, heads_a_group=heads // kv_heads, device=CPU)
    ours = paged_attention(
        qkv,
        layer,
        batch,
        num_heads=heads,
        scale=width**-0.5,
        context=context,
        window=window,
        softcap=softcap,
    )
    queries = qkv[:, : heads * width].view(-1, heads, width).split(counts)
    exact = torch.cat(
        [reference(q, e, width**-0.5, window, softcap) for q, e in zip(queries, entries, strict=True)]
    )
    torch.testing.assert_close(ours.double(), exact, rtol=2e-2, atol=1.5e-2)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("splits", [1, 4])
def test_decodes(context, model, splits):
    attend(context, model, "bf16", [37, 1, 150], [1, 1, 1], splits)


@pytest.mark.parametrize("model", MODELS)
def test_mixed_batches(context, model):
    """A whole prompt, a decode, a later chunk of a prompt."""
    attend(context, model, "bf16", [45, 20, 70], [45, 1, 33])


@pytest.mark.parametrize("store", STORES[1:])
@pytest.mark.parametrize(("counts", "splits"), [((1, 1), 2), ((20, 1), 1)])
def test_eight_bit_caches(context, store, counts, splits):
    attend(context, (6, 2, 64), store, [90, 33], list(counts), splits)


@pytest.mark.parametrize(("counts", "splits"), [((1, 1, 1), 2), ((60, 1, 3), 1)])
@pytest.mark.parametrize("window", [1, 9, 64])
def test_windows(context, counts, splits, window):
    attend(context, (4, 2, 64), "bf16", [130, 20, 77], list(counts), splits, window=window)


@pytest.mark.parametrize(("counts", "splits"), [((1, 1), 2), ((20, 1), 1)])
def test_soft_caps(context, counts, splits):
    attend(context, (4, 2, 64), "bf16", [50, 33], list(counts), splits, softcap=0.7)


@pytest.mark.parametrize("block_size", [4, 32])
def test_block_sizes(context, block_size):
    attend(context, (4, 2, 64), "bf16", [50, 33], [9, 1], block_size=block_size)


def test_long_groups(context):
    """More heads than a decode's smallest tile has rows."""
    attend(context, (24, 1, 64), "bf16", [50], [1])
