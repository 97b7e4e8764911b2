"""Three times as much load as a server can take, for two minutes: does it keep serving, and recover?

    python benchmarks/overload.py [MODEL] [--seconds 120] [--times 3] [--json FILE] [-- OPTIONS OF serve]
    python benchmarks/overload.py --url http://127.0.0.1:8000 ...            # a server that runs already

Starts `tightpack serve --policy slo`, first with --reject-unattainable and then without (a running server is
taken as it is). Each time: find the capacity, the largest rate tried at which 99 % of the requests meet their
targets; then overload; then half of the capacity. Judged, and the exit status says it:

- no request is lost (an answer of all its tokens, or a 429 with Retry-After) and none is answered twice;
- goodput under overload, past its first seconds, is at least 90 % of that at capacity;
- the server's memory does not grow once the overload has lasted a sixth of its time;
- 5 s after the load has fallen every request meets its targets again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
from side_by_side.checked_load import Answer, Phase, Target, account, run_load
from side_by_side.process_memory import resident_bytes
from side_by_side.server_process import serving

TARGETS = (Target("interactive", 0.5, 0.05, 0.7), Target("standard", 2.0, 0.1, 0.3))
ATTAINMENT = 0.99
GOODPUT_SHARE = 0.9
RECOVERY_S = 5.0
# Growth that is no leak: buffers of connections, and what the allocator keeps.
MEMORY_SLACK = 1.05
# Rates tried are so far apart, from what comes out at the most downwards or upwards.
STEP = 0.87
_MOST_PROBES = 14
# The KV cache is written to its end before the overload begins: what grows then is none of it.
_SMALL_CACHE = ("--max-model-len", "2048", "--num-blocks", "1024")
_MEBI = 2**20


class Judged:
    """A server under load, and what is found of it. pid: None where its memory is not ours to see."""

    def __init__(self, url: str, pid: int | None, options: argparse.Namespace) -> None:
        self.url, self.pid, self.options = url, pid, options
        self._seed = options.seed

    def load(self, *phases: Phase, memory: list[tuple[float, float]] | None = None) -> list[Answer]:
        self._seed += 1
        return run_load(
            self.url,
            phases,
            TARGETS,
            input_len=self.options.input_len,
            output_len=self.options.output_len,
            vocabulary=self.options.vocabulary,
            seed=self._seed,
            each_second=lambda elapsed, phase: self._watch(elapsed, phase, memory),
        )

    def _watch(self, elapsed: float, phase: str, memory: list[tuple[float, float]] | None) -> None:
        if memory is not None and self.pid is not None:
            memory.append((elapsed, resident_bytes(self.pid) / _MEBI))
        if sys.stderr.isatty():
            print(f"\r{phase}: {elapsed:.0f} s   ", end="", file=sys.stderr, flush=True)

    def capacity(self) -> tuple[float, float]:
        """Requests a second that are served in time, and how many of them were there."""
        seconds = self.options.probe_seconds
        self.load(Phase("warm-up", 4.0, min(2.0, seconds)))
        rate = self._most()
        best: tuple[float, float] | None = None
        failed = False
        for _ in range(_MOST_PROBES):
            answers = self.load(Phase("probe", rate, seconds))
            share = sum(one.met for one in answers) / max(1, len(answers))
            print(f"  {rate:.1f} requests/s: {share:.1%} in time", flush=True)
            if share >= ATTAINMENT:
                best = rate, len(answers) * share / seconds
                if failed:
                    return best
                rate /= STEP
            elif best is not None:
                return best
            else:
                failed = True
                rate *= STEP
        if best is None:
            raise RuntimeError("the server met its targets at no rate tried")
        return best

    def _most(self) -> float:
        """What comes out of the server when more goes in than it takes: where the search begins."""
        rate, out = self.options.first_rate, 0.0
        while True:
            answers = self.load(Phase("search", rate, self.options.probe_seconds / 2))
            last = max((one.token_s[-1] for one in answers if one.token_s), default=1.0)
            out = sum(one.completed for one in answers) / max(last, self.options.probe_seconds / 2)
            if out < 0.8 * rate:
                return out
            rate *= 2


def overload(judged: Judged) -> dict[str, Any]:
    """Capacity, overload, and the calm after it."""
    options = judged.options
    capacity, goodput = judged.capacity()
    print(
        f"  capacity {capacity:.1f} requests/s; now {options.times:g} x that for {options.seconds:g} s",
        flush=True,
    )
    before = _served(judged.url)
    memory: list[tuple[float, float]] = []
    answers = judged.load(
        Phase("overload", options.times * capacity, options.seconds),
        Phase("after", capacity / 2, options.after),
        memory=memory,
    )
    counts = account(answers)
    settled = min(10.0, options.seconds / 4)
    under = [a for a in answers if a.phase == "overload" and a.due_s >= settled]
    attained = sum(one.met for one in under) / (options.seconds - settled)
    recovered = _recovered([a for a in answers if a.phase == "after"], options.seconds)
    growth = _growth(memory, options.seconds / 6, options.seconds)
    checks = {
        "none_lost": counts["lost"] == 0,
        "none_answered_twice": counts["answered_twice"] == 0,
        "server_counts_the_same": before is None or _served(judged.url) - before == counts["completed"],
        "goodput_kept": attained >= GOODPUT_SHARE * goodput,
        "memory_flat": growth is None or growth <= MEMORY_SLACK,
        "recovered": recovered <= RECOVERY_S,
    }
    errors = sorted({one.error for one in answers if not one.completed and not one.refused})
    return {
        "capacity_requests_per_s": capacity,
        "goodput_at_capacity": goodput,
        "goodput_under_overload": attained,
        "goodput_share": attained / goodput,
        "recovered_after_s": recovered,
        "memory_growth": growth,
        "memory_mib": [[round(when, 1), round(size, 1)] for when, size in memory],
        "requests": counts,
        "requests_under_overload": account([a for a in answers if a.phase == "overload"]),
        "errors": errors[:10],
        "checks": checks,
    }


def _recovered(after: Sequence[Answer], since: float) -> float:
    """Seconds after the load fell from which on as many are in time as at capacity."""
    waited = 0.0
    while True:
        later = [one for one in after if one.due_s >= since + waited]
        if sum(not one.met for one in later) <= len(later) * (1 - ATTAINMENT):
            return waited
        waited += 0.5


def _growth(memory: Sequence[tuple[float, float]], since: float, until: float) -> float | None:
    """The largest size of the last part of the overload over the largest of its beginning."""
    early = [size for when, size in memory if when <= since]
    late = [size for when, size in memory if since < when <= until + 30]
    return max(late) / max(early) if early and late else None


def _served(url: str) -> float | None:
    """Requests that the server says it has answered to their end."""
    answer = httpx.get(f"{url}/metrics", timeout=30, trust_env=False)
    if answer.status_code != 200:
        return None
    lines = (line for line in answer.text.splitlines() if line.startswith("vllm:request_success_total{"))
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def _say(found: dict[str, Any]) -> None:
    growth = found["memory_growth"]
    print(
        f"  goodput {found['goodput_under_overload']:.1f} requests/s, {found['goodput_share']:.0%} of that at"
        f" capacity; recovered {found['recovered_after_s']:.1f} s after; memory"
        f" {'unknown' if growth is None else f'x {growth:.3f}'}\n  {found['requests']}"
    )
    for name, passed in found["checks"].items():
        print(f"  {'ok  ' if passed else 'FAIL'} {name}")
    for error in found["errors"]:
        print(f"  {error}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--url", help="a server that runs already, with the policy slo")
    parser.add_argument("--python", default=sys.executable, help="of the environment that has tightpack")
    parser.add_argument("--seconds", type=float, default=120.0, help="of overload")
    parser.add_argument("--times", type=float, default=3.0, help="the capacity")
    parser.add_argument("--after", type=float, default=20.0, help="seconds at half of the capacity")
    parser.add_argument("--probe-seconds", type=float, default=10.0, help="at each rate of the search")
    parser.add_argument("--first-rate", type=float, default=8.0, help="requests/s where the search begins")
    parser.add_argument("--input-len", type=int, default=96)
    parser.add_argument("--output-len", type=int, default=32)
    parser.add_argument("--vocabulary", type=int, default=30_000, help="prompts have token ids below it")
    parser.add_argument("--modes", default="reject,wait", help="reject, wait or both")
    parser.add_argument(
        "--num-threads",
        type=int,
        default=max(1, (os.cpu_count() or 1) - 1),
        help="of the engine; one core is left to HTTP and to the clients, which run here too",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures there")
    given = list(sys.argv[1:] if arguments is None else arguments)
    split = given.index("--") if "--" in given else len(given)
    options, serve_options = parser.parse_args(given[:split]), given[split + 1 :]
    fixed = ["--policy", "slo", *_SMALL_CACHE, "--num-threads", str(options.num_threads)]
    modes = (
        {"running": []}
        if options.url
        else {
            mode: [*fixed, *(["--reject-unattainable"] if mode == "reject" else [])]
            for mode in options.modes.split(",")
        }
    )
    # Ended from outside, it takes its server with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    found: dict[str, Any] = {}
    for mode, own in modes.items():
        print(f"{mode}: {' '.join([*own, *serve_options]) or options.url}", flush=True)
        started = (
            serving(options.python, options.model, [*own, *serve_options])
            if not options.url
            else nullcontext()
        )
        with started as served:
            url, pid = (options.url, None) if served is None else (served.url, served.process.pid)
            found[mode] = overload(Judged(url, pid, options))
        _say(found[mode])
        if options.json is not None:
            _write(options.json, options, serve_options, found)
    return 0 if all(all(one["checks"].values()) for one in found.values()) else 1


def _write(
    path: Path, options: argparse.Namespace, serve_options: Sequence[str], found: dict[str, Any]
) -> None:
    report = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items() if k != "json"},
        "serve_options": list(serve_options),
        "targets": [asdict(one) for one in TARGETS],
        "modes": found,
    }
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
