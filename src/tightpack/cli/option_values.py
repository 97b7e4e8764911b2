"""Checking what options hold: lists in one word, and options that exclude each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tightpack.requests.arguments import nearest_hint
from tightpack.scheduling.registry import POLICY_NAMES


def spelled(name: str) -> str:
    """An argument's name as the option that a shell takes."""
    return "--" + name.replace("_", "-")


def listed_names(option: str, listed: str, known: Sequence[str] = ()) -> list[str]:
    """A comma-separated list. Raises ValueError, which offers what is `known`, for an empty one."""
    names = [name.strip() for name in listed.split(",") if name.strip()]
    if not names:
        raise ValueError(f"{option} names none" + (f"; there are {', '.join(known)}" if known else ""))
    return names


def listed_policies(listed: str) -> list[str]:
    """As `listed_names`, of policies. Raises ValueError for one that there is not, with the nearest."""
    names = listed_names("--policies", listed, POLICY_NAMES)
    for name in names:
        if name not in POLICY_NAMES:
            raise ValueError(f"no policy is named {name!r}; {nearest_hint(name, POLICY_NAMES, 'there are')}")
    return names


def refuse_beside(arguments: Mapping[str, Any], because: str, *names: str) -> None:
    """Raise ValueError, which says `because`, for the first of `names` that was given."""
    for name in names:
        if arguments[name] not in (None, False, []):
            raise ValueError(f"{because}; drop {spelled(name)}")
