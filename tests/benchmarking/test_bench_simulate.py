"""`tightpack bench --simulate`: the whole command on a virtual clock."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tightpack.cli.bench_simulate import read_simulation
from tightpack.cli.main import app
from tightpack.simulated.fitted import FittedCostModel

LLAMA_8B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA_8B))
    return path


@pytest.fixture
def cost_file(tmp_path: Path, small_cost_model: Callable[[int, int], FittedCostModel]) -> Path:
    path = tmp_path / "small.cost.json"
    path.write_text(small_cost_model(64, 256).to_json())
    return path


def bench(*options: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["bench", *map(str, options)])
    return result.exit_code, " ".join((result.output + str(result.exception or "")).split())


def test_a_device_by_its_data_sheet(config: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "out.json", tmp_path / "out.html"
    code, shown = bench(
        *("--simulate", f"h100:{config}", "--quantization", "fp8", "--kv-cache-dtype", "fp8"),
        *("--requests", "40", "--mixed", "--rate", "20", "--mix", "interactive=1,batch=1"),
        *("--policies", "continuous,slo", "--json", out, "--html", page),
    )
    assert code == 0, shown
    report = json.loads(out.read_text())
    assert report["where"] == "simulated"
    assert report["executor"]["device"] == "h100-sxm"
    assert report["conditions"]["warm_up_requests"] == 0
    assert [run["policy"] for run in report["runs"]] == ["continuous", "slo"]
    assert all(run["completed"] == 40 for run in report["runs"])
    assert "h100-sxm fp8" in page.read_text()


def test_the_same_times_to_the_last_bit(config: Path, tmp_path: Path) -> None:
    runs = []
    for name in ("a.json", "b.json"):
        options = ("--requests", "20", "--mixed", "--policies", "slo", "--json", tmp_path / name)
        code, shown = bench("--simulate", f"h100:{config}", *options)
        assert code == 0, shown
        runs.append(json.loads((tmp_path / name).read_text())["runs"])
    assert runs[0] == runs[1]


def test_capacity_on_a_measured_machine(cost_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    code, shown = bench(
        *("--simulate", cost_file, "--find-capacity", "--requests", "60", "--resolution", "0.2"),
        *("--input-len", "32", "--output-len", "8", "--policies", "chunked-prefill", "--json", out),
    )
    assert code == 0, shown
    # A request is 40 tokens of half a millisecond each and seven steps' share of 4 ms: some 20 a second.
    assert 10 < json.loads(out.read_text())["capacity"]["policies"][0]["rate"] < 60


def test_closed_loop_on_several_devices(config: Path) -> None:
    code, shown = bench(
        *("--simulate", f"2xh100:{config}", "--requests", "8", "--clients", "2", "--policies", "continuous")
    )
    assert code == 0, shown
    assert "2 x h100-sxm" in shown


def test_what_a_simulation_stands_for(config: Path, cost_file: Path) -> None:
    wide = read_simulation(f"h100:{config}")
    narrow = read_simulation(f"h100:{config}", "fp8", "fp8")
    assert narrow.num_blocks > 2 * wide.num_blocks  # half the bytes a position, and more room for them
    assert wide.max_model_len == 131072
    assert read_simulation(f"h100:{config}", max_model_len=4096).max_model_len == 4096
    assert read_simulation("h100:llama-3.1-8b").num_blocks == wide.num_blocks
    assert read_simulation("8xh100:mixtral-8x7b").num_blocks > wide.num_blocks
    fitted = read_simulation(str(cost_file))
    assert (fitted.num_blocks, fitted.max_model_len, fitted.device) == (64, 256, "cpu")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--simulate h100", "--simulate takes DEVICE:MODEL, such as h100:llama-3.1-8b"),
        ("--simulate h10:{config}", "hardware 'h10' is not known; did you mean 'h100'?"),
        ("--simulate h100:nowhere", "model 'nowhere' is not known"),
        ("--simulate h100:{config} --quantization awq", "--simulate knows --quantization bf16, fp8"),
        ("--simulate h100:{config} --max-model-len 200000", "beyond the 131072 positions"),
        ("--simulate 3xh100:{config}", "does not divide 32 attention heads"),
        ("--simulate {cost} --quantization fp8", "of the precision it was measured in"),
        ("--simulate {cost} --url http://h", "--simulate runs no model; drop --url"),
        ("--simulate {cost} --device cpu", "--simulate runs no model; drop --device"),
        ("other --simulate {cost}", "--simulate names the model itself"),
    ],
)
def test_refusals(options: str, says: str, config: Path, cost_file: Path) -> None:
    code, shown = bench(*options.format(config=config, cost=cost_file).split())
    assert code != 0
    assert says in shown
