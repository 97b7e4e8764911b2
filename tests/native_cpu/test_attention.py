"""The compiled attention and KV cache against numpy in float64; and batching changes no bit."""

from __future__ import annotations

from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tightpack import _native

PRECISIONS = ("bf16", "fp8", "int8", "dynamic_int8")
precisions = pytest.mark.parametrize("precision", PRECISIONS)
instruction_sets = pytest.mark.parametrize("instruction_set", _native.instruction_sets())

Floats = NDArray[np.float32]
Positions = NDArray[np.int32]


def to_bf16(values: NDArray[np.floating]) -> NDArray[np.uint16]:
    return values.astype(ml_dtypes.bfloat16).view(np.uint16)


def from_bf16(bits: NDArray[np.uint16]) -> Floats:
    return (bits.astype(np.uint32) << 16).view(np.float32)


@dataclass
class Setting:
    """A model's attention and a cache for it. Blocks are dealt out in a shuffled order."""

    num_heads: int = 6
    num_kv_heads: int = 2
    head_dim: int = 32
    precision: str = "bf16"
    block_size: int = 16
    num_blocks: int = 64
    num_layers: int = 2
    softcap: float = 0.0
    window: int = 0
    instruction_set: str = "auto"
    key_scales: list[float] = field(default_factory=list)
    value_scales: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.precision in ("fp8", "int8"):
            self.key_scales, self.value_scales = [0.04, 0.03], [0.02, 0.05]
        self.cache = _native.KVCache(
            num_layers=self.num_layers,
            num_blocks=self.num_blocks,
            block_size=self.block_size,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            precision=self.precision,
            key_scales=self.key_scales,
            value_scales=self.value_scales,
        )
        self._free = list(np.random.default_rng(3).permutation(self.num_blocks))
        self.scale = self.head_dim**-0.5

    def blocks(self, num_positions: int) -> Positions:
        count = -(-num_positions // self.block_size)
        return np.array([self._free.pop() for _ in range(count)], dtype=np.int32)

    def qkv(self, rows: int, seed: int = 0) -> Floats:
        width = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        return np.random.default_rng([rows, seed]).normal(0, 1.5, (rows, width)).astype(np.float32)

    def store(
        self, qkv: Floats, groups: list[tuple[Positions, Positions]], layer: int = 0, threads: int = 1
    ) -> NDArray[np.uint16]:
        return _native.rotate_and_store(
            self.cache,
            layer,
            qkv,
            groups,
            num_heads=self.num_heads,
            threads=threads,
            instruction_set=self.instruction_set,
        )

    def attend(
        self,
        queries: NDArray[np.uint16],
        groups: list[tuple[Positions, Positions]],
        layer: int = 0,
        threads: int = 1,
    ) -> Floats:
        return _native.attend(
            self.cache,
            layer,
            queries,
            groups,
            scale=self.scale,
            softcap=self.softcap,
            window=self.window,
            threads=threads,
            instruction_set=self.instruction_set,
        )

    def cached(self, layer: int, blocks: Positions, count: int) -> tuple[Floats, Floats]:
        """Keys and values [positions, heads, head_dim], dequantized by numpy."""
        keys, values, key_scales, value_scales = self.cache.read(layer, blocks, count)
        decoded = []
        for codes, scales in ((keys, key_scales), (values, value_scales)):
            if self.precision == "bf16":
                exact = from_bf16(codes)
            else:
                dtype = ml_dtypes.float8_e4m3fn if self.precision == "fp8" else np.int8
                exact = codes.view(dtype).astype(np.float32)
            decoded.append(exact * scales[..., None])
        return decoded[0], decoded[1]

    def oracle(
        self, queries: NDArray[np.uint16], positions: Positions, blocks: Positions, layer: int = 0
    ) -> NDArray[np.float64]:
        keys, values = (x.astype(np.float64) for x in self.cached(layer, blocks, int(positions[-1]) + 1))
        out = np.empty(queries.shape, np.float64)
        for row, position in enumerate(positions):
            first = max(0, position - self.window + 1) if self.window else 0
            for head in range(self.num_heads):
                kv_head = head // (self.num_heads // self.num_kv_heads)
                query = from_bf16(queries[row, head]).astype(np.float64)
                scores = keys[first : position + 1, kv_head] @ query * self.scale
                if self.softcap:
                    scores = self.softcap * np.tanh(scores / self.softcap)
                weights = np.exp(scores - scores.max())
                out[row, head] = weights @ values[first : position + 1, kv_head] / weights.sum()
        return out


def span(first: int, last: int) -> Positions:
    return np.arange(first, last, dtype=np.int32)


def check_against_oracle(setting: Setting, length: int, layer: int = 0, threads: int = 1) -> None:
    """All of a prompt at once. Probabilities are rounded to bfloat16 (8 bits), each by itself: their errors
    are at most 2^-8 of the values' weighted magnitudes, and mostly cancel."""
    blocks = setting.blocks(length)
    groups = [(span(0, length), blocks)]
    queries = setting.store(setting.qkv(length), groups, layer, threads)
    out = setting.attend(queries, groups, layer, threads)
    expected = setting.oracle(queries, span(0, length), blocks, layer)
    _, values = setting.cached(layer, blocks, length)
    np.testing.assert_allclose(out, expected, rtol=0, atol=float(np.abs(values).max()) * 2**-8)
    assert np.sqrt(np.mean((out - expected) ** 2)) < 2**-9 * np.sqrt(np.mean(expected**2))


@instruction_sets
@precisions
@pytest.mark.parametrize("length", [1, 17, 130, 300])
def test_prompt(precision: str, length: int, instruction_set: str) -> None:
    check_against_oracle(Setting(precision=precision, instruction_set=instruction_set), length)


@instruction_sets
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
@pytest.mark.parametrize("head_dim", [2, 16, 34, 64, 80, 96, 128, 256])
def test_head_dims(head_dim: int, precision: str, instruction_set: str) -> None:
    check_against_oracle(
        Setting(head_dim=head_dim, precision=precision, instruction_set=instruction_set), 140, layer=1
    )


@instruction_sets
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(1, 1), (4, 4), (8, 2), (9, 3), (7, 1), (71, 1)])
def test_grouped_heads(num_heads: int, num_kv_heads: int, instruction_set: str) -> None:
    check_against_oracle(
        Setting(num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=16, instruction_set=instruction_set),
        150,
    )


