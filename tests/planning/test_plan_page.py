from __future__ import annotations

from html.parser import HTMLParser

import pytest

from tightpack.planning.fits import fits
from tightpack.planning.html.front_chart import Mark, front
from tightpack.planning.html.page import render_page
from tightpack.planning.report import Plan, to_json
from tightpack.planning.search import search
from tightpack.simulated.catalogue import load_catalogue


@pytest.fixture(scope="module")
def make_plan():
    def make(model, load, deployments):
        found = search(deployments, load, ("continuous",), most_tokens=50_000)
        devices = [load_catalogue()[name] for name in ("l40s", "h100-sxm")]
        return to_json(Plan(model, load, fits(deployments, load.max_model_len), found, devices))

    return make


class _Text(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_is_whole_and_says_what_the_plan_says(make_plan, llama8b, new_load, new_deployments):
    plan = make_plan(llama8b, new_load(), new_deployments(llama8b, ("l40s", "h100-sxm"), sizes=(1,)))
    page = _Text(render_page(plan))
    assert not page.open
    words = " ".join(page.words)
    assert plan["best"]["serve_command"] in words
    assert "What quality and latency cost" in words
    assert "NVIDIA H100 data sheet" in words
    assert words.count("int4") > 2


def test_a_plan_without_an_answer_has_a_page_too(make_plan, llama8b, new_load, new_deployments):
    deployments = new_deployments(llama8b, ("l40s",), sizes=(1,))
    plan = make_plan(llama8b, new_load(tpot=0.001), deployments)
    assert plan["best"] is None
    words = " ".join(_Text(render_page(plan)).words)
    assert "Nothing that was considered keeps the promise" in words
    assert "a request alone has a TPOT of" in words


def test_the_front_is_the_lower_left_staircase():
    points = [(1.0, 5.0), (2.0, 3.0), (2.0, 4.0), (3.0, 3.5), (4.0, 1.0), (5.0, 1.0)]
    found = front([Mark(x, y, "", "c0") for x, y in points])
    assert [(mark.x, mark.y) for mark in found] == [(1.0, 5.0), (2.0, 3.0), (4.0, 1.0)]
