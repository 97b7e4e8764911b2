"""`quantize` from checkpoint to checkpoint, on tiny random models."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tightpack import QuantizationConfig, quantize
from tightpack.calibration.resume import LayerResult
from tightpack.checkpoints.checkpoint import CheckpointError
from tightpack.checkpoints.open import open_checkpoint
from tightpack.evaluation.comparison import measure
from tightpack.evaluation.sequence_logits import SequenceLogits
from tightpack.quantization import QualityError

SMALL = {"samples": 6, "sequence_length": 48, "evaluation_samples": 3}
METHODS: dict[str, dict[str, Any]] = {
    "rtn": {"method": "rtn"},
    "rtn mse": {"method": "rtn", "clip": "mse", "symmetric": True},
    "gptq": {"method": "gptq"},
    "gptq in bfloat16": {"method": "gptq", "dtype": "bfloat16"},
    "gptq symmetric": {"method": "gptq", "symmetric": True, "group_size": 32},
    "gptq 8 bits": {"method": "gptq", "bits": 8, "group_size": -1},
    "awq": {"method": "awq"},
    "awq-gptq": {"method": "awq-gptq"},
    "smoothquant": {"method": "smoothquant"},
    "llm.int8": {"method": "llm.int8"},
    "int8": {"method": "int8"},
    "awq layout": {"method": "awq", "layout": "awq", "group_size": 32},
    "gptq layout": {"method": "gptq", "layout": "gptq", "group_size": 32},
    "mixed": {"method": "gptq", "target_bits": 4.6},
    "fp8": {"method": "fp8"},
}


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model(tiny_model: Callable[[str], Path]) -> str:
    return str(tiny_model("llama"))


def contents(directory: Path) -> dict[str, bytes]:
    """Every file but the report, which has times in it."""
    return {
        path.name: path.read_bytes() for path in directory.iterdir() if path.name != "tightpack_report.json"
    }


@pytest.mark.parametrize("name", METHODS)
def test_methods(name: str, model: str, tiny_text: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    report = quantize(model, output, calibration=tiny_text, **SMALL, **METHODS[name])
    quality = report.quality
    assert quality["kl"] < (0.05 if report.bits_per_weight > 7 else 0.5)
    assert not (tmp_path / "out.partial").exists()
    written = open_checkpoint(str(output))
    assert written.quantization is not None
    assert len(written.quantization.linears) == 21
    saved = json.loads((output / "tightpack_report.json").read_text())
    assert saved["quality"] == json.loads(json.dumps(quality))
    assert len(saved["linears"]) == 21
    assert all(0 < linear["relative_error"] < 0.5 for linear in saved["linears"])
    assert "KL(original" in (output / "README.md").read_text()


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3", "gemma3"])
def test_families_and_the_serving_executor(
    family: str, tiny_model: Callable[[str], Path], tiny_text: Path, tmp_path: Path
) -> None:
    """What is folded and written is what the executor computes: the report's KL is measured again there."""
    directory = str(tiny_model(family))
    report = quantize(directory, tmp_path / "out", calibration=tiny_text, method="awq-gptq", **SMALL)
    original, written = open_checkpoint(directory), open_checkpoint(str(tmp_path / "out"))
    from tightpack.calibration.text import read_text

    sequences = read_text(tiny_text, original.tokenizer).sequences(48, skip=-3)
    with (
        SequenceLogits(original, sequence_length=48) as reference,
        SequenceLogits(written, sequence_length=48) as judged,
    ):
        again = measure(sequences, judged.each(sequences), reference.each(sequences))
    assert again.kl == pytest.approx(report.quality["kl"], rel=1e-3)
    assert again.perplexity == pytest.approx(report.quality["perplexity"], rel=1e-4)


def test_gptq_is_nearer_than_rounding(model: str, tiny_text: Path, tmp_path: Path) -> None:
    found = {
        method: quantize(model, tmp_path / method, calibration=tiny_text, method=method, **SMALL).quality[
            "kl"
        ]
        for method in ("rtn", "gptq")
    }
    assert found["gptq"] < found["rtn"]


