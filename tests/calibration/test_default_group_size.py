from __future__ import annotations

import pytest

from tightpack.calibration.group_size import default_group_size


@pytest.mark.parametrize(
    ("widths", "size"), [([4096, 14336], 128), ([576, 1536], 64), ([96, 128], 32), ([128], 128)]
)
def test_the_largest_that_divides_every_width(widths, size):
    assert default_group_size(widths) == size


def test_widths_that_no_group_divides_are_named():
    with pytest.raises(ValueError, match="one has 100"):
        default_group_size([128, 100])
    with pytest.raises(ValueError, match="no linear"):
        default_group_size([])
