"""The step program against numpy: each operation, then a whole small model, on every instruction set."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from tightpack import _native

Floats = NDArray[np.float32]
Record = Callable[[_native.Program], _native.Value]

SETS = _native.instruction_sets()
every_set = pytest.mark.parametrize("instruction_set", SETS)

HIDDEN, HEADS, KV_HEADS, DIM, INNER, VOCABULARY, LAYERS = 40, 4, 2, 16, 72, 83, 2
QUERIES, KEYS_VALUES = HEADS * DIM, 2 * KV_HEADS * DIM
POSITIONS, BLOCK = 64, 16
EPS = 1e-5


def rounded(x: Floats) -> Floats:
    narrow: NDArray[ml_dtypes.bfloat16] = x.astype(ml_dtypes.bfloat16)
    return narrow.astype(np.float32)


def packed(weight: Floats) -> _native.PackedLinear:
    return _native.pack_dense([np.ascontiguousarray(weight)])


def bf16_rows(width: int) -> _native.RowFormat:
    return _native.RowFormat("bf16", width=width)


def int32(numbers: Sequence[object]) -> NDArray[np.int32]:
    return np.array(numbers, np.int32)


def make_program(threads: int = 1, hidden_size: int = HIDDEN, **options: object) -> _native.Program:
    arguments = {"hidden_size": hidden_size, "num_heads": HEADS, "num_kv_heads": KV_HEADS, "head_dim": DIM}
    return _native.Program(_native.ThreadTeam(threads), **(arguments | options))  # type: ignore[arg-type]


def make_cache(num_blocks: int = 12, num_layers: int = LAYERS) -> _native.KVCache:
    return _native.KVCache(
        num_layers=num_layers,
        num_blocks=num_blocks,
        block_size=BLOCK,
        num_kv_heads=KV_HEADS,
        head_dim=DIM,
    )


def float32(x: ArrayLike) -> Floats:
    return np.asarray(x, np.float32)


def normed(x: Floats, weight: Floats) -> Floats:
    mean = np.mean(x.astype(np.float64) ** 2, axis=-1, keepdims=True)
    return float32(x / np.sqrt(mean + EPS) * weight)


def silu(x: Floats) -> Floats:
    return float32(x / (1 + np.exp(-x.astype(np.float64))))


def gelu_tanh(x: Floats) -> Floats:
    wide = x.astype(np.float64)
    u = np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)
    return float32(wide / 2 * (1 + np.tanh(u)))


def observed(x: Floats, record: Record, *, instruction_set: str = "auto", threads: int = 2) -> Floats:
    """What `record` makes of a residual stream x (exact in bfloat16), rounded to bfloat16."""
    count, width = x.shape
    program = make_program(threads, width, instruction_set=instruction_set)
    program.embed(packed(x))
    program.keep_wanted_rows()
    values = record(program)
    program.head(program.quantize(values, bf16_rows(values.width)), packed(np.eye(values.width, dtype="f4")))
    rows = np.arange(count, dtype=np.int32)
    logits, finite = program.run(
        rows, int32([[count, 0, 8]]), np.arange(8, dtype=np.int32), rows, make_cache()
    )
    assert finite.all()
    return logits.copy()


def residual_of(program: _native.Program, width: int) -> _native.Value:
    """The residual stream is read through a norm; this one leaves it as it is but for its size."""
    rows = program.norm(np.ones(width, "f4"), EPS, bf16_rows(width))
    return program.linear(rows, packed(np.eye(width, dtype="f4")))


def close_in_bf16(found: Floats, expected: Floats) -> None:
    np.testing.assert_allclose(found, expected, rtol=2**-7, atol=1e-6 * np.abs(expected).max() + 1e-30)


def random_rows(seed: int, count: int, width: int) -> Floats:
    return rounded(np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32))


@every_set
@pytest.mark.parametrize("width", [1, 15, 16, 17, 40, 160])
def test_norm(instruction_set: str, width: int) -> None:
    x = random_rows(width, 5, width)
    weight = random_rows(1, 1, width)[0]

    def record(program: _native.Program) -> _native.Value:
        rows = program.norm(weight, EPS, bf16_rows(width))
        return program.linear(rows, packed(np.eye(width, dtype="f4")))

    found = observed(x, record, instruction_set=instruction_set)
    close_in_bf16(found, normed(x, weight))


@every_set
@pytest.mark.parametrize(("name", "oracle"), [("silu", silu), ("gelu_tanh", gelu_tanh)])
@pytest.mark.parametrize("width", [1, 7, 16, 33])
def test_gate(instruction_set: str, name: str, oracle: Callable[[Floats], Floats], width: int) -> None:
    # Everything from where the gate closes to where it is open, through 0.
    gate_up = rounded(np.linspace(-120, 120, 12 * 2 * width, dtype="f4").reshape(12, -1))

    def record(program: _native.Program) -> _native.Value:
        values = program.linear(
            program.norm(np.ones(width * 2, "f4"), EPS, bf16_rows(width * 2)),
            packed(np.zeros((width * 2, width * 2), "f4")),
            bias=gate_up[row],
        )
        rows = program.gate(values, name, bf16_rows(width))
        return program.linear(rows, packed(np.eye(width, dtype="f4")))

    for row in range(12):
        found = observed(np.ones((1, 2 * width), "f4"), record, instruction_set=instruction_set)
        expected = oracle(gate_up[row, :width]) * gate_up[row, width:]
        close_in_bf16(found[0], expected)


@every_set
def test_linear_writes_parts_of_weights_to_columns(instruction_set: str) -> None:
    x = random_rows(3, 5, HIDDEN)
    weight, bias = random_rows(4, 50, HIDDEN), random_rows(5, 1, 50)[0]

    def record(program: _native.Program) -> _native.Value:
        rows = program.norm(np.ones(HIDDEN, "f4"), EPS, bf16_rows(HIDDEN))
        out = program.buffer(2 + 34 + 50)
        both = packed(weight)
        program.linear(rows, both, bias=bias, out=out, first_column=36)
        program.linear(rows, both, bias=bias, outputs=(16, 50), out=out, first_column=2)
        program.linear(rows, packed(weight[:2]), out=out)
        return out

    product = rounded(normed(x, np.ones(HIDDEN, "f4"))) @ weight.T
    expected = np.concatenate([product[:, :2], (product + bias)[:, 16:], product + bias], axis=1)
    np.testing.assert_allclose(
        observed(x, record, instruction_set=instruction_set), expected, rtol=2**-7, atol=2e-3
    )


@every_set
def test_linear_add_and_norm_add(instruction_set: str) -> None:
    x = random_rows(6, 5, HIDDEN)
    weight, bias, scale = (
        random_rows(7, HIDDEN, HIDDEN),
        random_rows(8, 1, HIDDEN)[0],
        random_rows(9, 1, HIDDEN)[0],
    )

    def record(program: _native.Program) -> _native.Value:
        def rows() -> _native.Value:
            return program.norm(np.ones(HIDDEN, "f4"), EPS, bf16_rows(HIDDEN))

        program.linear_add(rows(), packed(weight), bias=bias)
        program.norm_add(program.linear(rows(), packed(weight)), scale, EPS)
        return residual_of(program, HIDDEN)

    ones = np.ones(HIDDEN, "f4")
    stream = x + rounded(normed(x, ones)) @ weight.T + bias
    stream = stream + normed(rounded(normed(stream, ones)) @ weight.T, scale)
    found = observed(x, record, instruction_set=instruction_set)
    np.testing.assert_allclose(found, rounded(normed(stream, ones)), rtol=2**-7, atol=2e-3)


@every_set
def test_embedding_scale_and_softcap(instruction_set: str) -> None:
    table = random_rows(10, VOCABULARY, HIDDEN)
    program = make_program(instruction_set=instruction_set)
    program.embed(packed(table), scale=1e-3)  # so that eps counts
    program.keep_wanted_rows()
    program.head(program.norm(np.ones(HIDDEN, "f4"), EPS, bf16_rows(HIDDEN)), packed(table), softcap=5.0)
    tokens = int32([0, 82, 7])
    logits, _ = program.run(tokens, int32([[3, 0, 1]]), int32([0]), int32([0, 2]), make_cache())
    rows = rounded(normed(table[[0, 7]] * np.float32(1e-3), np.ones(HIDDEN, "f4")))
    np.testing.assert_allclose(logits, 5 * np.tanh(rows @ table.T / 5), rtol=1e-4, atol=1e-4)


@dataclass(frozen=True)
class Layer:
    attention_norm: Floats
    mlp_norm: Floats
    qkv: Floats
    output: Floats
    gate_up: Floats
    down: Floats


@dataclass(frozen=True)
class Model:
    """A Llama of random weights."""

    embedding: Floats
    final_norm: Floats
    cos: Floats
    sin: Floats
    layers: list[Layer] = field(default_factory=list)


@cache
def model() -> Model:
    random = np.random.default_rng(11)

    def weight(*shape: int) -> Floats:
        return rounded(random.normal(size=shape).astype("f4") / np.sqrt(np.float32(shape[-1])))

    def norm() -> Floats:
        return (1 + 0.2 * random.normal(size=HIDDEN)).astype("f4")

    angles = np.outer(np.arange(POSITIONS), 100.0 ** (-np.arange(DIM // 2) / (DIM // 2)))
    layers = [
        Layer(
            norm(),
            norm(),
            weight(QUERIES + KEYS_VALUES, HIDDEN),
            weight(HIDDEN, QUERIES),
            weight(2 * INNER, HIDDEN),
            weight(HIDDEN, INNER),
        )
        for _ in range(LAYERS)
    ]
    table = rounded(random.normal(size=(VOCABULARY, HIDDEN)).astype("f4"))
    return Model(table, norm(), np.cos(angles).astype("f4"), np.sin(angles).astype("f4"), layers)


def rotated(x: Floats, positions: NDArray[np.int32]) -> Floats:
    cos, sin = (table[positions][:, None] for table in (model().cos, model().sin))
    left, right = np.split(x, 2, axis=-1)
    return rounded(np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1))


def oracle_logits(tokens: NDArray[np.int32]) -> Floats:
    """Of all positions of one prompt; numbers are rounded to bfloat16 where the program rounds them."""
    positions = np.arange(len(tokens), dtype=np.int32)
    x = model().embedding[tokens]
    for layer in model().layers:
        qkv = rounded(normed(x, layer.attention_norm)) @ layer.qkv.T
        heads = qkv.reshape(len(tokens), -1, DIM)
        q = rotated(heads[:, :HEADS], positions)
        k = np.repeat(rotated(heads[:, HEADS : HEADS + KV_HEADS], positions), HEADS // KV_HEADS, axis=1)
        v = np.repeat(rounded(heads[:, HEADS + KV_HEADS :]), HEADS // KV_HEADS, axis=1)
        scores = np.einsum("qhd,khd->hqk", q, k) * np.float32(DIM**-0.5)
        scores[:, positions[:, None] < positions] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", weights, v).reshape(len(tokens), -1)
        x = x + rounded(mixed) @ layer.output.T
        gate, up = np.split(rounded(normed(x, layer.mlp_norm)) @ layer.gate_up.T, 2, axis=-1)
        x = x + rounded(silu(gate) * up) @ layer.down.T
    return rounded(normed(x, model().final_norm)) @ model().embedding.T


def model_program(
    threads: int, instruction_set: str = "auto", embedding: Floats | None = None, timed: bool = False
) -> _native.Program:
    m = model()
    program = make_program(threads, instruction_set=instruction_set, timed=timed)
    hidden = bf16_rows(HIDDEN)
    program.embed(packed(m.embedding if embedding is None else embedding))
    for index, layer in enumerate(m.layers):
        qkv = packed(layer.qkv)
        rows = program.norm(layer.attention_norm, EPS, hidden)
        if index < LAYERS - 1:
            queries = program.rotate_and_store(program.linear(rows, qkv, name="qkv"), index, m.cos, m.sin)
        else:
            kv = program.linear(rows, qkv, outputs=(QUERIES, QUERIES + KEYS_VALUES), name="qkv")
            program.store_keys_values(kv, index, m.cos, m.sin)
            program.keep_wanted_rows()
            rows = program.norm(layer.attention_norm, EPS, hidden)
            queries = program.linear(rows, qkv, outputs=(0, QUERIES), name="qkv")
            queries = program.rotate_queries(queries, m.cos, m.sin)
        mixed = program.attention(queries, index, scale=DIM**-0.5)
        program.linear_add(program.quantize(mixed, bf16_rows(QUERIES)), packed(layer.output), name="output")
        gate_up = program.linear(
            program.norm(layer.mlp_norm, EPS, hidden), packed(layer.gate_up), name="gate_up"
        )
        program.linear_add(program.gate(gate_up, "silu", bf16_rows(INNER)), packed(layer.down), name="down")
    program.head(program.norm(m.final_norm, EPS, hidden), packed(m.embedding))
    return program


def prompt(length: int, seed: int = 0) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, VOCABULARY, length).astype(np.int32)


def run_alone(program: _native.Program, tokens: NDArray[np.int32]) -> Floats:
    """The logits of a prompt's positions, all in one step."""
    rows = np.arange(len(tokens), dtype=np.int32)
    logits, _ = program.run(tokens, int32([[len(tokens), 0, 4]]), int32([7, 1, 5, 2]), rows, make_cache())
    return logits.copy()


