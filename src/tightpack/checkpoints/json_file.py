"""A JSON object from a file of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tightpack.checkpoints.checkpoint import CheckpointError


def read_object(path: Path) -> dict[str, Any]:
    """Raises CheckpointError naming the file when it is missing, no JSON, or no object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing") from error
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: must hold a JSON object")
    return value


def read_optional_object(path: Path) -> dict[str, Any]:
    """The object, or {} where there is no such file."""
    return read_object(path) if path.is_file() else {}
