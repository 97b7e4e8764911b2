"""The numbers of replicas that a deployment under a policy may need, narrowed down trial by trial."""

from __future__ import annotations

from dataclasses import dataclass

from tightpack.planning.candidate import Candidate
from tightpack.planning.deployments import Deployment


@dataclass
class Entry:
    """bound: replicas that are needed at least. low: replicas known to be too few.

    high: the candidate with the fewest known to be enough. last: the latest that was not.
    """

    deployment: Deployment
    policy: str
    bound: int
    low: int
    high: Candidate | None = None
    last: Candidate | None = None

    @property
    def settled(self) -> bool:
        return self.high is not None and self.high.replicas == self.low + 1

    @property
    def cost(self) -> tuple[float, int, float]:
        """Of its cheapest number of replicas that may do, as `Candidate.order`."""
        replicas = self.low + 1
        price = self.deployment.usd_per_hour or 0.0
        devices = self.deployment.tensor_parallel_size * replicas
        return price * replicas, devices, self.deployment.kl

    @property
    def next(self) -> int:
        """Replicas to try."""
        if self.high is not None:
            return (self.low + 1 + self.high.replicas) // 2
        # Up by a quarter: what was skipped is bisected once something is enough.
        return self.low + 1 if self.low < self.bound else self.low + max(1, self.low // 4)

    @property
    def key(self) -> tuple[object, ...]:
        """Entries of equal keys come out alike at their next trial."""
        return self.deployment.pace, self.deployment.cache_tokens, self.policy, self.next

    def tried(self, candidate: Candidate) -> None:
        """Narrow down by what its next trial gave."""
        if candidate.meets_slo:
            self.high = candidate
        else:
            self.low, self.last = candidate.replicas, candidate