@every_set
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_model(instruction_set: str, threads: int) -> None:
    tokens = prompt(50)
    expected = oracle_logits(tokens)
    found = run_alone(model_program(threads, instruction_set), tokens)
    # A number that lies at the edge of two bfloat16 may be rounded either way.
    assert np.abs(found - expected).max() < 0.05 * expected.std()


@every_set
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_same_bits_in_any_batch(instruction_set: str, data: st.DataObject) -> None:
    prompts = [prompt(length, length) for length in (1, 17, 40)]
    alone = [expected_alone(instruction_set, index) for index in range(3)]
    program = programs(instruction_set, data.draw(st.sampled_from([1, 2, 3]), "threads"))
    blocks = int32(data.draw(st.permutations(range(12)), "blocks")).reshape(3, 4)
    kv_cache = make_cache()
    done = [0, 0, 0]
    while any(done[i] < len(prompts[i]) for i in range(3)):
        waiting = [i for i in range(3) if done[i] < len(prompts[i])]
        order = data.draw(st.permutations(waiting), "order")[
            : data.draw(st.integers(1, len(waiting)), "chunks")
        ]
        sizes = [data.draw(st.integers(1, len(prompts[i]) - done[i]), "tokens") for i in order]
        rows = [(i, done[i] + offset) for i, size in zip(order, sizes, strict=True) for offset in range(size)]
        wanted = data.draw(st.lists(st.sampled_from(range(len(rows))), unique=True), "wanted")
        logits, finite = program.run(
            int32([prompts[i][position] for i, position in rows]),
            int32([[size, done[i], 4] for i, size in zip(order, sizes, strict=True)]),
            np.concatenate([blocks[i] for i in order]),
            int32(sorted(wanted)),
            kv_cache,
        )
        assert finite.all()
        for found, row in zip(logits, sorted(wanted), strict=True):
            request, position = rows[row]
            np.testing.assert_array_equal(found, alone[request][position])
        for i, size in zip(order, sizes, strict=True):
            done[i] += size


