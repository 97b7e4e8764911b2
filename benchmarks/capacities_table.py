"""Write the capacities of a result of capacities.py into a document, and draw them.

    python benchmarks/capacities_table.py RESULT.json DOCUMENT.md --name h100 --default chunked-prefill:2048
    python benchmarks/capacities_table.py ... --check      exit 1 when the document shows anything else

The table goes between <!-- capacities-NAME: begin --> and <!-- capacities-NAME: end -->; the plot lies beside
the result as an SVG. Ratios are of the same segment; intervals are 95 %, by Student's t over the segments.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from make_table import replace_between

from tightpack.latency.confidence import Interval

Cell = Mapping[str, Any]
ORDER = ("static", "dynamic", "continuous", "chunked-prefill", "slo")


class Capacities:
    """The cells of a result by mix and variant, each in the order of its segments."""

    def __init__(self, report: Mapping[str, Any]) -> None:
        self.report = report
        self.mixes = [mix for mix in report["mixes"] if any(one["mix"] == mix for one in report["cells"])]
        self._cells: dict[tuple[str, str], list[Cell]] = {}
        for cell in report["cells"]:
            self._cells.setdefault((cell["mix"], cell["variant"]), []).append(cell)

    def variants(self, mix: str) -> list[str]:
        """In the order of the policies, and by budget."""
        found = [variant for of, variant in self._cells if of == mix]
        return sorted(found, key=_place)

    def cells(self, mix: str, variant: str) -> list[Cell]:
        return self._cells[mix, variant]

    def rate(self, mix: str, variant: str) -> Interval:
        return Interval.of(one["rate"] for one in self.cells(mix, variant))

    def mean(self, mix: str, variant: str, figure: str) -> float | None:
        """Over the segments where the level was met at some rate."""
        values = [one[figure] for one in self.cells(mix, variant) if one.get(figure) is not None]
        return fmean(values) if values else None

    def ceiling(self, mix: str) -> float | None:
        values = {
            one["segment"]: one["ceiling"]
            for (of, _), all in self._cells.items()
            for one in all
            if of == mix and one["ceiling"]
        }
        return fmean(values.values()) if values else None

    def share(self, mix: str, variant: str) -> float | None:
        """Of the ceiling, segment by segment."""
        shares = [one["rate"] / one["ceiling"] for one in self.cells(mix, variant) if one["ceiling"]]
        return fmean(shares) if shares else None

    def best_chunked(self, mix: str) -> str | None:
        """The budget with the largest mean, of those that all segments were searched for."""
        chunked = [one for one in self.variants(mix) if one.startswith("chunked-prefill")]
        most = max((len(self.cells(mix, one)) for one in chunked), default=0)
        whole = [one for one in chunked if len(self.cells(mix, one)) == most]
        return max(whole, key=lambda one: self.rate(mix, one).mean, default=None)

    def ratio(self, mix: str, variant: str, other: str) -> Interval | None:
        """Of two variants on the segments that both have; None where the other has no capacity."""
        theirs = {one["segment"]: one["rate"] for one in self.cells(mix, other)}
        ratios = [
            one["rate"] / theirs[one["segment"]]
            for one in self.cells(mix, variant)
            if theirs.get(one["segment"])
        ]
        return Interval.of(ratios) if ratios else None


def _place(variant: str) -> tuple[int, int]:
    policy, _, budget = variant.partition(":")
    return ORDER.index(policy), int(budget or 0)


def render(found: Capacities, default: str, source: str, plot: str) -> str:
    report, setting = found.report, found.report["setting"]
    executor = report["executor"]
    where = executor.get("device", report["label"])
    if executor.get("backend") == "simulated":
        where = f"{where} (simulated: {executor['cost_model']})"
    lengths = "" if setting["max_model_len"] >= 8192 else " with lengths scaled to it"
    segments, context = len(setting["segments"]), setting["max_model_len"]
    weights, kv_cache = setting["quantization"] or "as stored", setting["kv_cache_dtype"]
    lines = [
        f"{report['model']}, {weights}, KV cache {kv_cache}, on {where}; {segments} segments of"
        f" {setting['requests']} requests of {setting['trace']}, a context of {context} tokens{lengths},"
        f" up to {setting['max_num_seqs']} requests at once"
        f" ({report['date'][:10]}, [data]({source}), [plot]({plot})).",
    ]
    for mix in found.mixes:
        lines += ["", f"**{mix}**" + _ceiling(found, mix), "", *_rows(found, mix)]
    lines += ["", *_ratios(found, default)]
    return "\n".join(lines)


def _ceiling(found: Capacities, mix: str) -> str:
    ceiling = found.ceiling(mix)
    return "" if ceiling is None else f" (ceiling {ceiling:.3g} requests/s)"


def _rows(found: Capacities, mix: str) -> list[str]:
    header = [
        "policy",
        "requests/s",
        "of the ceiling",
        "longest gap p99, ms",
        "longest prompts in time",
        "batch served",
    ]
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    for variant in found.variants(mix):
        gap = found.mean(mix, variant, "longest_gap_p99_s")
        rows.append(
            [
                f"`{variant}`",
                _interval(found.rate(mix, variant), 3),
                _percent(found.share(mix, variant)),
                "–" if not gap else f"{1000 * gap:.0f}",
                _percent(found.mean(mix, variant, "longest_prompts_attained")),
                _percent(found.mean(mix, variant, "batch_tokens_served")),
            ]
        )
    return [f"| {' | '.join(row)} |" for row in rows]


def _ratios(found: Capacities, default: str) -> list[str]:
    """`slo` beside chunked prefill, and what no policy could be beyond."""
    rows = [
        ["`slo` ÷", "best budget", "default budget", "ceiling ÷ best budget"],
        ["---", "---:", "---:", "---:"],
    ]
    for mix in found.mixes:
        best = found.best_chunked(mix)
        if best is None or "slo" not in found.variants(mix):
            continue
        share = found.share(mix, best)
        usual = found.ratio(mix, "slo", default) if default in found.variants(mix) else None
        ratio = found.ratio(mix, "slo", best)
        rows.append(
            [
                mix,
                "–" if ratio is None else f"{_interval(ratio, 3)} (`{best.partition(':')[2]}`)",
                "–" if usual is None else f"{_interval(usual, 3)} (`{default.partition(':')[2]}`)",
                "–" if not share else f"{1 / share:.2f}",
            ]
        )
    return [f"| {' | '.join(row)} |" for row in rows]


def _interval(one: Interval, digits: int) -> str:
    around = "" if one.half_width is None else f" ± {one.half_width:.2g}"
    return f"{one.mean:.{digits}g}{around}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


BAR, GAP, LEFT, WIDTH, TITLE = 15, 5, 150, 620, 34


def draw(found: Capacities) -> str:
    """Bars of the mean capacities with their intervals, a panel a mix, to one scale; the ceiling dashed."""
    ceilings = [found.ceiling(mix) or 0.0 for mix in found.mixes]
    highest = [
        rate.high if rate.high is not None else rate.mean
        for mix in found.mixes
        for rate in (found.rate(mix, variant) for variant in found.variants(mix))
    ]
    scale = (WIDTH - LEFT - 70) / max([*ceilings, *highest, 1e-9])
    parts, top = [], 10.0
    for mix, ceiling in zip(found.mixes, ceilings, strict=True):
        variants = found.variants(mix)
        bottom = top + TITLE + len(variants) * (BAR + GAP)
        beside = f"ceiling {ceiling:.3g}, dashed" if ceiling else ""
        parts.append(
            f'<text x="{LEFT}" y="{top + 20:.0f}"><tspan class="title">{escape(mix)}</tspan>'
            f'<tspan class="small" dx="10">{beside}</tspan></text>'
        )
        for row, variant in enumerate(variants):
            parts += _bar(found.rate(mix, variant), variant, top + TITLE + row * (BAR + GAP), scale)
        if ceiling:
            x = LEFT + ceiling * scale
            parts.append(
                f'<line class="ceiling" x1="{x:.1f}" x2="{x:.1f}" y1="{top + 30:.0f}" y2="{bottom:.0f}"/>'
            )
        top = bottom + 12
    parts.append(
        f'<text class="small" x="{LEFT}" y="{top + 8:.0f}">capacity, requests/s (bars: means over the'
        " segments; lines: 95 % intervals)</text>"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + 18:.0f}" width="{WIDTH}"'
        f' font-family="system-ui, sans-serif" font-size="12">\n{_STYLE}\n' + "\n".join(parts) + "\n</svg>\n"
    )


_STYLE = """<style>
 text { fill: #1f2328 } .title { font-weight: 600 } .small { font-size: 11px; fill: #59636e }
 .bar { fill: #8c959f } .slo { fill: #0969da } .whisker { stroke: #1f2328 }
 .ceiling { stroke: #cf222e; stroke-dasharray: 4 3 }
 @media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9198a1 } .bar { fill: #656c76 } .slo { fill: #4493f8 }
  .whisker { stroke: #e6edf3 } .ceiling { stroke: #f85149 }
 }
</style>"""


def _bar(rate: Interval, variant: str, y: float, scale: float) -> list[str]:
    kind = "slo" if variant == "slo" else "bar"
    end, middle = LEFT + rate.mean * scale, y + BAR / 2
    width = max(1.0, rate.mean * scale)
    parts = [
        f'<text text-anchor="end" x="{LEFT - 8}" y="{middle + 4:.1f}">{escape(variant)}</text>',
        f'<rect class="{kind}" x="{LEFT}" y="{y:.1f}" width="{width:.1f}" height="{BAR}"/>',
    ]
    if rate.low is not None and rate.high is not None:
        low, high = LEFT + max(0.0, rate.low) * scale, LEFT + rate.high * scale
        parts.append(
            f'<line class="whisker" x1="{low:.1f}" x2="{high:.1f}" y1="{middle:.1f}" y2="{middle:.1f}"/>'
        )
        end = max(end, high)
    parts.append(f'<text x="{end + 6:.1f}" y="{middle + 4:.1f}">{rate.mean:.3g}</text>')
    return parts


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("result", type=Path)
    parser.add_argument("document", type=Path)
    parser.add_argument("--name", required=True, help="of the markers in the document")
    parser.add_argument("--default", required=True, help="the variant with the default budget")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(arguments)
    try:
        found = Capacities(json.loads(options.result.read_text(encoding="utf-8")))
        plot = options.result.with_suffix(".svg")
        link = "../benchmarks/results/"
        table = render(found, options.default, link + options.result.name, link + plot.name)
        before = options.document.read_text(encoding="utf-8")
        marks = [f"<!-- capacities-{options.name}: {which} -->" for which in ("begin", "end")]
        after = replace_between(before, table, *marks, options.document.name)
    except (ValueError, KeyError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.check:
        return int(before != after)
    options.document.write_text(after, encoding="utf-8")
    plot.write_text(draw(found), encoding="utf-8")
    print(f"{options.document.name} shows {options.result.name}; the plot is {plot}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
