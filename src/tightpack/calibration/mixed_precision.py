"""Which precision for which layer: the least error that fits in given bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Option:
    """One way to store a layer: its bytes, and the error it brings (errors of layers are added)."""

    bytes: int
    error: float


def assign_precisions(
    options: Sequence[Sequence[Option]], budget_bytes: int, *, gap: float = 1e-6
) -> list[int]:
    """For each layer the index of the option to take, with the least sum of errors within `budget_bytes`.

    The multiple-choice knapsack problem (Kellerer, Pferschy, Pisinger, "Knapsack Problems", 2004, ch. 11).
    States (bytes, error) of the layers so far are extended layer by layer; dominated states are dropped, and
    so are those whose Lagrangian lower bound does not undercut the best assignment known by `gap` of it. The
    answer is therefore within `gap` (relative) of the least error possible.

    ValueError if a layer has no option, an error is NaN or infinite, or even the smallest options do not fit.
    """
    layers = [_checked(choices, index) for index, choices in enumerate(options)]
    smallest = sum(int(sizes.min()) for sizes, _ in layers)
    if smallest > budget_bytes:
        raise ValueError(f"{budget_bytes} bytes are too few: the smallest options need {smallest}")
    if not layers:
        return []
    price = _best_price(layers, budget_bytes)
    best_error, best = _greedy(layers, budget_bytes, price)
    # after[i]: bounds of layers i and later at this price, and the bytes they need at least.
    bound_after = np.zeros(len(layers) + 1)
    bytes_after = np.zeros(len(layers) + 1, dtype=np.int64)
    for index in reversed(range(len(layers))):
        sizes, errors = layers[index]
        bound_after[index] = bound_after[index + 1] + (errors + price * sizes).min()
        bytes_after[index] = bytes_after[index + 1] + sizes.min()
    used = np.zeros(1, dtype=np.int64)
    error = np.zeros(1)
    trail: list[tuple[np.ndarray, np.ndarray]] = []
    for index, (sizes, errors) in enumerate(layers):
        parents, choices = np.meshgrid(np.arange(used.size), np.arange(sizes.size), indexing="ij")
        parent, choice = parents.ravel(), choices.ravel()
        new_used = used[parent] + sizes[choice]
        new_error = error[parent] + errors[choice]
        bound = new_error + bound_after[index + 1] - price * (budget_bytes - new_used)
        keep = (new_used + bytes_after[index + 1] <= budget_bytes) & (
            bound < best_error - gap * abs(best_error)
        )
        kept = np.flatnonzero(keep)
        kept = kept[np.lexsort((new_error[kept], new_used[kept]))]
        if kept.size:
            before = np.concatenate([[np.inf], np.minimum.accumulate(new_error[kept])[:-1]])
            kept = kept[new_error[kept] < before]
        used, error = new_used[kept], new_error[kept]
        trail.append((parent[kept], choice[kept]))
        if not kept.size:
            return best
    state = int(error.argmin())
    if error[state] >= best_error:
        return best
    answer: list[int] = []
    for parent, choice in reversed(trail):
        answer.append(int(choice[state]))
        state = int(parent[state])
    return answer[::-1]


def smallest_assignment(options: Sequence[Sequence[Option]], max_error: float) -> list[int]:
    """For each layer the index of the option to take, with the fewest bytes whose errors sum to `max_error`
    at most, to a thousandth of what lies between the fewest bytes and the most.

    By bisection over the bytes that `assign_precisions` is given, as the least error never rises with them.
    ValueError if even the options of least error exceed `max_error`, and where `assign_precisions` has one.
    """
    layers = [_checked(choices, index) for index, choices in enumerate(options)]
    low = sum(int(sizes.min()) for sizes, _ in layers)
    best = [int(np.lexsort((sizes, errors))[0]) for sizes, errors in layers]
    high, least = _total(options, best)
    if least > max_error:
        raise ValueError(f"no assignment has an error of {max_error:g} or less: the least is {least:g}")
    near = (high - low) // 1000
    tried = low  # the fewest bytes first: they may do
    while low < high:
        found = assign_precisions(options, tried)
        size, error = _total(options, found)
        if error <= max_error:
            best, high = found, size
        else:
            low = tried + 1
        if high - low < near:
            break
        tried = (low + high) // 2
    return best


def _total(options: Sequence[Sequence[Option]], chosen: Sequence[int]) -> tuple[int, float]:
    taken = [choices[index] for choices, index in zip(options, chosen, strict=True)]
    return sum(option.bytes for option in taken), sum(option.error for option in taken)


Layer = tuple[np.ndarray, np.ndarray]


def _checked(choices: Sequence[Option], index: int) -> Layer:
    if not choices:
        raise ValueError(f"layer {index} has no option")
    sizes = np.array([option.bytes for option in choices], dtype=np.int64)
    errors = np.array([option.error for option in choices], dtype=np.float64)
    if not np.isfinite(errors).all():
        raise ValueError(f"layer {index} has an option whose error is {errors[~np.isfinite(errors)][0]}")
    if (sizes < 0).any():
        raise ValueError(f"layer {index} has an option of {int(sizes.min())} bytes")
    return sizes, errors


def _best_price(layers: Sequence[Layer], budget: int) -> float:
    """The error a byte is worth: the multiplier of the largest Lagrangian bound, by bisection."""

    def needed(price: float) -> int:
        total = 0
        for sizes, errors in layers:
            cost = errors + price * sizes
            total += int(sizes[cost == cost.min()].min())
        return total

    if needed(0.0) <= budget:
        return 0.0
    high = 1e-12
    while needed(high) > budget:
        high *= 2.0
    low = 0.0
    for _ in range(100):
        middle = (low + high) / 2
        if needed(middle) > budget:
            low = middle
        else:
            high = middle
    return high


def _greedy(layers: Sequence[Layer], budget: int, price: float) -> tuple[float, list[int]]:
    """The Lagrangian's own assignment, then single changes and the best error a byte until none fits."""
    choice = []
    for sizes, errors in layers:
        cost = errors + price * sizes
        choice.append(int(np.lexsort((sizes, cost))[0]))
    left = budget - sum(int(sizes[taken]) for (sizes, _), taken in zip(layers, choice, strict=True))
    if left < 0:
        choice = [int(np.lexsort((errors, sizes))[0]) for sizes, errors in layers]
        left = budget - sum(int(sizes[taken]) for (sizes, _), taken in zip(layers, choice, strict=True))
    while True:
        best_gain, change = 0.0, None
        for index, (sizes, errors) in enumerate(layers):
            gains = errors[choice[index]] - errors
            gains[sizes - sizes[choice[index]] > left] = 0.0
            taken = int(gains.argmax())
            if gains[taken] > best_gain:
                best_gain, change = float(gains[taken]), (index, taken)
        if change is None:
            break
        index, taken = change
        left -= int(layers[index][0][taken] - layers[index][0][choice[index]])
        choice[index] = taken
    return sum(float(errors[taken]) for (_, errors), taken in zip(layers, choice, strict=True)), choice