@every_set
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_bits_where_a_thread_takes_stretches_of_rows(instruction_set: str, threads: int) -> None:
    prompts = [prompt(60, seed) for seed in range(5)]
    program = programs(instruction_set, threads)
    found, finite = program.run(
        np.concatenate(prompts),
        int32([[60, 0, 4]] * 5),
        np.arange(20, dtype=np.int32),
        np.arange(300, dtype=np.int32),
        make_cache(20),
    )
    assert finite.all()
    # With four threads 60 rows are too few for stretches.
    alone = [run_alone(programs(instruction_set, 4), tokens) for tokens in prompts]
    np.testing.assert_array_equal(found, np.concatenate(alone))


@cache
def programs(instruction_set: str, threads: int) -> _native.Program:
    return model_program(threads, instruction_set)


@cache
def expected_alone(instruction_set: str, index: int) -> Floats:
    length = (1, 17, 40)[index]
    return run_alone(programs(instruction_set, 1), prompt(length, length))


@every_set
@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_what_is_not_finite_fails_alone(instruction_set: str, bad: float) -> None:
    embedding = model().embedding.copy()
    embedding[13] = bad
    program = model_program(2, instruction_set, embedding)
    kv_cache = make_cache()
    healthy = prompt(20)
    healthy[healthy == 13] = 14
    tokens = np.concatenate([healthy[:7], int32([1, 2, 13]), healthy[7:8]])
    chunks = int32([[7, 0, 1], [3, 5, 2], [1, 0, 1]])
    logits, finite = program.run(tokens, chunks, int32([4, 3, 6, 0]), int32([6, 10]), kv_cache)
    assert finite.tolist() == [True, False, True]
    np.testing.assert_array_equal(logits[0], run_alone(programs(instruction_set, 1), healthy)[6])
    for layer in range(LAYERS):
        keys, values, *_ = kv_cache.read(layer, int32([3, 6]), 16)
        assert not keys.any()
        assert not values.any()
        keys, *_ = kv_cache.read(layer, int32([4]), 7)
        assert keys.any()
    # A step of one row takes its own way through the program.
    _, finite = program.run(int32([13]), int32([[1, 7, 1]]), int32([4]), int32([]), kv_cache)
    assert finite.tolist() == [False]


