from __future__ import annotations

import pytest

from tightpack.requests.service_class import BATCH, INTERACTIVE, STANDARD, ServiceClass
from tightpack.requests.service_class_settings import SERVICE_CLASSES, resolve_service_classes


def named(given):
    return {one.name: one for one in resolve_service_classes(given)}


@pytest.mark.parametrize("given", [None, (), {}, SERVICE_CLASSES])
def test_what_is_not_given_keeps_its_defaults(given):
    assert resolve_service_classes(given) == (INTERACTIVE, STANDARD, BATCH)


@pytest.mark.parametrize(
    "given",
    [
        "interactive:ttft=0.3,share=0.2",
        ["interactive: ttft = 0.3, share = 0.2"],
        {"interactive": {"ttft": 0.3, "share": 0.2}},
        [ServiceClass("interactive", 0.3, 0.05, 0.2)],
        ["interactive:ttft=9", "interactive:ttft=0.3", "interactive:share=0.2"],
    ],
)
def test_all_ways_to_write_it_say_the_same(given):
    assert named(given)["interactive"] == ServiceClass("interactive", ttft_s=0.3, tpot_s=0.05, share=0.2)
    assert named(given)["standard"] == STANDARD


def test_a_target_can_be_taken_away_or_given():
    assert named("standard:tpot=none")["standard"] == ServiceClass("standard", ttft_s=2.0)
    assert named({"batch": {"ttft": 60}})["batch"] == ServiceClass("batch", ttft_s=60.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("interactiv:ttft=1", "did you mean 'interactive'?"),
        ("interactive:tftt=1", "no setting 'tftt'; did you mean 'ttft'?"),
        ("interactive:ttft=fast", "ttft must be a number, got 'fast'"),
        ("interactive", "write it like interactive:ttft=0.5,tpot=0.05,share=0.3"),
        ("interactive:ttft=-1", "ttft_s must be positive seconds"),
        ("interactive:share=1.5", r"share must be in \(0, 1\]"),
        ("interactive:share=none", "share must be"),
        (["interactive:share=0.6", "batch:share=0.6"], "must add up to 1 or less: interactive 0.6"),
    ],
)
def test_what_is_wrong_is_named(given, message):
    with pytest.raises(ValueError, match=message):
        resolve_service_classes(given)


def test_a_setting_of_the_wrong_type_is_named():
    with pytest.raises(TypeError, match="interactive: ttft must be a number"):
        resolve_service_classes({"interactive": {"ttft": "0.5"}})
    with pytest.raises(TypeError, match="takes ttft, tpot, share"):
        resolve_service_classes({"interactive": 0.5})
