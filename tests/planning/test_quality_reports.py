from __future__ import annotations

import json
from pathlib import Path

import pytest

from tightpack.planning.quality_reports import divergences
from tightpack.planning.weight_choices import WEIGHT_CHOICES

CHOICES = list(WEIGHT_CHOICES.values())


def write(path: Path, **report: object) -> str:
    path.write_text(json.dumps(report))
    return str(path)


def test_defaults_say_so_and_add_up_with_the_cache():
    choices, found = divergences(CHOICES, ())
    int4 = next(choice for choice in choices if choice.name == "int4")
    assert "default" in int4.source
    assert found["bf16", "auto"] == 0
    assert found["int4", "fp8"] == pytest.approx(int4.kl + found["bf16", "fp8"])


def test_a_report_of_quantize_brings_its_divergence_and_its_checkpoint(tmp_path: Path):
    given = write(
        tmp_path / "tightpack_report.json",
        config={"method": "gptq", "bits": 4, "kv_cache_dtype": "auto"},
        quality={"kl": 0.02},
        output="my-int4",
    )
    choices, found = divergences(CHOICES, [given])
    int4 = next(choice for choice in choices if choice.name == "int4")
    assert (int4.kl, int4.source, int4.checkpoint) == (0.02, given, "my-int4")
    assert int4.method is None  # there is nothing left to calibrate
    assert found["int4", "auto"] == 0.02


def test_a_quantized_cache_counts_for_both_together(tmp_path: Path):
    given = write(
        tmp_path / "r.json",
        config={"method": "fp8", "kv_cache_dtype": "fp8"},
        quality={"kl": 0.5},
        output="x",
    )
    choices, found = divergences(CHOICES, [given])
    assert found["fp8", "fp8"] == 0.5
    assert found["fp8", "auto"] == next(choice.kl for choice in choices if choice.name == "fp8") < 0.5


def test_a_report_of_evaluate_needs_to_be_told_what_it_measured(tmp_path: Path):
    given = write(tmp_path / "quality.json", arguments={"model": "x"}, kl=0.01)
    with pytest.raises(ValueError, match=r"write PRECISION=.*, such as int4="):
        divergences(CHOICES, [given])
    _, found = divergences(CHOICES, [f"int8={given}"])
    assert found["int8", "auto"] == 0.01


@pytest.mark.parametrize(
    ("report", "said"),
    [
        ({"perplexity": 3.0}, "has no KL divergence"),
        ({"kl": -1}, "has no KL divergence"),
        ({"config": {"method": "magic"}, "quality": {"kl": 0.1}}, "method 'magic' is none of"),
    ],
)
def test_reports_that_say_nothing_are_refused(tmp_path: Path, report, said):
    with pytest.raises(ValueError, match=said):
        divergences(CHOICES, [write(tmp_path / "r.json", **report)])


def test_a_report_about_what_is_not_considered_is_refused(tmp_path: Path):
    given = write(tmp_path / "r.json", kl=0.1)
    with pytest.raises(ValueError, match="it is about int4, and the plan considers bf16"):
        divergences([WEIGHT_CHOICES["bf16"]], [f"int4={given}"])
    with pytest.raises(ValueError, match="did you mean 'int8'"):
        divergences(CHOICES, [f"int9={given}"])
