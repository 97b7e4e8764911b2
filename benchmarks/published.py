"""Hold the simulator against published measurements, and write the table of docs/planning.md.

python benchmarks/published.py            # simulate, and write the table
python benchmarks/published.py --check    # does the document have the table of the last results?
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from tightpack.benchmarking.driver import drive
from tightpack.benchmarking.outcomes import Drive
from tightpack.benchmarking.workload import RequestShape, Workload, WorkloadRequest
from tightpack.planning.deployments import BLOCK_SIZE, Deployment, rooflines
from tightpack.planning.models import PlannedModel, known_models, open_model
from tightpack.planning.weight_choices import WEIGHT_CHOICES
from tightpack.scheduling.limits import SchedulerLimits
from tightpack.simulated.catalogue import load_catalogue
from tightpack.simulated.engine import make_simulated_loop
from tightpack.simulated.virtual_clock import VirtualClock

HERE = Path(__file__).parent
FIGURES = HERE / "published.yaml"
RESULTS = HERE / "results"
DOCUMENT = HERE.parent / "docs" / "planning.md"
BEGIN, END = "<!-- published-table: begin -->", "<!-- published-table: end -->"
# What the published engines allow at once, if memory does.
MOST_SEQUENCES, STEP_TOKENS = 2048, 8192
METRICS = {"out_tok_s": "output tokens/s", "ttft_ms": "TTFT, ms", "itl_ms": "ITL, ms"}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="fail where the document has another table")
    if parser.parse_args().check:
        return check()
    rows = []
    for group in yaml.safe_load(FIGURES.read_text(encoding="utf-8")).values():
        for figure in group["figures"]:
            rows += compare(figure, group["source"])
            print(described(rows[-1]), flush=True)
    result = RESULTS / f"published-{date.today()}.json"
    result.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    document = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = document.partition(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{table(rows)}{END}{rest.partition(END)[2]}", encoding="utf-8")
    return 0


def check() -> int:
    written = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    newest = max(RESULTS.glob("published-*.json"))
    if written.strip() == table(json.loads(newest.read_text(encoding="utf-8"))).strip():
        return 0
    print(f"{DOCUMENT.name} has another table than {newest.name} gives: run {__file__}", file=sys.stderr)
    return 1


def compare(figure: dict[str, Any], source: str) -> list[dict[str, Any]]:
    """A row for each metric that was published of this run."""
    found = simulate(deployment(figure), figure)
    return [
        {
            "source": source,
            **{name: value for name, value in figure.items() if name not in METRICS},
            "metric": metric,
            "published": figure[metric],
            "simulated": round(found[metric], 2),
            "error": round(found[metric] / figure[metric] - 1, 4),
        }
        for metric in METRICS
        if metric in figure
    ]


def deployment(figure: dict[str, Any]) -> Deployment:
    choice = WEIGHT_CHOICES[figure["precision"]]
    return next(
        rooflines(
            model(figure["model"]),
            load_catalogue()[figure["hardware"]],
            [choice],
            [figure["kv"]],
            [figure["tp"]],
            {(choice.name, figure["kv"]): 0.0},
            reserve_tokens=STEP_TOKENS,
        )
    )


def model(name: str) -> PlannedModel:
    if name != "llama-2-70b":
        return open_model(name)
    from tightpack.architectures.registry import model_spec

    config = {**known_models()["llama-3-70b"], "vocab_size": 32_000, "max_position_embeddings": 4096}
    return PlannedModel(name, name, model_spec(config))


def simulate(replica: Deployment, figure: dict[str, Any]) -> dict[str, float]:
    length = figure["input"] + figure["output"]
    clients, batch = figure.get("clients"), figure.get("batch")
    at_once = clients or batch or max(1, min(MOST_SEQUENCES, replica.cache_tokens // length))
    policy = "static" if batch else "chunked-prefill"
    limits = SchedulerLimits(
        max_num_seqs=at_once,
        max_num_batched_tokens=max(at_once * length if batch else STEP_TOKENS, at_once),
        max_model_len=length,
        block_size=BLOCK_SIZE,
        num_blocks=max(replica.cache_tokens // BLOCK_SIZE, at_once * -(-length // BLOCK_SIZE)),
        max_queue=10 * at_once + 10,
        enable_prefix_caching=False,
    )
    count = batch or (3 if clients else 2) * at_once
    shape = RequestShape(0.0, figure["input"], figure["output"])
    requests = (WorkloadRequest(shape, (0,) * shape.input_len),) * count
    clock = VirtualClock()
    run = drive(
        make_simulated_loop(replica.cost_model, limits, policy, clock),
        Workload("published", requests, clients=clients),
    )
    return {
        "out_tok_s": whole(run) if batch else in_the_middle(run),
        "ttft_ms": 1e3 * statistics.mean(one.latency.ttft_s or 0.0 for one in run.outcomes),
        "itl_ms": 1e3 * statistics.mean([gap for one in run.outcomes for gap in one.latency.itl_s] or [0.0]),
    }


def whole(run: Drive) -> float:
    times = [time for one in run.outcomes for time in one.token_times]
    return len(times) / (max(times) - run.start)


def in_the_middle(run: Drive) -> float:
    """Tokens a second while requests come and go, without the beginning and the end."""
    times = sorted(time for one in run.outcomes for time in one.token_times)
    kept = times[len(times) // 4 : 3 * len(times) // 4]
    return (len(kept) - 1) / (kept[-1] - kept[0]) if len(kept) > 1 and kept[-1] > kept[0] else whole(run)


def described(row: dict[str, Any]) -> str:
    how = (
        f"{row['clients']} clients"
        if "clients" in row
        else f"batch {row['batch']}"
        if "batch" in row
        else "all"
    )
    return (
        f"{row['model']} {row['precision']} on {row['tp']} x {row['hardware']}, {row['input']} in, "
        f"{row['output']} out, {how}: {row['metric']} {row['published']} published, {row['simulated']} "
        f"simulated ({row['error']:+.0%})"
    )


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| model | devices | in / out | load | metric | published | simulated | error |",
        "|---|---|---:|---|---|---:|---:|---:|",
    ]
    for row in rows:
        clients = row.get("clients")
        load = f"batch of {row['batch']}" if "batch" in row else "offline"
        if clients:
            load = "one client" if clients == 1 else f"{clients} clients"
        digits = 1 if row["published"] < 100 else 0
        lines.append(
            f"| {row['model']} {row['precision']} | {row['tp']} x {row['hardware']} "
            f"| {row['input']} / {row['output']} | {load} | {METRICS[row['metric']]} "
            f"| {row['published']:,.{digits}f} | {row['simulated']:,.{digits}f} | {row['error']:+.0%} |"
        )
    errors = sorted(abs(row["error"]) for row in rows)
    lines.append("")
    lines.append(
        f"Of these {len(rows)} figures the median error is {statistics.median(errors):.0%}, nine in ten are "
        f"within {errors[int(0.9 * (len(errors) - 1))]:.0%}, and the largest is {errors[-1]:.0%}."
    )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
