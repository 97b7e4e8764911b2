from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from tightpack.simulated.fitted import AttentionCost, FitError, FittedCostModel, fit
from tightpack.simulated.loop_time import LoopTime
from tightpack.simulated.step_work import StepWork


@pytest.fixture(scope="module")
def steps(make_plan):
    rng = random.Random(5)
    plans = []
    for _ in range(200):
        decodes = [(round(2 ** (rng.random() * 10)), 1) for _ in range(rng.choice((0, 1, 3, 8, 16)))]
        prompts = [
            (rng.choice((0, 100, 700)), round(2 ** (1 + rng.random() * 8)), rng.random() < 0.5)
            for _ in range(rng.choice((0, 1, 2)) if decodes else 1)
        ]
        plans.append(make_plan(*decodes, *prompts))
    return plans


def truth(window: int | None = None) -> FittedCostModel:
    return FittedCostModel(
        token_counts=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
        # Flat while weights are read, then a price a token, then a lower one.
        step_s=(0.01, 0.01, 0.01, 0.011, 0.014, 0.024, 0.044, 0.074, 0.134, 0.254, 0.494),
        sampling_s=1.5e-3,
        sample_s=2e-4,
        decoding_s=1e-3,
        decode_s=3e-4,
        prompt_s=1e-3,
        attention=(
            AttentionCost(
                window=window,
                decode_position_s=2e-6,
                prompt_position_s=1e-6,
                own_pair_s=3e-7,
                cached_pair_s=5e-7,
            ),
        ),
        manifest={},
    )


@pytest.mark.parametrize("window", [None, 256])
def test_a_fit_finds_the_prices_behind_exact_times(steps, window):
    model = truth(window)
    work = [[StepWork.of(plan.chunks, window)] for plan in steps]
    found = fit(work, [model.executor_seconds(one) for one in work], [window], {})
    assert found.attention[0].own_pair_s == pytest.approx(3e-7, rel=1e-3)
    assert found.attention[0].cached_pair_s == pytest.approx(5e-7, rel=1e-3)
    assert found.attention[0].decode_position_s == pytest.approx(2e-6, rel=1e-3)
    assert found.prompt_s == pytest.approx(1e-3, rel=1e-2)
    assert found.sample_s == pytest.approx(2e-4, rel=1e-2)
    assert found.sampling_s == pytest.approx(1.5e-3, rel=1e-2)
    for plan in steps:
        assert found.step_seconds(plan) == pytest.approx(model.step_seconds(plan), rel=1e-4)


def test_noise_of_a_tenth_moves_predictions_by_little(steps):
    model, rng = truth(), random.Random(1)
    work = [[StepWork.of(plan.chunks)] for plan in steps]
    noisy = [model.executor_seconds(one) * rng.uniform(0.9, 1.1) for one in work]
    found = fit(work, noisy, [None], {})
    exact = [model.executor_seconds(one) for one in work]
    error = FitError.of([found.executor_seconds(one) for one in work], exact)
    assert error.mean < 0.02
    assert list(found.step_s) == sorted(found.step_s)


def test_noise_that_is_large_does_not_make_predictions_small(steps):
    model, rng = truth(), random.Random(2)
    work = [[StepWork.of(plan.chunks)] for plan in steps]
    exact = [model.executor_seconds(one) for one in work]
    found = fit(work, [seconds * rng.choice((0.5, 1.5)) for seconds in exact], [None], {})
    error = FitError.of([found.executor_seconds(one) for one in work], exact)
    assert abs(error.total) < 0.05


def test_the_curve_is_straight_between_its_points_and_goes_on_after_the_last(make_plan):
    model = replace(
        truth(),
        sampling_s=0.0,
        sample_s=0.0,
        prompt_s=0.0,
        attention=(
            AttentionCost(
                window=None,
                decode_position_s=0.0,
                prompt_position_s=0.0,
                own_pair_s=0.0,
                cached_pair_s=0.0,
            ),
        ),
    )
    assert model.step_seconds(make_plan((0, 48))) == pytest.approx(0.034)
    assert model.step_seconds(make_plan((0, 64))) == pytest.approx(0.044)
    assert model.step_seconds(make_plan((0, 1536))) == pytest.approx(0.494 + 0.24)


def test_the_loops_own_time_is_added_to_what_the_executor_takes(make_plan):
    plan = make_plan((9, 1), (9, 1))
    slow = replace(truth(), loop=LoopTime(step_s=0.5, chunk_s=0.25))
    assert slow.step_seconds(plan) == pytest.approx(truth().step_seconds(plan) + 1.0)


def test_a_model_survives_its_file(tmp_path):
    model = replace(
        truth(),
        manifest={"executor": {"backend": "torch", "device": "cpu"}},
        error=FitError.of([1.1, 2.0], [1.0, 2.0]),
    )
    path = tmp_path / "fit.json"
    path.write_text(model.to_json())
    assert FittedCostModel.read(path) == model
    assert model.description == {"cost_model": "fitted on torch", "device": "cpu"}
    assert model.error is not None
    assert model.error.largest == pytest.approx(0.1)
    assert model.error.total == pytest.approx(0.1 / 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "another"}, "its format is not 'tightpack cost model 1'"),
        ({"sample_s": None}, "sample_s is missing"),
        ({"sampel_s": 1.0}, "no argument 'sampel_s'; did you mean 'sample_s'"),
        ({"step_s": [2.0] * 10 + [1.0]}, "never fall"),
        ({"token_counts": [1, 2]}, "as many step_s as token_counts"),
        ({"attention": []}, "a cost for each window"),
    ],
)
def test_a_file_that_is_no_model_is_refused_by_name(tmp_path, change, said):
    stored = json.loads(truth().to_json()) | change
    path = tmp_path / "fit.json"
    path.write_text(json.dumps({name: value for name, value in stored.items() if value is not None}))
    with pytest.raises(ValueError, match=said) as caught:
        FittedCostModel.read(path)
    assert str(path) in str(caught.value)
