"""How long a step will take, learned from the steps that were executed."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from statistics import median

from tightpack.scheduling.plan import StepPlan


@dataclass(frozen=True, slots=True)
class StepLoad:
    """What a step's time depends on.

    prompt_tokens: tokens computed in chunks of more than one; such a chunk runs at the speed of arithmetic.
    prompt_pairs: query and key pairs of those chunks: each token attends to all positions up to its own.
    decodes: chunks of one token.
    decode_context: positions whose keys and values those read, over all of them.
    """

    prompt_tokens: int = 0
    prompt_pairs: int = 0
    decodes: int = 0
    decode_context: int = 0

    @classmethod
    def of(cls, plan: StepPlan) -> StepLoad:
        prompt_tokens = prompt_pairs = decodes = decode_context = 0
        for chunk in plan.chunks:
            count = chunk.num_tokens
            if count == 1:
                decodes += 1
                decode_context += chunk.first_token + 1
            else:
                prompt_tokens += count
                prompt_pairs += pairs(chunk.first_token, count)
        return cls(prompt_tokens, prompt_pairs, decodes, decode_context)


def pairs(first_token: int, num_tokens: int) -> int:
    """Query and key pairs of a chunk of `num_tokens` that starts at position `first_token`."""
    return num_tokens * first_token + num_tokens * (num_tokens + 1) // 2


# The prior: seconds a step, a prompt token, a prompt pair, a decode, a position that a decode reads. Only the
# proportions matter much, since the first steps scale it to the machine. They are those of a model of 100
# million to 10 billion parameters: a step that reads all weights costs as much as some fifty prompt tokens
# of arithmetic, and attention over a thousand positions about as much as a token's linear layers.
PRIOR = (1e-2, 2e-4, 4e-8, 2e-4, 2e-7)
_NUM = len(PRIOR)
# How many steps' worth of evidence the prior is: enough to settle what traffic does not tell apart, and so
# little that a machine whose proportions are ten times others is learned as fast.
_PRIOR_WEIGHT = 1e-4
# Evidence halves in some 70 steps: fast enough for a machine that others begin to share.
_FORGET = 0.99
# Residuals beyond this many typical errors count in proportion to their distance (Huber 1964).
_HUBER = 2.0
_SMALLEST_ERROR = 0.05
# While the model is young every step changes it; afterwards a refit every few steps is as good.
_YOUNG, _REFIT_EVERY = 16, 8
_NUM_SCALES = 9


class StepTimeModel:
    """Seconds of a step, linear in its `StepLoad` with coefficients of 0 or more.

    Recursive least squares on relative errors, in information form: the normal equations decay by a factor a
    step, so that the model follows the machine. Outliers are weighed down (Huber), and a ridge towards the
    prior keeps in proportion whatever the traffic cannot tell apart. The prior itself is scaled by the median
    of the first few steps, of which one may be a warm-up a hundred times too long.

    relative_error: the typical |predicted - measured| / measured of recent steps.
    num_observed: steps seen.
    """

    def __init__(self) -> None:
        self.relative_error = 0.25
        self.num_observed = 0
        self._prior: tuple[float, ...] = PRIOR
        self._coefficients: list[float] = list(PRIOR)
        self._scales: deque[float] = deque(maxlen=_NUM_SCALES)
        self._with_prompts = _Evidence()
        self._decodes_only = _Evidence()

    @property
    def coefficients(self) -> tuple[float, ...]:
        """Seconds a step, a prompt token, a prompt pair, a decode, a position that a decode reads."""
        return tuple(self._coefficients)

    def predict(self, load: StepLoad) -> float:
        """Seconds."""
        step, token, pair, decode, position = self._coefficients
        return (
            step
            + token * load.prompt_tokens
            + pair * load.prompt_pairs
            + decode * load.decodes
            + position * load.decode_context
        )

    def prompt_tokens_within(self, seconds: float, first_token: int) -> int:
        """Tokens of a prompt, from position `first_token` on, that add no more than `seconds` to a step."""
        _, token, pair, _, _ = self._coefficients
        linear = token + pair * (first_token + 0.5)
        if seconds <= 0:
            return 0
        if linear <= 0 and pair <= 0:
            return _UNBOUNDED
        # The positive root of pair/2 n² + linear n = seconds, in the form that stands a pair of 0.
        count = 2 * seconds / (linear + math.sqrt(linear * linear + 2 * pair * seconds))
        return min(_UNBOUNDED, int(count))

    def prompt_seconds(self, first_token: int, num_tokens: int) -> float:
        """What a prompt's tokens add to the steps that compute them."""
        _, token, pair, _, _ = self._coefficients
        return num_tokens * (token + pair * (first_token + 0.5 * (num_tokens + 1)))

    def observe(self, load: StepLoad, elapsed_s: float) -> None:
        """Learn from a step that took `elapsed_s`; a time of 0 or less teaches nothing."""
        if not (elapsed_s > 0 and math.isfinite(elapsed_s)):
            return
        predicted = self.predict(load)
        residual = abs(predicted - elapsed_s) / elapsed_s
        weight = 1.0
        if self.num_observed >= _NUM_SCALES:
            allowed = _HUBER * max(self.relative_error, _SMALLEST_ERROR)
            weight = min(1.0, allowed / residual) if residual > 0 else 1.0
            capped = min(residual, 4 * max(self.relative_error, _SMALLEST_ERROR))
            self.relative_error += 0.05 * (capped - self.relative_error)
        self.num_observed += 1
        if self.num_observed <= _NUM_SCALES:
            self._rescale(load, elapsed_s)
        evidence = self._with_prompts if load.prompt_tokens else self._decodes_only
        evidence.add(load, elapsed_s, weight)
        if self.num_observed <= _YOUNG or self.num_observed % _REFIT_EVERY == 0:
            self._refit()

    def _rescale(self, load: StepLoad, elapsed_s: float) -> None:
        features = _features(load)
        self._scales.append(elapsed_s / sum(p * x for p, x in zip(PRIOR, features, strict=True)))
        scale = median(self._scales)
        self._prior = tuple(scale * p for p in PRIOR)

    def _refit(self) -> None:
        """Solve the normal equations for coefficients of 0 or more: whoever would be negative is left out."""
        # In units of the prior, so that the numbers are of one size whatever the feature's.
        prior = self._prior
        free = list(range(_NUM))
        while free:
            matrix = [[self._entry(i, j) for j in free] for i in free]
            right = [prior[i] * self._moment(i) + _PRIOR_WEIGHT for i in free]
            solution = _solve(matrix, right)
            lowest = min(range(len(free)), key=solution.__getitem__)
            if solution[lowest] >= 0:
                break
            del free[lowest]
        coefficients = [0.0] * _NUM
        for place, i in enumerate(free):
            coefficients[i] = solution[place] * prior[i]
        self._coefficients = coefficients

    def _entry(self, i: int, j: int) -> float:
        ridge = _PRIOR_WEIGHT if i == j else 0.0
        row, column = min(i, j), max(i, j)
        gram = self._with_prompts.gram[row][column] + self._decodes_only.gram[row][column]
        return self._prior[i] * gram * self._prior[j] + ridge

    def _moment(self, i: int) -> float:
        return self._with_prompts.moments[i] + self._decodes_only.moments[i]


