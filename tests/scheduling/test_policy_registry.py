from __future__ import annotations

import pytest

from tightpack.scheduling.continuous import ContinuousPolicy
from tightpack.scheduling.registry import POLICY_NAMES, by_name, make_policy


def test_the_policies_are_there_by_name(new_limits):
    assert POLICY_NAMES == ("static", "dynamic", "continuous", "chunked-prefill", "slo")
    assert [make_policy(name, new_limits()).name for name in POLICY_NAMES] == list(POLICY_NAMES)


def test_an_unknown_name_is_refused_with_the_nearest(new_limits):
    with pytest.raises(ValueError, match="'continous' is not known; did you mean 'continuous'"):
        make_policy("continous", new_limits())
    with pytest.raises(ValueError, match="there are static, dynamic, continuous, chunked-prefill"):
        make_policy("xyz", new_limits())


def test_two_policies_of_one_name_are_refused():
    class Impostor(ContinuousPolicy):
        pass

    with pytest.raises(
        ValueError, match="two policies are called 'continuous': ContinuousPolicy and Impostor"
    ):
        by_name((ContinuousPolicy, Impostor))
