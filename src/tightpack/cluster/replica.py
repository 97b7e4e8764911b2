"""What the router knows of one replica."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tightpack.cluster.prediction import Work
from tightpack.cluster.prefixes import PrefixBook
from tightpack.serving_loop.load import ClassLoad, EngineLoad


class Health(enum.StrEnum):
    STARTING = "starting"  # it has not answered yet
    READY = "ready"
    SUSPECT = "suspect"  # a connection to it failed, and it has not answered since
    DRAINING = "draining"  # it finishes what it has and takes nothing new


@dataclass(eq=False, slots=True)
class Sent:
    """A request under way on a replica. at: when it was sent, in the router's seconds.

    attempt: the time-out scope that the answer is read in, which `abandon` ends.
    """

    work: Work
    at: float
    attempt: asyncio.Timeout = field(default_factory=lambda: asyncio.Timeout(None))

    def abandon(self) -> None:
        """The replica is lost: whoever reads its answer gets a TimeoutError now."""
        self.attempt.reschedule(asyncio.get_running_loop().time())


@dataclass(eq=False, slots=True)
class Replica:
    """pid, node: of its process, for whoever looks for it.

    load: as it published it last. asked_at: when that look began. answered_at: when it last answered.
    """

    id: str
    pool: str
    url: str
    pid: int = 0
    node: str = ""
    health: Health = Health.STARTING
    load: EngineLoad | None = None
    asked_at: float = 0.0
    answered_at: float = 0.0
    under_way: set[Sent] = field(default_factory=set)
    prefixes: PrefixBook = field(default_factory=PrefixBook)

    @property
    def unseen(self) -> list[Work]:
        """What was sent since `load` was asked for."""
        return [sent.work for sent in self.under_way if sent.at >= self.asked_at]

    def answered(self, load: EngineLoad, asked_at: float, now: float) -> None:
        self.load, self.asked_at, self.answered_at, self.health = load, asked_at, now, Health.READY


def parse_load(given: Mapping[str, Any]) -> EngineLoad:
    """The body of /load. Raises KeyError, TypeError or ValueError for something else."""
    step, token, pair, decode, position = map(float, given["step_seconds"])
    room = given["prompt_room_s"]
    return EngineLoad(
        policy=str(given["policy"]),
        num_running=int(given["num_running"]),
        num_waiting=int(given["num_waiting"]),
        max_num_seqs=int(given["max_num_seqs"]),
        max_num_batched_tokens=int(given["max_num_batched_tokens"]),
        by_class={str(name): ClassLoad(**one) for name, one in given["by_class"].items()},
        ahead=ClassLoad(**given["ahead"]),
        decodes=int(given["decodes"]),
        decode_context=int(given["decode_context"]),
        free_kv_tokens=int(given["free_kv_tokens"]),
        step_seconds=(step, token, pair, decode, position),
        relative_error=float(given["relative_error"]),
        num_observed=int(given["num_observed"]),
        ends_in_steps=tuple(map(float, given["ends_in_steps"])),
        output_tokens=float(given["output_tokens"]),
        longest_output_tokens=float(given["longest_output_tokens"]),
        max_wait_s=float(given["max_wait_s"]),
        prompt_room_s=None if room is None else float(room),
    )
