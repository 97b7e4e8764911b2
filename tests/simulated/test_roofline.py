from __future__ import annotations

from dataclasses import replace

import pytest

from tightpack.architectures.registry import model_spec
from tightpack.simulated.catalogue import load_catalogue
from tightpack.simulated.hardware import Hardware, Interconnect, Precision, precision
from tightpack.simulated.roofline import Efficiency, RooflineCostModel

H100 = load_catalogue()["h100"]
# Full data-sheet rates and no overhead: what can be counted by hand.
IDEAL = Efficiency(linear=1.0, attention=1.0, memory=1.0, link=1.0, overhead_s=0.0)
# 70.55e9 parameters less the norms, of which 1.05e9 each are the embedding and the head.
LAYER_WEIGHTS = 80 * (8192 * (64 + 16) * 128 + 64 * 128 * 8192 + 3 * 8192 * 28672)
HEAD_WEIGHTS = 128256 * 8192


def test_a_70b_in_16_bits_takes_141_gb_and_its_kv_cache_320_kib_a_token(llama70b):
    model = RooflineCostModel(llama70b, H100)
    assert model.weight_bytes == 2 * (LAYER_WEIGHTS + 2 * HEAD_WEIGHTS)
    assert model.weight_bytes == pytest.approx(141.1e9, rel=1e-3)
    assert model.kv_bytes_per_token == 80 * 2 * 8 * 128 * 2 == 320 * 1024


def test_quantized_weights_take_their_bits_and_the_head_stays(llama70b):
    int4 = RooflineCostModel(llama70b, H100, precision("int4"))
    assert int4.weight_bytes == LAYER_WEIGHTS * (4 + 20 / 128) / 8 + 2 * 2 * HEAD_WEIGHTS
    fp8_cache = RooflineCostModel(llama70b, H100, replace(precision("int4"), kv_bits=8))
    assert fp8_cache.kv_bytes_per_token == 160 * 1024


def test_one_decode_reads_every_weight_but_the_embedding(llama70b, make_plan):
    model = RooflineCostModel(llama70b, H100, efficiency=IDEAL)
    by_operation = model.seconds_by_operation(make_plan((0, 1)))
    weights_s = 2 * (LAYER_WEIGHTS + HEAD_WEIGHTS) / 3.35e12
    assert by_operation["linears"] + by_operation["head"] == pytest.approx(weights_s, rel=1e-3)
    # Everything else of a step with one position of context is next to nothing.
    assert model.step_seconds(make_plan((0, 1))) == pytest.approx(weights_s, rel=3e-3)


def test_a_long_prompt_takes_two_operations_a_weight_and_token(llama70b, make_plan):
    model = RooflineCostModel(llama70b, H100, efficiency=IDEAL)
    by_operation = model.seconds_by_operation(make_plan((0, 4096)))
    assert by_operation["linears"] == pytest.approx(2 * 4096 * LAYER_WEIGHTS / 989e12, rel=1e-6)
    pairs = 4096 * 4097 / 2
    assert by_operation["prompt_attention"] == pytest.approx(80 * 4 * pairs * 64 * 128 / 989e12, rel=1e-6)
    # Only the last row is sampled after: the head reads its weights once.
    assert by_operation["head"] == pytest.approx(2 * HEAD_WEIGHTS / 3.35e12, rel=1e-3)


def test_a_prompt_that_goes_on_computes_no_head(llama70b, make_plan):
    assert "head" not in RooflineCostModel(llama70b, H100).seconds_by_operation(make_plan((0, 64, False)))


def test_decodes_share_the_weights_and_read_each_their_own_cache(llama70b, make_plan):
    model = RooflineCostModel(llama70b, H100, efficiency=IDEAL)
    one = model.seconds_by_operation(make_plan((999, 1)))
    many = model.seconds_by_operation(make_plan(*[(999, 1)] * 32))
    assert many["linears"] == pytest.approx(one["linears"], rel=0.02)
    cache_s = 32 * 1000 * 320 * 1024 / 3.35e12
    assert many["decode_attention"] == pytest.approx(cache_s, rel=0.02)


