"""The page is parsed: every element closed, nothing fetched, every series there."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tightpack.benchmarking.html.page import render_page, write_page
from tightpack.benchmarking.html.results import as_results, at_best_rate, read_reports
from tightpack.cli.main import app

POLICIES = ("static", "continuous", "chunked-prefill")
VOID = {"meta", "br"}


class Page(HTMLParser):
    """A tree flattened: elements with their attributes, and the text of each kind of element."""

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice"
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def having(self, class_: str) -> list[dict[str, str | None]]:
        return [found for _, found in self.elements if class_ in (found.get("class") or "").split()]


def percentiles(scale: float, *, zero: bool = False) -> dict[str, float]:
    factor = 0.0 if zero else scale
    return {"p50": factor, "p90": 2 * factor, "p99": 3 * factor, "mean": factor, "max": 5 * factor}


def run(policy: str, rate: float | None, speed: float, **more: Any) -> dict[str, Any]:
    together = policy == "static"
    return {
        "policy": policy,
        "rate": rate,
        "requests": 9,
        "completed": 9,
        "output_tokens_per_s": 100 * speed,
        "goodput_requests_per_s": 2 * speed,
        "attained": 0.5,
        "longest_prompts_attained": 1.0,
        "ttft_s": percentiles(0.4 / speed),
        "tpot_s": percentiles(0.03, zero=together),
        "itl_s": percentiles(0.04, zero=together),
        "longest_gap_s": percentiles(0.1, zero=together),
        "e2e_s": percentiles(2.0),
        "classes": [],
        "steps": 3,
        "timeline": {
            "start_s": [0.0, 0.5, 1.0],
            "elapsed_s": [0.5, 0.25, 0.125],
            "prompt_tokens": [64, 32, 0],
            "decodes": [0, 2, 3],
        },
        **more,
    }


def report(
    label: str = "bfloat16", rates: tuple[float | None, ...] = (1.0, 2.0), **more: Any
) -> dict[str, Any]:
    workloads = [
        {
            "description": f"9 requests, {rate} a second",
            "rate": rate,
            "service_classes": {"standard": {"ttft_s": 2.0, "tpot_s": 0.1}},
        }
        for rate in rates
    ]
    return {
        "model": "tiny <model> & co",
        "label": label,
        "where": "http://127.0.0.1:8000",
        "executor": {"device": "cpu", "dtype": label},
        "machine": {"cpu": "a CPU", "cores": 2, "memory_gib": 4, "os": "Linux", "python": "3.12"},
        "versions": {"tightpack": "0.1.0"},
        "conditions": {"warm_up_requests": 8, "prefix_caching": False, "kv_cache_at_start": "empty"},
        "arguments": {"seed": 0},
        "workload": workloads[0],
        "workloads": workloads,
        "runs": [run(policy, rate, 1 + i) for rate in rates for i, policy in enumerate(POLICIES)],
        **more,
    }


def headings(page: Page) -> list[str]:
    return page.texts["h2"]


def test_every_element_is_closed_and_text_is_escaped() -> None:
    page = Page(render_page([report()]))
    assert page.open == []
    assert page.texts["h1"] == ["tiny <model> & co"]
    assert [tag for tag, _ in page.elements[:2]] == ["html", "head"]


def test_nothing_is_fetched() -> None:
    markup = render_page([report(), report("int4")])
    page = Page(markup)
    for tag, attributes in page.elements:
        assert not attributes.keys() & {"src", "href", "srcset", "data", "action", "poster"}, tag
        assert tag not in {"link", "iframe", "img", "object", "embed", "base"}
        assert not any("url(" in (value or "") for value in attributes.values())
    [style] = page.texts["style"]
    [script] = page.texts["script"]
    assert "url(" not in style
    assert "@import" not in style
    assert not re.search(r"fetch|XMLHttp|import\s*\(|WebSocket|https?:", script)


def test_light_and_dark() -> None:
    [style] = Page(render_page([report()])).texts["style"]
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    names = set(re.findall(r"(--[\w-]+):", light))
    assert names <= set(re.findall(r"(--[\w-]+):", dark.split("* {")[0]))
    assert set(re.findall(r"var\((--[\w-]+)\)", style)) <= names | {"--hue"}


def test_a_sweep_shows_a_line_a_policy_in_each_chart() -> None:
    page = Page(render_page([report()]))
    assert headings(page) == [
        "In numbers",
        "Goodput by policy",
        "Latency against rate",
        "From the median to the worst",
        "Inside the batch",
        "What the words mean, and where the numbers come from",
    ]
    lines = [found for found in page.having("line") if found.get("d", "").startswith("M")]
    # Three policies in the charts of TTFT and goodput; static has no TPOT.
    assert len(lines) == 3 + 2 + 3
    assert all(line["d"].count("L") == 1 for line in lines)
    assert len({line["class"] for line in lines}) == 3
    shown = " ".join(page.texts["text"])
    for words in ("TTFT p99, s", "TPOT p99, ms", "Goodput, requests/s", "offered rate, requests/s", "target"):
        assert words in shown


def test_bars_have_the_values_of_the_best_rate() -> None:
    page = Page(render_page([report()]))
    titles = [words for words in page.texts["title"] if "requests/s" in words and ":" in words]
    assert [f"{policy}: {2 * (1 + i):.2f} requests/s" for i, policy in enumerate(POLICIES)] == titles
    assert page.texts["td"].count("–") == 4  # of static: TPOT twice, ITL and the longest gap


def test_timelines_hold_every_step() -> None:
    page = Page(render_page([report(rates=(None,))]))
    fields = page.having("field")
    assert len(fields) == len(POLICIES)
    steps = json.loads(fields[0]["data-steps"] or "")
    assert steps == [[0.0, 0.5, 1.0], [0.5, 0.25, 0.125], [64, 32, 0], [0, 2, 3]]
    mixed = page.having("mixed")
    assert sum((one.get("d") or "").count("M") for one in mixed) == len(POLICIES)  # of 3 steps 1 has both
    assert "time since the start, s" in page.texts["text"]
    assert "Latency against rate" not in headings(page)


def test_timelines_are_captioned_with_the_rate_they_show() -> None:
    """That of the best goodput and not the first tried."""
    runs = [run("continuous", rate, rate) for rate in (1.0, 2.0)]
    whole = render_page([report(runs=runs)])
    assert "9 requests, 2.0 a second. Every request that decodes" in whole


def test_several_results_are_set_side_by_side() -> None:
    page = Page(render_page([report(), report("int4"), report("int4")]))
    assert "Side by side" in headings(page)
    assert {"bfloat16", "int4", "int4 (2)"} <= set(page.texts["text"])
    dashes = {found.get("stroke-dasharray") for found in page.having("line")}
    assert len(dashes) == 3
    # All policies of the first, the smoothest of the others.
    assert len(page.having("field")) == 3 + 1 + 1


def test_repeats_show_their_intervals() -> None:
    around = {"mean": 150.0, "low": 100.0, "high": 200.0}
    repeated = run("continuous", None, 1.0, intervals={"output_tokens_per_s": around}, repeats=3)
    page = Page(render_page([report(rates=(None,), runs=[repeated])]))
    assert len(page.having("whisker")) == 1
    assert "± 50" in page.texts["small"]
    assert "150 " in page.texts["td"]
    assert "95 % confidence" in " ".join(page.texts["p"])


def test_capacity_shows_every_probe() -> None:
    probes = [
        {
            "rate": rate,
            "met": met,
            "attained": attained,
            "batch_tokens_served": 1.0,
            "run": run("continuous", rate, 1.0),
        }
        for rate, met, attained in ((1.0, True, 1.0), (2.0, False, 0.7), (1.5, True, 0.99))
    ]
    found = {
        "service_level": {"attainment": 0.99, "max_ttft_s": 12.0, "batch_tokens": 0.9},
        "policies": [
            {
                "policy": "continuous",
                "rate": 1.5,
                "unmet_rate": 2.0,
                "interval": {"mean": 1.5, "low": None, "high": None},
                "repeats": [{"rate": 1.5, "unmet_rate": 2.0, "probes": probes}],
            }
        ],
    }
    page = Page(render_page([report(runs=[run("continuous", 1.5, 1.0)], capacity=found)]))
    assert "Capacity" in headings(page)
    assert len(page.having("hollow")) == 1
    assert "99 %" in page.texts["text"]
    assert "Largest capacity" in page.texts["div"]


def test_service_classes_have_a_table() -> None:
    one = {"requests": 4, "attained": 0.75, "goodput_requests_per_s": 1.0}
    latencies = {name: percentiles(0.1) for name in ("ttft_s", "tpot_s", "longest_gap_s")}
    classes = [{"name": name, **one, **latencies} for name in ("interactive", "batch")]
    page = Page(render_page([report(rates=(None,), runs=[run("continuous", None, 1.0, classes=classes)])]))
    assert {"interactive", "batch", "75.0"} <= set(page.texts["td"])


def test_nothing_to_show_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to show"):
        render_page([report(runs=[])])


def test_the_best_rate_is_where_goodput_was_largest() -> None:
    runs = [run("a", 1.0, 1.0), run("b", 1.0, 1.0), run("a", 2.0, 3.0), run("b", 2.0, 0.5)]
    assert [(one["policy"], one["rate"]) for one in at_best_rate(runs)] == [("a", 2.0), ("b", 2.0)]


def test_the_command_reads_results_old_and_new(tmp_path: Path) -> None:
    """The result that the README's table is made of, too."""
    kept = next((Path(__file__).parents[3] / "benchmarks" / "results").glob("*-policies.json"))
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps(report()))
    out = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["report", str(kept), str(mine), "-o", str(out)], catch_exceptions=False)
    assert result.exit_code == 0
    page = Page(out.read_text(encoding="utf-8"))
    assert page.open == []
    assert "Side by side" in headings(page)


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(FileNotFoundError, match="no result file at"):
        read_reports([path])
    path.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_reports([path])
    path.write_text('{"model": "m"}')
    with pytest.raises(ValueError, match="it has no 'executor'"):
        read_reports([path])