def test_a_step_that_wants_no_logits() -> None:
    program = model_program(2)
    logits, finite = program.run(prompt(3), int32([[3, 0, 1]]), int32([0]), int32([]), make_cache())
    assert logits.shape == (0, VOCABULARY)
    assert finite.tolist() == [True]


def test_logits_outlive_program_and_weights() -> None:
    def run() -> Floats:
        program = model_program(1)
        logits, _ = program.run(prompt(3), int32([[3, 0, 1]]), int32([0]), int32([2]), make_cache())
        return logits

    logits = run()
    gc.collect()
    np.testing.assert_array_equal(logits[0], run_alone(model_program(1), prompt(3))[2])


def test_threads_wait_as_seldom_as_the_data_allow() -> None:
    program = model_program(2)
    # norm | qkv | rotate | attention | quantize | output | norm | gate_up | gate | down |
    per_layer = 10
    # The last layer norms, multiplies and rotates twice. Embedding and norm share no rows, hence no barrier.
    assert program.num_barriers(8) == LAYERS * per_layer + 3
    # norm, qkv | rotate | attention | quantize, output | norm, gate_up | gate, down |
    assert program.num_barriers(1) == LAYERS * 6 + 3
    # From 64 rows a thread on, one thread does all between two attentions, as far as wanted rows are kept:
    # embed .. rotate | attention | quantize .. store | keep_wanted_rows, norm | queries | rotate | ...
    assert program.num_barriers(127) == program.num_barriers(8)
    assert program.num_barriers(128) == (LAYERS - 1) * 2 + 1 + per_layer + 1
    assert len(program.operations) == LAYERS * per_layer + 7


