"""Write the README's benchmark table from the newest dated result in benchmarks/results/.

    python benchmarks/make_table.py            rewrite the table between the markers
    python benchmarks/make_table.py --check    exit 1 when the table is not what the result gives

Needs nothing but Python. Results are named YYYY-MM-DD-policies.json; the last by name is taken.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN = "<!-- policies-table: begin -->"
END = "<!-- policies-table: end -->"
DATE = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]"

Run = Mapping[str, Any]
Column = tuple[str, Callable[[Run], float | None], float, int, Any]


def newest_result(results: Path) -> Path:
    return newest(results, f"{DATE}-policies.json", "benchmarks/policies.sh makes one")


def newest(results: Path, pattern: str, remedy: str) -> Path:
    """The last by name of the dated results that match `pattern`. Raises ValueError where there is none."""
    dated = sorted(results.glob(pattern))
    if not dated:
        raise ValueError(f"{results} holds no {pattern.replace(DATE, 'YYYY-MM-DD')}; {remedy}")
    return dated[-1]


def render(report: Mapping[str, Any], source: str) -> str:
    """The table, where its numbers come from, and what the tour recommended, as markdown."""
    chosen = report["recommendation"]
    why = " ".join(chosen["why"])
    return "\n".join(
        [
            _caption(report["tour"][0], source),
            "",
            *_table(report["tour"], chosen["winner"]),
            "",
            f"{why} `{chosen['serve']}`",
            *_about_int4(report),
        ]
    )


def replace_table(readme: str, table: str) -> str:
    """The README with what stands between the markers replaced. Raises ValueError without both, in order."""
    return replace_between(readme, table, BEGIN, END, "README")


def replace_between(text: str, table: str, begin: str, end: str, name: str = "document") -> str:
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"the {name} needs these two lines once each, in this order:\n{begin}\n{end}")
    head, rest = text.split(begin)
    _, tail = rest.split(end)
    return f"{head}{begin}\n{table}\n{end}{tail}"


def _caption(report: Mapping[str, Any], source: str) -> str:
    machine, executor, workload = report["machine"], report["executor"], report["workload"]
    on_cpu = executor["device"] == "cpu"
    where = f"{executor['threads']} threads of {machine['cpu']}" if on_cpu else executor["device"]
    targets = next(one for one in workload["service_classes"].values() if one["ttft_s"] is not None)
    return (
        f"{_capitalized(workload['description'])}; {report['model']} on {where}"
        f" ({report['date'][:10]}, [data]({source})). Latencies, and in time (TTFT up to"
        f" {targets['ttft_s']:g} s, TPOT up to {1000 * targets['tpot_s']:g} ms), are those of the interactive"
        " requests; KL is in nats against bf16."
    )


def _about_int4(report: Mapping[str, Any]) -> list[str]:
    """What 4 bits cost a model that does not come in 4 bits, where this one does."""
    anew = report["rounded_to_int4_anew"]
    if anew is None:
        return []
    how = {result["precision"]["name"]: result["precision"]["how"] for result in report["tour"]}
    return [
        "",
        f"int4: {how['int4']}. A model that comes in bf16 pays more: rounded to nearest on loading (groups"
        f" of 64), KL {anew['kl']:.2g}; `tightpack quantize` lowers that.",
    ]


def _table(tour: Sequence[Mapping[str, Any]], winner: Mapping[str, Any]) -> list[str]:
    """A row a precision and policy; the best of each column in bold, an arrow at the winner."""
    runs = [run for result in tour for run in result["runs"]]
    cells = [_cells(column, runs) for column in COLUMNS]
    rows = iter(zip(*cells, strict=True))
    lines = []
    for result in tour:
        precision = result["precision"]
        weights = precision["weight_bytes"]
        quality = precision["quality"]
        first = [
            f"**{precision['name']}**",
            "–" if weights is None else f"{weights / 2**20:.0f}",
            "0" if quality is None else f"{quality['kl']:.2g}",
        ]
        for run in result["runs"]:
            is_winner = (precision["name"], run["policy"]) == (winner["precision"], winner["policy"])
            name = f"`{run['policy']}`{' ←' if is_winner else ''}"
            lines.append([*first, name, *next(rows)])
            first = ["", "", ""]
    header = ["precision", "weights, MiB", "KL", "policy", *(column[0] for column in COLUMNS)]
    rule = ["---", "---:", "---:", "---", *["---:"] * len(COLUMNS)]
    return [f"| {' | '.join(row)} |" for row in (header, rule, *lines)]


def _cells(column: Column, runs: Sequence[Run]) -> list[str]:
    _, value_of, factor, decimals, best_of = column
    texts = [None if (value := value_of(run)) is None else f"{value * factor:.{decimals}f}" for run in runs]
    # Compared as printed: two cells that read the same are equally good.
    best = best_of((float(text) for text in texts if text is not None), default=None)
    return ["–" if text is None else f"**{text}**" if float(text) == best else text for text in texts]


def _interactive(run: Run) -> Run:
    return next(one for one in run["classes"] if one["name"] == "interactive")


def _gap(run: Run, latency: str, which: str) -> float | None:
    """None for a run that handed over all tokens of a request together: its gaps of zero mean nothing."""
    return None if run["itl_s"]["max"] == 0 else _interactive(run)[latency][which]


# Title, value of a run, factor, decimals, and which of max and min is best.
COLUMNS: Sequence[Column] = (
    ("output tokens/s", lambda run: run["output_tokens_per_s"], 1, 0, max),
    ("TTFT p99, s", lambda run: _interactive(run)["ttft_s"]["p99"], 1, 2, min),
    ("TPOT p50, ms", lambda run: _gap(run, "tpot_s", "p50"), 1000, 0, min),
    ("ITL p99, ms", lambda run: _gap(run, "itl_s", "p99"), 1000, 0, min),
    ("in time, %", lambda run: _interactive(run)["attained"], 100, 0, max),
    ("goodput, requests/s", lambda run: run["goodput_requests_per_s"], 1, 2, max),
)


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when the table is stale")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(arguments)
    try:
        result = newest_result(options.results)
        table = render(json.loads(result.read_text(encoding="utf-8")), f"benchmarks/results/{result.name}")
        before = options.readme.read_text(encoding="utf-8")
        after = replace_table(before, table)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if before == after:
        print(f"{options.readme.name} shows {result.name}")
        return 0
    if options.check:
        print(
            f"{options.readme.name} does not show {result.name}: run python benchmarks/make_table.py",
            file=sys.stderr,
        )
        return 1
    options.readme.write_text(after, encoding="utf-8")
    print(f"{options.readme.name} now shows {result.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
