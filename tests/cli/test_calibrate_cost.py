from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tightpack.cli.main import app
from tightpack.scheduling.registry import POLICY_NAMES
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


def test_the_check_holds_real_runs_against_simulated_ones(
    tiny_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tightpack.cli.calibrate_cost_check.CHECKED_REQUESTS", 6)
    monkeypatch.setattr("tightpack.simulated.machine_speed._SHORTEST_S", 0.0)
    figures = tmp_path / "check.json"
    done = CliRunner().invoke(
        app,
        [
            *(
                "calibrate-cost",
                str(tiny_model("llama")),
                "-o",
                str(tmp_path / "fit.json"),
                "--device",
                "cpu",
            ),
            *("--max-model-len", "64", "--max-num-seqs", "2", "--rounds", "1", "--quiet"),
            *("--num-threads", "1", "--executor", "native", "--json", str(figures)),
        ],
    )
    assert done.exit_code == 0, done.output
    assert max(map(len, done.output.split("Predicted / measured")[1].splitlines())) <= 80
    found = json.loads(figures.read_text())["predictions"]
    assert [one["policy"] for one in found] == [*POLICY_NAMES, *POLICY_NAMES]
    assert all(one["slowdown"] > 0 for one in found)
    for name in POLICY_NAMES:
        light, heavy = (one["rate"] for one in found if one["policy"] == name)
        assert heavy / light == pytest.approx(7 / 4, rel=0.02)
    for one in found:
        predicted, measured = one["predicted"]["ttft_p50_s"], one["measured"]["ttft_p50_s"]
        assert one["errors"]["ttft_p50_s"] == pytest.approx(predicted / measured - 1)


def test_figures_of_a_check_that_is_not_made_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="drop --no-check"):
        CliRunner().invoke(
            app,
            ["calibrate-cost", "-o", str(tmp_path / "a"), "--no-check", "--json", str(tmp_path / "b")],
            catch_exceptions=False,
        )
