"""What every page is made of: its frame, sections, tiles, tables and legends."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from importlib.resources import files

from tightpack.benchmarking.html.markup import tag, text


def page(title: str, body: Sequence[str], *, script: str | None = None) -> str:
    """A whole file, its style inside. script: a file of this folder, for the end of the body."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
        tag("title", text(title)),
        f"<style>{_asset('page.css')}</style>",
    )
    end = "" if script is None else f"<script>{_asset(script)}</script>"
    whole = tag("html", tag("head", *head), tag("body", *body, end), lang="en")
    return f"<!DOCTYPE html>{whole}\n"


def section(title: str, about: str, *parts: str) -> str:
    return tag("section", tag("h2", text(title)), tag("p", text(about), class_="about"), *parts)


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """(name, class of its colour) each."""
    swatch = '<rect x="0" y="1" width="26" height="12" rx="2" class="{}"></rect>'
    items = [
        tag("li", tag("svg", swatch.format(kind), viewBox="0 0 26 14"), text(name)) for name, kind in entries
    ]
    return tag("ul", *items, class_="legend")


def tile(what: str, figure: str, unit: str, who: str) -> str:
    return tag(
        "div",
        tag("div", text(what), class_="what"),
        tag("div", text(figure), " ", tag("small", text(unit)), class_="figure"),
        tag("div", text(who), class_="who"),
        class_="tile",
    )


def table(titles: Sequence[str], rows: Sequence[str], *, kind: str = "", words: Collection[int] = ()) -> str:
    """titles and rows (elements tr) are markup. kind: a class of the style sheet. words: columns that hold no
    numbers, counted from 0, besides the first."""
    head = tag(
        "tr", *(tag("th", title, class_="words" if at in words else None) for at, title in enumerate(titles))
    )
    whole = tag("table", tag("thead", head), tag("tbody", *rows))
    return tag("div", whole, class_=f"scroll {kind}".rstrip())


def row(cells: Sequence[object], *, words: Collection[int] = (), prose: Collection[int] = ()) -> str:
    """A table's row of plain text. words: as of `table`; prose: those of them that may take several lines."""

    def kind(at: int) -> str | None:
        return "words prose" if at in prose else "words" if at in words else None

    return tag("tr", *(tag("td", text(cell), class_=kind(at)) for at, cell in enumerate(cells)))


def shown(value: float | None, factor: float, decimals: int) -> str:
    """A number in a cell; a dash for none."""
    return "–" if value is None else f"{value * factor:,.{decimals}f}"


def targets_in_words(ttft_s: float | None, tpot_s: float | None) -> str:
    words = []
    if ttft_s is not None:
        words.append(f"TTFT up to {ttft_s:g} s")
    if tpot_s is not None:
        words.append(f"TPOT up to {1000 * tpot_s:g} ms")
    return " and ".join(words) or "none"


def _asset(name: str) -> str:
    return files("tightpack.benchmarking.html").joinpath(name).read_text(encoding="utf-8")
