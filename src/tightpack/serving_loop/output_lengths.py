"""How many tokens a request will still give, by those that ended before it."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from itertools import accumulate

from tightpack.requests.request import FinishReason, Request

_KEPT = 256
# Where nothing has ended yet.
UNKNOWN_OUTPUT = 64


class OutputLengths:
    """Of the latest requests that ended by themselves, and the share of those that ran into their bound."""

    def __init__(self) -> None:
        self._natural: deque[int] = deque(maxlen=_KEPT)
        self._bounded: deque[bool] = deque(maxlen=_KEPT)
        self._all: deque[int] = deque(maxlen=_KEPT)

    def note(self, request: Request) -> None:
        """It ended."""
        bounded = request.finish_reason is FinishReason.LENGTH
        self._bounded.append(bounded)
        self._all.append(request.num_output_tokens)
        if not bounded:
            self._natural.append(request.num_output_tokens)

    def expected(self) -> float:
        """Of a request to come."""
        return sum(self._all) / len(self._all) if self._all else UNKNOWN_OUTPUT

    def longest(self, count: int) -> float:
        """Of so many requests to come, the longest: the quantile that one of them is expected to pass."""
        if not self._all:
            return UNKNOWN_OUTPUT
        ordered = sorted(self._all)
        return ordered[min(len(ordered) - 1, len(ordered) * count // (count + 1))]

    def left(self, produced_and_most: list[tuple[int, int]]) -> list[float]:
        """For each request, the tokens it is expected to give yet: at least 1, at most its bound.

        As long as those that got as far as it have gone on, on average; up to its bound where requests have
        been ending by that. produced_and_most: what it has given, and may give in all.
        """
        bounded = sum(self._bounded) / len(self._bounded) if self._bounded else 0.0
        lengths = sorted(self._natural)
        # sums[i]: of all lengths from the i-th on.
        sums = list(accumulate(reversed(lengths), initial=0))[::-1]
        expected = []
        for produced, most in produced_and_most:
            longer = bisect_right(lengths, produced)
            survivors = len(lengths) - longer
            if survivors:
                further = sums[longer] / survivors - produced
            else:
                # It is longer than all: as much again, as is usual of long tails.
                further = max(produced, 1) if lengths else UNKNOWN_OUTPUT
            bound = most - produced
            expected.append(max(1.0, bounded * bound + (1 - bounded) * min(bound, further)))
        return expected
