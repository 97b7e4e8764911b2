"""A step plan in the making: the budgets that every policy spends, and preemption when blocks run out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tightpack.requests.request import Request
from tightpack.scheduling.kv_blocks import KVBlocks
from tightpack.scheduling.limits import SchedulerLimits
from tightpack.scheduling.plan import Chunk, StepPlan
from tightpack.scheduling.queues import RequestQueues


class StepBuilder:
    """Places chunks within the limits; a policy decides which, in what order and how large.

    tokens_left: what remains of max_num_batched_tokens.
    rank: of a running request; when blocks run out, those of a higher rank lose theirs first.
    """

    def __init__(
        self,
        limits: SchedulerLimits,
        queues: RequestQueues,
        blocks: KVBlocks,
        rank: Callable[[Request], int] = lambda request: 0,
    ) -> None:
        self.tokens_left = limits.max_num_batched_tokens
        self._max_num_seqs = limits.max_num_seqs
        self._queues = queues
        self._blocks = blocks
        self._rank = rank
        self._chunks: dict[Request, Chunk] = {}
        self._evicted: list[Request] = []
        self._ran_short = False

    def running(self) -> Iterator[Request]:
        """The requests that run as the step begins, oldest first, but those it preempts on the way."""
        for request in tuple(self._queues.running):
            if not self.lost(request):
                yield request

    def compute(self, request: Request, num_tokens: int) -> None:
        """Place a running request's next tokens, preempting for blocks whom it takes, maybe itself."""
        first = request.num_computed_tokens
        while not self._blocks.extend(request, first + num_tokens):
            self._ran_short = True
            victim = self._cheapest_victim()
            self.preempt(victim)
            if victim is request:
                return
        self._chunks[request] = Chunk(request, first, num_tokens, self._blocks.block_table(request))
        self.tokens_left -= num_tokens

    def compute_all_running(self) -> None:
        """Place all that is pending of each running request: one token, or a prompt whose step failed."""
        for request in self.running():
            if request.num_pending_tokens <= self.tokens_left:
                self.compute(request, request.num_pending_tokens)

    def admit(self, request: Request, *, whole: bool) -> bool:
        """Start a waiting request with as many tokens as are left, or with all (`whole`) or none."""
        if self.tokens_left == 0 or not self.start(request, max_tokens=self.tokens_left if whole else None):
            return False
        self.compute(request, min(request.num_pending_tokens, self.tokens_left))
        return True

    def start(self, request: Request, *, max_tokens: int | None = None) -> bool:
        """Let a waiting request run; False when there is no room, or more than `max_tokens` are to compute.

        It gets the blocks of all its known tokens at once, so that no half-computed prompt is stuck for want
        of blocks. One block a running request stays free: enough for each to go on for a block's length, so
        that an admission is not undone by a preemption in the next steps; large pools hardly notice it.
        With nothing running none is kept, and since the pool holds any one request, it gets in.
        """
        num_running = len(self._queues.running)
        if num_running >= self._max_num_seqs or self._blocks.num_free <= num_running:
            return False
        if self._ran_short:  # the room that preemption made for those who run is not for others
            return False
        hit = self._blocks.lookup(request)
        num_cached = len(hit) * self._blocks.block_size
        if max_tokens is not None and len(request.token_ids) - num_cached > max_tokens:
            return False
        if not self._blocks.start(request, hit, keep_free=num_running):
            return False
        self._queues.start(request)
        request.num_computed_tokens = num_cached
        return True

    def preempt(self, victim: Request) -> None:
        """Take the victim's blocks and its part in this step; it will be computed anew from its tokens."""
        chunk = self._chunks.pop(victim, None)
        if chunk is not None:
            self.tokens_left += chunk.num_tokens
        self._blocks.free(victim)
        self._queues.put_back(victim)
        victim.num_computed_tokens = 0
        victim.num_preemptions += 1
        self._evicted.append(victim)

    @property
    def is_empty(self) -> bool:
        return not self._chunks

    @property
    def num_lost(self) -> int:
        """How many requests lost their blocks in this step."""
        return len(self._evicted)

    def lost(self, request: Request) -> bool:
        """Whether it lost its blocks in this step."""
        return request in self._evicted

    def plan(self) -> StepPlan:
        """What was placed."""
        return StepPlan(tuple(self._chunks.values()), tuple(self._evicted))

    def _cheapest_victim(self) -> Request:
        """Whose rank is highest, of them who loses the least work, of them the youngest.

        Never the oldest of the lowest rank that runs, which therefore always ends. Work that others' blocks
        keep is not lost. Who would free no block at all comes last.
        """

        def cost(request: Request) -> tuple[bool, int, int]:
            num_shared = self._blocks.num_shared(request)
            frees_nothing = num_shared == len(self._blocks.block_table(request))
            lost = request.num_computed_tokens - num_shared * self._blocks.block_size
            return frees_nothing, -self._rank(request), lost

        running = self._queues.running
        safe = min(running, key=self._rank)
        return min((request for request in reversed(running) if request is not safe), key=cost)
