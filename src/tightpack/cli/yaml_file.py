"""Settings of a command in a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_mapping(path: Path, example: str) -> Mapping[str, Any]:
    """The mapping of a YAML (or JSON) file. example: what an error says that it must be.

    Raises OSError for a file that cannot be read, and ValueError for one that holds anything else.
    """
    import yaml

    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is neither YAML nor JSON: {error}") from None
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path} must {example}")
    return loaded
