from __future__ import annotations

import pytest

from tightpack.cli.service_classes import read_service_classes
from tightpack.engine_args import EngineArgs
from tightpack.requests.service_class import STANDARD, ServiceClass


@pytest.mark.parametrize(
    "text", ["interactive:\n  ttft: 0.3\n  share: 0.2\n", '{"interactive": {"ttft": 0.3, "share": 0.2}}']
)
def test_a_file_and_options_over_it(tmp_path, text):
    path = tmp_path / "classes"
    path.write_text(text)
    interactive, standard, batch = read_service_classes(["interactive:ttft=0.4", "batch:share=0.5"], path)
    assert interactive == ServiceClass("interactive", ttft_s=0.4, tpot_s=0.05, share=0.2)
    assert standard == STANDARD
    assert batch.share == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "neither YAML nor JSON"), ("- a", "must map service classes"), ("gold: {}", "'gold'")],
)
def test_a_file_that_says_something_else_is_refused(tmp_path, text, message):
    path = tmp_path / "classes.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_service_classes(None, path)


def test_engine_arguments_take_them_as_people_write_them():
    args = EngineArgs(policy="slo", service_classes={"interactive": {"ttft": 0.3}})
    assert args.service_classes[0] == ServiceClass("interactive", ttft_s=0.3, tpot_s=0.05)


def test_only_slo_can_tell_what_is_attainable():
    with pytest.raises(ValueError, match="reject_unattainable needs policy='slo'"):
        EngineArgs(reject_unattainable=True)
