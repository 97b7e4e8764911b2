"""The operations of a mixture of experts against numpy, on every instruction set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from tightpack import _native

Floats = NDArray[np.float32]

EPS = 1e-6
HIDDEN, INNER = 64, 32
BF16, SYMMETRIC_INT4 = {"codes": "bf16"}, {"codes": "int8", "group": 32, "weight_offset": 8}

every_set = pytest.mark.parametrize("instruction_set", _native.instruction_sets())


def rounded(x: Floats) -> Floats:
    return x.astype(ml_dtypes.bfloat16).astype(np.float32)


def packed(weight: Floats) -> _native.PackedLinear:
    return _native.pack_dense([np.ascontiguousarray(weight, np.float32)])


def rows_of(width: int) -> _native.RowFormat:
    return _native.RowFormat("bf16", width=width)


def normed(x: Floats) -> Floats:
    return (x / np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=-1, keepdims=True) + EPS)).astype("f4")


def run(
    x: Floats,
    record: Callable[[_native.Program], _native.Value],
    *,
    instruction_set: str = "auto",
    threads: int = 2,
    batches: tuple[int, ...] = (),
) -> tuple[Floats, NDArray[np.bool_]]:
    """What `record` makes of a residual stream x, as logits in bfloat16, and which steps were finite.

    x is exact in bfloat16. batches: rows of each step; all in one where none are given.
    """
    program = _native.Program(
        _native.ThreadTeam(threads),
        hidden_size=x.shape[1],
        num_heads=1,
        num_kv_heads=1,
        head_dim=2,
        instruction_set=instruction_set,
    )
    program.embed(packed(x))
    program.keep_wanted_rows()
    values = record(program)
    program.head(program.quantize(values, rows_of(values.width)), packed(np.eye(values.width)))
    blocks = np.arange(-(-len(x) // 16), dtype=np.int32)
    cache = _native.KVCache(num_layers=1, num_blocks=len(blocks), block_size=16, num_kv_heads=1, head_dim=2)
    logits, finite, first = [], [], 0
    for count in batches or (len(x),):
        rows = np.arange(count, dtype=np.int32)
        chunks = np.array([[count, 0, len(blocks)]], np.int32)
        found, sound = program.run(rows + np.int32(first), chunks, blocks, rows, cache)
        logits.append(found.copy())
        finite.append(sound.copy())
        first += count
    return np.concatenate(logits), np.concatenate(finite)


def chosen(scores: Floats, used: int, normalized: bool) -> tuple[Floats, NDArray[np.int64]]:
    """Shares and experts of each row; of equal scores the first expert's comes first."""
    shares = np.exp(scores.astype(np.float64) - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    experts = np.argsort(-scores, axis=-1, kind="stable")[:, :used]
    taken = np.take_along_axis(shares, experts, -1)
    return (taken / taken.sum(-1, keepdims=True) if normalized else taken).astype("f4"), experts


@every_set
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(("count", "used"), [(1, 1), (4, 2), (8, 8), (17, 3), (130, 8), (40, 20)])
def test_route(instruction_set: str, count: int, used: int, normalized: bool) -> None:
    # Row i is all zeros but at i, where its norm is 8: a linear picks column i, any scores that are wanted.
    x = np.eye(HIDDEN, dtype="f4")
    scores = rounded(np.random.default_rng(count).normal(size=(HIDDEN, count)).astype("f4") * 4)
    scores[3] = scores[3, 0]  # all equal
    scores[4, -1] = -3e38  # far below the others

    def record(program: _native.Program) -> _native.Value:
        rows = program.norm(np.ones(HIDDEN, "f4"), EPS, rows_of(HIDDEN))
        values = program.linear(rows, packed(scores.T / 8))
        return program.route(values, experts_per_token=used, normalized=normalized)

    found, finite = run(x, record, instruction_set=instruction_set)
    assert finite.all()
    shares, experts = chosen(scores, used, normalized)
    np.testing.assert_array_equal(found[:, used:], experts)
    np.testing.assert_allclose(found[:, :used], shares, rtol=2**-7, atol=1e-30)


class Expert:
    """Gate and up in as many weights as formats are given, and down; each format's fields but the width."""

    def __init__(self, seed: int, *, gate_up: list[dict[str, Any]], down: dict[str, Any]) -> None:
        draw = np.random.default_rng(seed)

        def runs(outputs: int, inputs: int, formats: list[dict[str, Any]]) -> Any:
            made = []
            for fields in formats:
                values = draw.normal(size=(outputs // len(formats), inputs)).astype("f4")
                row_format = _native.RowFormat(width=inputs, **{"group": 0, **fields})
                made.append((self._packed(values / np.sqrt(inputs, dtype="f4"), fields), row_format))
            return tuple(made)

        self.gate_up = runs(2 * INNER, HIDDEN, gate_up)
        self.down = runs(HIDDEN, INNER, [down])

    @staticmethod
    def _packed(values: Floats, fields: dict[str, Any]) -> _native.PackedLinear:
        if fields["codes"] == "bf16":
            return packed(values)
        bits, group = (4, 32) if fields["weight_offset"] == 8 else (8, values.shape[1])
        grouped = values.reshape(len(values), -1, group)
        scales = (np.abs(grouped).max(-1) / (2 ** (bits - 1) - 1)).astype(np.float16).astype("f4")
        codes = np.rint(grouped / scales[..., None]).reshape(values.shape).astype(np.int8)
        return _native.pack_int([(codes, scales, None, None)], bits=bits, group_size=group)

    def output(self, x: Floats) -> Floats:
        gate, up = np.split(self._product(x, self.gate_up), 2, axis=-1)
        return self._product((gate / (1 + np.exp(-gate)) * up).astype("f4"), self.down)

    @staticmethod
    def _product(x: Floats, runs: Any) -> Floats:
        return np.concatenate([form.rounded(x) @ weight.dequantize().T for weight, form in runs], axis=-1)


def fp8(static_scale: float) -> dict[str, Any]:
    return {"codes": "bf16", "fp8": True, "group": HIDDEN, "static_scale": static_scale}


# Every pair has its like in a checkpoint: experts whose static scales differ, gates and ups of two formats.
EXPERTS = [
    Expert(0, gate_up=[BF16], down=BF16),
    Expert(1, gate_up=[SYMMETRIC_INT4], down=SYMMETRIC_INT4),
    Expert(2, gate_up=[fp8(0.02)], down=fp8(0.01) | {"group": INNER}),
    Expert(3, gate_up=[fp8(0.005)], down=BF16),
    Expert(4, gate_up=[SYMMETRIC_INT4, BF16], down=SYMMETRIC_INT4),
    Expert(5, gate_up=[fp8(0.003), fp8(0.02)], down=BF16),
    Expert(
        6,
        gate_up=[{"codes": "int8", "group": HIDDEN, "weight_offset": 128, "outlier_threshold": 1.5}],
        down={"codes": "int8", "group": INNER, "weight_offset": 128, "steps": 255},
    ),
]
ROUTER = rounded(np.random.default_rng(9).normal(size=(len(EXPERTS), HIDDEN)).astype("f4") / 8)
USED = 3


def mixed(program: _native.Program) -> _native.Value:
    ones = np.ones(HIDDEN, "f4")
    scores = program.linear(program.norm(ones, EPS, rows_of(HIDDEN)), packed(ROUTER))
    program.experts(
        program.route(scores, experts_per_token=USED, normalized=True),
        ones,
        EPS,
        "silu",
        gate_up=tuple(expert.gate_up for expert in EXPERTS),
        down=tuple(expert.down for expert in EXPERTS),
    )
    rows = program.norm(ones, EPS, rows_of(HIDDEN))
    return program.linear(rows, packed(np.eye(HIDDEN)))


def oracle(x: Floats) -> Floats:
    inputs = normed(x)
    shares, experts = chosen(rounded(inputs) @ ROUTER.T, USED, normalized=True)
    out = x.copy()
    for choice in range(USED):
        for row, expert in enumerate(experts[:, choice]):
            out[row] += shares[row, choice] * EXPERTS[expert].output(inputs[row : row + 1])[0]
    return normed(out)


def tokens(count: int) -> Floats:
    return rounded(np.random.default_rng(count).normal(size=(count, HIDDEN)).astype("f4"))


@every_set
@pytest.mark.parametrize("count", [1, 5, 200])
def test_experts_of_every_format(instruction_set: str, count: int) -> None:
    x = tokens(count)
    found, finite = run(x, mixed, instruction_set=instruction_set)
    assert finite.all()
    # A number that lies between two codes may be rounded either way.
    np.testing.assert_allclose(found, oracle(x), rtol=0, atol=0.03)


@every_set
def test_the_same_bits_in_any_step_on_any_number_of_threads(instruction_set: str) -> None:
    x = tokens(90)
    alone, _ = run(x, mixed, instruction_set=instruction_set, threads=1, batches=(1,) * 90)
    for threads, batches in ((1, (90,)), (2, (1, 60, 2, 27)), (3, (90,)), (5, (1, 3, 8, 30, 48))):
        found, _ = run(x, mixed, instruction_set=instruction_set, threads=threads, batches=batches)
        np.testing.assert_array_equal(found, alone)


def test_steps_that_are_longer_than_memory_is_kept_for() -> None:
    bytes_a_token = USED * (2 * INNER + HIDDEN) * 4
    count = 2**26 // bytes_a_token * 2 + 100  # three stretches of tokens
    x = tokens(90)
    short, _ = run(x, mixed)
    found, _ = run(np.resize(x, (count, HIDDEN)), mixed)
    np.testing.assert_array_equal(found, np.resize(short, (count, HIDDEN)))


def test_experts_that_nobody_takes() -> None:
    """All rows go to the same few."""
    x = np.repeat(tokens(1), 70, axis=0)
    found, _ = run(x, mixed)
    np.testing.assert_array_equal(found, np.repeat(found[:1], 70, axis=0))
    np.testing.assert_allclose(found[:1], oracle(x[:1]), rtol=0, atol=0.03)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_found(bad: float) -> None:
    x = tokens(4)
    x[2, 5] = bad
    _, finite = run(x, mixed, batches=(2, 1, 1))
    assert finite.tolist() == [True, False, True]


def record_wrongly(**changes: Any) -> Callable[[_native.Program], _native.Value]:
    def record(program: _native.Program) -> _native.Value:
        ones = np.ones(HIDDEN, "f4")
        scores = program.linear(program.norm(ones, EPS, rows_of(HIDDEN)), packed(ROUTER))
        routes = program.route(scores, experts_per_token=changes.get("used", 2), normalized=True)
        if "between" in changes:
            program.linear(program.norm(ones, EPS, rows_of(HIDDEN)), packed(ROUTER))
        program.experts(
            routes,
            ones[: changes.get("norm", HIDDEN)],
            EPS,
            "silu",
            gate_up=tuple(changes.get("gate_up", [e.gate_up for e in EXPERTS])),
            down=tuple(changes.get("down", [e.down for e in EXPERTS])),
        )
        return scores

    return record


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"used": 8}, "route: 8 experts a token of 7 scores"),
        ({"used": 0}, "route: 0 experts a token of 7 scores"),
        ({"between": True}, "experts: route comes directly before it"),
        ({"norm": 3}, "the norm's weight has 3 numbers"),
        ({"down": []}, "experts: 7 gate_up and 0 down for 7 scores"),
        ({"gate_up": [EXPERTS[0].down] * 7}, r"expert 0's gate_up: the weight is \[64, 32\]"),
        ({"down": [EXPERTS[0].gate_up] * 7}, "expert 0's gate_up: the weights have 64 outputs, 128"),
        ({"gate_up": [()] * 7}, "expert 0's gate_up: the weights have 0 outputs, 64 are wanted"),
        ({"gate_up": [((EXPERTS[1].gate_up[0][0], rows_of(64)),)] * 7}, None),
        ({"gate_up": [((EXPERTS[0].gate_up[0][0], EXPERTS[1].gate_up[0][1]),)] * 7}, "expert 0's gate_up: "),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str | None) -> None:
    if message is None:
        # Rows in bfloat16 meet any weights.
        run(tokens(2), record_wrongly(**changes))
        return
    with pytest.raises(ValueError, match=message):
        run(tokens(2), record_wrongly(**changes))


def test_only_tuples_keep_weights_alive() -> None:
    with pytest.raises(TypeError, match="an expert's linear is a tuple"):
        run(tokens(2), record_wrongly(gate_up=[list(e.gate_up) for e in EXPERTS]))
