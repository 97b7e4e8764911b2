from __future__ import annotations

import random

import pytest

from tightpack.scheduling.step_time import StepLoad, StepTimeModel

TRUTH = (6e-3, 4e-4, 6e-8, 6e-4, 1e-6)


def seconds(load, truth=TRUTH):
    step, token, pair, decode, position = truth
    return (
        step
        + token * load.prompt_tokens
        + pair * load.prompt_pairs
        + decode * load.decodes
        + position * load.decode_context
    )


def some_load(rng):
    decodes = rng.randrange(32)
    prompt = rng.choice([0, 0, rng.randrange(2, 512)])
    first = rng.randrange(1500)
    return StepLoad(prompt, prompt * first + prompt * prompt // 2, decodes, decodes * rng.randrange(50, 1500))


def train(model, steps, *, seed=0, truth=TRUTH, noise=0.0, outliers=0.0):
    rng = random.Random(seed)
    for _ in range(steps):
        load = some_load(rng)
        elapsed = seconds(load, truth) * (1 + rng.uniform(-noise, noise))
        model.observe(load, elapsed * (20 if rng.random() < outliers else 1))


def worst_error(model, truth=TRUTH):
    rng = random.Random(99)
    loads = [some_load(rng) for _ in range(200)]
    return max(abs(model.predict(load) / seconds(load, truth) - 1) for load in loads)


def test_it_learns_the_machine_from_its_steps():
    model = StepTimeModel()
    train(model, 200)
    assert worst_error(model) < 0.03
    assert model.num_observed == 200


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_few_steps_settle_the_scale_of_any_machine(scale):
    truth = tuple(scale * c for c in TRUTH)
    model = StepTimeModel()
    train(model, 20, truth=truth)
    assert worst_error(model, truth) < 0.3


def test_outliers_hardly_move_it():
    model = StepTimeModel()
    train(model, 400, noise=0.05, outliers=0.05)
    assert worst_error(model) < 0.15


def test_a_first_step_that_warms_up_is_soon_made_good():
    model = StepTimeModel()
    model.observe(StepLoad(prompt_tokens=100, prompt_pairs=5000), 30.0)
    train(model, 40)
    assert worst_error(model) < 0.2


def test_it_follows_a_machine_that_slows_down():
    model = StepTimeModel()
    train(model, 300, noise=0.02)
    slower = tuple(2 * c for c in TRUTH)
    train(model, 600, seed=1, truth=slower, noise=0.02)
    assert worst_error(model, slower) < 0.2


def test_decoding_alone_does_not_forget_what_prompts_cost():
    model = StepTimeModel()
    train(model, 200)
    rng = random.Random(3)
    for _ in range(3000):
        decodes = rng.randrange(1, 32)
        load = StepLoad(decodes=decodes, decode_context=500 * decodes)
        model.observe(load, seconds(load))
    prompt = StepLoad(400, 80_000)
    assert model.predict(prompt) == pytest.approx(seconds(prompt), rel=0.05)


def test_coefficients_are_never_negative():
    model = StepTimeModel()
    rng = random.Random(0)
    for _ in range(300):  # times that fall with the load
        load = some_load(rng)
        model.observe(load, 1.0 / (1 + load.prompt_tokens + load.decodes))
        assert min(model.coefficients) >= 0


def test_it_knows_its_own_error():
    sure, unsure = StepTimeModel(), StepTimeModel()
    train(sure, 400)
    train(unsure, 400, noise=0.3)
    assert sure.relative_error < 0.02
    assert 0.1 < unsure.relative_error < 0.3


def test_the_tokens_within_a_time_are_the_most_that_it_holds():
    model = StepTimeModel()
    train(model, 200)
    for first in (0, 1000):
        for room in (1e-3, 2e-2, 0.5):
            count = model.prompt_tokens_within(room, first)
            assert model.prompt_seconds(first, count) <= room * (1 + 1e-9)
            assert model.prompt_seconds(first, count + 1) > room
    assert model.prompt_tokens_within(-1.0, 0) == 0


def test_steps_that_took_no_time_teach_nothing():
    model = StepTimeModel()
    for elapsed in (0.0, -1.0, float("inf"), float("nan")):
        model.observe(StepLoad(decodes=1, decode_context=1), elapsed)
    assert model.num_observed == 0
