"""How long `tightpack serve` takes to be ready: medians over fresh processes.

    python benchmarks/startup.py [MODEL] [--rounds 5] [--json FILE] [-- OPTIONS OF tightpack serve]

From the start of the process to the first 200 of /health, and to the first token of a stream asked for then.
The files of the model and of Python are in the page cache from the second round on; the first round is not
counted.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from side_by_side.http_load import random_prompts, run_load
from side_by_side.process_memory import resident_bytes
from side_by_side.server_process import serving

INPUT_LEN = 16
VOCABULARY = 30_000  # below that of every model in use
NAME = "model"


def one_start(python: str, model: str, options: Sequence[str]) -> dict[str, float]:
    """Seconds to the first 200 of /health and to the first token, and resident MiB after it."""
    with serving(python, model, ["--served-model-name", NAME, *options]) as served:
        prompts = random_prompts(1, INPUT_LEN, VOCABULARY, "start")
        asked = time.perf_counter() - served.started
        result = run_load(served.url, NAME, prompts, 1)
        return {
            "ready_s": served.ready_s,
            "first_token_s": asked + result.first_token_s[0],
            "memory_mib": resident_bytes(served.process.pid) / 2**20,
        }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--python", default=sys.executable, help="of the environment that has tightpack")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write every round there")
    given = list(sys.argv[1:] if arguments is None else arguments)
    split = given.index("--") if "--" in given else len(given)
    options, serve_options = parser.parse_args(given[:split]), given[split + 1 :]
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    try:
        one_start(options.python, options.model, serve_options)
        rounds = [one_start(options.python, options.model, serve_options) for _ in range(options.rounds)]
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    medians = {name: median(one[name] for one in rounds) for name in rounds[0]}
    print(
        f"{options.model}, medians of {len(rounds)} starts: ready in {medians['ready_s']:.2f} s, "
        f"first token at {medians['first_token_s']:.2f} s, {medians['memory_mib']:.0f} MiB resident"
    )
    if options.json is not None:
        result = {"model": options.model, "options": serve_options, "medians": medians, "rounds": rounds}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
