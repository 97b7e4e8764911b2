"""A plan as one self-contained page: what fits, the best, the Pareto front, where the numbers come from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tightpack.benchmarking.html.bar_chart import Bar, bar_chart
from tightpack.benchmarking.html.markup import tag, text
from tightpack.benchmarking.html.parts import legend, page, row, section, shown, table, targets_in_words, tile
from tightpack.planning.html.front_chart import Mark, front_chart

Record = Mapping[str, Any]

_COLOURS = {"bf16": "c2", "fp8": "c3", "w8a8": "c5", "int8": "c7", "int4": "c1"}
_OTHER_COLOUR = "c4"


def write_page(path: Path, plan: Record) -> None:
    """plan: as `report.to_json` gives it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_page(plan), encoding="utf-8")


def render_page(plan: Record) -> str:
    body = (
        _header(plan),
        _tiles(plan),
        _commands(plan),
        _front(plan),
        _cost(plan),
        _candidates(plan),
        _fits(plan),
        _left_out(plan),
        _sources(plan),
    )
    return page(f"{plan['model']}: a plan", body)


def _header(plan: Record) -> str:
    load, slo = plan["load"], plan["slo"]
    promise = targets_in_words(slo["ttft_s"], slo["tpot_s"])
    lead = (
        f"{load['rate_rps']:g} requests a second of {load['mean_input_tokens']:,.0f} tokens in and "
        f"{load['mean_output_tokens']:,.0f} out on average ({load['description']}); {promise} for "
        f"{100 * slo['attainment']:g} % of them."
    )
    return tag("header", tag("h1", text(plan["model"])), tag("p", text(lead), class_="lead"))


def _tiles(plan: Record) -> str:
    best = plan["best"]
    if best is None:
        words = "Nothing that was considered keeps the promise; the reasons are below."
        return tag("p", text(words))
    price = best["usd_per_million_output_tokens"]
    hourly = best["usd_per_hour"]
    tiles = [tile("The cheapest in time", str(_num_devices(best)), f"x {best['hardware']}", _kind(best))]
    if price is not None:
        tiles.append(tile("A million output tokens", f"{price:.2f}", "USD", f"{hourly:.2f} USD an hour"))
    tiles.append(
        tile(
            "Takes up to",
            f"{best['capacity_rps']:.3g}",
            "requests/s",
            f"{best['binds']} binds first; asked for {plan['load']['rate_rps']:g}",
        )
    )
    tiles.append(tile("Expected KL divergence", f"{best['kl']:.4f}", "nats", best["kl_source"]))
    return tag("div", *tiles, class_="tiles")


def _devices(one: Record) -> str:
    return f"{_num_devices(one)} x {one['hardware']}"


def _num_devices(one: Record) -> int:
    return int(one["replicas"] * one["tensor_parallel_size"])


def _kind(one: Record) -> str:
    kv = "" if one["kv_cache_dtype"] == "auto" else f", {one['kv_cache_dtype']} cache"
    replicas = "one replica" if one["replicas"] == 1 else f"{one['replicas']} replicas"
    over = "" if one["tensor_parallel_size"] == 1 else f" of {one['tensor_parallel_size']} devices"
    return f"{one['precision']}{kv}, {one['policy']}, {replicas}{over}"


def _commands(plan: Record) -> str:
    best = plan["best"]
    if best is None:
        return ""
    lines = [line for line in (best["prepare_command"], best["serve_command"]) if line]
    about = "Each replica is started so." if best["replicas"] > 1 else "It is started so."
    return section("Serve it", about, tag("pre", text("\n".join(lines)), style="white-space:pre-wrap"))


def _front(plan: Record) -> str:
    keeping = [one for one in plan["candidates"] if one["meets_slo"] and one["usd_per_hour"]]
    if not keeping:
        return ""
    best, slo = plan["best"], plan["slo"]

    def marks(x: str) -> list[Mark]:
        return [
            Mark(
                _headroom(one, slo) if x == "headroom" else one[x],
                one["usd_per_million_output_tokens"],
                f"{_devices(one)}, {_kind(one)}",
                _COLOURS.get(one["precision"], _OTHER_COLOUR),
                best=all(one[key] == best[key] for key in one),
            )
            for one in keeping
        ]

    price = "USD a million output tokens"
    charts = (
        front_chart(price, "KL divergence from the original, nats a token", marks("kl")),
        front_chart(
            price,
            "p99 of TTFT or TPOT, whichever is nearer its target, %",
            marks("headroom"),
            limit=(100.0, "the target"),
        ),
    )
    shown = dict.fromkeys(one["precision"] for one in keeping)
    names = [name for name in _COLOURS if name in shown] + [name for name in shown if name not in _COLOURS]
    key = legend([(name, f"{_COLOURS.get(name, _OTHER_COLOUR)} fill") for name in names])
    return section(
        "What quality and latency cost",
        "Every point keeps the promise; down and to the left is better. Along the dashed line less"
        " divergence, or a faster answer, is only to be had for more money. The best is ringed.",
        tag("div", *charts, class_="row"),
        key,
    )


