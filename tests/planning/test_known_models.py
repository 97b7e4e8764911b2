from __future__ import annotations

import json
from pathlib import Path

import pytest

from tightpack.planning.models import known_models, open_model
from tightpack.simulated.hardware import PRECISIONS

# Billions of parameters, as their makers state them.
PUBLISHED = {
    "llama-3-8b": 8.03,
    "llama-3-70b": 70.55,
    "llama-3.1-8b": 8.03,
    "llama-3.1-70b": 70.55,
    "llama-3.1-405b": 405.85,
    "llama-3.2-1b": 1.24,
    "llama-3.2-3b": 3.21,
    "llama-3.3-70b": 70.55,
    "qwen2.5-0.5b": 0.49,
    "qwen2.5-1.5b": 1.54,
    "qwen2.5-3b": 3.09,
    "qwen2.5-7b": 7.62,
    "qwen2.5-14b": 14.77,
    "qwen2.5-32b": 32.76,
    "qwen2.5-72b": 72.71,
    "qwen3-0.6b": 0.60,
    "qwen3-1.7b": 1.72,
    "qwen3-4b": 4.02,
    "qwen3-8b": 8.19,
    "qwen3-14b": 14.77,
    "qwen3-32b": 32.76,
    "qwen3-30b-a3b": 30.53,
    "qwen3-235b-a22b": 235.09,
    "mistral-7b": 7.25,
    "mistral-nemo-12b": 12.25,
    "mistral-small-24b": 23.57,
    "mistral-large-123b": 122.61,
    "mixtral-8x7b": 46.70,
    "mixtral-8x22b": 140.63,
    "gemma-3-1b": 1.00,
    "gemma-3-4b": 3.88,  # of the text
    "gemma-3-12b": 11.77,
    "gemma-3-27b": 27.01,
}


def test_every_known_model_has_the_parameters_that_its_maker_states():
    assert set(known_models()) == set(PUBLISHED)
    for name, billions in PUBLISHED.items():
        assert open_model(name).parameters / 1e9 == pytest.approx(billions, abs=0.006), name


def test_a_70b_takes_140_gb_in_16_bits_70_in_8_and_35_and_scales_in_4(llama70b):
    def gigabytes(precision: str) -> float:
        return llama70b.weights_bytes(PRECISIONS[precision]) / 1e9

    assert gigabytes("bf16") == pytest.approx(140, rel=0.01)
    # Embedding and head, 2.1 B parameters, stay in 16 bits: 2.1 GB above a byte for everything.
    assert gigabytes("fp8") == gigabytes("w8a8") == gigabytes("int8") == pytest.approx(70.55 + 2.1, abs=0.05)
    scales = llama70b.linear_parameters * 20 / 128 / 8 / 1e9
    # Half a byte for everything, three bytes in two for what stays in 16 bits, and 1.3 GB of scales.
    assert gigabytes("int4") == pytest.approx(35.3 + 1.5 * 2.1 + scales, abs=0.1)
    assert scales == pytest.approx(1.34, abs=0.01)


def test_a_mixture_of_experts_has_fewer_active_parameters():
    mixtral, qwen = open_model("mixtral-8x7b"), open_model("qwen3-30b-a3b")
    assert mixtral.active_parameters / 1e9 == pytest.approx(12.88, abs=0.01)
    assert qwen.active_parameters / 1e9 == pytest.approx(3.35, abs=0.01)


def test_a_hub_id_is_a_name_too_and_a_configuration_is_enough(tmp_path: Path):
    assert open_model("meta-llama/Llama-3.1-8B-Instruct").name == "llama-3.1-8b"
    config = {name: value for name, value in known_models()["qwen3-8b"].items() if name != "hub"}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    for given in (str(file), str(tmp_path)):
        model = open_model(given)
        assert model.parameters == open_model("qwen3-8b").parameters
        assert model.served == str(tmp_path)


@pytest.mark.parametrize(
    ("quantization", "name", "bits", "arithmetic"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "awq", 4 + 20 / 128, "bf16"),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "gptq", 8, "bf16"),
        ({"quant_method": "fp8"}, "fp8", 8, "fp8"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "group_0": {
                        "weights": {"num_bits": 8, "type": "int"},
                        "input_activations": {"num_bits": 8},
                    }
                },
            },
            "w8a8",
            8,
            "int8",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 64}}},
            },
            "int4",
            4 + 20 / 64,
            "bf16",
        ),
    ],
)
def test_a_quantized_checkpoint_is_what_it_says(tmp_path: Path, quantization, name, bits, arithmetic):
    config = {**known_models()["llama-3.1-8b"], "quantization_config": quantization}
    (tmp_path / "config.json").write_text(json.dumps(config))
    stored = open_model(str(tmp_path)).stored
    assert (stored.name, stored.weight_bits, stored.arithmetic) == (name, bits, arithmetic)


def test_the_bundled_model_is_as_large_as_its_file():
    model = open_model("smollm2-135m")
    # The file holds little beside the tensors: its tokenizer and metadata.
    assert model.weights_bytes(model.stored) == pytest.approx(94e6, rel=0.06)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("lama-3.1-8b", "did you mean 'llama-3.1-8b'"),
        ("no/such/thing", "is not known, and there is no such file or directory"),
    ],
)
def test_unknown_models_are_refused_with_the_nearest(given, said):
    with pytest.raises(ValueError, match=said):
        open_model(given)


def test_files_that_are_no_configuration_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        open_model(str(tmp_path))
    file = tmp_path / "config.json"
    file.write_text("[1]")
    with pytest.raises(ValueError, match="must hold a JSON object"):
        open_model(str(file))
    file.write_text(
        json.dumps({**known_models()["llama-3.1-8b"], "quantization_config": {"quant_method": "hqq"}})
    )
    with pytest.raises(ValueError, match="'hqq', of which a plan knows no sizes"):
        open_model(str(file))