def test_int8_is_calibrated_where_there_is_text(model: str, tiny_text: Path, tmp_path: Path) -> None:
    """Text to be measured on alone is none to calibrate on."""
    rounded = quantize(model, tmp_path / "rounded", evaluation=tiny_text, method="int8", **SMALL)
    found = quantize(model, tmp_path / "found", calibration=tiny_text, method="int8", **SMALL)
    assert rounded.recipe == "int8"
    assert found.recipe == "int8 by gptq, int8"
    assert rounded.calibration_text == "none: the method rounds weights alone"
    assert found.calibration_text == f"the first 6 x 48 tokens of {tiny_text.name}"
    sums = [sum(linear.relative_error for linear in report.linears) for report in (found, rounded)]
    assert sums[0] < 0.8 * sums[1]


def test_ignored_linears_stay(model: str, tiny_text: Path, tmp_path: Path) -> None:
    config = QuantizationConfig(method="awq", ignore=("model.layers.0.*", "*.down_proj"), **SMALL)
    quantize(model, tmp_path / "out", config, calibration=tiny_text)
    original, written = open_checkpoint(model), open_checkpoint(str(tmp_path / "out"))
    for name in ("model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"):
        np.testing.assert_array_equal(
            written.read(name).astype(np.float32), original.read(name).astype(np.float32)
        )
    assert written.quantization is not None
    assert len(written.quantization.linears) == 12


def test_fp8_fallback_keeps_what_is_too_far_off(model: str, tiny_text: Path, tmp_path: Path) -> None:
    before = quantize(model, tmp_path / "all", calibration=tiny_text, method="fp8", fp8_fallback=1.0, **SMALL)
    errors = sorted(linear.relative_error for linear in before.linears)
    report = quantize(
        model, tmp_path / "some", calibration=tiny_text, method="fp8", fp8_fallback=errors[10], **SMALL
    )
    kept = [linear for linear in report.linears if linear.scheme == "bf16"]
    assert 0 < len(kept) < 21
    assert report.quality["kl"] < before.quality["kl"]


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_kv_scales(precision: str, model: str, tiny_text: Path, tmp_path: Path) -> None:
    report = quantize(
        model, tmp_path / "out", calibration=tiny_text, method="awq", kv_cache_dtype=precision, **SMALL
    )
    written = open_checkpoint(str(tmp_path / "out"))
    assert written.kv_cache_format is not None
    assert written.kv_cache_format.precision == precision
    assert len(written.kv_cache_format.value_scales) == 3
    assert report.quality["kl"] < 0.5


class StopAfter:
    """An observer that interrupts the run, as Ctrl-C does."""

    def __init__(self, layers: int) -> None:
        self.layers = layers

    def phase(self, what: str) -> None: ...

    def note(self, what: str) -> None: ...

    def planned(self, recipe: Any, expected: Any) -> None:
        assert expected.memory_bytes > 0
        assert expected.seconds > 0

    def sensitivity(self, index: int, count: int) -> None: ...

    def layer(self, index: int, count: int, result: LayerResult) -> None:
        if index + 1 == self.layers:
            raise KeyboardInterrupt


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_an_interrupted_run_resumes_to_the_same_bytes(
    layers: int, model: str, tiny_text: Path, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"calibration": tiny_text, "method": "awq-gptq", **SMALL}
    quantize(model, tmp_path / "whole", **arguments)
    with pytest.raises(KeyboardInterrupt):
        quantize(model, tmp_path / "cut", observer=StopAfter(layers), **arguments)
    assert not (tmp_path / "cut").exists()
    with pytest.raises(ValueError, match="unfinished run"):
        quantize(model, tmp_path / "cut", **arguments)
    quantize(model, tmp_path / "cut", resume=True, **arguments)
    whole, cut = contents(tmp_path / "whole"), contents(tmp_path / "cut")
    whole.pop("README.md"), cut.pop("README.md")  # names its directory
    assert whole == cut


