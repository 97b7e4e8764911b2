"""The compiled dequantization against the gguf package's, bit for bit, on every usable instruction set."""

from __future__ import annotations

import sys
import threading
import time

import gguf
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from tightpack import _native

TYPES = {
    "fp16": GGMLQuantizationType.F16,
    "bf16": GGMLQuantizationType.BF16,
    "q4_0": GGMLQuantizationType.Q4_0,
    "q4_1": GGMLQuantizationType.Q4_1,
    "q5_0": GGMLQuantizationType.Q5_0,
    "q8_0": GGMLQuantizationType.Q8_0,
    "q4_k": GGMLQuantizationType.Q4_K,
    "q6_k": GGMLQuantizationType.Q6_K,
}
# Where in a block its fp16 fields begin.
FP16_FIELDS = {"q4_0": (0,), "q4_1": (0, 2), "q5_0": (0,), "q8_0": (0,), "q4_k": (0, 2), "q6_k": (208,)}

precisions = pytest.mark.parametrize("precision", TYPES)
instruction_sets = pytest.mark.parametrize("instruction_set", _native.instruction_sets())


def random_blocks(precision: str, num_blocks: int) -> NDArray[np.uint8]:
    """Random bytes; scales finite of every magnitude and sign, subnormals and both zeros among them."""
    rng = np.random.default_rng([num_blocks, *precision.encode()])
    blocks = rng.integers(0, 256, (num_blocks, GGML_QUANT_SIZES[TYPES[precision]][1]), dtype=np.uint8)
    finite = np.concatenate([np.arange(0x7C00), np.arange(0x8000, 0xFC00)]).astype(np.uint16)
    special = np.array([0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x0400, 0x7BFF, 0xFBFF], dtype=np.uint16)
    for start in FP16_FIELDS.get(precision, ()):
        scales = rng.choice(finite, num_blocks)
        chosen = rng.random(num_blocks) < 0.25
        scales[chosen] = rng.choice(special, int(chosen.sum()))
        blocks[:, start : start + 2] = scales[:, None].view(np.uint8)
    return blocks


def oracle(blocks: NDArray[np.uint8], precision: str) -> NDArray[np.float32]:
    """gguf's float32 values, flat."""
    if len(blocks) == 0:  # gguf cannot split no rows
        return np.empty(0, np.float32)
    with np.errstate(all="ignore"):
        values: NDArray[np.float32] = gguf.quants.dequantize(blocks, TYPES[precision])
    return np.ascontiguousarray(values).reshape(-1)


def oracle_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """gguf's rounding to bfloat16."""
    if values.size == 0:
        return np.empty(0, np.uint16)
    rounded: NDArray[np.uint8] = gguf.quants.quantize(values.reshape(1, -1), GGMLQuantizationType.BF16)
    return rounded.reshape(-1).view(np.uint16)


@instruction_sets
@precisions
@pytest.mark.parametrize("num_blocks", [0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 63, 1000])
def test_bits_are_those_of_gguf(precision: str, num_blocks: int, instruction_set: str) -> None:
    blocks = random_blocks(precision, num_blocks)
    count = num_blocks * GGML_QUANT_SIZES[TYPES[precision]][0]
    expected = oracle(blocks, precision)
    data = blocks.reshape(-1)

    values = _native.dequantize_blocks(data, precision, count, instruction_set=instruction_set)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values.view(np.uint32), expected.view(np.uint32))

    rounded = _native.dequantize_blocks_bf16(data, precision, count, instruction_set=instruction_set)
    assert rounded.dtype == np.uint16
    expected_bf16 = data.view(np.uint16) if precision == "bf16" else oracle_bf16(expected)
    np.testing.assert_array_equal(rounded, expected_bf16)


@instruction_sets
def test_every_fp16_value(instruction_set: str) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    values = _native.dequantize_blocks(
        halves.view(np.uint8), "fp16", halves.size, instruction_set=instruction_set
    )
    expected = oracle(halves.view(np.uint8), "fp16")
    np.testing.assert_array_equal(values.view(np.uint32), expected.view(np.uint32))
    rounded = _native.dequantize_blocks_bf16(
        halves.view(np.uint8), "fp16", halves.size, instruction_set=instruction_set
    )
    np.testing.assert_array_equal(rounded, oracle_bf16(expected))


