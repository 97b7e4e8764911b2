from __future__ import annotations

import pytest

from tightpack.simulated.open import open_cost_model
from tightpack.simulated.roofline import RooflineCostModel


def test_a_file_is_a_fit_and_a_name_a_roofline(cpu_model, llama70b, tmp_path):
    path = tmp_path / "fit.json"
    path.write_text(cpu_model.to_json())
    assert open_cost_model(str(path), llama70b) == cpu_model
    roofline = open_cost_model("h200", llama70b, quantization="fp8", tensor_parallel_size=2)
    assert isinstance(roofline, RooflineCostModel)
    assert roofline.description["device"] == "2 x h200"
    assert roofline.description["precision"] == "fp8"


def test_what_is_neither_is_refused_with_the_nearest(llama70b):
    with pytest.raises(ValueError, match="h100x: no such file, and no device of that name; did you mean"):
        open_cost_model("h100x", llama70b)
