from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tightpack import _native
from tightpack.native_cpu.threads import cores_for, default_threads


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def topology(siblings: Mapping[int, str], name: str = "core_cpus_list") -> dict[str, str]:
    return {f"sys/devices/system/cpu/cpu{cpu}/topology/{name}": cpus for cpu, cpus in siblings.items()}


# Four cores of two threads each, numbered as Linux does on Intel: core i has CPUs i and i + 4.
CORES = {cpu: f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)}


@pytest.mark.parametrize("name", ["core_cpus_list", "thread_siblings_list"])
@pytest.mark.parametrize(
    ("cpus", "threads"), [(range(8), 4), ([0, 4], 1), ([0, 1, 4], 2), ([6], 1), ([1, 2, 3], 3)]
)
def test_one_thread_a_core_of_the_affinity_mask(
    tmp_path: Path, cpus: range | list[int], threads: int, name: str
) -> None:
    assert default_threads(cpus, tree(tmp_path, topology(CORES, name))) == threads


def test_cpus_count_as_cores_where_the_system_does_not_say(tmp_path: Path) -> None:
    assert default_threads([0, 1, 2], tmp_path) == 3


@pytest.mark.parametrize(
    ("limit", "threads"),
    [("max 100000", 4), ("200000 100000", 2), ("250000 100000", 2), ("50000 100000", 1), ("", 4)],
)
def test_quota_of_cgroup_v2(tmp_path: Path, limit: str, threads: int) -> None:
    files = {"proc/self/cgroup": "0::/app/worker", "sys/fs/cgroup/app/worker/cpu.max": limit}
    assert default_threads(range(8), tree(tmp_path, topology(CORES) | files)) == threads


def test_the_tightest_cgroup_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/app/worker",
        "sys/fs/cgroup/app/worker/cpu.max": "max 100000",
        "sys/fs/cgroup/app/cpu.max": "300000 100000",
        "sys/fs/cgroup/cpu.max": "800000 100000",
    }
    assert default_threads(range(8), tree(tmp_path, topology(CORES) | files)) == 3


def test_a_container_whose_path_is_the_hosts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/system.slice/docker-0123.scope",
        "sys/fs/cgroup/cpu.max": "100000 100000",
    }
    assert default_threads(range(8), tree(tmp_path, topology(CORES) | files)) == 1


@pytest.mark.parametrize(("quota", "threads"), [("-1", 4), ("200000", 2)])
def test_quota_of_cgroup_v1(tmp_path: Path, quota: str, threads: int) -> None:
    files = {
        "proc/self/cgroup": "5:memory:/m\n4:cpu,cpuacct:/app\n1:name=systemd:/x",
        "sys/fs/cgroup/cpu/app/cpu.cfs_quota_us": quota,
        "sys/fs/cgroup/cpu/app/cpu.cfs_period_us": "100000",
    }
    assert default_threads(range(8), tree(tmp_path, topology(CORES) | files)) == threads


def test_this_machine() -> None:
    assert default_threads() >= 1


@pytest.mark.parametrize(
    ("threads", "cpus", "cores"),
    [
        (4, range(8), [[0, 4], [1, 5], [2, 6], [3, 7]]),
        (2, [1, 2, 6], [[1], [2, 6]]),
        (3, range(8), []),  # a core is left for others
        (5, range(8), []),
        (1, [3], []),
    ],
)
def test_threads_keep_to_their_cores_where_they_take_all(
    tmp_path: Path, threads: int, cpus: range | list[int], cores: list[list[int]]
) -> None:
    assert cores_for(threads, cpus, tree(tmp_path, topology(CORES))) == cores


def test_a_team_refuses_cores_that_are_not_one_a_thread() -> None:
    with pytest.raises(ValueError, match="of each of 2 threads, not of 1"):
        _native.ThreadTeam(2, cores=[[0]])
    with pytest.raises(ValueError, match="a CPU's number must be 0"):
        _native.ThreadTeam(1, cores=[[-1]])