@instruction_sets
@precisions
@pytest.mark.parametrize(("window", "softcap"), [(1, 0.0), (5, 0.0), (128, 0.0), (200, 3.0), (0, 0.5)])
def test_window_and_softcap(precision: str, window: int, softcap: float, instruction_set: str) -> None:
    setting = Setting(precision=precision, window=window, softcap=softcap, instruction_set=instruction_set)
    check_against_oracle(setting, 290, threads=2)


@pytest.mark.parametrize("block_size", [16, 32, 48, 144, 256])
def test_block_sizes(block_size: int) -> None:
    check_against_oracle(Setting(block_size=block_size, num_blocks=24), 310)


@instruction_sets
def test_large_scores(instruction_set: str) -> None:
    """Scores thousands apart: the largest alone counts."""
    setting = Setting(instruction_set=instruction_set)
    blocks = setting.blocks(200)
    groups = [(span(0, 200), blocks)]
    queries = setting.store(setting.qkv(200) * 60, groups)
    out = setting.attend(queries, groups)
    expected = setting.oracle(queries, span(0, 200), blocks)
    np.testing.assert_allclose(out, expected, rtol=0, atol=2**-8 * float(np.abs(expected).max()))


@dataclass(frozen=True)
class Request:
    length: int
    cuts: tuple[int, ...]  # chunks of the prompt end here


@st.composite
def schedules(draw: st.DrawFn) -> tuple[list[Request], int]:
    """Requests, and the seed of the order in which their chunks are computed together."""
    requests = []
    for _ in range(draw(st.integers(1, 4))):
        length = draw(st.sampled_from([1, 2, 15, 16, 17, 100, 127, 128, 129, 255, 256, 257, 300]))
        cuts = draw(st.sets(st.integers(1, length), max_size=6)) | {length}
        requests.append(Request(length, tuple(sorted(cuts))))
    return requests, draw(st.integers(0, 2**20))


