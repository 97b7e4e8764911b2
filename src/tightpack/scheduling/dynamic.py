"""Dynamic batching: a batch leaves when it is full or when its oldest request has waited long enough."""

from __future__ import annotations

from tightpack.scheduling.batch_policy import BatchPolicy


class DynamicPolicy(BatchPolicy):
    """Trades waiting for company: max_num_seqs requests or max_wait seconds, whichever comes first.

    This is the batching of general model servers (Triton's dynamic batcher). Tokens are shown as they come.
    """

    name = "dynamic"

    def _partial_leaves_at(self) -> float:
        return self._queues.waiting[0].arrival_time + self.limits.max_wait
