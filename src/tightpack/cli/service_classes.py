"""Service classes from the command line and from a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tightpack.cli.yaml_file import read_mapping
from tightpack.requests.service_class import ServiceClass
from tightpack.requests.service_class_settings import resolve_service_classes

_EXAMPLE = "map service classes to targets: interactive: {ttft: 0.5, tpot: 0.05}"


def read_service_classes(texts: Sequence[str] | None, path: Path | None) -> tuple[ServiceClass, ...]:
    """The classes of a YAML (or JSON) file, and over them those given one by one.

    Raises ValueError or TypeError that names what is wrong, and OSError for a file that cannot be read.
    """
    from_file = resolve_service_classes(read_mapping(path, _EXAMPLE) if path else None)
    return resolve_service_classes([*from_file, *(texts or ())])
