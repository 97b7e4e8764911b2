"""`tightpack cluster` and `tightpack batch` on Ray, in this machine, with a tiny model."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml

from tightpack.benchmarking.openai_api import Server
from tightpack.benchmarking.outcomes import Drive
from tightpack.benchmarking.remote import Remote
from tightpack.benchmarking.workload import RequestShape, Workload, WorkloadRequest
from tightpack.latency.percentiles import Percentiles
from tightpack.requests.service_class import INTERACTIVE, STANDARD, ServiceClass

pytest.importorskip("ray", reason="needs the extra cluster: pip install 'tightpack[cluster]'")

# One thread each: two replicas, a router and a load generator share the cores.
ENGINE = {"num_threads": 1, "num_blocks": 256}


def children(pid: int) -> set[int]:
    """Of a process, with theirs."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def gone(pids: set[int], within: float = 20.0) -> set[int]:
    """Those that still run after a while."""
    deadline = time.monotonic() + within
    while True:
        left = {pid for pid in pids if _runs(pid)}
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@dataclass
class Cluster:
    url: str
    process: subprocess.Popen[str]

    def replicas(self, pool: str) -> list[dict[str, Any]]:
        pools = httpx.get(f"{self.url}/cluster", timeout=30).json()["pools"]
        return [one for one in pools[pool]["replicas"] if one["health"] == "ready"]

    def drive(self, *requests: WorkloadRequest) -> Drive:
        return Remote(Server(self.url, "tiny")).run("cluster", Workload("test", requests))


@contextmanager
def running(config: dict[str, Any], folder: Path) -> Iterator[Cluster]:
    """`tightpack cluster` until the block ends; what is left behind then is a failure."""
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "tightpack.cli.main", "cluster", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found = re.match(r"ready tiny at (\S+) ", process.stdout.readline())
    assert found is not None, f"the cluster ended: {process.wait(30)}"
    try:
        yield Cluster(found[1], process)
    finally:
        started = children(process.pid)
        process.send_signal(signal.SIGTERM)
        ended = process.wait(60)
        process.stdout.close()
    assert ended == 0
    assert len(started) >= 4
    assert not gone(started)