@instruction_sets
@pytest.mark.parametrize("precision", FP16_FIELDS)
def test_nan_and_infinite_scales_stay_so(precision: str, instruction_set: str) -> None:
    blocks = random_blocks(precision, 6)
    field = FP16_FIELDS[precision][0]
    for row, half in enumerate([0x7C00, 0xFC00, 0x7C01, 0x7E00, 0xFFFF]):
        blocks[row, field : field + 2] = np.array([half], dtype=np.uint16).view(np.uint8)
    expected = oracle(blocks, precision)
    assert np.isnan(expected).any()
    data = blocks.reshape(-1)
    values = _native.dequantize_blocks(data, precision, expected.size, instruction_set=instruction_set)
    np.testing.assert_array_equal(values, expected)
    bits = _native.dequantize_blocks_bf16(data, precision, expected.size, instruction_set=instruction_set)
    widened = (bits.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(np.isnan(widened), np.isnan(expected))
    np.testing.assert_array_equal(np.isinf(widened), np.isinf(expected))


@precisions
@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_do_not_change_the_result(precision: str, threads: int) -> None:
    elements = GGML_QUANT_SIZES[TYPES[precision]][0]
    num_blocks = (1 << 19) // elements + 3  # two whole shares and a rest
    data = random_blocks(precision, num_blocks).reshape(-1)
    count = num_blocks * elements
    for function in (_native.dequantize_blocks, _native.dequantize_blocks_bf16):
        alone = function(data, precision, count)
        assert function(data, precision, count, threads).tobytes() == alone.tobytes()


def test_unaligned_read_only_view() -> None:
    blocks = random_blocks("q8_0", 9)
    stored = np.frombuffer(b"x" + blocks.tobytes(), dtype=np.uint8)[1:]
    assert not stored.flags.writeable
    values = _native.dequantize_blocks(stored, "q8_0", 9 * 32)
    np.testing.assert_array_equal(values, oracle(blocks, "q8_0"))
    assert values.flags.writeable
    assert values.flags.owndata


def test_interpreter_lock_is_released() -> None:
    data = np.zeros(18 << 20, dtype=np.uint8)  # 32 Mi elements: milliseconds at the least
    finished = threading.Event()
    ticks = 0
    ticks_meanwhile = -1

    def work() -> None:
        nonlocal ticks_meanwhile
        before = ticks
        _native.dequantize_blocks(data, "q4_0", 32 << 20)
        ticks_meanwhile = ticks - before
        finished.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)  # the lock changes hands only where it is released
    try:
        thread = threading.Thread(target=work)
        thread.start()
        while not finished.is_set():
            time.sleep(0)
            ticks += 1
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert ticks_meanwhile > 0


@pytest.mark.parametrize(
    ("num_bytes", "precision", "count", "threads", "message"),
    [
        (18, "q4_0", 33, 1, r"count 33 is not a multiple of the 32 elements of a q4_0 block"),
        (18, "q4_0", -32, 1, r"count -32 is not a multiple"),
        (17, "q4_0", 32, 1, r"data has 17 bytes, but 32 elements of q4_0 are 1 blocks of 18 bytes"),
        (36, "q4_0", 32, 1, r"data has 36 bytes"),
        (210, "q6_k", 512, 1, r"512 elements of q6_k are 2 blocks of 210 bytes"),
        (2, "fp16", 1 << 62, 1, r"data has 2 bytes"),
        (18, "q4_0", 32, 0, r"threads 0 is not within 1 \.\. 1024"),
        (18, "q4_0", 32, 1025, r"threads 1025"),
        (18, "q4_7", 32, 1, r'precision "q4_7" is not one of fp16, bf16, q4_0'),
    ],
)
def test_errors_name_the_numbers(
    num_bytes: int, precision: str, count: int, threads: int, message: str
) -> None:
    data = np.zeros(num_bytes, dtype=np.uint8)
    for function in (_native.dequantize_blocks, _native.dequantize_blocks_bf16):
        with pytest.raises(ValueError, match=message):
            function(data, precision, count, threads)


@pytest.mark.parametrize(
    "data",
    [
        np.zeros(36, dtype=np.uint8)[::2],
        np.zeros((1, 18), dtype=np.uint8),
        np.zeros(18, dtype=np.float32),
        np.zeros(18, dtype=np.int8),
    ],
    ids=["strided", "two axes", "float32", "int8"],
)
def test_data_is_never_converted(data: NDArray[np.uint8]) -> None:
    with pytest.raises(TypeError, match="dequantize_blocks"):
        _native.dequantize_blocks(data, "q4_0", 32)


def test_instruction_sets() -> None:
    usable = _native.instruction_sets()
    assert usable[-1] == "portable"
    assert usable == [s for s in ("avx512_bf16", "avx512_vnni", "avx2", "portable") if s in usable]
    with pytest.raises(
        ValueError, match=r'"sse9" is not usable on this machine; usable here: auto, .*portable'
    ):
        _native.dequantize_blocks(np.zeros(18, np.uint8), "q4_0", 32, instruction_set="sse9")