def test_labels_tell_results_apart(tmp_path: Path) -> None:
    assert [one.label for one in as_results([report("a"), report("a"), report("b")])] == ["a", "a (2)", "b"]
    write_page(tmp_path / "new" / "page.html", [report()])
    assert (tmp_path / "new" / "page.html").stat().st_size > 10_000


def test_a_tour_shows_what_to_serve_and_what_bits_cost() -> None:
    def priced(name: str, mebibytes: int, kl: float | None) -> dict[str, Any]:
        quality = None if kl is None else {"kl": kl, "top1_agreement": 0.9, "tokens": 70}
        return report(
            name,
            precision={
                "name": name,
                "how": f"how {name} is made",
                "weight_bytes": mebibytes * 2**20,
                "served_requests_per_s": 10.0 + mebibytes,
                "quality": quality,
            },
        )

    chosen = {"serve": "tightpack serve --policy slo", "why": ["It <is> best."]}
    tour = {"tour": [priced("bf16", 256, None), priced("int4", 92, 0.0031)], "recommendation": chosen}
    page = Page(render_page([tour]))
    assert "What fewer bits buy, and what they cost" in headings(page)
    assert "tightpack serve --policy slo" in page.texts["pre"]
    assert "It <is> best." in page.texts["p"]
    bars = page.texts["title"]
    assert {"bf16: 256 MiB", "int4: 92.0 MiB", "int4: 0.0031 nats", "int4: 102 requests/s"} <= set(bars)
    assert any("same first choice at 90.0 % of 70 positions" in one for one in page.texts["dd"])
    # One result alone has nothing to hold its precision against.
    assert "What fewer bits buy, and what they cost" not in headings(Page(render_page(tour["tour"][:1])))


