from __future__ import annotations

from dataclasses import replace

import pytest

from tightpack.serving_loop.executor import StepResult
from tightpack.simulated.calibrate import Calibration, calibrate
from tightpack.simulated.catalogue import load_catalogue
from tightpack.simulated.designed_steps import Rows, StepTimer, grid_steps, random_steps
from tightpack.simulated.executor import SimulatedExecutor
from tightpack.simulated.roofline import RooflineCostModel
from tightpack.simulated.virtual_clock import VirtualClock


@pytest.fixture
def limits(new_limits):
    return new_limits(max_num_seqs=6, max_num_batched_tokens=300, max_model_len=256, num_blocks=128)


def executor_of(cost_model, limits):
    return SimulatedExecutor(
        cost_model, VirtualClock(), num_blocks=limits.num_blocks, block_size=limits.block_size
    )


def test_a_fit_of_an_executor_foretells_steps_it_has_not_seen(cpu_model, llama70b, limits):
    fitted = calibrate(
        executor_of(cpu_model, limits), llama70b, limits, Calibration(rounds=1), {"model": "m"}
    )
    assert fitted.error is not None
    assert fitted.error.steps == 30
    assert fitted.error.mean < 0.01
    assert fitted.manifest["model"] == "m"
    assert fitted.manifest["executor"]["backend"] == "simulated"
    assert fitted.manifest["limits"]["positions"] == 256
    assert 0 < fitted.loop.step_s + fitted.loop.chunk_s < 0.01


def test_the_bends_of_a_roofline_are_followed(llama70b, limits):
    """Its linears turn from bytes to arithmetic between 256 and 512 tokens, which is no sum of prices."""
    wide = replace(limits, max_num_batched_tokens=2048, max_model_len=1024, num_blocks=6 * 64)
    cost_model = RooflineCostModel(llama70b, load_catalogue()["h100"], tensor_parallel_size=8)
    fitted = calibrate(executor_of(cost_model, wide), llama70b, wide, Calibration(rounds=1), {})
    assert fitted.error is not None
    assert fitted.error.mean < 0.03


def test_designed_steps_stay_within_the_limits(limits):
    rows = Rows.of(limits)
    assert rows == Rows(6, 256)
    steps = grid_steps(rows, 300) + random_steps(rows, 300, 200, seed=1)
    for step in steps:
        assert sum(part.count for part in step) <= 300
        assert len({part.row for part in step}) == len(step) <= 6
        assert all(part.first >= 0 and part.first + part.count <= 256 for part in step)
        assert all(part.ends or part.first + part.count < 256 for part in step)
    assert any(len(step) == 6 and all(part.count == 1 for part in step) for step in steps)
    assert any(step[0].count == 256 for step in steps)
    assert any(not part.ends for step in steps for part in step)
    kinds = {(any(p.count == 1 for p in s), any(p.count > 1 for p in s)) for s in steps}
    assert kinds == {(True, False), (False, True), (True, True)}


def test_rows_share_a_pool_that_is_too_small_for_full_contexts(limits):
    assert Rows.of(replace(limits, num_blocks=60)) == Rows(6, 160)
    with pytest.raises(ValueError, match="cannot give a block to each of max_num_seqs=20"):
        Rows.of(replace(limits, num_blocks=16, max_num_seqs=20))


def test_random_steps_differ_by_seed_alone(limits):
    rows = Rows.of(limits)
    assert random_steps(rows, 300, 20, seed=1) == random_steps(rows, 300, 20, seed=1)
    assert random_steps(rows, 300, 20, seed=1) != random_steps(rows, 300, 20, seed=2)


def test_chunks_write_blocks_of_their_own_and_say_whether_they_sample(cpu_model, limits):
    timer = StepTimer(executor_of(cpu_model, limits), Rows.of(limits), 100, 300)
    filled = sum(1 for _ in timer.fill())
    assert filled == 6
    steps = random_steps(Rows.of(limits), 300, 50, seed=4)
    for step in steps:
        chunks = timer.plan(step).chunks
        blocks = [block for chunk in chunks for block in chunk.block_table]
        assert len(set(blocks)) == len(blocks)
        assert all(0 <= block < limits.num_blocks for block in blocks)
        assert [chunk.samples for chunk in chunks] == [part.ends for part in step]


def test_the_median_outlives_a_step_that_was_disturbed(cpu_model, limits):
    class Disturbed(SimulatedExecutor):
        calls = 0

        def execute(self, plan):
            result = super().execute(plan)
            self.calls += 1
            return StepResult(result.sampled, result.elapsed_s * (10 if self.calls == 2 else 1))

    quiet = executor_of(cpu_model, limits)
    noisy = Disturbed(cpu_model, VirtualClock(), num_blocks=128, block_size=16)
    rows = Rows.of(limits)
    steps = grid_steps(rows, 300)[:3]
    assert StepTimer(noisy, rows, 100, 300).medians(steps, rounds=3) == pytest.approx(
        StepTimer(quiet, rows, 100, 300).medians(steps, rounds=1)
    )


def test_an_executor_that_fails_ends_the_calibration(cpu_model, limits):
    class Failing(SimulatedExecutor):
        def execute(self, plan):
            return StepResult({}, 0.1, failed={"row-0": "out of memory"})

    failing = Failing(cpu_model, VirtualClock(), num_blocks=128, block_size=16)
    rows = Rows.of(limits)
    with pytest.raises(RuntimeError, match="row-0 of a calibration step: out of memory"):
        StepTimer(failing, rows, 100, 300).time(grid_steps(rows, 300)[0])


def test_a_calibration_needs_steps():
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        Calibration(rounds=0)
