"""A cost model measured on a real executor: a curve over the tokens of a step, and prices for the rest."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tightpack.requests.arguments import refuse_unknown, strict_keywords
from tightpack.scheduling.plan import StepPlan
from tightpack.simulated.loop_time import LoopTime
from tightpack.simulated.non_negative import Vector, non_negative_least_squares
from tightpack.simulated.step_work import StepWork

FORMAT = "tightpack cost model 1"
# The weights of the fit have settled by then.
_ROUNDS = 5


@strict_keywords
@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCost:
    """Seconds in all layers of one attention window (None: everything before), for each count of `StepWork`:
    a position that a decode reads, one that a prompt chunk reads back from the KV cache, a pair within the
    chunk, a pair with what was cached."""

    window: int | None
    decode_position_s: float
    prompt_position_s: float
    own_pair_s: float
    cached_pair_s: float


@strict_keywords
@dataclass(frozen=True, slots=True, kw_only=True)
class FitError:
    """Of steps that the fit has not seen: the mean, the 90th percentile and the largest of |predicted -
    measured| / measured, and the same of their sums with its sign."""

    steps: int
    mean: float
    p90: float
    largest: float
    total: float

    @classmethod
    def of(cls, predicted: Sequence[float], measured: Sequence[float]) -> FitError:
        truth = np.asarray(measured)
        off = np.abs(np.asarray(predicted) - truth) / truth
        return cls(
            steps=len(truth),
            mean=float(off.mean()),
            p90=float(np.percentile(off, 90)),
            largest=float(off.max()),
            total=sum(predicted) / sum(measured) - 1,
        )


@strict_keywords
@dataclass(frozen=True, slots=True, kw_only=True)
class FittedCostModel:
    """A `CostModel`: the curve at the step's tokens, what sampling, decodes, prompts and attention add, and
    what the serving loop takes between two steps.

    token_counts, step_s: points of the curve, the fixed time of a step included; straight lines between them,
        and the last one goes on. Cache effects and blocked kernels bend it either way; it never falls.
    sampling_s: of a step that samples at all (the head's weights are read once); sample_s: of each row.
    decoding_s: of a step with decodes, which attend together; decode_s, prompt_s: of each chunk.
    loop: planning, committing and publishing, which the executor does not see.
    """

    token_counts: tuple[int, ...]
    step_s: tuple[float, ...]
    sampling_s: float
    sample_s: float
    decoding_s: float
    decode_s: float
    prompt_s: float
    attention: tuple[AttentionCost, ...]
    loop: LoopTime = field(default_factory=LoopTime)
    manifest: Mapping[str, Any]
    error: FitError | None = None

    def __post_init__(self) -> None:
        counts, seconds = self.token_counts, self.step_s
        if len(counts) != len(seconds) or len(counts) < 2:
            raise ValueError("the curve needs two points or more, with as many step_s as token_counts")
        if list(counts) != sorted(set(counts)) or list(seconds) != sorted(seconds) or seconds[0] < 0:
            raise ValueError("token_counts must rise, and step_s be 0 or more and never fall")
        if not self.attention:
            raise ValueError("attention needs a cost for each window of the model")

    @property
    def description(self) -> Mapping[str, str]:
        executor = {name: str(value) for name, value in self.manifest.get("executor", {}).items()}
        return {"cost_model": f"fitted on {executor.pop('backend', 'unknown')}", **executor}

    def step_seconds(self, plan: StepPlan) -> float:
        executor_s = self.executor_seconds([StepWork.of(plan.chunks, cost.window) for cost in self.attention])
        return executor_s + self.loop.step_s + len(plan.chunks) * self.loop.chunk_s

    def executor_seconds(self, work: Sequence[StepWork]) -> float:
        """`StepResult.elapsed_s` of a step. work: of its chunks under the window of each of `attention`."""
        rows = work[0]
        seconds = self._curve(rows.tokens)
        if rows.samples:
            seconds += self.sampling_s + rows.samples * self.sample_s
        if rows.decodes:
            seconds += self.decoding_s + rows.decodes * self.decode_s
        seconds += rows.prompts * self.prompt_s
        for cost, read in zip(self.attention, work, strict=True):
            seconds += read.decode_context * cost.decode_position_s
            seconds += read.prompt_context * cost.prompt_position_s
            seconds += read.own_pairs * cost.own_pair_s + read.cached_pairs * cost.cached_pair_s
        return seconds

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> FittedCostModel:
        """What `to_json` wrote. Raises ValueError naming the file and what is wrong with it."""
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(stored, dict) or stored.pop("format", None) != FORMAT:
                raise ValueError(f"its format is not {FORMAT!r}; `tightpack calibrate-cost` writes one")
            missing = [
                f.name for f in fields(cls) if f.name not in stored and f.name not in ("error", "loop")
            ]
            if missing:
                raise ValueError(f"{missing[0]} is missing")
            refuse_unknown("a cost model", stored, [f.name for f in fields(cls)])
            error, loop = stored.get("error"), stored.get("loop", {})
            return cls(
                **stored
                | {
                    "token_counts": tuple(stored["token_counts"]),
                    "step_s": tuple(stored["step_s"]),
                    "attention": tuple(AttentionCost(**cost) for cost in stored["attention"]),
                    "loop": LoopTime(**loop),
                    "error": None if error is None else FitError(**error),
                }
            )
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}: {error}") from error

    def _curve(self, tokens: int) -> float:
        counts, seconds = self.token_counts, self.step_s
        right = min(max(bisect_right(counts, tokens), 1), len(counts) - 1)
        left = right - 1
        slope = (seconds[right] - seconds[left]) / (counts[right] - counts[left])
        return seconds[left] + slope * (tokens - counts[left])


def fit(
    work: Sequence[Sequence[StepWork]],
    seconds: Sequence[float],
    windows: Sequence[int | None],
    manifest: Mapping[str, Any],
) -> FittedCostModel:
    """The model with the least relative squared error on measured steps, no coefficient below 0.

    work: for each step, its work under each of `windows`; seconds: what it took.
    """
    if len(work) != len(seconds) or not work:
        raise ValueError(f"{len(work)} steps need a measured time each, not {len(seconds)}")
    counts = _knots(max(step[0].tokens for step in work))
    matrix = np.asarray([_features(step, counts) for step in work], dtype=np.float64)
    measured = np.asarray(seconds, dtype=np.float64)
    # Divided by the step's time, so that an error of 1 % counts the same in a short step and a long one.
    # From the second round on by its predicted time: measured times would give what noise made slow less
    # weight than what it made fast, and the fit would predict too little.
    size = measured
    for _ in range(_ROUNDS):
        prices = non_negative_least_squares(matrix / size[:, None], measured / size)
        size = np.maximum(matrix @ prices, measured.min())
    slopes, rest = prices[: len(counts)], prices[len(counts) :]
    widths = np.diff(counts)
    curve: Vector = np.cumsum([slopes[0], *(slopes[1:] * widths)])
    sampling_s, sample_s, decoding_s, decode_s, prompt_s, *reads = (float(price) for price in rest)
    return FittedCostModel(
        token_counts=counts,
        step_s=tuple(float(value) for value in curve),
        sampling_s=sampling_s,
        sample_s=sample_s,
        decoding_s=decoding_s,
        decode_s=decode_s,
        prompt_s=prompt_s,
        attention=tuple(
            AttentionCost(
                window=window,
                decode_position_s=reads[4 * i],
                prompt_position_s=reads[4 * i + 1],
                own_pair_s=reads[4 * i + 2],
                cached_pair_s=reads[4 * i + 3],
            )
            for i, window in enumerate(windows)
        ),
        manifest=manifest,
    )


def _knots(most_tokens: int) -> tuple[int, ...]:
    """Powers of two up to the first that is not below `most_tokens`."""
    return tuple(2**i for i in range(max(1, math.ceil(math.log2(most_tokens))) + 1))


def _features(work: Sequence[StepWork], counts: Sequence[int]) -> list[float]:
    """1, how far the tokens reach into each stretch of the curve, then the counts that have a price each."""
    rows = work[0]
    values: list[float] = [1.0]
    values += [min(max(rows.tokens - low, 0), high - low) for low, high in pairwise(counts)]
    values += [rows.samples > 0, rows.samples, rows.decodes > 0, rows.decodes, rows.prompts]
    for read in work:
        values += [read.decode_context, read.prompt_context, read.own_pairs, read.cached_pairs]
    return values