def test_profile_counts_seconds_by_kind() -> None:
    program = model_program(2, timed=True)
    run_alone(program, prompt(5))
    seconds = program.profile()
    assert {"embed", "norm", "qkv", "rotate_and_store", "attention", "gate_up", "gate", "head"} <= set(
        seconds
    )
    assert all(time > 0 for time in seconds.values())
    assert not any(program.profile().values())


def test_what_does_not_fit_is_refused_when_recorded() -> None:
    program = make_program()
    rows40, ones = bf16_rows(HIDDEN), np.ones(HIDDEN, "f4")
    square = packed(np.eye(HIDDEN, dtype="f4"))
    with pytest.raises(ValueError, match=r"norm: embed comes first"):
        program.norm(ones, EPS, rows40)
    with pytest.raises(ValueError, match=r"table is \[3, 48\], hidden_size is 40"):
        program.embed(packed(np.zeros((3, 48), "f4")))
    program.embed(square)
    with pytest.raises(ValueError, match="has an embedding already"):
        program.embed(square)
    with pytest.raises(ValueError, match="weight has 39 numbers, the rows have 40"):
        program.norm(ones[1:], EPS, rows40)
    with pytest.raises(ValueError, match="format is for 48 numbers, the rows have 40"):
        program.norm(ones, EPS, bf16_rows(48))
    rows = program.norm(ones, EPS, rows40)
    with pytest.raises(ValueError, match=r"wants rounded rows of 48 numbers, got rows of bf16 \[40\]"):
        program.linear(rows, packed(np.zeros((3, 48), "f4")), name="qkv")
    with pytest.raises(ValueError, match=r"bias has 3 numbers, the weight is \[40, 40\]"):
        program.linear(rows, square, bias=ones[:3])
    with pytest.raises(ValueError, match="outputs 8 to 40 are no whole panels"):
        program.linear(rows, square, outputs=(8, 40))
    with pytest.raises(ValueError, match=r"40 outputs from column 9 on do not fit into float32 \[48\]"):
        program.linear(rows, square, out=program.buffer(48), first_column=9)
    with pytest.raises(ValueError, match=r"nothing has been written to float32 \[48\]"):
        program.quantize(program.buffer(48), bf16_rows(48))
    with pytest.raises(ValueError, match=r"wants float32 \[40\], got rows of bf16 \[40\]"):
        program.quantize(rows, rows40)
    with pytest.raises(ValueError, match=r"weight is \[2, 40\], the residual stream has 40"):
        program.linear_add(rows, packed(np.zeros((2, HIDDEN), "f4")))
    with pytest.raises(ValueError, match=r"wants float32 \[128\], got float32 \[40\]"):
        program.rotate_and_store(program.linear(rows, square), 0, model().cos, model().sin)
    with pytest.raises(
        ValueError, match=r"cos \[64, 7\] and sin \[64, 8\] are to be \[positions, head_dim / 2\]"
    ):
        program.store_keys_values(rows, 0, np.ascontiguousarray(model().cos[:, 1:]), model().sin)
    with pytest.raises(ValueError, match='unknown activation "relu"'):
        program.gate(program.linear(rows, square), "relu", bf16_rows(20))
    with pytest.raises(ValueError, match="keep_wanted_rows comes before"):
        program.head(rows, square)
    other = make_program()
    other.embed(square)
    with pytest.raises(ValueError, match="made by another program"):
        other.linear(rows, square)
    program.keep_wanted_rows()
    with pytest.raises(ValueError, match="made before keep_wanted_rows"):
        program.linear(rows, square)
    program.head(program.norm(ones, EPS, rows40), square)
    with pytest.raises(ValueError, match="complete"):
        program.norm(ones, EPS, rows40)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_ids": [1, 83]}, "token 83 is not in the vocabulary of 83"),
        ({"token_ids": [-1, 2]}, "token -1"),
        ({"token_ids": [1, 2, 3]}, "chunks have 2 tokens, token_ids 3"),
        ({"chunks": [[2, 15, 1]]}, "ends at position 17, its 1 blocks at 16"),
        ({"chunks": [[2, 63, 5]], "blocks": [0] * 5}, "ends at position 65, the rotation tables at 64"),
        ({"chunks": [[2, -1, 1]]}, "from position -1"),
        ({"chunks": [[2, 0, 2]]}, "have 2 blocks, blocks 1"),
        ({"blocks": [12]}, "block 12 is not in the cache of 12"),
        ({"wanted_rows": [1, 0]}, "wanted row 0 after 1"),
        ({"wanted_rows": [2]}, "wanted row 2"),
    ],
)
def test_what_does_not_fit_is_refused_when_run(changes: dict[str, list[object]], message: str) -> None:
    step: dict[str, list[object]] = {
        "token_ids": [1, 2],
        "chunks": [[2, 0, 1]],
        "blocks": [0],
        "wanted_rows": [1],
    }
    arrays = {name: int32(numbers) for name, numbers in (step | changes).items()}
    with pytest.raises(ValueError, match=message):
        programs("portable", 1).run(**arrays, cache=make_cache())


def test_a_cache_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="the cache has 1 layers of 2 heads of 16, the program needs 2"):
        programs("portable", 1).run(
            int32([1]), int32([[1, 0, 1]]), int32([0]), int32([0]), make_cache(num_layers=1)
        )


@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_team_sizes(threads: int) -> None:
    with pytest.raises(ValueError, match=f"threads must be 1 .. 1024, not {threads}"):
        _native.ThreadTeam(threads)
