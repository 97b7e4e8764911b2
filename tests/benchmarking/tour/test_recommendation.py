"""Targets first, then quality, then goodput, then cost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tightpack.benchmarking.tour.recommendation import Candidate, recommend
from tightpack.benchmarking.tour.words import choice_in_words

ORIGINAL = Candidate("bf16", "slo", attained=1.0, goodput_per_s=5.0, busy_s=0.2, kl=0.0)
INT8 = replace(ORIGINAL, precision="int8", goodput_per_s=8.0, busy_s=0.12, kl=0.003)
INT4 = replace(ORIGINAL, precision="int4", goodput_per_s=9.0, busy_s=0.1, kl=0.1)


def test_the_largest_goodput_of_those_that_keep_the_quality() -> None:
    choice = recommend([ORIGINAL, INT8, INT4], max_kl=0.05)
    assert choice.winner is INT8
    assert choice.runner_up is ORIGINAL
    assert choice.meets_targets
    assert choice.too_lossy == ("int4",)
    assert recommend([ORIGINAL, INT8, INT4], max_kl=0.2).winner is INT4
    assert recommend([ORIGINAL, INT8, INT4], max_kl=0.0).winner is ORIGINAL


def test_who_misses_targets_does_not_win_by_goodput() -> None:
    late = replace(INT8, policy="continuous", attained=0.9, goodput_per_s=99.0)
    assert recommend([late, ORIGINAL], max_kl=1).winner is ORIGINAL


def test_equal_goodput_goes_to_the_cheaper() -> None:
    cheaper = replace(INT8, precision="int4", goodput_per_s=7.9, busy_s=0.1)
    assert recommend([INT8, cheaper], max_kl=1).winner is cheaper
    clearly_less = replace(cheaper, goodput_per_s=7.0)
    assert recommend([INT8, clearly_less], max_kl=1).winner is INT8


def test_where_nobody_meets_the_targets_the_nearest_is_named() -> None:
    near, far = replace(INT8, attained=0.8, goodput_per_s=1.0), replace(ORIGINAL, attained=0.2)
    choice = recommend([far, near], max_kl=1)
    assert choice.winner is near
    assert not choice.meets_targets
    said = " ".join(choice_in_words(choice, 1))
    assert "came nearest, with 80%" in said


def test_the_reasons_are_said() -> None:
    first, second, third = choice_in_words(recommend([ORIGINAL, INT8, INT4], 0.05), 0.05)
    assert first.startswith("int8 under slo: 100% of the interactive requests")
    assert "KL 0.003 (bound 0.05)" in first
    assert second.startswith("Next: bf16 under slo")
    assert "Left out for quality: int4." in third


def test_a_single_candidate_has_no_runner_up() -> None:
    assert recommend([ORIGINAL], 0).runner_up is None
    with pytest.raises(ValueError, match="nothing to choose from"):
        recommend([], 0)
