from __future__ import annotations

import math

import pytest

from tightpack.simulated.virtual_clock import VirtualClock


def test_time_passes_only_when_it_is_told_to():
    clock = VirtualClock()
    assert clock.now() == 0.0
    clock.sleep(1.5)
    clock.sleep(0.0)
    assert clock.now() == 1.5


@pytest.mark.parametrize("seconds", [-1e-9, math.nan, math.inf])
def test_time_never_runs_backwards_nor_to_no_time(seconds: float):
    clock = VirtualClock()
    with pytest.raises(ValueError, match="0 or more seconds"):
        clock.sleep(seconds)
    assert clock.now() == 0.0
