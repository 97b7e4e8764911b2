"""`tightpack inspect` and `tightpack convert` from the outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tightpack.checkpoints.checkpoint import CheckpointError
from tightpack.checkpoints.open import open_checkpoint
from tightpack.cli.convert import convert
from tightpack.cli.inspect import inspect


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(inspect)
    app.command()(convert)
    return app


def test_inspect_json(app: typer.Typer) -> None:
    result = CliRunner().invoke(app, ["inspect", "--json"])
    facts = json.loads(result.stdout)
    assert facts["model"] == "smollm2-135m"
    assert facts["parameters"] == 134_515_008
    assert facts["bytes"] == sum(facts["bytes_by_precision"].values())
    assert list(facts["bytes_by_precision"]) == ["q4_1", "q8_0", "fp32"]
    assert facts["quantization"] == {
        "method": "gguf",
        "linears_by_scheme": {"q4_1 (int4, asymmetric, group 32)": 210},
        "linears_unquantized": 0,
    }
    assert facts["kv_cache"] == "bf16"
    assert facts["kv_bytes_per_token"] == 2 * 30 * 3 * 64 * 2
    memory = facts["cpu_memory"]
    assert memory["weights"] == facts["bytes"] - facts["bytes_by_precision"]["fp32"] // 2
    assert memory["kv_pool"] % (16 * facts["kv_bytes_per_token"]) == 0
    assert memory["total"] == memory["weights"] + memory["kv_pool"] + 150 * 2**20
    assert facts["rope"] == ["theta 100,000"]
    assert (facts["tied_head"], facts["chat_template"]) == (True, True)
    assert (facts["sliding_windows"], facts["full_attention_layers"]) == ({}, 30)


def test_inspect_table(app: typer.Typer) -> None:
    result = CliRunner().invoke(app, ["inspect", "smollm2-135m"])
    assert result.exit_code == 0
    for shown in (
        "134.5M",
        "q4_1",
        "q4_1 (int4, asymmetric, group 32) in 210 linears",
        "22.5 KiB a token",
        "weights 92.0 MiB",
        "9 of 64, 3 for keys",
        "49,152, head tied",
        "full in all",
    ):
        assert shown in result.stdout


def test_convert(app: typer.Typer, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["convert", "smollm2-135m", "-o", str(tmp_path / "out")])
    assert result.exit_code == 0
    assert "134,515,008 parameters in bf16" in result.stdout
    converted = open_checkpoint(str(tmp_path / "out"))
    assert converted.tensors.infos["model.norm.weight"].precision == "bf16"
    again = CliRunner().invoke(app, ["convert", "smollm2-135m", "-o", str(tmp_path / "out")])
    assert isinstance(again.exception, CheckpointError)
    assert "nothing was written" in str(again.exception)


def test_unknown_model(app: typer.Typer) -> None:
    result = CliRunner().invoke(app, ["inspect", "smolm2"])
    assert isinstance(result.exception, CheckpointError)
    assert "smollm2-135m" in str(result.exception)
