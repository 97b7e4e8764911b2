from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tightpack.cli.main import app
from tightpack.simulated.fitted import FittedCostModel


@pytest.fixture
def threads_as_before() -> Iterator[None]:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads_as_before")
def test_a_model_is_timed_and_the_fit_written(tiny_model, tmp_path: Path):
    output = tmp_path / "fit.json"
    done = CliRunner().invoke(
        app,
        [
            *("calibrate-cost", str(tiny_model("llama")), "-o", str(output), "--device", "cpu"),
            *("--max-model-len", "64", "--max-num-seqs", "2", "--rounds", "1", "--no-check", "--quiet"),
            *("--num-threads", "1", "--executor", "native"),
        ],
    )
    assert done.exit_code == 0, done.output
    assert "steps that were not fitted: off by" in done.output
    fitted = FittedCostModel.read(output)
    assert fitted.description["cost_model"] == "fitted on native"
    assert fitted.manifest["arguments"]["max_num_seqs"] == 2
    assert fitted.manifest["limits"] == {
        "max_num_seqs": 2,
        "max_num_batched_tokens": 66,
        "positions": 64,
        "block_size": 16,
        "num_blocks": 8,
    }


def test_figures_of_a_check_that_is_not_made_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="drop --no-check"):
        CliRunner().invoke(
            app,
            ["calibrate-cost", "-o", str(tmp_path / "a"), "--no-check", "--json", str(tmp_path / "b")],
            catch_exceptions=False,
        )