def test_fp8_doubles_the_arithmetic_and_weight_only_int8_only_the_reading(llama70b, make_plan):
    prompt, decode = make_plan((0, 4096)), make_plan((0, 1))

    def linears(name: str, plan) -> float:
        model = RooflineCostModel(llama70b, H100, precision(name), efficiency=IDEAL)
        return model.seconds_by_operation(plan)["linears"]

    assert linears("fp8", prompt) == pytest.approx(linears("bf16", prompt) * 989 / 1979, rel=1e-6)
    assert linears("int8", prompt) == linears("bf16", prompt)
    assert linears("int8", decode) == pytest.approx(linears("bf16", decode) / 2, rel=1e-3)


def test_tensor_parallel_divides_the_work_and_adds_two_all_reduces_a_layer(llama70b, make_plan):
    whole = RooflineCostModel(llama70b, H100, efficiency=IDEAL)
    split = RooflineCostModel(llama70b, H100, tensor_parallel_size=8, efficiency=IDEAL)
    assert split.weight_bytes == pytest.approx(whole.weight_bytes / 8)
    assert split.kv_bytes_per_token == whole.kv_bytes_per_token / 8
    plan = make_plan((0, 1000))
    one, eight = whole.seconds_by_operation(plan), split.seconds_by_operation(plan)
    assert eight["linears"] == pytest.approx(one["linears"] / 8, rel=1e-6)
    sent = 2 * 7 / 8 * 1000 * 8192 * 2
    assert eight["all_reduce"] == pytest.approx(160 * (8e-6 + sent / 450e9))
    assert one["all_reduce"] == 0


def test_more_devices_than_kv_heads_hold_the_same_head_twice(llama70b):
    sixteen = RooflineCostModel(llama70b, H100, tensor_parallel_size=16)
    eight = RooflineCostModel(llama70b, H100, tensor_parallel_size=8)
    assert sixteen.kv_bytes_per_token == eight.kv_bytes_per_token


def test_a_sliding_window_bounds_what_attention_reads(make_plan):
    config = {
        "model_type": "mistral",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 32768,
        "rope_theta": 10000.0,
    }
    windowed = RooflineCostModel(model_spec(config | {"sliding_window": 1024}), H100)
    full = RooflineCostModel(model_spec(config | {"sliding_window": None}), H100)
    far, near = make_plan((8191, 1)), make_plan((1023, 1))

    def attention(model: RooflineCostModel, plan) -> float:
        return model.seconds_by_operation(plan)["decode_attention"]

    assert attention(windowed, far) == attention(full, near)
    assert attention(full, far) == pytest.approx(8 * attention(full, near), rel=0.01)


def test_blocks_are_what_the_weights_leave(llama70b):
    model = RooflineCostModel(llama70b, H100, tensor_parallel_size=4)
    blocks = model.num_blocks(16, memory_utilization=0.9)
    assert blocks * 16 * 80 * 1024 <= 72e9 - model.weight_bytes < (blocks + 1) * 16 * 80 * 1024
    with pytest.raises(MemoryError, match=r"141.1 GB on each of 1 h100-sxm .*tensor_parallel_size"):
        RooflineCostModel(llama70b, H100).num_blocks(16)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tensor_parallel_size": 3}, "does not divide 64 attention heads"),
        ({"tensor_parallel_size": 0}, "at least 1"),
        (
            {
                "hardware": Hardware(name="lone", memory_bytes=1e9, bandwidth=1e9, rates={"bf16": 1e12}),
                "tensor_parallel_size": 2,
            },
            "lone has no interconnect",
        ),
        (
            {
                "hardware": Hardware(name="old", memory_bytes=1e9, bandwidth=1e9, rates={"bf16": 1e12}),
                "precision": precision("fp8"),
            },
            "old has no fp8 arithmetic",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(llama70b, changes, said):
    with pytest.raises(ValueError, match=said):
        RooflineCostModel(llama70b, **({"hardware": H100} | changes))


def test_names_and_numbers_of_hardware_are_checked():
    with pytest.raises(ValueError, match="did you mean 'h100'"):
        load_catalogue()["h10"]
    with pytest.raises(ValueError, match="did you mean 'fp8'"):
        precision("fp")
    with pytest.raises(ValueError, match="bandwidth must be above 0"):
        Interconnect(name="link", bandwidth=0, latency_s=1e-6)
    with pytest.raises(ValueError, match="must hold bf16"):
        Hardware(name="odd", memory_bytes=1e9, bandwidth=1e9, rates={"fp8": 1e12})
    with pytest.raises(TypeError, match="did you mean 'weight_bits'"):
        Precision(weigth_bits=4)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"memory must be in \(0, 1\]"):
        Efficiency(memory=1.1)