class _Evidence:
    """Decaying sums of one kind of steps.

    The kinds decay apart, by their own steps: else a minute of decoding would forget what prompts cost.
    """

    def __init__(self) -> None:
        self.gram = [[0.0] * _NUM for _ in range(_NUM)]
        self.moments = [0.0] * _NUM

    def add(self, load: StepLoad, elapsed_s: float, weight: float) -> None:
        # Every row is divided by its time, so that the squares are of relative errors.
        row = [x / elapsed_s for x in _features(load)]
        moments = self.moments
        for i, x in enumerate(row):
            weighted = weight * x
            line = self.gram[i]
            for j in range(i, _NUM):
                line[j] = _FORGET * line[j] + weighted * row[j]
            moments[i] = _FORGET * moments[i] + weighted


_UNBOUNDED = 1 << 30


def _features(load: StepLoad) -> tuple[float, ...]:
    return (1.0, load.prompt_tokens, load.prompt_pairs, load.decodes, load.decode_context)


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Gaussian elimination of a symmetric positive definite system, in place: its pivots need no search."""
    size = len(right)
    for k in range(size):
        pivot = matrix[k]
        for i in range(k + 1, size):
            factor = matrix[i][k] / pivot[k]
            if factor:
                line = matrix[i]
                for j in range(k + 1, size):
                    line[j] -= factor * pivot[j]
                right[i] -= factor * right[k]
    for k in range(size - 1, -1, -1):
        line = matrix[k]
        rest = sum(line[j] * right[j] for j in range(k + 1, size))
        right[k] = (right[k] - rest) / line[k]
    return right
