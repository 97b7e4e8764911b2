"""Arithmetic that kernels share: unpacking of nibbles, rounding, products."""

from __future__ import annotations

import triton
import triton.language as tl

# The interpreter knows no inline assembly; both ways give the same numbers.
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))

INT8_LARGEST = tl.constexpr(127.0)
FP8_LARGEST = tl.constexpr(448.0)
# 1.5 * 2^23: adding and subtracting it rounds a float32 below 2^22 to an integer, ties to even.
_ROUNDER = tl.constexpr(12582912.0)


@triton.jit
def nibble(words, minus_zero, i: tl.constexpr, dtype: tl.constexpr):
    """Code i (0 .. 3) of int16 words, less its zero-point, exactly, as bfloat16 or float16.

    A 16-bit float whose last mantissa bit is worth 1 holds a code in its low bits as base + code: 0x4300 is
    128 in bfloat16, 0x6400 is 1024 in float16. Two codes at a time take a shift, one three-input logic
    operation and one packed multiply-add (by 1: bfloat16 has no packed sum before Hopper): a third of the
    time of integer to float conversions, which would hold a memory-bound product back.

    minus_zero: of `dtype`, as the function of this name makes it, and broadcast.
    """
    # One way out of each function: the compiler compares the types of all.
    shift: tl.constexpr = 4 * i
    if INTERPRETED:
        base: tl.constexpr = 0x4300 if dtype == tl.bfloat16 else 0x6400
        bits = (((words >> shift) & 15) | base).to(tl.int16)
        result = narrow(bits.to(dtype, bitcast=True).to(tl.float32) + minus_zero.to(tl.float32), dtype)
    elif dtype == tl.bfloat16:
        result = tl.inline_asm_elementwise(
            f"{{ .reg .b32 t, one; shr.u32 t, $1, {shift}; mov.b32 one, 0x3F803F80; "
            f"lop3.b32 t, t, 0x000F000F, 0x43004300, 0xEA; fma.rn.bf16x2 $0, t, one, $2; }}",
            "=r,r,r",
            [words, minus_zero],
            dtype=tl.bfloat16,
            is_pure=True,
            pack=2,
        )
    else:
        result = tl.inline_asm_elementwise(
            f"{{ .reg .b32 t, one; shr.u32 t, $1, {shift}; mov.b32 one, 0x3C003C00; "
            f"lop3.b32 t, t, 0x000F000F, 0x64006400, 0xEA; fma.rn.f16x2 $0, t, one, $2; }}",
            "=r,r,r",
            [words, minus_zero],
            dtype=tl.float16,
            is_pure=True,
            pack=2,
        )
    return result


@triton.jit
def minus_zero(zero, dtype: tl.constexpr):
    """-(base + zero) of a zero-point of any number type: what `nibble` adds."""
    base: tl.constexpr = 128.0 if dtype == tl.bfloat16 else 1024.0
    return narrow(-(zero.to(tl.float32) + base), dtype)


@triton.jit
def not_finite(values, axis: tl.constexpr):
    """0 where all of `values` along an axis are finite, else NaN: maxima do not see a NaN."""
    return tl.sum(values * 0.0, axis=axis)


@triton.jit
def int8_codes(scaled):
    """float32 over its scale to int8 -127 .. 127, ties to even, saturating."""
    # Clamped first: beyond 2^22 the rounding below is none.
    clamped = tl.minimum(tl.maximum(scaled, -INT8_LARGEST), INT8_LARGEST)
    return ((clamped + _ROUNDER) - _ROUNDER).to(tl.int8)


@triton.jit
def fp8_codes(scaled):
    """float32 over its scale to float8_e4m3fn, ties to even, saturating."""
    clamped = tl.minimum(tl.maximum(scaled, -FP8_LARGEST), FP8_LARGEST)
    if INTERPRETED:
        size = tl.abs(clamped)
        bits = size.to(tl.int32, bitcast=True)
        # 20 bits of mantissa go, and 120 is the distance between the exponents' biases.
        normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
        subnormal = ((size * 512.0 + _ROUNDER) - _ROUNDER).to(tl.int32)
        code = tl.where(size < 0.015625, subnormal, normal) | tl.where(clamped < 0, 128, 0)
        codes = code.to(tl.uint8).to(tl.float8e4nv, bitcast=True)
    else:
        codes = clamped.to(tl.float8e4nv)
    return codes


@triton.jit
def narrow(values, dtype: tl.constexpr):
    """float32 to a float type, ties to even; the interpreter's own cast to bfloat16 cuts off."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = values.to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        result = rounded.to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        result = values.to(dtype)
    return result


@triton.jit
def dot(left, right, total):
    """total + left right, summed in int32 or float32. Hopper sums 8-bit floats with 14 bits or so: after
    every 128 products they go to a float32 sum. The interpreter multiplies no bfloat16, no 8-bit floats."""
    if left.dtype == tl.int8:
        result = tl.dot(left, right, total, out_dtype=tl.int32)
    elif INTERPRETED:
        result = tl.dot(left.to(tl.float32), right.to(tl.float32), total)
    elif left.dtype == tl.float8e4nv:
        result = tl.dot(left, right, total, max_num_imprecise_acc=min(128, left.shape[1]))
    else:
        result = tl.dot(left, right, total)
    return result
