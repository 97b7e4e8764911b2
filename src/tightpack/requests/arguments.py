"""Unknown arguments are refused by name, with the nearest valid one; numbers are taken for what they are."""

from __future__ import annotations

import difflib
import functools
import numbers
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any, TypeVar, cast

T = TypeVar("T")


def as_int(name: str, value: Any) -> int:
    """An integer of any make (numpy's too, but not True) as int. Raises TypeError that names it."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    return int(value)


def as_float(name: str, value: Any) -> float:
    """A number of any make as float. Raises TypeError that names it."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return float(value)


def nearest_hint(given: str, valid: Iterable[str], otherwise: str | None = "it must be one of") -> str:
    """ "did you mean 'NAME'?"; where no name is near, `otherwise` with all of them, or "" if that is None."""
    names = list(valid)
    near = difflib.get_close_matches(given[:80], names, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return "" if otherwise is None else f"{otherwise} {', '.join(names)}"


def require_one_of(name: str, value: str, valid: Iterable[str]) -> None:
    """Raise ValueError naming the argument, the nearest valid value and all of them unless `value` is one."""
    names = list(valid)
    if value not in names:
        near = nearest_hint(str(value), names, otherwise=None)
        hint = f"{near} " if near else ""
        raise ValueError(f"{name}={value!r} is not known; {hint}it must be one of {', '.join(names)}")


def refuse_unknown(owner: str, given: Iterable[str], valid: Iterable[str]) -> None:
    """Raise TypeError naming the first of `given` that is not in `valid`, and the nearest one that is."""
    names = list(valid)
    for name in given:
        if name not in names:
            hint = nearest_hint(name, sorted(names), "it takes")
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
