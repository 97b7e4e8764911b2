"""Hold a plan for this machine against the server that it plans.

    python benchmarks/plan_check.py --json result.json

Measures the model (`tightpack calibrate-cost`), plans on that measurement (`tightpack plan`), starts the
server by the very command that the plan gives, and searches its capacity from outside (`tightpack bench --url
--find-capacity`), with the same lengths and the same promise. Prints the predicted and the measured capacity.
The machine must be quiet. It takes about ten minutes. The engine has one thread by default, so that the HTTP
server and the client, which run here too, have a core of their own.
"""

from __future__ import annotations

import argparse
import json
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

TIGHTPACK = (sys.executable, "-m", "tightpack.cli.main")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--policy", default="chunked-prefill")
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--slo", default="ttft=1,tpot=0.05")
    parser.add_argument("--max-num-seqs", type=int, default=16)
    parser.add_argument("--max-model-len", type=int, default=1024)
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--probe-seconds", type=float, default=36.0)
    parser.add_argument("--cost-model", type=Path, help="measured before, instead of now")
    parser.add_argument("--json", type=Path, dest="output")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = check(arguments, Path(folder))
    print(
        f"capacity: {result['predicted_rps']:.2f} requests/s predicted, {result['measured_rps']:.2f} "
        f"measured, off by {result['error']:+.1%}"
    )
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def check(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    fit = arguments.cost_model or folder / "fit.json"
    if arguments.cost_model is None:
        tightpack(
            *("calibrate-cost", arguments.model, "-o", fit, "--no-check", "--quiet"),
            *("--max-num-seqs", arguments.max_num_seqs, "--max-model-len", arguments.max_model_len),
            *("--num-threads", arguments.num_threads, "--rounds", arguments.rounds),
        )
    lengths = ("--input-len", arguments.input_len, "--output-len", arguments.output_len, "--mixed")
    tightpack(
        *("plan", "--model", arguments.model, "--cost-model", fit, "--rate", 1, "--slo", arguments.slo),
        *(*lengths, "--policies", arguments.policy, "--max-model-len", arguments.max_model_len),
        *("--json", folder / "plan.json", "--quiet"),
    )
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    best = plan["best"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Prompts are random: a prefix cache finds nothing, and costs its look-up.
    command = [
        *TIGHTPACK,
        *shlex.split(best["serve_command"])[1:],
        "--port",
        str(port),
        "--max-queue",
        "10000",
    ]
    print("$", shlex.join(["tightpack", *command[len(TIGHTPACK) :]]), flush=True)
    server = subprocess.Popen(command)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(url, server)
        tightpack(
            *(
                "bench",
                "--url",
                url,
                "--find-capacity",
                *lengths,
                "--rate",
                f"{best['capacity_rps'] * 0.75:.3g}",
            ),
            *("--requests", arguments.requests, "--max-model-len", arguments.max_model_len),
            *("--probe-seconds", arguments.probe_seconds),
            *("--service-class", f"standard:{arguments.slo}", "--json", folder / "bench.json", "--quiet"),
        )
        if server.poll() is not None:
            raise SystemExit(f"the server ended while it was measured, with exit code {server.returncode}")
    finally:
        server.terminate()
        server.wait()
    found = json.loads((folder / "bench.json").read_text(encoding="utf-8"))
    [policy] = found["capacity"]["policies"]
    measured = policy["rate"]
    return {
        "what": "capacity of a server on this machine, planned and measured",
        "machine": found["machine"],
        "date": found["date"],
        "arguments": {name: str(value) for name, value in vars(arguments).items() if name != "output"},
        "serve_command": best["serve_command"],
        "slo": plan["slo"],
        "predicted_rps": best["capacity_rps"],
        "measured_rps": measured,
        "measured_unmet_rps": policy["unmet_rate"],
        "error": best["capacity_rps"] / measured - 1 if measured else None,
    }


def tightpack(*arguments: object) -> None:
    words = [str(argument) for argument in arguments]
    print("$", shlex.join(["tightpack", *words]), flush=True)
    subprocess.run([*TIGHTPACK, *words], check=True)


def wait_for(url: str, server: subprocess.Popen[bytes], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if server.poll() is not None:
            raise SystemExit("the server ended before it was ready")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=1):
                return
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"the server was not ready after {seconds:g} s")


if __name__ == "__main__":
    sys.exit(main())
