from __future__ import annotations

import pytest

from tightpack.requests.request import Request
from tightpack.requests.sampling_params import SamplingParams
from tightpack.scheduling.plan import Chunk, StepPlan
from tightpack.simulated.engine import make_simulated_loop
from tightpack.simulated.executor import SimulatedExecutor
from tightpack.simulated.virtual_clock import VirtualClock


def request(name: str, *, eos: tuple[int, ...] = (), max_tokens: int = 5, **params) -> Request:
    return Request(
        request_id=name,
        prompt_token_ids=(3, 4, 5),
        params=SamplingParams(max_tokens=max_tokens, **params),
        seed=0,
        max_output_tokens=max_tokens,
        eos_token_ids=frozenset(eos),
    )


def test_a_step_takes_what_the_cost_model_says_on_the_clock(cpu_model, make_plan):
    clock = VirtualClock()
    executor = SimulatedExecutor(cpu_model, clock, num_blocks=8, block_size=16)
    plan = make_plan((0, 32), (7, 1))
    result = executor.execute(plan)
    assert result.elapsed_s == clock.now() == cpu_model.step_seconds(plan) > 0
    assert set(result.sampled) == {"0", "1"}
    assert set(executor.execute(make_plan((0, 32, False))).sampled) == set()


@pytest.mark.parametrize(("eos", "stop"), [((), ()), ((0,), ()), ((0, 1), (2,)), ((), (0,)), ((5, 1), (0,))])
def test_outputs_are_as_long_as_they_may_be(cpu_model, new_limits, eos, stop):
    loop = make_simulated_loop(cpu_model, new_limits(), "continuous", VirtualClock())
    loop.add(request("a", eos=eos, stop_token_ids=stop, max_tokens=9))
    updates = []
    while loop.has_unfinished:
        updates += loop.step()
    assert sum(len(update.token_ids) for update in updates) == 9
    assert updates[-1].finish_reason == "length"


def test_log_probabilities_are_refused_and_the_others_go_on(cpu_model):
    executor = SimulatedExecutor(cpu_model, VirtualClock(), num_blocks=8, block_size=16)
    requests = [request("a", logprobs=1), request("b"), request("c", prompt_logprobs=0)]
    result = executor.execute(StepPlan(tuple(Chunk(r, 0, 3, (i,)) for i, r in enumerate(requests))))
    assert set(result.sampled) == {"b"}
    assert set(result.failed) == {"a", "c"}
    assert "a simulation has none" in result.failed["a"]


def test_it_says_what_is_simulated(cpu_model):
    executor = SimulatedExecutor(cpu_model, VirtualClock(), num_blocks=8, block_size=16)
    assert executor.description == {
        "backend": "simulated",
        "cost_model": "fitted on torch",
        "device": "cpu",
    }
    assert (executor.num_blocks, executor.block_size) == (8, 16)
