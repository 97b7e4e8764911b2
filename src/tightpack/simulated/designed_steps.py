"""The steps that a cost model is fitted on: which compositions to time, and timing them on an executor."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from tightpack.requests.request import Request
from tightpack.requests.sampling_params import SamplingParams
from tightpack.scheduling.limits import SchedulerLimits
from tightpack.scheduling.plan import Chunk, StepPlan
from tightpack.serving_loop.executor import Executor

# A step that has taken this long in all is timed well enough.
_ENOUGH_S = 1.0
_FEWEST_TIMES = 3


@dataclass(frozen=True, slots=True)
class Part:
    """`count` tokens of the sequence in `row` from `first` on; `ends`: the last of them is sampled after."""

    row: int
    first: int
    count: int
    ends: bool = True


Step = tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Rows:
    """The KV blocks dealt out evenly: sequences in parallel, and positions of each."""

    count: int
    positions: int

    @classmethod
    def of(cls, limits: SchedulerLimits) -> Rows:
        """As many sequences as may run, each as long as may be or as the pool allows.

        Raises ValueError for a pool that has no block for each.
        """
        share = limits.num_blocks // limits.max_num_seqs * limits.block_size
        if share < 2:
            raise ValueError(
                f"num_blocks={limits.num_blocks} cannot give a block to each of max_num_seqs="
                f"{limits.max_num_seqs} sequences; lower max_num_seqs"
            )
        return cls(limits.max_num_seqs, min(limits.max_model_len, share))


def grid_steps(rows: Rows, max_tokens: int) -> list[Step]:
    """Decodes alone and prompts alone, over powers of two (and between) of rows, tokens and contexts."""
    contexts = sorted({min(context, rows.positions) for context in (16, rows.positions // 4, rows.positions)})
    steps: list[Step] = []
    sizes = [n for n in (1, 2, 3, *(2**i * part for i in range(1, 20) for part in (2, 3))) if n <= rows.count]
    for size, context in product(sorted({*sizes, rows.count}), contexts):
        steps.append(tuple(Part(row, context - 1, 1) for row in range(size)))
    longest = min(max_tokens, rows.positions)
    for count in sorted({*(2**i for i in range(1, 20) if 2**i < longest), longest}):
        for first in sorted({0, min(rows.positions // 2, rows.positions - count), rows.positions - count}):
            steps.append((Part(0, first, count),))
    return [step for step in steps if sum(part.count for part in step) <= max_tokens]


def random_steps(rows: Rows, max_tokens: int, number: int, seed: int) -> list[Step]:
    """Decodes and prompts mixed as in service: any number of either, lengths even on a logarithmic scale."""
    rng = random.Random(f"steps/{seed}")

    def draw(least: int, most: int) -> int:
        return min(most, round(least * (most / least) ** rng.random())) if most > least else least

    steps = []
    for _ in range(number):
        order = rng.sample(range(rows.count), rows.count)
        num_decodes = rng.choice((0, draw(1, rows.count), draw(1, rows.count)))
        num_prompts = min(rng.choice((0, 1, 1, 2, 4)) if num_decodes else 1, rows.count - num_decodes)
        parts = [Part(row, draw(1, rows.positions) - 1, 1) for row in order[:num_decodes]]
        left = max_tokens - num_decodes
        for row in order[num_decodes : num_decodes + num_prompts]:
            count = draw(2, min(left, rows.positions))
            if count > left or count < 2:
                break
            first = rng.choice((0, draw(1, rows.positions - count + 1) - 1))
            # A prompt cut by a budget is not sampled; the sequence goes on, so there is a token after.
            ends = first + count == rows.positions or rng.random() < 0.5
            parts.append(Part(row, first, count, ends))
            left -= count
        if parts:
            steps.append(tuple(parts))
    return steps


class StepTimer:
    """Runs steps of `Rows` on an executor. Its KV cache is filled once, so that reads are real reads.

    Requests are greedy, without log-probabilities.
    """

    def __init__(self, executor: Executor, rows: Rows, vocab_size: int, max_tokens: int) -> None:
        self._executor = executor
        self._rows = rows
        blocks = -(-rows.positions // executor.block_size)
        self._tables = [tuple(range(row * blocks, (row + 1) * blocks)) for row in range(rows.count)]
        rng = random.Random("tokens")
        self._tokens = [tuple(rng.choices(range(vocab_size), k=rows.positions)) for _ in range(rows.count)]
        self._budget = max_tokens

    def fill(self) -> Iterator[float]:
        """Compute every position, a budget's worth a step; yields the seconds of each step."""
        for row, first in product(range(self._rows.count), range(0, self._rows.positions, self._budget)):
            count = min(self._budget, self._rows.positions - first)
            yield self.time((Part(row, first, count),))

    def plan(self, step: Step) -> StepPlan:
        return StepPlan(tuple(self._chunk(part) for part in step))

    def time(self, step: Step) -> float:
        """Seconds of one execution. Raises RuntimeError for an executor that fails."""
        result = self._executor.execute(self.plan(step))
        for request_id, reason in result.failed.items():
            raise RuntimeError(f"the executor failed {request_id} of a calibration step: {reason}")
        return result.elapsed_s

    def medians(
        self, steps: Sequence[Step], rounds: int, advance: Callable[[], None] = lambda: None
    ) -> list[float]:
        """The median seconds of each step. All take turns, so that a machine that slows down slows all.

        advance: called after every execution that was due.
        """
        times: list[list[float]] = [[] for _ in steps]
        for _ in range(rounds):
            for step, taken in zip(steps, times, strict=True):
                if len(taken) < _FEWEST_TIMES or sum(taken) < _ENOUGH_S:
                    taken.append(self.time(step))
                advance()
        return [statistics.median(taken) for taken in times]

    def _chunk(self, part: Part) -> Chunk:
        end = part.first + part.count
        known = self._tokens[part.row][: end if part.ends else end + 1]
        request = Request(
            request_id=f"row-{part.row}",
            prompt_token_ids=known,
            params=SamplingParams(temperature=0, ignore_eos=True),
            seed=0,
            max_output_tokens=1,
        )
        return Chunk(request, part.first, part.count, self._tables[part.row])
