"""The file that a command's results go to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="OUT.json", help="Write the results to this file.")
]


def check_writable(path: Path | None, option: str = "--json") -> None:
    """Refuse a result file that cannot be written before minutes of measuring, not after."""
    if path is not None and path.is_dir():
        raise ValueError(f"{option} {path} is a directory; name a file")
    if path is not None and not path.parent.is_dir():
        raise ValueError(f"{option} {path}: there is no directory {path.parent}")