@instruction_sets
@settings(max_examples=12, deadline=None)
@given(
    schedule=schedules(),
    precision=st.sampled_from(PRECISIONS),
    heads=st.sampled_from([(1, 1), (4, 2), (9, 3), (5, 1)]),
    head_dim=st.sampled_from([16, 34, 64]),
    window=st.sampled_from([0, 0, 20, 130]),
    softcap=st.sampled_from([0.0, 2.0]),
    threads=st.integers(1, 3),
)
def test_bits_do_not_depend_on_the_batch(
    instruction_set: str,
    schedule: tuple[list[Request], int],
    precision: str,
    heads: tuple[int, int],
    head_dim: int,
    window: int,
    softcap: float,
    threads: int,
) -> None:
    requests, seed = schedule

    def setting() -> Setting:
        return Setting(
            num_heads=heads[0],
            num_kv_heads=heads[1],
            head_dim=head_dim,
            precision=precision,
            num_blocks=100,
            window=window,
            softcap=softcap,
            instruction_set=instruction_set,
        )

    alone = []
    for index, request in enumerate(requests):
        fresh = setting()
        groups = [(span(0, request.length), fresh.blocks(request.length))]
        queries = fresh.store(fresh.qkv(request.length, index), groups)
        alone.append(fresh.attend(queries, groups))

    shared = setting()
    everywhere = shared.blocks(shared.num_blocks * shared.block_size)
    garbage = shared.qkv(len(everywhere) * shared.block_size, seed) * 1000
    shared.store(garbage, [(span(0, len(garbage)), everywhere)])
    shared._free = [int(block) for block in everywhere]
    tables = [shared.blocks(request.length) for request in requests]
    inputs = [shared.qkv(request.length, index) for index, request in enumerate(requests)]
    computed = [0] * len(requests)
    rng = np.random.default_rng(seed)
    while any(done < request.length for done, request in zip(computed, requests, strict=True)):
        chunks = []
        for index in rng.permutation(len(requests)):
            request = requests[index]
            if computed[index] < request.length and rng.random() < 0.7:
                last = next(cut for cut in request.cuts if cut > computed[index])
                chunks.append((int(index), computed[index], last))
                computed[index] = last
        if not chunks:
            continue
        groups = [(span(first, last), tables[index]) for index, first, last in chunks]
        rows = np.concatenate([inputs[index][first:last] for index, first, last in chunks])
        queries = shared.store(rows, groups, threads=threads)
        out = shared.attend(queries, groups, threads=threads)
        row = 0
        for index, first, last in chunks:
            chunk = out[row : row + last - first]
            assert chunk.tobytes() == alone[index][first:last].tobytes()
            row += last - first


@precisions
def test_some_queries_of_a_chunk(precision: str) -> None:
    """The last layer computes only those whose logits are wanted."""
    setting = Setting(precision=precision)
    blocks = setting.blocks(300)
    groups = [(span(0, 300), blocks)]
    queries = setting.store(setting.qkv(300), groups)
    every = setting.attend(queries, groups)
    chosen = np.array([0, 5, 6, 128, 250, 299], dtype=np.int32)
    some = setting.attend(queries[chosen], [(chosen, blocks)], threads=2)
    assert some.tobytes() == every[chosen].tobytes()


@instruction_sets
@pytest.mark.parametrize("num_kv_heads", [1, 3])
def test_partitions_split_over_threads(num_kv_heads: int, instruction_set: str) -> None:
    """One query at a long context: threads share it."""
    setting = Setting(
        num_heads=3 * num_kv_heads, num_kv_heads=num_kv_heads, num_blocks=130, instruction_set=instruction_set
    )
    blocks = setting.blocks(2000)
    queries = setting.store(setting.qkv(2000), [(span(0, 2000), blocks)])
    one = [(span(1999, 2000), blocks)]
    alone = setting.attend(queries[-1:], one)
    for threads in (2, 3, 7):
        assert setting.attend(queries[-1:], one, threads=threads).tobytes() == alone.tobytes()


@instruction_sets
@precisions
def test_codes_in_the_cache(precision: str, instruction_set: str) -> None:
    """Rounded to nearest, ties to even, saturating, as ml_dtypes and numpy round."""
    setting = Setting(precision=precision, instruction_set=instruction_set, num_heads=2)
    qkv = setting.qkv(40)
    heads = qkv.reshape(40, -1, 32)
    if precision == "fp8":
        # ties, subnormals and numbers beyond the largest, at the scales of layer 1
        special = np.array(
            [0, 2**-10, 3 * 2**-10, 2**-6, 15 * 2**-10, 1.0625, 1.1875, 447, 464, 500, 1e9, 0.0078125],
            dtype=np.float32,
        )
        special = np.concatenate([special, -special])
        heads[:3, 2:4, :24] = special * np.float32(0.03)
        heads[:3, 4:, :24] = special * np.float32(0.05)
    if precision == "dynamic_int8":
        heads[7, 2] = 0
        heads[8, 3] = np.arange(32) * 4 + 1.5
    blocks = setting.blocks(40)
    queries = setting.store(qkv, [(span(0, 40), blocks)], layer=1, threads=2)
    np.testing.assert_array_equal(queries, to_bf16(heads[:, :2]))
    read = setting.cache.read(1, blocks, 40)
    for exact, codes, scales in ((heads[:, 2:4], read[0], read[2]), (heads[:, 4:], read[1], read[3])):
        if precision == "bf16":
            expected = to_bf16(exact)
        elif precision == "fp8":
            scaled = np.clip(exact / scales[..., None], -448, 448)
            expected = scaled.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
        else:
            if precision == "dynamic_int8":
                largest = np.abs(exact).max(-1) / np.float32(127)
                np.testing.assert_array_equal(scales, np.where(largest == 0, 1, largest))
            rounded = np.clip(np.rint(exact / scales[..., None]), -127, 127)
            expected = rounded.astype(np.int8).view(np.uint8)
        np.testing.assert_array_equal(codes, expected)
    # nothing in the other layer
    assert not any(codes.any() for codes in setting.cache.read(0, blocks, 40)[:2])


