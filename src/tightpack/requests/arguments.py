"""Unknown arguments are refused by name, with the nearest valid one."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any, TypeVar, cast

T = TypeVar("T")


def refuse_unknown(owner: str, given: Iterable[str], valid: Iterable[str]) -> None:
    """Raise TypeError naming the first of `given` that is not in `valid`, and the nearest one that is."""
    names = list(valid)
    for name in given:
        if name in names:
            continue
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(sorted(names))}"
        raise TypeError(f"{owner} has no argument {name!r}; {hint}")


def strict_keywords(cls: type[T]) -> type[T]:
    """Class decorator for keyword-only dataclasses: unknown keywords raise as in `refuse_unknown`."""
    names = [f.name for f in fields(cast(Any, cls)) if f.init]
    plain_init = cast(Callable[..., None], cls.__init__)

    @functools.wraps(plain_init)
    def checked_init(self: T, *args: Any, **kwargs: Any) -> None:
        refuse_unknown(cls.__name__, kwargs, names)
        plain_init(self, *args, **kwargs)

    cls.__init__ = checked_init  # type: ignore[assignment]
    return cls