def test_timelines_of_whole_batches_are_folded_up() -> None:
    page = Page(render_page([report()]))
    folded = [words for words in page.texts["summary"] if words.startswith("The same of")]
    assert folded == ["The same of static"]
    assert len(page.having("timeline")) == len(POLICIES)


def test_tiles_name_all_who_share_the_best_figure() -> None:
    def named(speeds: tuple[float, ...]) -> list[str]:
        policies = ("continuous", "dynamic", "chunked-prefill", "slo")[: len(speeds)]
        runs = [run(policy, 1.0, speed) for policy, speed in zip(policies, speeds, strict=True)]
        return re.findall(r'class="who">([^<]*)<', render_page([report(rates=(1.0,), runs=runs)]))

    assert named((1.0, 2.0))[0] == "dynamic"
    assert named((1.0, 2.0, 2.0001))[0] == "dynamic and chunked-prefill"
    assert named((1.0, 2.0, 2.0, 2.0))[0] == "dynamic and 2 others"
    assert named((2.0, 2.0, 2.0, 2.0))[0] == "all of them"


def test_a_simulated_device_is_named_once() -> None:
    simulated = report("fp8 on h100-sxm", executor={"device": "h100-sxm", "dtype": "fp8"})
    [lead] = [words for words in Page(render_page([simulated])).texts["p"] if "9 requests" in words][:1]
    assert lead.startswith("fp8 on h100-sxm. 9 requests")
    assert "bfloat16 on a CPU. 9 requests" in render_page([report()])
