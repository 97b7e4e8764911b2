"""Every kernel at shapes that matter: how to run it, what it must give, what it moves and computes.

A case's oracle is PyTorch in float64 or float32 on what the kernel was given, dequantized by `schemes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import ml_dtypes
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tightpack.architectures.model_spec import RotarySpec
from tightpack.schemes.quantized import ActivationFormat, Fp8Weight, IntWeight
from tightpack.torch_backend.arrays import as_tensor
from tightpack.torch_backend.attention_tiles import decode_batch, mixed_batch
from tightpack.torch_backend.grouped_matmul import DenseExperts, EightBitExperts, Int4Experts, grouped_matmul
from tightpack.torch_backend.kernels.add_norm import add_norm
from tightpack.torch_backend.kernels.context import KernelContext
from tightpack.torch_backend.kernels.eight_bit_matmul import eight_bit_matmul
from tightpack.torch_backend.kernels.fp8_block_matmul import fp8_block_matmul
from tightpack.torch_backend.kernels.gated_activation import gated_activation
from tightpack.torch_backend.kernels.int4_matmul import int4_matmul
from tightpack.torch_backend.kernels.paged_attention import paged_attention
from tightpack.torch_backend.kernels.quantize_rows import quantize_rows
from tightpack.torch_backend.kernels.rope_cache import rope_cache
from tightpack.torch_backend.kernels.weight_only_matmul import weight_only_matmul
from tightpack.torch_backend.packed_weights import pack_8, pack_int4, stack_experts
from tightpack.torch_backend.paged_layer import PagedLayer
from tightpack.torch_backend.quantized_rows import QuantizedRows
from tightpack.torch_backend.rotary import rotate_, rotation_table
from tightpack.torch_backend.row_order import as_it_is
from tightpack.torch_backend.scaled_matmul import scaled_matmul, scaled_matmul_takes


@dataclass(frozen=True, slots=True)
class Sizes:
    """rows: of the products. outputs, inputs: of the weight. context: tokens in the cache of a request."""

    rows: tuple[int, ...]
    outputs: int
    inputs: int
    heads: int
    kv_heads: int
    width: int
    requests: tuple[int, ...]
    context: int
    prompt: int
    experts: int


# Llama 3.1 8B: gate and up in one, attention with 32 heads over 8, and what a test can interpret.
LLAMA = Sizes((1, 16, 64, 2048), 28672, 4096, 32, 8, 128, (1, 64), 4096, 2048, 8)
TINY = Sizes((1, 20), 70, 256, 4, 2, 64, (2,), 40, 20, 3)


@dataclass(frozen=True, slots=True)
class Case:
    """run: computes once. exact: what it should give, float64 or float32, of some first rows of it.
    tolerance: of the largest error over the largest number. moved: bytes read and written at the least;
    operations: multiplications and additions."""

    kernel: str
    shape: str
    run: Callable[[], Tensor]
    exact: Callable[[], Tensor]
    tolerance: float
    moved: int
    operations: int = 0

    def error(self) -> float:
        """The largest error over the largest number, in the rows that both give."""
        given, exact = self.run(), self.exact()
        rows = min(len(given), len(exact))
        exact = exact[:rows]
        difference = (given[:rows].to(exact.dtype) - exact).abs().max()
        return float(difference / exact.abs().max().clamp_min(1e-30))


# Rows that an oracle in float64 computes of a case: more only take longer.
_ORACLE_ROWS = 16
_BF16 = torch.bfloat16


def all_cases(sizes: Sizes, context: KernelContext) -> Iterator[Case]:
    """One by one, so that one case's weights are gone before the next one's are made."""
    yield from _products(sizes, context)
    yield from _row_kernels(sizes, context)
    yield from _attention(sizes, context)
    yield from _experts(sizes, context)


def peer_cases(sizes: Sizes, device: torch.device) -> Iterator[Case]:
    """PyTorch's own operators on the same shapes: bf16, `_weight_int4pack_mm`, `_int_mm`, `_scaled_mm`."""
    outputs, inputs = sizes.outputs, sizes.inputs
    dense = normal((outputs, inputs), device)
    ones = torch.ones(outputs, device=device)
    eight = _codes(ml_dtypes.float8_e4m3fn, (outputs, inputs), device)
    integers = _codes(np.int8, (outputs, inputs), device)
    packed = torch.ops.aten._convert_weight_to_int4pack(
        torch.randint(0, 256, (outputs, inputs // 2), dtype=torch.uint8, device=device), 8
    )
    grid = torch.ones(inputs // 128, outputs, 2, dtype=_BF16, device=device)
    for rows in sizes.rows:
        x, shape = normal((rows, inputs), device), f"{rows} x {inputs} x {outputs}"
        nothing = torch.zeros(0, dtype=torch.float64)
        work, io = 2 * rows * outputs * inputs, 2 * rows * (inputs + outputs)

        def case(name: str, run: Callable[[], Tensor], weight_bytes: float) -> Case:
            return Case(name, shape, run, lambda: nothing, 0, int(weight_bytes) + io, work)  # noqa: B023

        yield case("torch bf16 linear", lambda: functional.linear(x, dense), dense.nbytes)  # noqa: B023
        yield case(
            "torch _weight_int4pack_mm",
            lambda: torch.ops.aten._weight_int4pack_mm(x, packed, 128, grid),  # noqa: B023
            outputs * inputs / 2 + grid.nbytes,
        )
        if rows > 16:
            codes = integers[:rows] if rows <= outputs else integers
            yield case("torch _int_mm", lambda: torch._int_mm(codes, integers.t()), integers.nbytes)  # noqa: B023
        rounded, scales = eight[:rows], torch.ones(rows, 1, device=device)
        if scaled_matmul_takes(rounded, eight):
            yield case(
                "torch _scaled_mm",
                lambda: scaled_matmul(rounded, scales, eight, ones, bias=None, dtype=_BF16),  # noqa: B023
                eight.nbytes,
            )


def _products(sizes: Sizes, context: KernelContext) -> Iterator[Case]:
    device, outputs, inputs = context.device, sizes.outputs, sizes.inputs
    for kind in ("symmetric", "zero-points", "groups of 32"):
        weight = _int_weight(outputs, inputs, 32 if kind.endswith("32") else 128, 4, kind == "zero-points")
        packed, exact = pack_int4([weight], [as_it_is], device), _dequantized(weight, device)
        for rows in sizes.rows:
            x = normal((rows, inputs), device)

            def run(x: Tensor = x) -> Tensor:
                return int4_matmul(x, packed, None, context)  # noqa: B023

            yield _product(f"W4A16 {kind}", run, x, exact, weight.num_bytes)
    integers = _int_weight(outputs, inputs, inputs, 8, False)
    floats = _fp8_weight(outputs, inputs, (1, inputs))
    for name, each in (("int8", integers), ("fp8", floats)):
        eight, exact = pack_8([each], [as_it_is], device), _dequantized(each, device)
        scales = eight.scales.view(-1).float()
        for rows in sizes.rows:
            x = normal((rows, inputs), device)

            def alone(x: Tensor = x) -> Tensor:
                return weight_only_matmul(x, eight, None, context)  # noqa: B023

            yield _product(f"W8A16 {name}", alone, x, exact, each.num_bytes)
            for threshold in (None, 3.5) if name == "int8" else (None,):
                activation = ActivationFormat(precision=name, outlier_threshold=threshold)
                rounded = quantize_rows(x, activation, context)
                y = x.new_empty((rows, outputs))

                def both(rounded: QuantizedRows = rounded, y: Tensor = y) -> Tensor:
                    return eight_bit_matmul(rounded, eight.codes, scales, None, y, context)  # noqa: B023

                values = rounded.codes.float() * rounded.scales
                if threshold is not None:
                    values += x.float().masked_fill(x.abs() < threshold, 0)
                label = f"W8A8 {name}" if threshold is None else "LLM.int8"
                yield _product(label, both, values, exact, each.num_bytes, x_bytes=1)
    blocks = _fp8_weight(outputs, inputs, (128, 128))
    codes, scales = as_tensor(blocks.codes).to(device), as_tensor(blocks.scales).to(device)
    exact = _dequantized(blocks, device)
    for rows in sizes.rows:
        x = normal((rows, inputs), device)
        activation = ActivationFormat(precision="fp8", per="group", group_size=128)
        rounded, y = quantize_rows(x, activation, context), x.new_empty((rows, outputs))

        def in_blocks(rounded: QuantizedRows = rounded, y: Tensor = y) -> Tensor:
            return fp8_block_matmul(rounded, codes, scales, None, y, context)

        values = rounded.codes.float().view(rows, -1, 128) * rounded.scales.unsqueeze(-1)
        yield _product("fp8 blocks", in_blocks, values.view(rows, -1), exact, blocks.num_bytes, x_bytes=1)


def _product(
    kernel: str, run: Callable[[], Tensor], x: Tensor, weight: Tensor, weight_bytes: int, x_bytes: int = 2
) -> Case:
    rows, inputs = x.shape
    outputs = len(weight)
    return Case(
        kernel,
        f"{rows} x {inputs} x {outputs}",
        run,
        lambda: x[:_ORACLE_ROWS].double() @ weight.double().t(),
        1e-2,
        weight_bytes + rows * (x_bytes * inputs + 2 * outputs),
        2 * rows * inputs * outputs,
    )


def _row_kernels(sizes: Sizes, context: KernelContext) -> Iterator[Case]:
    device, width = context.device, sizes.inputs
    for rows in sizes.rows:
        stream, delta = normal((rows, width), device), torch.zeros(rows, width, dtype=_BF16, device=device)
        weight = torch.linspace(0.5, 1.5, width, device=device).to(_BF16)
        exact = functional.rms_norm(stream.float(), (width,), weight.float(), 1e-5)
        gate_up = normal((rows, sizes.outputs - sizes.outputs % 2), device)
        inner = gate_up.shape[1] // 2
        gate, up = gate_up.float().chunk(2, -1)
        for name in (None, "int8", "fp8"):
            activation = None if name is None else ActivationFormat(precision=name)
            label = "" if name is None else f" to {name}"
            result = 2 if name is None else 1
            # Half a step of the largest code, beside the rounding of the numbers themselves.
            tolerance = 1e-2 if name != "fp8" else 5e-2

            def norm(
                s: Tensor = stream, d: Tensor = delta, a: ActivationFormat | None = activation
            ) -> Tensor:
                return _values(add_norm(s, d, weight, 1e-5, a, context))  # noqa: B023

            yield Case(
                f"add, norm{label}",
                f"{rows} x {width}",
                norm,
                lambda e=exact: e,
                tolerance,
                rows * width * (6 + result),
            )

            def gated(g: Tensor = gate_up, a: ActivationFormat | None = activation) -> Tensor:
                return _values(gated_activation(g, "silu", a, context))

            yield Case(
                f"gate{label}",
                f"{rows} x {inner}",
                gated,
                lambda g=gate, u=up: functional.silu(g) * u,
                tolerance,
                rows * inner * (4 + result),
            )


def _values(rows: Tensor | QuantizedRows) -> Tensor:
    if isinstance(rows, Tensor):
        return rows
    return rows.codes[:_ORACLE_ROWS].float() * rows.scales[:_ORACLE_ROWS]


STORES = (("bf16", _BF16, 2), ("fp8", torch.float8_e4m3fn, 1), ("int8", torch.int8, 1))


def _attention(sizes: Sizes, context: KernelContext) -> Iterator[Case]:
    heads, kv_heads, width, block = sizes.heads, sizes.kv_heads, sizes.width, 16
    table = rotation_table(
        RotarySpec(tuple(1e4 ** (-2 * i / width) for i in range(width // 2))), 64, context.device
    )
    for name, dtype, item in STORES:
        for requests, queries in (*((count, 1) for count in sizes.requests), (1, sizes.prompt)):
            length = sizes.context if queries == 1 else sizes.prompt
            layer, tables = filled(
                context.device, dtype, requests, -(-length // block), kv_heads, block, width
            )
            qkv = normal((requests * queries, (heads + 2 * kv_heads) * width), context.device)
            if queries == 1:
                lengths = torch.full((requests,), length, dtype=torch.int32, device=context.device)
                batch = decode_batch(
                    tables,
                    lengths,
                    num_kv_heads=kv_heads,
                    longest=length,
                    multiprocessors=context.multiprocessors,
                )
            else:
                batch = mixed_batch(
                    tables,
                    [queries] * requests,
                    [length] * requests,
                    heads_a_group=heads // kv_heads,
                    device=context.device,
                )

            def attend(q: Tensor = qkv, cache: PagedLayer = layer, b: object = batch) -> Tensor:
                return paged_attention(q, cache, b, num_heads=heads, scale=width**-0.5, context=context)

            def exact(q: Tensor = qkv, c: PagedLayer = layer, t: Tensor = tables, n: int = length) -> Tensor:
                return _attend(q, c, t[0], heads, n)

            pairs = length if queries == 1 else (length + 1) / 2
            yield Case(
                f"attention, {name} cache",
                f"{requests} x {queries} of {length}",
                attend,
                exact if queries == 1 else lambda e=exact: e()[: sizes.prompt],
                2e-2,
                requests * length * 2 * kv_heads * width * item + 4 * requests * queries * heads * width,
                int(4 * requests * queries * pairs * heads * width),
            )
        tokens = sizes.rows[-1]
        layer, _ = filled(context.device, dtype, 1, -(-tokens // block), kv_heads, block, width)
        qkv = normal((tokens, (heads + 2 * kv_heads) * width), context.device)
        positions = torch.arange(tokens, device=context.device) % 64
        slots = torch.arange(tokens, device=context.device)

        def rope(q: Tensor = qkv, cache: PagedLayer = layer) -> Tensor:
            turned = q.clone()
            rope_cache(turned, table, positions, slots, cache, heads, context)  # noqa: B023
            return turned[:, : heads * width]

        def turned(q: Tensor = qkv) -> Tensor:
            part = q[:, : heads * width].float().view(len(q), heads, width).clone()
            rotate_(part, table[positions].unsqueeze(1))  # noqa: B023
            return part.flatten(1)

        moved = tokens * width * (4 * heads + 2 * kv_heads * (2 + item))
        yield Case(f"rope, {name} cache (and a copy)", f"{tokens} x {heads}", rope, turned, 2e-2, moved)


def filled(
    device: torch.device, dtype: torch.dtype, requests: int, blocks: int, kv_heads: int, size: int, width: int
) -> tuple[PagedLayer, Tensor]:
    shape = (requests * blocks + 1, 2 * kv_heads, size, width)
    generator = torch.Generator(device).manual_seed(1)
    entries = torch.randn(shape, generator=generator, device=device)
    scales = None
    if dtype == torch.int8:
        scales = (entries.abs().amax(-1) / 127).contiguous()
        entries = (entries / scales.unsqueeze(-1)).round_()
    order = torch.randperm(requests * blocks, generator=generator, device=device) + 1
    return PagedLayer(entries.to(dtype), token_scales=scales), order.view(requests, blocks).to(torch.int32)


def _attend(qkv: Tensor, layer: PagedLayer, table: Tensor, heads: int, context: int) -> Tensor:
    """The first request's rows, causal, one head at a time: all scores of a prompt would take gigabytes."""
    width, kv_heads = layer.head_dim, layer.num_kv_heads
    entries = layer.pool[table.long()].float()
    if layer.token_scales is not None:
        entries *= layer.token_scales[table.long()].unsqueeze(-1)
    entries = entries.transpose(1, 2).reshape(-1, 2 * kv_heads, width)[:context]
    count = 1 if len(qkv) < context else context
    queries = qkv[:count, : heads * width].float().view(count, heads, width)
    sees = (
        torch.arange(context, device=qkv.device)
        <= torch.arange(context - count, context, device=qkv.device)[:, None]
    )
    out = []
    for head in range(heads):
        kv = head // (heads // kv_heads)
        scores = (queries[:, head] @ entries[:, kv].t()) * width**-0.5
        weights = scores.masked_fill_(~sees, -torch.inf).softmax(-1)
        out.append(weights @ entries[:, kv_heads + kv])
    return torch.cat(out, 1)


def _experts(sizes: Sizes, context: KernelContext) -> Iterator[Case]:
    device, experts = context.device, sizes.experts
    outputs, inputs = sizes.outputs // 4 if sizes.outputs > 1000 else sizes.outputs, sizes.inputs
    dense = normal((experts, outputs, inputs), device)
    integers = [_int_weight(outputs, inputs, 128, 4, False, seed) for seed in range(experts)]
    packed = stack_experts([pack_int4([weight], [as_it_is], device) for weight in integers])
    codes = _codes(ml_dtypes.float8_e4m3fn, (experts, outputs, inputs), device)
    scales = torch.rand(experts, outputs, device=device) + 0.5
    fp8 = ActivationFormat(precision="fp8")
    kinds = (
        ("bf16", DenseExperts(dense), lambda e: dense[e], 2.0),
        ("W4A16", Int4Experts(packed), lambda e: _dequantized(integers[e], device), 0.52),
        (
            "fp8",
            EightBitExperts(codes, scales, fp8),
            lambda e: codes[e].float() * scales[e].unsqueeze(-1),
            1.0,
        ),
    )
    for name, weights, of_expert, item in kinds:
        for rows in sizes.rows:
            x = normal((rows, inputs), device)
            # As even as rows go: the most weights that a batch of this size touches.
            bounds = [0, *(min(rows, -(-rows * (e + 1) // experts)) for e in range(experts))]
            offsets = torch.tensor(bounds, dtype=torch.int32, device=device)

            def run(x: Tensor = x, offsets: Tensor = offsets, weights: object = weights) -> Tensor:
                return grouped_matmul(x, weights, offsets, context=context)

            def exact(
                x: Tensor = x, bounds: list[int] = bounds, of: object = of_expert, fp: bool = name == "fp8"
            ) -> Tensor:
                rounded = _values(quantize_rows(x, fp8, context)) if fp else x[:_ORACLE_ROWS]
                owner = [sum(row >= end for end in bounds[1:]) for row in range(len(rounded))]
                return torch.stack([rounded[i].float() @ of(e).float().t() for i, e in enumerate(owner)])

            used = sum(b > a for a, b in pairwise(bounds))
            yield Case(
                f"experts {name}",
                f"{rows} x {inputs} x {outputs}, {experts} experts",
                run,
                exact,
                1e-2,
                int(used * outputs * inputs * item) + 2 * rows * (inputs + outputs),
                2 * rows * inputs * outputs,
            )


def normal(shape: tuple[int, ...], device: torch.device) -> Tensor:
    generator = torch.Generator(device).manual_seed(shape[0])
    return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(_BF16)


def _codes(dtype: object, shape: tuple[int, ...], device: torch.device) -> Tensor:
    generator = torch.Generator(device).manual_seed(3)
    values = torch.randn(shape, generator=generator, device=device) * 40
    if dtype is np.int8:
        return values.round_().clamp_(-127, 127).to(torch.int8)
    return values.to(torch.float8_e4m3fn)


def _int_weight(outputs: int, inputs: int, group: int, bits: int, zeros: bool, seed: int = 0) -> IntWeight:
    rng = np.random.default_rng(seed)
    shape = (outputs, inputs // group)
    low, high = (0, 2**bits) if zeros else (-(2 ** (bits - 1)), 2 ** (bits - 1))
    return IntWeight(
        codes=rng.integers(low, high, (outputs, inputs), dtype=np.int16).astype(
            np.uint8 if zeros else np.int8
        ),
        scales=rng.uniform(0.01, 0.03, shape).astype(np.float16).astype(np.float32),
        zeros=rng.integers(0, high, shape).astype(np.uint8) if zeros else None,
        bits=4 if bits == 4 else 8,
        group_size=group,
    )


def _fp8_weight(outputs: int, inputs: int, block: tuple[int, int]) -> Fp8Weight:
    rng = np.random.default_rng(0)
    grid = -(-outputs // block[0]), -(-inputs // block[1])
    codes = rng.standard_normal((outputs, inputs), dtype=np.float32) * 100
    return Fp8Weight(
        codes=codes.clip(-448, 448).astype(ml_dtypes.float8_e4m3fn),
        scales=rng.uniform(0.0005, 0.001, grid).astype(np.float32),
        block=block,
    )


def _dequantized(weight: IntWeight | Fp8Weight, device: torch.device) -> Tensor:
    return torch.from_numpy(weight.dequantize()).to(device)
