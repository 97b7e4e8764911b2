from __future__ import annotations

from tightpack.requests.arguments import nearest_hint


def test_the_hint_names_the_nearest_or_all() -> None:
    assert nearest_hint("continous", ("static", "continuous")) == "did you mean 'continuous'?"
    assert nearest_hint("zzz", ("static", "dynamic")) == "it must be one of static, dynamic"
    assert nearest_hint("zzz", ("static", "dynamic"), "there are") == "there are static, dynamic"
    assert nearest_hint("zzz", ("static", "dynamic"), None) == ""
