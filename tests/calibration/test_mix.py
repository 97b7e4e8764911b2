from __future__ import annotations

import pytest

from tightpack.calibration.mix import Mix
from tightpack.calibration.sensitivity import Candidate, Unit
from tightpack.calibration.sites import DENSE, SiteScheme

FOUR = SiteScheme(precision="int", bits=4, group_size=64, symmetric=False)
EIGHT = SiteScheme(precision="int", bits=8, symmetric=False)
WEIGHTS = 1000


def site(error: float) -> list[Candidate]:
    """int4, int8, bf16 of a thousand weights; `error`: KL divergence of int4."""
    return [
        Candidate(FOUR, WEIGHTS // 2, error),
        Candidate(EIGHT, WEIGHTS, error / 100),
        Candidate(DENSE, 2 * WEIGHTS, 0.0),
    ]


@pytest.fixture
def candidates() -> dict[Unit, list[Candidate]]:
    return {(layer, "qkv"): site(0.01 * (layer + 1)) for layer in range(6)}  # .21 in all at 4 bits


def test_bits_are_kept_and_go_where_errors_are_largest(candidates: dict[Unit, list[Candidate]]) -> None:
    mix = Mix.within_bits(candidates, 6.0)
    assert mix.bits_per_weight == 6.0
    assert [layer for (layer, _), scheme in mix.schemes.items() if scheme == EIGHT] == [3, 4, 5]
    assert mix.expected_kl == pytest.approx(0.06 + 0.15 / 100)


def test_too_few_bits(candidates: dict[Unit, list[Candidate]]) -> None:
    with pytest.raises(ValueError, match=r"target_bits=3 is too few: the smallest schemes take 4\.000 bits"):
        Mix.within_bits(candidates, 3.0)


def test_the_smallest_mix_is_expected_within_seven_tenths(candidates: dict[Unit, list[Candidate]]) -> None:
    mix = Mix.within_divergence(candidates, 0.1)
    assert mix.expected_kl <= 0.07
    coarser = [found[0].error for found in candidates.values()]
    at_eight = [unit for unit, scheme in mix.schemes.items() if scheme == EIGHT]
    for unit in at_eight:  # one site fewer in 8 bits would be too much
        assert mix.expected_kl + 0.99 * coarser[unit[0]] > 0.07


def test_no_divergence_at_all_quantizes_nothing(candidates: dict[Unit, list[Candidate]]) -> None:
    with pytest.raises(ValueError, match="max_kl=1e-07 is too little"):
        Mix.within_divergence(candidates, 1e-7)


def test_a_missed_aim_is_taken_down_by_what_it_was_missed_by(candidates: dict[Unit, list[Candidate]]) -> None:
    mix = Mix.within_divergence(candidates, 0.1)
    finer = mix.tightened(0.2, 0.1)
    assert finer is not None
    assert finer.expected_kl <= mix.expected_kl / 2
    assert finer.bits_per_weight > mix.bits_per_weight
    assert finer.tries == 2


def test_tightening_ends(candidates: dict[Unit, list[Candidate]]) -> None:
    mix, tried = Mix.within_divergence(candidates, 0.1), 1
    while (finer := mix.tightened(0.101, 0.1)) is not None:
        assert finer.expected_kl < mix.expected_kl
        mix, tried = finer, tried + 1
    assert tried == mix.tries == 4
    assert Mix.within_divergence(candidates, 0.1).tightened(1e6, 0.1) is None  # 16 bits are no mix


def test_a_stored_mix_is_the_same(candidates: dict[Unit, list[Candidate]]) -> None:
    mix = Mix.within_divergence(candidates, 0.1).tightened(0.15, 0.1)
    assert mix is not None
    again = Mix.from_json(mix.as_json())
    assert again == mix
    assert again.schemes == mix.schemes