def _headroom(one: Record, slo: Record) -> float:
    shares = [
        100 * one[value] / slo[target]
        for value, target in (("ttft_p99_s", "ttft_s"), ("tpot_p99_s", "tpot_s"))
        if slo[target] is not None and one[value] is not None
    ]
    return max(shares, default=0.0)


def _cost(plan: Record) -> str:
    """The cheapest of each kind of device."""
    cheapest: dict[str, Record] = {}
    for one in plan["candidates"]:
        price = one["usd_per_million_output_tokens"]
        if one["meets_slo"] and price is not None and price < _price(cheapest.get(one["hardware"])):
            cheapest[one["hardware"]] = one
    if len(cheapest) < 2:
        return ""
    bars = [
        Bar(name, _price(one), _COLOURS.get(one["precision"], _OTHER_COLOUR))
        for name, one in cheapest.items()
    ]
    bars.sort(key=lambda bar: bar.value)
    return section(
        "By device",
        "The cheapest candidate of each that keeps the promise, in the colour of its precision.",
        bar_chart("Cost", "USD a million output tokens", [("", bars)], width=640),
    )


def _price(one: Record | None) -> float:
    return float("inf") if one is None else float(one["usd_per_million_output_tokens"])


def _candidates(plan: Record) -> str:
    titles = (
        *("Replicas x devices", "Precision, cache", "Policy", "Met<br><small>%</small>"),
        *("TTFT p99<br><small>s</small>", "TPOT p99<br><small>ms</small>", "KL<br><small>nats</small>"),
        *("USD/hour", "USD/million<br><small>output tokens</small>", "Binds", "Front"),
    )
    words = (1, 2, 9, 10)
    rows = []
    for one in plan["candidates"]:
        size = one["tensor_parallel_size"]
        kv = "" if one["kv_cache_dtype"] == "auto" else f", {one['kv_cache_dtype']}"
        cells = (
            f"{one['replicas']} x {f'{size} x ' if size > 1 else ''}{one['hardware']}",
            f"{one['precision']}{kv}",
            one["policy"],
            shown(one["attainment"], 100, 1),
            shown(one["ttft_p99_s"], 1, 2),
            shown(one["tpot_p99_s"], 1000, 0),
            shown(one["kl"], 1, 4),
            shown(one["usd_per_hour"], 1, 2),
            shown(one["usd_per_million_output_tokens"], 1, 3),
            one["binds"] if one["meets_slo"] else f"{one['binds']} missed",
            "yes" if one["on_pareto_front"] else "",
        )
        rows.append(row(cells, words=words))
    if not rows:
        return ""
    return section(
        "Candidates",
        "Cheapest first. On the front: beaten by no other in price, divergence and latency together.",
        table(titles, rows, words=words),
    )


def _fits(plan: Record) -> str:
    titles = (
        *("Device", "Precision", "Cache", "Weights<br><small>GB</small>"),
        *("Cache<br><small>KiB a token</small>", "Devices", "Tokens in the cache", "Requests of the context"),
    )
    words = (1, 2)
    context = plan["load"]["max_model_len"]
    rows = []
    for one in plan["fits"]:
        tokens = one["max_tokens_in_cache"]
        cells = (
            one["hardware"],
            one["precision"],
            one["kv_cache_dtype"],
            shown(one["weights_bytes"], 1e-9, 1),
            shown(one["kv_bytes_per_token"], 1 / 1024, 1),
            "does not fit" if one["devices"] is None else one["devices"],
            f"{tokens:,}" if tokens else "–",
            f"{tokens // context:,}" if tokens else "–",
        )
        rows.append(row(cells, words=words))
    table_of_all = table(titles, rows, words=words)
    folded = tag("details", tag("summary", f"All {len(rows)} combinations"), table_of_all)
    return section(
        "Will it fit",
        f"The fewest devices of one machine that hold the weights and a request of {context:,} tokens, and"
        " what their cache holds then.",
        folded,
    )


def _left_out(plan: Record) -> str:
    if not plan["pruned"]:
        return ""
    rows = []
    for one in plan["pruned"]:
        size = one["tensor_parallel_size"]
        name = f"{size} x {one['hardware']}" if size > 1 else one["hardware"]
        kv = "" if one["kv_cache_dtype"] == "auto" else f", {one['kv_cache_dtype']}"
        cells = (name, f"{one['precision']}{kv}", one["binds"], one["reason"])
        rows.append(row(cells, words=(1, 2), prose=(3,)))
    pruned = table(("Replica", "Precision, cache", "Binds", "Why"), rows, words=(1, 2, 3))
    return section(
        "Left out without simulation",
        "No number of these replicas keeps the promise: a request that has the machine to itself misses it.",
        tag("details", tag("summary", f"{len(rows)} combinations"), pruned),
    )


def _sources(plan: Record) -> str:
    rows = [
        row((one["name"], shown(one["usd_per_hour"], 1, 3), one["price"], one["data_sheet"]), prose=(2, 3))
        for one in plan["hardware"]
    ]
    if not rows:
        return ""
    return section(
        "Where the numbers come from",
        "Step times are a roofline over data sheets, with the shares of their rates that kernels reach;"
        " prices are editable defaults. Both are named here.",
        table(("Device", "USD/hour", "Price", "Data sheet"), rows, words=(2, 3)),
    )
