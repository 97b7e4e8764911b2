"""The policies by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from tightpack.requests.arguments import nearest_hint
from tightpack.scheduling.chunked_prefill import ChunkedPrefillPolicy
from tightpack.scheduling.continuous import ContinuousPolicy
from tightpack.scheduling.dynamic import DynamicPolicy
from tightpack.scheduling.limits import SchedulerLimits
from tightpack.scheduling.policy import Policy
from tightpack.scheduling.policy_base import PolicyBase
from tightpack.scheduling.slo import SloPolicy
from tightpack.scheduling.static import StaticPolicy


def by_name(policies: Iterable[type[PolicyBase]]) -> Mapping[str, type[PolicyBase]]:
    """A read-only mapping from each policy's name; two of one name are a ValueError."""
    named: dict[str, type[PolicyBase]] = {}
    for policy in policies:
        if policy.name in named:
            both = f"{named[policy.name].__name__} and {policy.__name__}"
            raise ValueError(f"two policies are called {policy.name!r}: {both}")
        named[policy.name] = policy
    return MappingProxyType(named)


_POLICIES = by_name((StaticPolicy, DynamicPolicy, ContinuousPolicy, ChunkedPrefillPolicy, SloPolicy))
POLICY_NAMES: tuple[str, ...] = tuple(_POLICIES)


def make_policy(name: str, limits: SchedulerLimits) -> Policy:
    """A policy with empty queues. Raises ValueError for an unknown name or unsuitable limits."""
    if name not in _POLICIES:
        hint = nearest_hint(name, POLICY_NAMES, "there are")
        raise ValueError(f"policy {name!r} is not known; {hint}")
    return _POLICIES[name](limits)
