"""How many threads to compute with, and where: one for each physical core that this process may use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path


def default_threads(cpus: Iterable[int] | None = None, root: Path = Path("/")) -> int:
    """Physical cores behind the CPUs that the affinity mask allows, but no more than the cgroups' CPU time.

    Two threads of one core share the units that do the work, so the second gains nothing and is waited for
    at every barrier; and beyond a quota all threads of the process are stopped together until its period
    ends, so a quota of 2.5 CPUs feeds two. At least 1.

    cpus: numbers of the CPUs allowed; None asks the system. root: where /proc and /sys are.
    """
    return max(1, math.floor(min(len(_cores(cpus, root)), _quota(root))))


def allowed_cpus() -> int:
    """CPUs that the affinity mask allows, the threads of one core counted each."""
    return len(list(_affinity()))


def cores_for(threads: int, cpus: Iterable[int] | None = None, root: Path = Path("/")) -> list[list[int]]:
    """The CPUs that each thread should keep to, where `threads` take every core of the mask; else none.

    A team that takes less leaves the choice to the system: another process may have bound itself as well.
    """
    cores = _cores(cpus, root)
    return cores if len(cores) == threads > 1 else []


def _cores(cpus: Iterable[int] | None, root: Path) -> list[list[int]]:
    """The allowed CPUs, those of a physical core together."""
    cores: dict[str, list[int]] = {}
    for cpu in sorted(_affinity() if cpus is None else cpus):
        cores.setdefault(_siblings(cpu, root), []).append(cpu)
    return list(cores.values())


def _affinity() -> Iterable[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


def _siblings(cpu: int, root: Path) -> str:
    """The CPUs of this one's core, as the kernel writes them; the CPU alone where it does not say."""
    topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
    # The second name is the older one of the same list.
    for name in ("core_cpus_list", "thread_siblings_list"):
        siblings = _read(topology / name)
        if siblings:
            return siblings
    return str(cpu)


def _quota(root: Path) -> float:
    """CPUs' worth of time that the tightest of the process's cgroups allows; infinite without one."""
    quota = math.inf
    for line in _read(root / "proc/self/cgroup").splitlines():
        # number:controllers:path; version 2 has no controllers.
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            limits = (_quota_v2(group) for group in _upwards(root / "sys/fs/cgroup", path))
        elif "cpu" in controllers.split(","):
            limits = (_quota_v1(group) for group in _upwards(root / "sys/fs/cgroup/cpu", path))
        else:
            continue
        quota = min(quota, *limits)
    return quota


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """The cgroup at `path` and those around it. In a container the path may be the host's, where nothing is
    mounted; the container's own limits are then at the mount point, which comes last."""
    group = mount / path.lstrip("/")
    yield group
    while group != mount:
        group = group.parent
        yield group


def _quota_v2(group: Path) -> float:
    quota, _, period = _read(group / "cpu.max").partition(" ")
    return _ratio(quota, period)


def _quota_v1(group: Path) -> float:
    return _ratio(_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> float:
    """Microseconds of CPU time in a period; "max" and -1 stand for no limit, and so does nothing at all."""
    try:
        allowed, length = int(quota), int(period)
    except ValueError:
        return math.inf
    return allowed / length if allowed > 0 and length > 0 else math.inf


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
