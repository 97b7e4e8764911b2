"""The account of an overload, and a real server that keeps it: nobody lost, nobody answered twice."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Imports from benchmarks/, which is no package of the project."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield import_module
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("side_by_side", "overload"):
            del sys.modules[name]


def test_every_request_is_in_the_account(load) -> None:
    checked = load("side_by_side.checked_load")
    target = checked.Target("interactive", 0.5, 0.05, 1.0)

    def answer(**given):
        return checked.Answer("load", target, 1.0, 3, **given)

    good = answer(status=200, ids={"a"}, endings=1, token_s=[1.5, 1.54, 1.58])
    late = answer(status=200, ids={"b"}, endings=1, token_s=[1.6, 1.64, 1.68])
    slow = answer(status=200, ids={"c"}, endings=1, token_s=[1.1, 1.2, 1.3])
    refused = answer(status=429, retry_after_s=1.0)
    hopeless = answer(status=429, retry_after_s=float("nan"))
    short = answer(status=200, ids={"d"}, endings=1, token_s=[1.1, 1.2])
    broken = answer(error="ReadTimeout")
    twice = answer(status=200, ids={"e", "f"}, endings=2, token_s=[1.1, 1.1, 1.1])
    shared = answer(status=200, ids={"a"}, endings=1, token_s=[1.1, 1.1, 1.1])
    assert [one.met for one in (good, late, slow)] == [True, False, False]
    assert checked.account([good, late, slow, refused]) == {
        "sent": 4,
        "completed": 3,
        "met_targets": 1,
        "refused": 1,
        "lost": 0,
        "answered_twice": 0,
    }
    assert checked.account([hopeless, short, broken])["lost"] == 3
    assert checked.account([good, twice])["answered_twice"] == 1
    assert checked.account([good, shared])["answered_twice"] == 1


def test_recovery_is_where_misses_end(load) -> None:
    checked, overload = load("side_by_side.checked_load"), load("overload")
    target = checked.Target("interactive", 0.5, 0.05, 1.0)

    def after(due_s: float, wait: float):
        return checked.Answer("after", target, due_s, 1, 200, {str(due_s)}, 1, [due_s + wait])

    assert overload._recovered([after(10.2, 0.9), after(11.7, 0.9), after(12.2, 0.1)], 10.0) == 2.0
    assert overload._recovered([after(10.2, 0.1)], 10.0) == 0.0
    assert overload._growth([(1, 100.0), (9, 104.0), (50, 110.0)], 10, 60) == pytest.approx(110 / 104)


def test_a_server_keeps_account_under_overload(load, tiny_model) -> None:
    checked, overload = load("side_by_side.checked_load"), load("overload")
    processes = load("side_by_side.server_process")
    options = ["--policy", "slo", "--reject-unattainable", "--max-num-seqs", "2", "--max-queue", "4"]
    generous = (checked.Target("interactive", 30.0, 30.0, 0.5), checked.Target("standard", 30.0, 30.0, 0.5))
    with processes.serving(sys.executable, str(tiny_model("llama")), options) as served:
        answers = checked.run_load(
            served.url,
            [
                checked.Phase("overload", 150.0, 1.0),
                checked.Phase("pause", 0.01, 3.0),
                checked.Phase("after", 3.0, 2.0),
            ],
            generous,
            input_len=24,
            output_len=48,
            vocabulary=90,
            seed=1,
        )
        counted = overload._served(served.url)
    counts = checked.account(answers)
    assert counts["lost"] == 0, {one.error for one in answers}
    assert counts["answered_twice"] == 0
    assert counts["completed"] + counts["refused"] == counts["sent"]
    assert counts["refused"] > 0  # it was too much
    assert counted == counts["completed"]
    after = [one for one in answers if one.phase == "after"]
    assert after
    assert after[-1].completed  # and it recovered
