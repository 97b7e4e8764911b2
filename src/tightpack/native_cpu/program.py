"""From a ModelSpec and packed weights to the step program. No family has its own code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tightpack import _native
from tightpack.architectures.model_spec import ExpertsSpec, LayerSpec, ModelSpec, RotarySpec
from tightpack.native_cpu.formats import RowRounding
from tightpack.native_cpu.pack import (
    FusedLinear,
    LayerWeights,
    MixtureWeights,
    MlpWeights,
    ModelWeights,
)

Floats = NDArray[np.float32]


def build_program(
    team: _native.ThreadTeam,
    spec: ModelSpec,
    weights: ModelWeights,
    *,
    max_model_len: int,
    instruction_set: str = "auto",
    timed: bool = False,
) -> _native.Program:
    """The forward pass of `spec` for positions below max_model_len.

    The last layer computes keys and values of every row, and all else for the rows whose logits are wanted.
    """
    program = _native.Program(
        team,
        hidden_size=spec.hidden_size,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        instruction_set=instruction_set,
        timed=timed,
    )
    # Rounded to bfloat16, the weights' precision, as the embedding that it scales.
    program.embed(weights.embedding, scale=float(ml_dtypes.bfloat16(spec.embedding_scale)))
    tables = {
        rotary: rotary_table(rotary, max_model_len)
        for rotary in dict.fromkeys(layer.rotary for layer in spec.layers)
    }
    for index, (layer, own) in enumerate(zip(spec.layers, weights.layers, strict=True)):
        _Layer(program, spec, layer, index, own, tables).append()
    rows = _Rows(partial(program.norm, weights.final_norm, spec.norm_eps))
    head = weights.head.runs[0]
    program.head(rows.rounded(head.rounding), head.weight, softcap=spec.logit_softcap or 0.0)
    return program


def rotary_table(rotary: RotarySpec, num_positions: int) -> tuple[Floats, Floats]:
    """magnitude * cosine and sine of position * frequency: float32 [num_positions, head_dim / 2] each.

    Angles are float32 products, as transformers computes them.
    """
    frequencies = np.array(rotary.inverse_frequencies, np.float32)
    angles = np.outer(np.arange(num_positions, dtype=np.float32), frequencies)
    magnitude = np.float32(rotary.magnitude)
    return np.cos(angles) * magnitude, np.sin(angles) * magnitude


class _Rows:
    """The rounded rows of one source, made once for each format that a linear wants."""

    def __init__(self, make: Callable[[_native.RowFormat], _native.Value]) -> None:
        self._make = make
        self._made: dict[RowRounding, _native.Value] = {}

    def rounded(self, rounding: RowRounding) -> _native.Value:
        if rounding not in self._made:
            self._made[rounding] = self._make(_row_format(rounding))
        return self._made[rounding]


class _Layer:
    def __init__(
        self,
        program: _native.Program,
        spec: ModelSpec,
        layer: LayerSpec,
        index: int,
        weights: LayerWeights,
        tables: Mapping[RotarySpec, tuple[Floats, Floats]],
    ) -> None:
        self._program, self._spec, self._layer, self._index = program, spec, layer, index
        self._weights = weights
        self._cos, self._sin = tables[layer.rotary]

    def append(self) -> None:
        program, spec, weights = self._program, self._spec, self._weights
        mixed = program.attention(
            self._queries(),
            self._index,
            scale=spec.attention_scale,
            softcap=spec.attention_softcap or 0.0,
            window=self._layer.window or 0,
        )
        self._add(
            _Rows(partial(program.quantize, mixed)), weights.output, weights.attention_post_norm, "output"
        )
        if isinstance(weights.mlp, MlpWeights):
            gate_up = self._linear(self._norm(weights.mlp_norm), weights.mlp.gate_up, "gate_up")
            gated = _Rows(partial(program.gate, gate_up, spec.activation))
            self._add(gated, weights.mlp.down, weights.mlp_post_norm, "down")
        elif self._layer.experts is not None:
            self._add_experts(weights.mlp, self._layer.experts)

    def _queries(self) -> _native.Value:
        """Normed, rotated and rounded; keys and values are in the cache."""
        program, weights, eps = self._program, self._weights, self._spec.norm_eps
        rows = self._norm(weights.attention_norm)
        if weights.keys_values is None:
            return program.rotate_and_store(
                self._linear(rows, weights.queries, "qkv"),
                self._index,
                self._cos,
                self._sin,
                query_norm=weights.query_norm,
                key_norm=weights.key_norm,
                eps=eps,
            )
        program.store_keys_values(
            self._linear(rows, weights.keys_values, "qkv"),
            self._index,
            self._cos,
            self._sin,
            key_norm=weights.key_norm,
            eps=eps,
        )
        program.keep_wanted_rows()
        queries = self._linear(self._norm(weights.attention_norm), weights.queries, "qkv")
        return program.rotate_queries(queries, self._cos, self._sin, query_norm=weights.query_norm, eps=eps)

    def _add_experts(self, mixture: MixtureWeights, spec: ExpertsSpec) -> None:
        program, norm = self._program, self._weights.mlp_norm
        scores = self._linear(self._norm(norm), mixture.router, "router")
        program.experts(
            program.route(scores, experts_per_token=spec.experts_per_token, normalized=spec.normalized),
            norm,
            self._spec.norm_eps,
            self._spec.activation,
            gate_up=tuple(_expert_runs(expert.gate_up) for expert in mixture.experts),
            down=tuple(_expert_runs(expert.down) for expert in mixture.experts),
        )

    def _norm(self, weight: Floats) -> _Rows:
        return _Rows(partial(self._program.norm, weight, self._spec.norm_eps))

    def _linear(self, rows: _Rows, linear: FusedLinear, name: str) -> _native.Value:
        program, runs = self._program, linear.runs
        if len(runs) == 1:
            return program.linear(
                rows.rounded(runs[0].rounding), runs[0].weight, bias=runs[0].bias, name=name
            )
        out = program.buffer(linear.outputs)
        for run in runs:
            program.linear(
                rows.rounded(run.rounding),
                run.weight,
                bias=run.bias,
                out=out,
                first_column=run.first_output,
                name=name,
            )
        return out

    def _add(self, rows: _Rows, linear: FusedLinear, post_norm: Floats | None, name: str) -> None:
        """The residual stream += the linear, through a norm of its own where the family has one."""
        if post_norm is None:
            run = linear.runs[0]
            self._program.linear_add(rows.rounded(run.rounding), run.weight, bias=run.bias, name=name)
        else:
            values = self._linear(rows, linear, name)
            self._program.norm_add(values, post_norm, self._spec.norm_eps)


def _row_format(rounding: RowRounding) -> _native.RowFormat:
    return _native.RowFormat(**asdict(rounding))


def _expert_runs(linear: FusedLinear) -> tuple[tuple[_native.PackedLinear, _native.RowFormat], ...]:
    return tuple((run.weight, _row_format(run.rounding)) for run in linear.runs)