@instruction_sets
@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_every_code_is_decoded_exactly(precision: str, instruction_set: str) -> None:
    """One key has probability 1, so that its value comes out as it is."""
    setting = Setting(precision=precision, instruction_set=instruction_set, num_heads=1, num_kv_heads=1)
    if precision == "fp8":
        codes = np.arange(256, dtype=np.uint8)
        codes = codes[(codes & 0x7F) != 0x7F]
        exact = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    else:
        exact = np.arange(-127, 128).astype(np.float32)
    exact = np.resize(exact, (8, 32))
    qkv = np.concatenate([np.ones((8, 64), np.float32), exact * np.float32(0.02)], axis=1)
    groups = [(span(0, 1), setting.blocks(1)) for _ in range(8)]
    out = setting.attend(setting.store(qkv, groups), groups)
    np.testing.assert_array_equal(out[:, 0], exact * np.float32(0.02))


@instruction_sets
def test_norms_and_rotation(instruction_set: str) -> None:
    setting = Setting(instruction_set=instruction_set, head_dim=34)
    rng = np.random.default_rng(1)
    qkv = setting.qkv(20)
    angles = rng.normal(size=(50, 17))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    norms = rng.normal(1, 0.2, (2, 34)).astype(np.float32)
    positions = span(25, 45)
    blocks = setting.blocks(45)

    def prepare(heads: Floats, norm: Floats) -> Floats:
        normed = heads / np.sqrt((heads.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5) * norm
        first, second = normed[..., :17], normed[..., 17:]
        c, s = cos[positions][:, None], sin[positions][:, None]
        return np.concatenate([first * c - second * s, second * c + first * s], -1).astype(np.float32)

    def rotate_and_store(rows: Floats, num_heads: int, keys: bool, threads: int = 1) -> NDArray[np.uint16]:
        return _native.rotate_and_store(
            setting.cache,
            0,
            rows,
            [(positions, blocks)],
            num_heads=num_heads,
            cos=cos,
            sin=sin,
            query_norm=norms[0],
            key_norm=norms[1],
            norm_eps=1e-5,
            keys=keys,
            threads=threads,
            instruction_set=instruction_set,
        )

    queries = rotate_and_store(qkv, 6, True, threads=3)
    heads = qkv.reshape(20, 10, 34)
    np.testing.assert_allclose(from_bf16(queries), prepare(heads[:, :6], norms[0]), rtol=2**-8, atol=1e-6)
    keys, values, _, _ = setting.cache.read(0, blocks, 45)
    np.testing.assert_allclose(from_bf16(keys[25:]), prepare(heads[:, 6:8], norms[1]), rtol=2**-8, atol=1e-6)
    np.testing.assert_array_equal(values[25:], to_bf16(heads[:, 8:]))
    assert not keys[:25].any()

    # Queries without keys and keys without queries, as the last layer wants them, give the same.
    np.testing.assert_array_equal(rotate_and_store(qkv[:, : 6 * 34].copy(), 6, False), queries)
    setting.cache.clear(blocks, 0, 45)
    rotate_and_store(qkv[:, 6 * 34 :].copy(), 0, True)
    np.testing.assert_array_equal(setting.cache.read(0, blocks, 45)[0], keys)


@precisions
def test_clear(precision: str) -> None:
    """What is not finite spoils its own request only until it is cleared."""
    setting = Setting(precision=precision)
    blocks = setting.blocks(64)
    groups = [(span(0, 64), blocks)]
    qkv = setting.qkv(64)
    spoiled = qkv.copy()
    spoiled[20:] = np.nan
    setting.store(spoiled, groups, layer=0)
    setting.store(spoiled, groups, layer=1)
    setting.cache.clear(blocks, 20, 64)
    queries = to_bf16(qkv[:20, : 6 * 32].reshape(20, 6, 32))
    for layer in (0, 1):
        out = setting.attend(queries, [(span(0, 20), blocks)], layer)
        expected = setting.oracle(queries, span(0, 20), blocks, layer)
        np.testing.assert_allclose(out, expected, rtol=0, atol=0.05)
        read = setting.cache.read(layer, blocks, 64)
        assert all(codes[:20].any() and not codes[20:].any() for codes in read[:2])


def test_not_a_number_is_not_hidden() -> None:
    for precision in ("bf16", "fp8", "dynamic_int8"):
        setting = Setting(precision=precision)
        blocks = setting.blocks(40)
        qkv = setting.qkv(40)
        qkv[30] = np.nan
        queries = setting.store(qkv, [(span(0, 40), blocks)])
        out = setting.attend(queries, [(span(0, 40), blocks)])
        # A row beside in the micro-kernel is untouched unless it sees the position.
        assert np.isnan(out[30:]).all()


def test_sizes() -> None:
    shape = {"num_layers": 3, "block_size": 32, "num_kv_heads": 2, "head_dim": 64}
    for precision, bytes_of_position in (("bf16", 256), ("fp8", 128), ("int8", 128), ("dynamic_int8", 136)):
        cache = _native.KVCache(num_blocks=5, precision=precision, **shape)
        assert cache.num_bytes == 5 * _native.KVCache.block_bytes(precision=precision, **shape)
        assert cache.num_bytes == 5 * 32 * 3 * 2 * bytes_of_position
        assert (cache.num_blocks, cache.block_size) == (5, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_size": 24}, "block_size 24 is not a multiple of 16"),
        ({"head_dim": 63}, "head_dim 63 is not an even number up to 256"),
        ({"head_dim": 258}, "head_dim 258"),
        ({"num_blocks": 0}, "num_blocks 0 is not positive"),
        ({"num_layers": -1}, "num_layers -1"),
        ({"precision": "int4"}, 'precision "int4" is not one of bf16, fp8, int8, dynamic_int8'),
        ({"precision": "fp8", "key_scales": [1.0]}, "1 key_scales for 2 layers"),
        ({"precision": "fp8", "value_scales": [1.0, 0.0]}, "value_scales hold 0.0"),
        ({"precision": "dynamic_int8", "key_scales": [1.0, 1.0]}, "come with its positions"),
    ],
)
def test_cache_errors(change: dict[str, object], message: str) -> None:
    shape = {"num_layers": 2, "num_blocks": 4, "block_size": 16, "num_kv_heads": 2, "head_dim": 64}
    with pytest.raises(ValueError, match=message):
        _native.KVCache(**{**shape, **change})