def test_resuming_something_else_is_refused(model: str, tiny_text: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        quantize(model, tmp_path / "o", calibration=tiny_text, method="gptq", observer=StopAfter(1), **SMALL)
    with pytest.raises(ValueError, match="begun with another recipe"):
        quantize(model, tmp_path / "o", calibration=tiny_text, method="awq", resume=True, **SMALL)
    assert (tmp_path / "o.partial" / "state.json").is_file()


def test_over_max_kl_nothing_is_saved_and_the_worst_are_named(
    model: str, tiny_text: Path, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"calibration": tiny_text, "method": "rtn", "bits": 4, **SMALL}
    with pytest.raises(QualityError, match=r"above max_kl=1e-06.*model\.layers\.\d\..*_proj"):
        quantize(model, tmp_path / "out", max_kl=1e-6, **arguments)
    assert not (tmp_path / "out").exists()
    quantize(model, tmp_path / "out", max_kl=10.0, resume=True, **arguments)
    assert (tmp_path / "out" / "config.json").is_file()


def test_max_kl_is_what_a_mix_aims_at(model: str, tiny_text: Path, tmp_path: Path) -> None:
    """The less divergence is allowed, the more bits are spent; a scheme that was named is kept."""
    arguments: dict[str, Any] = {"calibration": tiny_text, "method": "gptq", **SMALL, "samples": 20}
    uniform = quantize(model, tmp_path / "uniform", **arguments)
    aims = [uniform.quality["kl"] * share for share in (0.5, 0.2)]
    coarse, fine = (quantize(model, tmp_path / f"{aim}", max_kl=aim, **arguments) for aim in aims)
    for aim, report in zip(aims, (coarse, fine), strict=True):
        assert report.config["mixed"]
        assert report.quality["kl"] <= aim
        assert len({linear.scheme for linear in report.linears}) > 1
    assert uniform.bits_per_weight < coarse.bits_per_weight < fine.bits_per_weight < 16
    kept = quantize(model, tmp_path / "kept", max_kl=10.0, group_size=64, **arguments)
    assert not kept.config["mixed"]
    assert (
        contents(tmp_path / "kept")["model.safetensors"]
        == contents(tmp_path / "uniform")["model.safetensors"]
    )
    with pytest.raises(ValueError, match="max_kl=1e-12 is too little"):
        quantize(model, tmp_path / "none", max_kl=1e-12, **arguments)
    assert not (tmp_path / "none.partial").exists()


class StopInSecondMix(StopAfter):
    """Interrupts after that layer of the second pass over the layers; keeps what was noted."""

    def __init__(self, layers: int) -> None:
        super().__init__(layers)
        self.notes: list[str] = []

    def note(self, what: str) -> None:
        self.notes.append(what)

    def layer(self, index: int, count: int, result: LayerResult) -> None:
        if self.notes:
            super().layer(index, count, result)


def test_a_mix_that_misses_max_kl_is_made_finer(
    model: str, tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted on the way, it ends in the same bytes."""
    arguments: dict[str, Any] = {"calibration": tiny_text, "method": "rtn", **SMALL, "samples": 20}
    aim = 0.3 * quantize(model, tmp_path / "uniform", **arguments).quality["kl"]
    monkeypatch.setattr("tightpack.calibration.mix._MARGIN", 2.0)  # expects too much of the first
    watched = StopInSecondMix(0)
    whole = quantize(model, tmp_path / "whole", max_kl=aim, observer=watched, **arguments)
    assert re.fullmatch(
        r"KL divergence [\d.]+ is above .* bits a weight: again with [\d.]+", watched.notes[0]
    )
    assert whole.quality["kl"] <= aim
    with pytest.raises(KeyboardInterrupt):
        quantize(model, tmp_path / "cut", max_kl=aim, observer=StopInSecondMix(2), **arguments)
    quantize(model, tmp_path / "cut", max_kl=aim, resume=True, **arguments)
    weights = [contents(tmp_path / name)["model.safetensors"] for name in ("whole", "cut")]
    assert weights[0] == weights[1]


def test_nan_weights(model: str, tiny_text: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj: weight: 1 of"):
        quantize(str(broken), tmp_path / "out", calibration=tiny_text, method="rtn", **SMALL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken"]


def test_a_truncated_shard(model: str, tiny_text: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        quantize(str(broken), tmp_path / "out", calibration=tiny_text, **SMALL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken"]


def test_too_short_a_text(model: str, tiny_text: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the text has 1,200 tokens"):
        quantize(
            model, tmp_path / "out", calibration=tiny_text, method="gptq", samples=25, sequence_length=48
        )
    assert list(tmp_path.iterdir()) == []


def test_an_occupied_output(model: str, tiny_text: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not an empty directory"):
        quantize(model, tmp_path, calibration=tiny_text, **SMALL)


def test_a_quantized_model_is_refused(model: str, tiny_text: Path, tmp_path: Path) -> None:
    quantize(model, tmp_path / "once", calibration=tiny_text, method="rtn", **SMALL)
    with pytest.raises(ValueError, match="quantized already"):
        quantize(str(tmp_path / "once"), tmp_path / "twice", calibration=tiny_text, **SMALL)


def test_the_model_writes_its_own_text(model: str, tmp_path: Path) -> None:
    """The same seed gives the same bytes, another one others."""
    small: dict[str, Any] = {"method": "gptq", "samples": 3, "sequence_length": 24, "evaluation_samples": 2}
    reports = [
        quantize(model, tmp_path / name, seed=seed, **small)
        for name, seed in zip("abc", (5, 5, 6), strict=True)
    ]
    a, b, c = (contents(tmp_path / name)["model.safetensors"] for name in "abc")
    assert a == b
    assert a != c
    assert reports[0].held_out_text == "written by the model itself, seed 5"


def test_evaluation_text_of_its_own(model: str, tiny_text: Path, tmp_path: Path) -> None:
    report = quantize(
        model, tmp_path / "out", calibration=tiny_text, evaluation=tiny_text, method="gptq", **SMALL
    )
    assert report.held_out_text == f"the first 3 x 48 tokens of {tiny_text.name}"


@pytest.mark.parametrize(("family", "method"), [("mixtral", "rtn"), ("qwen3_moe", "fp8")])
def test_a_mixture(
    family: str, method: str, tiny_model: Callable[[str], Path], tiny_text: Path, tmp_path: Path
) -> None:
    report = quantize(str(tiny_model(family)), tmp_path / "out", method=method, evaluation=tiny_text, **SMALL)
    checkpoint = open_checkpoint(str(tmp_path / "out"))
    assert checkpoint.quantization is not None
    experts = [name for name in checkpoint.quantization.linears if ".experts.2." in name]
    mixtures = sum(layer.experts is not None for layer in checkpoint.spec.layers)
    assert len(experts) == 3 * mixtures
    assert not set(checkpoint.spec.router_names()) & checkpoint.quantization.linears.keys()
    assert 0 < report.quality["kl"] < 0.2
    with SequenceLogits(checkpoint, sequence_length=16) as executor:
        rows = next(iter(executor.each(np.arange(16)[None] + 4)))
    assert rows.isfinite().all()


@pytest.mark.parametrize("options", [{"method": "gptq"}, {"method": "fp8", "kv_cache_dtype": "fp8"}])
def test_what_a_mixture_cannot_be_calibrated_by(
    options: dict[str, Any], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"mixtral is a mixture of experts.*take method rtn, int8"):
        quantize(str(tiny_model("mixtral")), tmp_path / "out", **options, **SMALL)
    assert not (tmp_path / "out").exists()
