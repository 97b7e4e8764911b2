from __future__ import annotations

import pytest

from tightpack.requests.arguments import nearest_hint, require_one_of


def test_the_hint_names_the_nearest_or_all() -> None:
    assert nearest_hint("continous", ("static", "continuous")) == "did you mean 'continuous'?"
    assert nearest_hint("zzz", ("static", "dynamic")) == "it must be one of static, dynamic"
    assert nearest_hint("zzz", ("static", "dynamic"), "there are") == "there are static, dynamic"
    assert nearest_hint("zzz", ("static", "dynamic"), None) == ""


def test_a_wrong_choice_is_answered_with_all_of_them() -> None:
    choices = r"it must be one of auto, cpu, cuda$"
    with pytest.raises(ValueError, match=r"^device='gpu' is not known; did you mean 'cpu'\? " + choices):
        require_one_of("device", "gpu", ("auto", "cpu", "cuda"))
    with pytest.raises(ValueError, match=r"^device='xyz' is not known; " + choices):
        require_one_of("device", "xyz", ("auto", "cpu", "cuda"))
    require_one_of("device", "cpu", ("auto", "cpu", "cuda"))
