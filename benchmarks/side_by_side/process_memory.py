"""Resident memory of a process and all its children, from Linux's /proc."""

from __future__ import annotations

from pathlib import Path

PROC = Path("/proc")


def resident_bytes(pid: int, proc: Path = PROC) -> int:
    """Sum of the proportional set sizes of `pid` and its descendants.

    For one process that is its resident size, shared libraries counted by the share that it has of them; for
    an engine of several, nothing is counted twice. Processes that end meanwhile count nothing.
    """
    return sum(_proportional_bytes(one, proc) for one in _with_descendants(pid, proc))


def _with_descendants(pid: int, proc: Path) -> list[int]:
    children: dict[int, list[int]] = {}
    for folder in proc.iterdir():
        if folder.name.isdigit() and (parent := _parent(folder)) is not None:
            children.setdefault(parent, []).append(int(folder.name))
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


def _parent(folder: Path) -> int | None:
    try:
        # The name, in parentheses, may hold anything; the fields after it are plain.
        after_name = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
    except OSError:
        return None
    return int(after_name.split()[1])


def _proportional_bytes(pid: int, proc: Path) -> int:
    try:
        lines = (proc / str(pid) / "smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
