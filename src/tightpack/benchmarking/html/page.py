"""page"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any


def read_reports(paths: Iterable[Path]) -> list[dict[str, Any]]:
    return []


def write_page(path: Path, reports: list[dict[str, Any]]) -> None: ...
