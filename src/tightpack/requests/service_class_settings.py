"""Service classes as people write them: `interactive:ttft=0.5,tpot=0.05,share=0.3`, or a mapping."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from tightpack.requests.arguments import as_float, nearest_hint
from tightpack.requests.service_class import BATCH, INTERACTIVE, STANDARD, ServiceClass

SERVICE_CLASSES = (INTERACTIVE, STANDARD, BATCH)

ServiceClassSettings = Iterable[ServiceClass | str] | Mapping[str, Mapping[str, Any]]
_FIELDS = {"ttft": "ttft_s", "tpot": "tpot_s", "share": "share"}
_EXAMPLE = "interactive:ttft=0.5,tpot=0.05,share=0.3"


def resolve_service_classes(given: ServiceClassSettings | None) -> tuple[ServiceClass, ...]:
    """All three classes, with what `given` says and else their defaults.

    given: ServiceClass objects, texts, or class name to {"ttft": seconds, "tpot": seconds, "share": 0 to 1},
        of which any may be left out; a target of None (in a text: none) promises nothing.
    Raises TypeError or ValueError that names the class and the setting, and for shares over 1 in all.
    """
    classes = {one.name: one for one in SERVICE_CLASSES}
    listed = (
        given.items() if isinstance(given, Mapping) else [given] if isinstance(given, str) else given or ()
    )
    for one in listed:
        if isinstance(one, ServiceClass):
            classes[_known(one.name)] = one
        else:
            name, settings = _parse(one) if isinstance(one, str) else one
            classes[name] = _changed(classes[_known(name)], settings)
    shares = sum(one.share for one in classes.values())
    if shares > 1:
        each = ", ".join(f"{one.name} {one.share:g}" for one in classes.values())
        raise ValueError(f"the shares of the service classes must add up to 1 or less: {each}")
    return tuple(classes.values())


def _parse(text: str) -> tuple[str, dict[str, float | None]]:
    name, colon, listed = text.partition(":")
    settings: dict[str, float | None] = {}
    for part in listed.split(",") if colon else [""]:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise ValueError(f"service class {text!r}: write it like {_EXAMPLE}")
        try:
            settings[key] = None if value == "none" else float(value)
        except ValueError:
            raise ValueError(f"service class {text!r}: {key} must be a number, got {value!r}") from None
    return name.strip(), settings


def _known(name: str) -> str:
    names = [one.name for one in SERVICE_CLASSES]
    if name not in names:
        raise ValueError(f"no service class is named {name!r}; {nearest_hint(str(name), names, 'there are')}")
    return name


def _changed(service_class: ServiceClass, settings: Mapping[str, Any]) -> ServiceClass:
    if not isinstance(settings, Mapping):
        raise TypeError(f"service class {service_class.name!r} takes {', '.join(_FIELDS)}, got {settings!r}")
    changes: dict[str, float | None] = {}
    for key, value in settings.items():
        if key not in _FIELDS:
            hint = nearest_hint(str(key), _FIELDS, "it takes")
            raise ValueError(f"service class {service_class.name!r} has no setting {key!r}; {hint}")
        if value is None and key == "share":
            raise ValueError(f"service class {service_class.name!r}: share must be in (0, 1], got none")
        changes[_FIELDS[key]] = None if value is None else as_float(f"{service_class.name}: {key}", value)
    return replace(service_class, **changes)  # type: ignore[arg-type]
