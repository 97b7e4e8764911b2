"""Open-loop load over HTTP that keeps account of every request: what became of it, and that only once."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import httpx

TIMEOUT_S = 600.0
_TIERS = {"interactive": "priority", "standard": "default", "batch": "flex"}


@dataclass(frozen=True)
class Phase:
    """Requests that arrive for so long at a rate, as a Poisson process."""

    name: str
    rate: float
    seconds: float


@dataclass(frozen=True)
class Target:
    """A service class. share: of the requests."""

    name: str
    ttft_s: float
    tpot_s: float
    share: float


@dataclass
class Answer:
    """due_s: when the request was to be sent, in seconds after the load began; token_s: when tokens came.

    ids: every answer id that its stream carried. endings: how often it said that it was finished.
    status: of HTTP; 0 where the connection failed.
    """

    phase: str
    target: Target
    due_s: float
    wanted: int
    status: int = 0
    ids: set[str] = field(default_factory=set)
    endings: int = 0
    token_s: list[float] = field(default_factory=list)
    retry_after_s: float | None = None
    error: str = ""

    @property
    def completed(self) -> bool:
        return self.status == 200 and self.endings == 1 and len(self.token_s) == self.wanted

    @property
    def refused(self) -> bool:
        """Told at once that it would not be served in time, and when to come again."""
        return self.status == 429 and self.retry_after_s is not None and self.retry_after_s >= 1

    @property
    def met(self) -> bool:
        """Completed within both targets of its class."""
        if not self.completed or self.token_s[0] - self.due_s > self.target.ttft_s:
            return False
        gaps = max(1, len(self.token_s) - 1)
        return (self.token_s[-1] - self.token_s[0]) / gaps <= self.target.tpot_s


def account(answers: Sequence[Answer]) -> dict[str, int]:
    """Every request in one of these; `lost` and `answered_twice` must be none."""
    ids = Counter(one for answer in answers for one in answer.ids)
    twice = sum(answer.endings > 1 or len(answer.ids) > 1 for answer in answers)
    return {
        "sent": len(answers),
        "completed": sum(one.completed for one in answers),
        "met_targets": sum(one.met for one in answers),
        "refused": sum(one.refused for one in answers),
        "lost": sum(not one.completed and not one.refused for one in answers),
        "answered_twice": twice + sum(count > 1 for count in ids.values()),
    }


def run_load(
    url: str,
    phases: Sequence[Phase],
    targets: Sequence[Target],
    *,
    input_len: int,
    output_len: int,
    vocabulary: int,
    seed: int,
    each_second: Callable[[float, str], None] = lambda elapsed, phase: None,
) -> list[Answer]:
    """All phases one after the other, then until the last answer. each_second: told how long it has gone on.

    Prompts are random token ids below `vocabulary`, of half to one and a half times `input_len`.
    """
    rng = random.Random(seed)
    plan = _arrivals(phases, targets, output_len, rng)
    prompts = [
        [rng.randrange(vocabulary) for _ in range(rng.randint(input_len // 2, input_len * 3 // 2))]
        for _ in plan
    ]
    asyncio.run(_send(url, plan, prompts, phases, each_second))
    return plan


def _arrivals(
    phases: Sequence[Phase], targets: Sequence[Target], output_len: int, rng: random.Random
) -> list[Answer]:
    found, start = [], 0.0
    for phase in phases:
        due = start + rng.expovariate(phase.rate)
        while due < start + phase.seconds:
            [target] = rng.choices(targets, [one.share for one in targets])
            wanted = rng.randint(max(2, output_len // 2), output_len * 3 // 2)
            found.append(Answer(phase.name, target, due, wanted))
            due += rng.expovariate(phase.rate)
        start += phase.seconds
    return found


async def _send(
    url: str,
    plan: Sequence[Answer],
    prompts: Sequence[list[int]],
    phases: Sequence[Phase],
    each_second: Callable[[float, str], None],
) -> None:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    timeout = httpx.Timeout(TIMEOUT_S)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=timeout, trust_env=False) as client:
        start = time.monotonic()

        async def tell() -> None:
            while True:
                elapsed = time.monotonic() - start
                each_second(elapsed, _phase_at(phases, elapsed))
                await asyncio.sleep(1.0)

        telling = asyncio.create_task(tell())
        async with asyncio.TaskGroup() as tasks:
            for answer, prompt in zip(plan, prompts, strict=True):
                await asyncio.sleep(max(0.0, start + answer.due_s - time.monotonic()))
                tasks.create_task(_ask(client, answer, prompt, start))
        telling.cancel()


def _phase_at(phases: Sequence[Phase], elapsed: float) -> str:
    for phase in phases:
        if elapsed < phase.seconds:
            return phase.name
        elapsed -= phase.seconds
    return "last answers"


async def _ask(client: httpx.AsyncClient, answer: Answer, prompt: list[int], start: float) -> None:
    body = {
        "prompt": prompt,
        "max_tokens": answer.wanted,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "service_tier": _TIERS[answer.target.name],
    }
    try:
        async with client.stream("POST", "/v1/completions", json=body) as response:
            answer.status = response.status_code
            if response.status_code != 200:
                await response.aread()
                answer.retry_after_s = float(response.headers.get("retry-after", "nan"))
                answer.error = response.text[:300]
                return
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    _take(answer, json.loads(line[6:]), time.monotonic() - start)
    except Exception as error:
        # It fails alone, and is counted as lost.
        answer.error = f"{type(error).__name__}: {error}"


def _take(answer: Answer, event: dict[str, object], now: float) -> None:
    if "error" in event:
        answer.error = str(event["error"])
        return
    answer.ids.add(str(event["id"]))
    for choice in event["choices"]:  # type: ignore[attr-defined]
        answer.endings += choice["finish_reason"] is not None
    usage = event.get("usage")
    if isinstance(usage, dict):
        answer.token_s += [now] * (usage["completion_tokens"] - len(answer.token_s))
