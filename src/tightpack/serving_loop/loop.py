"""The serving loop: plan, execute, commit. Everything passes through here."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from tightpack.requests.outputs import Update
from tightpack.requests.request import FinishReason, Request
from tightpack.scheduling.plan import StepPlan
from tightpack.scheduling.policy import Policy
from tightpack.serving_loop.clock import Clock
from tightpack.serving_loop.executor import Executor, LaunchingExecutor, SampledToken, StepResult
from tightpack.serving_loop.load import LoadMeter
from tightpack.serving_loop.overlap import OverlappedSteps


@dataclass(slots=True)
class LoopStats:
    """Counters since the start (tokens, steps, seconds) and the state after the last step."""

    steps: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0
    prefix_cache_queries: int = 0  # tokens looked up
    prefix_cache_hits: int = 0  # tokens found
    busy_s: float = 0.0
    num_running: int = 0
    num_waiting: int = 0
    kv_cache_usage: float = 0.0
    unrounded_layers: int = 0  # whose inputs saturated


class ServingLoop:
    """Drives one policy and one executor. Not thread-safe: one thread owns it (`EngineThread` makes one).

    An executor that asks for it (`LaunchingExecutor.async_scheduling`) gets the next step while it computes.
    """

    def __init__(self, policy: Policy, executor: Executor, clock: Clock) -> None:
        self.policy = policy
        self.clock = clock
        self.executor = executor
        self.stats = LoopStats()
        self._requests: dict[str, Request] = {}
        self._unpublished: dict[str, Request] = {}
        self._meter: LoadMeter | None = None

    @property
    def executor(self) -> Executor:
        return self._executor

    @executor.setter
    def executor(self, executor: Executor) -> None:
        self._executor = executor
        self._overlapped: OverlappedSteps | None = None
        if isinstance(executor, LaunchingExecutor) and executor.async_scheduling:
            self._overlapped = OverlappedSteps(self.policy, executor, self.clock)

    def step(self) -> list[Update]:
        """One iteration; returns what may be shown. Nothing runs when the policy has nothing to run now."""
        if self._overlapped is not None:
            return self._overlapped_step(self._overlapped)
        plan = self.policy.plan(self.clock.now())
        if plan:
            result = self.executor.execute(plan)
            self.commit(plan, result)
        return self._publish()

    def _overlapped_step(self, steps: OverlappedSteps) -> list[Update]:
        """The same, with the next step launched before this one's tokens are read."""
        done = steps.next()
        if done is not None:
            self.commit(*done)
        return self._publish()

    def commit(self, plan: StepPlan, result: StepResult) -> None:
        """Take a step's tokens into their requests, and give back the blocks of those that ended.

        A request that had ended before, while the step was running, gets nothing from it.
        """
        now = self.clock.now()
        self.policy.observe(plan, result.elapsed_s)
        self._count(plan, result, now - result.elapsed_s)
        finished = []
        for request, error in self._failed(plan, result):
            self._finish(request, FinishReason.ERROR, error=error)
        computed = tuple(chunk for chunk in plan.chunks if not chunk.request.finished)
        for chunk in computed:
            request = chunk.request
            # A recomputation after a preemption gives again what an earlier step gave.
            known = max(0, len(request.prompt_logprobs) - chunk.first_token)
            request.prompt_logprobs.extend(result.prompt_logprobs.get(request.request_id, ())[known:])
            sampled = result.sampled.get(request.request_id)
            if sampled is not None:
                self._append(request, sampled)
                if request.finished:
                    finished.append(request)
        self.policy.commit(StepPlan(computed, plan.evicted))
        for chunk in plan.chunks:
            if chunk.request.finished:
                self._free(chunk.request)
        if self._meter is not None:
            self._meter.observe(plan, result.elapsed_s)
            self._meter.ended(finished)

    def add(self, request: Request) -> None:
        """Queue a request. Raises QueueFullError, or ValueError for one that could never run."""
        if request.request_id in self._requests:
            raise ValueError(f"request id {request.request_id!r} is in use by a request under way")
        self.policy.add(request)
        self._requests[request.request_id] = request

    def abort(self, request_id: str) -> None:
        """Drop a request; its blocks are free before the next step is planned. Unknown and finished ones are
        ignored."""
        request = self._requests.get(request_id)
        if request is not None and not request.finished:
            self._finish(request, FinishReason.ABORT)
            self._free(request)

    def fail_all(self, error: str) -> list[Update]:
        """End every request with an error: the way out after an executor that raised."""
        for request in list(self._requests.values()):
            if not request.finished:
                self._finish(request, FinishReason.ERROR, error=error)
                self.policy.remove(request)
        if self._overlapped is not None:
            for request in self._overlapped.abandon():
                self.policy.remove(request)
        return self._publish()

    def close_intake(self) -> None:
        """No further request is expected (the end of an offline job, a draining server)."""
        self.policy.close_intake()

    def next_wakeup(self) -> float | None:
        """When to step again although nothing arrives; None when only an arrival gives work."""
        return self.policy.next_wakeup(self.clock.now())

    def meter(self) -> LoadMeter:
        """What steps cost here. It learns from when it is first asked for: nobody else pays for it."""
        if self._meter is None:
            self._meter = LoadMeter(self.policy)
        return self._meter

    @property
    def requests(self) -> Collection[Request]:
        """Those queued, running, or ended but not yet published."""
        return self._requests.values()

    @property
    def has_unfinished(self) -> bool:
        """Whether any request is queued, running, or ended but not yet published, or a step is running."""
        return bool(self._requests) or (self._overlapped is not None and self._overlapped.running)

    def _free(self, request: Request) -> None:
        """Give back the blocks of a request that ended, unless the running step writes to them still."""
        if self._overlapped is None or not self._overlapped.computes(request):
            self.policy.remove(request)

    def _append(self, request: Request, sampled: SampledToken) -> None:
        token = sampled.token_id
        request.token_ids.append(token)
        self.stats.generation_tokens += 1
        if sampled.logprobs is not None:
            request.logprobs.append(sampled.logprobs)
        self._unpublished[request.request_id] = request
        num_output = request.num_output_tokens
        if num_output >= request.params.min_tokens:
            if token in request.eos_token_ids:
                return self._finish(request, FinishReason.STOP)
            if token in (request.params.stop_token_ids or ()):
                return self._finish(request, FinishReason.STOP, stop_reason=token)
        if num_output >= request.max_output_tokens:
            self._finish(request, FinishReason.LENGTH)
        return None

    def _finish(
        self,
        request: Request,
        reason: FinishReason,
        *,
        stop_reason: int | None = None,
        error: str | None = None,
    ) -> None:
        request.finish_reason = reason
        request.stop_reason = stop_reason
        request.error = error
        request.timings.finished_time = self.clock.now()
        self._unpublished[request.request_id] = request

    @staticmethod
    def _failed(plan: StepPlan, result: StepResult) -> Iterable[tuple[Request, str]]:
        for chunk in plan.chunks:
            error = result.failed.get(chunk.request.request_id)
            if error is not None and not chunk.request.finished:
                yield chunk.request, error

    def _count(self, plan: StepPlan, result: StepResult, started: float) -> None:
        stats = self.stats
        stats.steps += 1
        stats.busy_s += result.elapsed_s
        stats.preemptions += len(plan.evicted)
        stats.unrounded_layers = result.unrounded_layers
        for chunk in plan.chunks:
            request = chunk.request
            if request.timings.first_scheduled_time is None:
                # The first chunk starts where the prefix cache left off.
                request.timings.first_scheduled_time = started
                request.num_cached_prompt_tokens = chunk.first_token
                stats.prompt_tokens += request.num_prompt_tokens

    def _publish(self) -> list[Update]:
        now = self.clock.now()
        updates = []
        for request in [r for r in self._unpublished.values() if self.policy.may_publish(r)]:
            del self._unpublished[request.request_id]
            updates.append(self._update(request, now))
            if request.finished:
                del self._requests[request.request_id]
        stats = self.stats
        stats.num_running, stats.num_waiting = self.policy.num_running, self.policy.num_waiting
        stats.kv_cache_usage = self.policy.kv_usage
        stats.prefix_cache_queries = self.policy.prefix_cache_queries
        stats.prefix_cache_hits = self.policy.prefix_cache_hits
        return updates

    @staticmethod
    def _update(request: Request, now: float) -> Update:
        first = request.num_published_tokens
        tokens = tuple(request.token_ids[request.num_prompt_tokens + first :])
        wants_prompt_logprobs = request.params.prompt_logprobs is not None and first == 0
        request.num_published_tokens += len(tokens)
        request.timings.token_times.extend([now] * len(tokens))
        return Update(
            request_id=request.request_id,
            token_ids=tokens,
            time=now,
            logprobs=tuple(request.logprobs[first:]),
            prompt_logprobs=tuple(request.prompt_logprobs) if wants_prompt_logprobs else None,
            finish_reason=request.finish_reason,
            stop_reason=request.stop_reason,
            error=request.error,
            num_cached_prompt_tokens=request.num_cached_prompt_tokens,
            first_scheduled_time=request.timings.first_scheduled_time,
            num_preemptions=request.num_preemptions,
        )