@pytest.fixture(scope="module")
def cluster(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two replicas for interactive and standard work, one for batches."""
    config = {
        "model": str(tiny_model("llama")),
        "served_model_name": "tiny",
        "port": 0,
        "drain_timeout": 5,
        "pools": {
            "interactive": {
                "classes": ["interactive", "standard"],
                "replicas": 2,
                "num_cpus": 0.5,
                "engine": {**ENGINE, "policy": "slo", "max_num_seqs": 8},
            },
            "batch": {"num_cpus": 0.5, "engine": {**ENGINE, "max_num_seqs": 16}},
        },
    }
    with running(config, tmp_path_factory.mktemp("cluster")) as started:
        yield started


def request(number: int, arrival: float, output: int = 60, tier: ServiceClass = STANDARD) -> WorkloadRequest:
    tokens = tuple(4 + (number * 7 + i) % 90 for i in range(10))
    return WorkloadRequest(RequestShape(arrival, len(tokens), output, tier), tokens)


def test_the_openai_client_streams(cluster: Cluster) -> None:
    client = openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0)
    assert [one.id for one in client.models.list()] == ["tiny"]
    asked = {"model": "tiny", "prompt": "w5 w6 w7", "max_tokens": 20, "temperature": 0}
    whole = client.completions.create(**asked)
    pieces = [chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True)]
    assert "".join(pieces) == whole.choices[0].text
    assert len(pieces) == whole.usage.completion_tokens
    with pytest.raises(openai.NotFoundError, match="this cluster has 'tiny'"):
        client.completions.create(**{**asked, "model": "large"})


def test_classes_go_to_their_pools_and_replicas_share_them(cluster: Cluster) -> None:
    body = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 40, "ignore_eos": True}
    with httpx.Client(base_url=cluster.url, timeout=60) as client:
        for tier, pool in (("priority", "interactive"), ("default", "interactive"), ("flex", "batch")):
            answer = client.post("/v1/completions", json={**body, "service_tier": tier})
            assert answer.headers["x-tightpack-replica"].startswith(f"{pool}/")
        drive = cluster.drive(*(request(i, 0.0) for i in range(40)))
        assert all(one.completed for one in drive.outcomes)
    text = httpx.get(f"{cluster.url}/metrics", timeout=30).text
    assert re.search(r'cluster_replicas\{health="ready",pool="interactive"\} 2.0', text)


def test_replicas_are_closed_to_strangers(cluster: Cluster) -> None:
    url = cluster.replicas("interactive")[0]["url"]
    assert httpx.get(f"{url}/load").status_code == 401


def test_a_killed_replica_loses_nothing_that_had_not_begun(cluster: Cluster) -> None:
    victim = cluster.replicas("interactive")[0]

    def kill() -> None:
        deadline = time.monotonic() + 20
        while not victim_runs() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(victim["pid"], signal.SIGKILL)

    def victim_runs() -> int:
        each = {one["id"]: one for one in cluster.replicas("interactive")}
        return int(each[victim["id"]]["under_way"])

    killer = threading.Thread(target=kill)
    killer.start()
    drive = cluster.drive(*(request(i, 0.004 * i, 100) for i in range(400)))
    killer.join()
    assert not _runs(victim["pid"])
    ends = Counter("completed" if one.completed else "begun" for one in drive.outcomes)
    assert ends["completed"] >= 350
    for one in drive.outcomes:
        if not one.completed:  # only what had been streamed in part, and it was told so
            assert one.token_times
            assert "replica was lost" in str(one.error)
    deadline = time.monotonic() + 60
    while len(healed := cluster.replicas("interactive")) < 2:
        assert time.monotonic() < deadline, "the pool does not heal"
        time.sleep(0.1)
    assert victim["id"] not in {one["id"] for one in healed}
    again = cluster.drive(*(request(i, 0.0, 10) for i in range(20)))
    assert all(one.completed for one in again.outcomes)


def write_batch(path: Path, count: int) -> None:
    lines = [
        {
            "custom_id": f"request-{i}",
            "method": "POST",
            "url": "/v1/completions",
            "body": {
                "model": "tiny",
                "prompt": f"w{4 + i % 90} w7",
                "max_tokens": 1 + i % 100,
                "temperature": 0,
                "ignore_eos": True,
            },
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def batch(*options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tightpack.cli.main", "batch", *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def check_answers(path: Path, count: int) -> None:
    answers = [json.loads(line) for line in path.read_text().splitlines()]
    assert [one["custom_id"] for one in answers] == [f"request-{i}" for i in range(count)]
    for i, one in enumerate(answers):
        assert one["error"] is None
        assert one["response"]["status_code"] == 200
        assert one["response"]["body"]["usage"]["completion_tokens"] == 1 + i % 100


def test_interactive_work_keeps_its_target_beside_a_batch(cluster: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    write_batch(tmp_path / "in.jsonl", 600)
    running = batch(str(tmp_path / "in.jsonl"), "-o", str(out), "--url", cluster.url)
    while not (tmp_path / "out.jsonl.partial").exists() or not cluster.replicas("batch")[0]["num_running"]:
        assert running.poll() is None, running.communicate()[1]
        time.sleep(0.01)
    drive = cluster.drive(*(request(i, 0.04 * i, 20, INTERACTIVE) for i in range(25)))
    was_busy = not out.exists()
    _, printed = running.communicate(timeout=120)
    assert was_busy
    assert running.returncode == 0, printed
    check_answers(out, 600)
    assert all(one.completed for one in drive.outcomes)
    ttft = Percentiles.of(one.latency.ttft_s for one in drive.outcomes)
    assert INTERACTIVE.ttft_s is not None
    assert ttft.p99 <= INTERACTIVE.ttft_s


@pytest.mark.usefixtures("cluster")  # it is there all the same: both may be on one machine
def test_a_batch_over_replicas_of_which_one_is_killed(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    count, out = 200, tmp_path / "out.jsonl"
    write_batch(tmp_path / "in.jsonl", count)
    model = ("--model", str(tiny_model("llama")), "--served-model-name", "tiny")
    # Few places, so that the work lasts until a replica can be killed.
    limits = ("--num-threads", "1", "--num-blocks", "64", "--max-num-seqs", "8", "--num-cpus", "0.5")
    running = batch(str(tmp_path / "in.jsonl"), "-o", str(out), *model, *limits, "--replicas", "2")
    journal = tmp_path / "out.jsonl.partial"
    deadline = time.monotonic() + 120
    while not journal.exists() or len(journal.read_bytes().splitlines()) < 10:
        assert running.poll() is None, running.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    started = children(running.pid)
    workers = [pid for pid in started if b"MapWorker" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    assert not out.exists()
    _, printed = running.communicate(timeout=200)
    assert running.returncode == 0, printed
    check_answers(out, count)
    assert not journal.exists()
    assert not gone(started)