def test_call_errors() -> None:
    setting = Setting()
    blocks = setting.blocks(32)
    queries = np.zeros((2, 6, 32), np.uint16)
    for groups, message in (
        ([(span(0, 1), blocks)], "1 positions for 2 rows"),
        ([(span(31, 33), blocks)], "2 blocks of 16 positions do not hold 33"),
        ([(span(0, 2), np.array([64], np.int32))], "block 64 of 64"),
        ([(np.array([1, 1], np.int32), blocks)], "must ascend"),
    ):
        with pytest.raises(ValueError, match=message):
            setting.attend(queries, groups)
    groups = [(span(0, 2), blocks)]
    with pytest.raises(ValueError, match="layer 2 of 2"):
        setting.attend(queries, groups, layer=2)
    with pytest.raises(ValueError, match="threads 0"):
        setting.attend(queries, groups, threads=0)
    with pytest.raises(ValueError, match="head_dim of 34, the cache one of 32"):
        setting.attend(np.zeros((2, 6, 34), np.uint16), groups)
    with pytest.raises(ValueError, match="num_heads 5 is not a positive multiple of num_kv_heads 2"):
        setting.attend(np.zeros((2, 5, 32), np.uint16), groups)
    with pytest.raises(ValueError, match=r"scale 0\.0* is not positive"):
        _native.attend(setting.cache, 0, queries, groups, scale=0)
    with pytest.raises(ValueError, match="qkv is 319 wide; its heads take 320"):
        setting.store(np.zeros((2, 319), np.float32), groups)
    table = np.zeros((1, 16), np.float32)
    with pytest.raises(ValueError, match=r"must be \[2 or more, 16\], not \[1, 16\]"):
        _native.rotate_and_store(
            setting.cache, 0, np.zeros((2, 320), np.float32), groups, num_heads=6, cos=table, sin=table
        )
