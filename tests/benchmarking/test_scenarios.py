from __future__ import annotations

from tightpack.benchmarking.scenarios import scenarios
from tightpack.scheduling.limits import SchedulerLimits
from tightpack.scheduling.registry import POLICY_NAMES, make_policy


def test_each_fits_its_own_limits() -> None:
    for name, scenario in scenarios().items():
        assert scenario.name == name
        assert set(scenario.policies) <= set(POLICY_NAMES)
        assert max(one.input_len + one.output_len for one in scenario.requests) <= scenario.max_model_len
        for policy in scenario.policies:
            limits = scenario.limits(policy)
            tokens = limits["max_num_batched_tokens"] or scenario.max_model_len + scenario.max_num_seqs
            make_policy(
                policy,
                SchedulerLimits(
                    max_num_seqs=limits["max_num_seqs"] or 1,
                    max_num_batched_tokens=tokens,
                    max_model_len=scenario.max_model_len,
                    block_size=16,
                    num_blocks=scenario.max_model_len,
                ),
            )


def test_seeds_change_the_mix() -> None:
    assert scenarios(0)["mixed"].requests == scenarios(0)["mixed"].requests
    assert scenarios(0)["mixed"].requests != scenarios(1)["mixed"].requests


def test_the_descriptions_are_true() -> None:
    mixed, long_prompt = scenarios()["mixed"], scenarios()["long-prompt"]
    assert mixed.description.startswith(f"{len(mixed.requests)} requests")
    assert len({one.output_len for one in mixed.requests}) > len(mixed.requests) / 3
    longest = max(one.input_len for one in long_prompt.requests)
    assert str(longest) in long_prompt.description
    first = [one for one in long_prompt.requests if one.arrival_s == 0]
    assert str(len(first)) in long_prompt.description
    # There must be room for the long prompts beside those that run.
    assert len(long_prompt.requests) <= long_prompt.max_num_seqs
