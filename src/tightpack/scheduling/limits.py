"""How much a policy may schedule: the capacity of the machine and the bounds the operator set."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tightpack.requests.arguments import strict_keywords


def blocks_for(num_tokens: int, block_size: int) -> int:
    """KV blocks that `num_tokens` positions take."""
    return -(-num_tokens // block_size)


@strict_keywords
@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """Plain numbers, so that a policy needs no executor to be built, tested or simulated.

    max_num_seqs: requests that run at once; the size of a static or dynamic batch.
    max_num_batched_tokens: tokens computed in one step, decodes included.
    max_model_len: positions of one request, prompt and output together.
    block_size: positions a KV block.
    num_blocks: KV blocks in the pool.
    max_queue: requests that wait for their first step; preempted ones do not count.
    max_wait: seconds that a partial batch waits for company (static and dynamic).
    enable_prefix_caching: share the blocks of equal prefixes.
    reject_unattainable: refuse a request whose TTFT target cannot be met (slo).
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    block_size: int
    num_blocks: int
    max_queue: int = 1024
    max_wait: float = 0.05
    enable_prefix_caching: bool = True
    reject_unattainable: bool = False

    def __post_init__(self) -> None:
        for name in (
            "max_num_seqs",
            "max_num_batched_tokens",
            "max_model_len",
            "block_size",
            "num_blocks",
            "max_queue",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)!r}")
        if not (math.isfinite(self.max_wait) and self.max_wait >= 0):
            raise ValueError(f"max_wait must be 0 or more seconds, got {self.max_wait!r}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens={self.max_num_batched_tokens} must be at least "
                f"max_num_seqs={self.max_num_seqs}: every running request decodes one token a step"
            )
        needed = blocks_for(self.max_model_len, self.block_size)
        if self.num_blocks < needed:
            raise ValueError(
                f"num_blocks={self.num_blocks} cannot hold one request of max_model_len="
                f"{self.max_model_len}: with block_size={self.block_size} that takes num_blocks={needed}; "
                f"or lower max_model_len to {self.num_blocks * self.block_size}"
            )

    def require_room_for_whole_prompts(self, policy: str) -> None:
        """Raise ValueError unless one step can hold the longest prompt, which `policy` never splits."""
        if self.max_num_batched_tokens < self.max_model_len:
            raise ValueError(
                f"policy {policy!r} computes a prompt whole, so max_num_batched_tokens="
                f"{self.max_num_batched_tokens} must be at least max_model_len={self.max_model_len}; "
                f"policy 'chunked-prefill' splits prompts and takes any budget"
            )
