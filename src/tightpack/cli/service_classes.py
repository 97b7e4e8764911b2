"""Service classes from the command line and from a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tightpack.requests.service_class import ServiceClass
from tightpack.requests.service_class_settings import resolve_service_classes


def read_service_classes(texts: Sequence[str] | None, path: Path | None) -> tuple[ServiceClass, ...]:
    """The classes of a YAML (or JSON) file, and over them those given one by one.

    Raises ValueError or TypeError that names what is wrong, and OSError for a file that cannot be read.
    """
    from_file = resolve_service_classes(_load(path) if path else None)
    return resolve_service_classes([*from_file, *(texts or ())])


def _load(path: Path) -> Mapping[str, Mapping[str, object]]:
    import yaml

    try:
        loaded = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is neither YAML nor JSON: {error}") from None
    if not isinstance(loaded, Mapping):
        raise ValueError(
            f"{path} must map service classes to targets: interactive: {{ttft: 0.5, tpot: 0.05}}"
        )
    return loaded
