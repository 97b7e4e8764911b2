"""The tables of a sitting, in markdown: the README's, and the long ones of docs/performance.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from side_by_side.figures import FIGURES, ROWS, TIGHTPACK, Figure, Row, ShapeTuple, figures_of
from side_by_side.roofline import Peaks, ceilings

Report = Mapping[str, Any]

README_FIGURES = (
    "decode_1",
    "prefill_1024",
    "decode_8",
    "decode_32",
    "job_32",
    "memory_mib",
    "first_token_s",
)


@dataclass(frozen=True)
class Measured:
    """A row's medians over rounds; `spread` is (largest - least) / median; `shares` those of the roofline."""

    row: Row
    medians: Mapping[str, float]
    spread: Mapping[str, float]
    shares: Mapping[str, float]


def measured_rows(report: Report) -> list[Measured]:
    shapes: tuple[ShapeTuple, ...] = tuple((n, s, i, o) for n, s, i, o in report["protocol"]["shapes"])
    peaks = median_peaks(report)
    rows = {row.key: row for row in ROWS}
    found = []
    for entry in report["rows"]:
        row, rounds = rows[entry["key"]], [figures_of(one, shapes) for one in entry["rounds"]]
        if not rounds:
            continue
        values = {
            figure.name: values
            for figure in FIGURES
            if (values := [one[figure.name] for one in rounds if figure.name in one])
        }
        medians = {name: median(each) for name, each in values.items()}
        bound = ceilings(row, report["geometry"], entry["weight_bytes"], peaks, shapes)
        found.append(
            Measured(
                row,
                medians,
                {name: (max(each) - min(each)) / medians[name] for name, each in values.items()},
                {name: medians[name] / bound[name] for name in bound if name in medians},
            )
        )
    return found


def median_peaks(report: Report) -> Peaks:
    def of(name: str) -> float:
        return median(one[name] for one in report["peaks"])

    return Peaks(of("read_bytes_per_s"), {"int8": of("int8_ops_per_s"), "bf16": of("bf16_ops_per_s")})


def readme_table(report: Report, source: str) -> str:
    figures = [figure for figure in FIGURES if figure.name in README_FIGURES]
    return "\n".join([_caption(report, source), "", *_values_table(measured_rows(report), figures)])


def document_tables(report: Report, source: str) -> str:
    rows = measured_rows(report)
    spreads = [value for row in rows for value in row.spread.values()]
    bounded = [figure for figure in FIGURES if any(figure.name in row.shares for row in rows)]
    peaks = median_peaks(report)
    lines = [
        _caption(report, source),
        f"Between the rounds a figure spread by {median(spreads):.0%} of its median in the middle, and by"
        f" {max(spreads):.0%} at the most.",
        "",
        *_values_table(rows, FIGURES),
    ]
    factors = _factor_table(rows)
    if factors:
        lines += ["", "Our best row over the best peer's, above 1 where ours is better:", "", *factors]
    first = report["peaks"][0]
    lines += [
        "",
        f"Share of the roofline: {peaks.read_bytes_per_s / 1e9:.1f} GB/s read, "
        f"{peaks.ops_per_s['int8'] / 1e9:.0f} GOP/s int8 ({first['int8_kernel']}), "
        f"{peaks.ops_per_s['bf16'] / 1e9:.0f} GFLOP/s bf16 ({first['bf16_kernel']}), "
        f"measured beside the engines on {first['threads']} threads.",
        "",
        *_table(rows, bounded, lambda row, figure: _share_text(row.shares.get(figure.name))),
    ]
    return "\n".join(lines)


def _caption(report: Report, source: str) -> str:
    machine, protocol = report["machine"], report["protocol"]
    versions = {entry["engine"]: entry["version"] for entry in report["rows"] if entry["rounds"]}
    named = "; ".join(f"{engine} {version}" for engine, version in versions.items())
    rounds = [len(entry["rounds"]) for entry in report["rows"] if entry["rounds"]]
    counted = f"{min(rounds)}" if min(rounds) == max(rounds) else f"{min(rounds)} to {max(rounds)}"
    return (
        f"Tokens a second unless the column says otherwise; medians of {counted} alternating rounds;"
        f" {report['model']} on {protocol['threads']} threads of {machine['cpu']}. {named}"
        f" ({report['date'][:10]}, [data]({source}))."
    )


def _values_table(rows: Sequence[Measured], figures: Iterable[Figure]) -> list[str]:
    """Medians, the best of each class of weights in bold."""
    shown = [figure for figure in figures if any(figure.name in row.medians for row in rows)]
    best: dict[tuple[int, str], str] = {}
    for bits in {row.row.bits for row in rows}:
        for figure in shown:
            texts = [_text(row, figure) for row in rows if row.row.bits == bits]
            numbers = [text for text in texts if text != _NONE]
            # Compared as printed: two cells that read the same are equally good. A share ranks nobody.
            if numbers and figure.name != "http_share":
                best[bits, figure.name] = (max if figure.better == "max" else min)(numbers, key=float)

    def cell(row: Measured, figure: Figure) -> str:
        text = _text(row, figure)
        return f"**{text}**" if text != _NONE and text == best.get((row.row.bits, figure.name)) else text

    return _table(rows, shown, cell)


def _table(
    rows: Sequence[Measured], figures: Sequence[Figure], cell: Callable[[Measured, Figure], str]
) -> list[str]:
    header = ["bits", "engine, weights", *(figure.title for figure in figures)]
    lines = [header, ["---:", "---", *["---:"] * len(figures)]]
    for row in rows:
        name = f"{row.row.engine} {row.row.weights}"
        lines.append([str(row.row.bits), name, *(cell(row, figure) for figure in figures)])
    return [f"| {' | '.join(line)} |" for line in lines]


def _factor_table(rows: Sequence[Measured]) -> list[str]:
    """By class of weights: how far our best is ahead of the best peer, and who that is."""
    figures = [
        figure
        for figure in FIGURES
        if any(figure.name in row.medians for row in rows if row.row.runner != TIGHTPACK)
    ]
    lines = []
    for bits in sorted({row.row.bits for row in rows}):
        ours = [row for row in rows if row.row.bits == bits and row.row.runner == TIGHTPACK]
        peers = [row for row in rows if row.row.bits == bits and row.row.runner != TIGHTPACK]
        if ours and peers:
            lines.append(f"| {bits} | {' | '.join(_factor(ours, peers, figure) for figure in figures)} |")
    if not lines:
        return []
    header = ["bits", *(figure.title for figure in figures)]
    return [f"| {' | '.join(header)} |", f"| {' | '.join(['---:'] * len(header))} |", *lines]


def _factor(ours: Sequence[Measured], peers: Sequence[Measured], figure: Figure) -> str:
    pick = max if figure.better == "max" else min

    def best(rows: Sequence[Measured]) -> Measured | None:
        having = [row for row in rows if figure.name in row.medians]
        return pick(having, key=lambda row: row.medians[figure.name]) if having else None

    our_best, peer_best = best(ours), best(peers)
    if our_best is None or peer_best is None:
        return _NONE
    factor = our_best.medians[figure.name] / peer_best.medians[figure.name]
    return f"{factor if figure.better == 'max' else 1 / factor:.2f} ({peer_best.row.engine})"


_NONE = "–"


def _text(row: Measured, figure: Figure) -> str:
    value = row.medians.get(figure.name)
    return _NONE if value is None else f"{value:.{figure.decimals}f}"


def _share_text(share: float | None) -> str:
    return _NONE if share is None else f"{share:.0%}"
