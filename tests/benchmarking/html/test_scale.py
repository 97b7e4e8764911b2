from __future__ import annotations

import pytest

from tightpack.benchmarking.html.frame import short
from tightpack.benchmarking.html.scale import Scale, linear, logarithmic


def test_linear_places_and_ticks() -> None:
    scale = linear([3.0, 7.3], 100.0, 300.0)
    assert (scale.low, scale.high) == (0.0, 8.0)
    assert [scale(value) for value in (0.0, 2.0, 8.0, 9.0)] == [100.0, 150.0, 300.0, 300.0]
    assert scale.ticks(4) == [0.0, 2.0, 4.0, 6.0, 8.0]


def test_an_axis_may_run_upwards() -> None:
    scale = linear([10.0], 200.0, 0.0)
    assert (scale(0.0), scale(10.0)) == (200.0, 0.0)


def test_logarithmic_places_and_ticks() -> None:
    scale = logarithmic([0.03, 0.9, 0.0], 0.0, 200.0)
    assert (scale.low, scale.high) == (0.02, 1.0)
    assert scale(1.0) == 200.0
    assert scale((0.02 * 1.0) ** 0.5) == pytest.approx(100.0)
    assert scale.ticks() == pytest.approx([0.02, 0.05, 0.1, 0.2, 0.5, 1.0])


def test_nothing_to_show_is_still_an_axis() -> None:
    assert linear([], 0.0, 1.0).ticks(2) == [0.0, 0.5, 1.0]
    assert linear([0.0], 0.0, 1.0).high == 1.0
    empty = logarithmic([], 0.0, 1.0)
    assert empty.high > empty.low > 0


@pytest.mark.parametrize("high", [0.00037, 0.99, 1.0, 12.0, 64_000.0])
def test_ticks_lie_on_the_axis(high: float) -> None:
    for scale in (linear([high], 0.0, 1.0), logarithmic([high / 300, high], 0.0, 1.0)):
        ticks = scale.ticks()
        assert 2 <= len(ticks) <= 12
        assert all(scale.low * 0.99 <= tick <= scale.high * 1.01 for tick in ticks)
        assert len({short(tick) for tick in ticks}) == len(ticks)


def test_numbers_as_an_axis_shows_them() -> None:
    shown = [short(value) for value in (0.0, 0.1 + 0.2, 2.0, 2.5, 1234.0, 0.0005)]
    assert shown == ["0", "0.3", "2", "2.5", "1,234", "0.0005"]


def test_what_is_beyond_an_axis_is_put_at_its_end() -> None:
    scale = Scale(1.0, 10.0, 0.0, 100.0, log=True)
    assert (scale(0.0), scale(1e6)) == (0.0, 100.0)
