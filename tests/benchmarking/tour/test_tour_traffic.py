"""A workload that is made for a machine: as much of it as the machine feels, whatever its speed."""

from __future__ import annotations

import pytest

from tightpack.benchmarking.step_records import StepRecord
from tightpack.benchmarking.tour.traffic import Pace, Size, describe, probe_shapes, tour_rate, tour_shapes
from tightpack.benchmarking.workload import mean_rate
from tightpack.requests.service_class import BATCH, INTERACTIVE


def size(prompt_tokens_per_s: float = 2000.0, decode_step_s: float = 0.01, context: int = 4096) -> Size:
    return Size.of(Pace(prompt_tokens_per_s, decode_step_s), max_num_seqs=8, max_model_len=context)


def test_the_pace_is_the_best_that_was_seen() -> None:
    alone = [StepRecord(0, 0.1, 256, 0), StepRecord(1, 0.2, 256, 0), StepRecord(2, 0.2, 256, 0)]
    full = [
        StepRecord(0, 0.3, 64, 0),
        StepRecord(1, 0.02, 0, 8),
        StepRecord(2, 0.03, 0, 8),
        StepRecord(3, 0.001, 0, 1),
    ]
    pace = Pace.of(alone, full)
    assert pace.prompt_tokens_per_s == pytest.approx(2560)
    assert pace.decode_step_s == 0.02  # of the fullest batch, without the steps that hold prompts


@pytest.mark.parametrize("speed", [300.0, 2000.0, 5000.0])
def test_documents_take_any_machine_equally_long(speed: float) -> None:
    one = size(speed)
    assert one.long_prompt / speed == pytest.approx(0.4, abs=0.1)
    assert 16 <= one.chunk <= one.long_prompt


def test_everything_fits_the_context() -> None:
    assert size(1e6, context=128).long_prompt == 64
    assert size(1e6).long_prompt == 2048
    assert size(1.0).long_prompt == 64
    assert size(1.0).chunk >= 16  # a token each for a full batch, and as many for a prompt


def test_a_chunk_is_over_before_the_target_is() -> None:
    one = size(2000.0)
    assert one.chunk / 2000.0 <= INTERACTIVE.tpot_s / 2
    assert one.chunk == 2 ** (one.chunk.bit_length() - 1)


def test_targets_are_kept_where_they_can_be_met_and_stretched_elsewhere() -> None:
    assert size().interactive == INTERACTIVE
    assert not size().targets_are_stretched
    slow = size(prompt_tokens_per_s=100.0, decode_step_s=0.1)
    assert slow.targets_are_stretched
    assert slow.interactive.ttft_s > 1
    assert slow.interactive.tpot_s == pytest.approx(0.3)


def test_the_mix_arrives_at_more_than_is_served() -> None:
    found = tour_shapes(size(), served_per_s=10.0, seconds=10.0, seed=1)
    rate = tour_rate(10.0)
    assert rate > 10
    assert len(found) == round(rate * 10)
    assert mean_rate(found) == pytest.approx(rate, rel=0.25)
    documents = [one for one in found if one.service_class == BATCH]
    chats = [one for one in found if one.service_class == INTERACTIVE]
    assert len(documents) + len(chats) == len(found)
    assert 0.1 < len(documents) / len(found) < 0.3
    assert {one.input_len for one in documents} == {size().long_prompt}
    assert max(one.input_len for one in chats) < size().long_prompt
    assert f"{len(chats)} interactive" in describe(size(), len(found), rate)


def test_the_probe_is_the_same_mix_at_once() -> None:
    found = probe_shapes(size(), 20, seed=0)
    assert {one.arrival_s for one in found} == {0.0}
    assert {one.service_class.name for one in found} == {"interactive", "batch"}
