"""GGUF files: each family against the directory with the same weights, each precision, each error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest

from tightpack.checkpoints.checkpoint import CheckpointError
from tightpack.checkpoints.gguf_file import GgufFile
from tightpack.checkpoints.open import bundled_gguf, open_checkpoint

FAMILIES = [
    "llama",
    "llama-tied",
    "llama-biases",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma3",
    "mixtral",
    "qwen3_moe",
]
QUANTIZED = ["Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q4_K", "Q6_K"]
UP = "blk.1.ffn_up.weight"


@pytest.mark.parametrize("family", FAMILIES)
def test_family_equals_its_directory(
    family: str, gguf_of: Callable[[str], Any], directory_of: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(str(gguf_of(family).write(tmp_path / f"{family}.gguf")))
    reference = open_checkpoint(str(directory_of(family)))
    assert checkpoint.name == family
    for name in reference.spec.tensor_shapes():
        # Gemma's norms were stored + 1, in float32.
        tolerance = 1e-7 if family == "gemma3" and "norm" in name else 0
        np.testing.assert_allclose(checkpoint.read(name), reference.read(name), rtol=0, atol=tolerance)
    for field in checkpoint.spec.__slots__:
        if field == "embedding_scale" and family == "gemma3":
            assert checkpoint.spec.embedding_scale == float(ml_dtypes.bfloat16(8))
        else:
            assert getattr(checkpoint.spec, field) == getattr(reference.spec, field), field
    text = "the cat sat on the mat, naïve 😀"
    assert checkpoint.tokenizer.encode(text) == reference.tokenizer.encode(text)


@pytest.mark.parametrize("precision", QUANTIZED)
def test_quantized_tensors_are_dequantized_as_the_gguf_package_does(
    precision: str, gguf_of: Callable[[str], Any], tmp_path: Path
) -> None:
    kind = gguf.GGMLQuantizationType[precision]
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    builder = gguf_of("qwen2")
    hidden = builder.metadata["qwen2.embedding_length"]
    # Rows must hold whole blocks: make the MLP as wide as one, and quantize the one matrix whose rows are
    # that wide.
    inner = max(elements, 64)
    builder.metadata["qwen2.feed_forward_length"] = inner
    rng = np.random.default_rng(0)
    for layer in (0, 1):
        for name, shape in (("up", (inner, hidden)), ("gate", (inner, hidden)), ("down", (hidden, inner))):
            builder.tensors[f"blk.{layer}.ffn_{name}.weight"] = (
                rng.standard_normal(shape, dtype=np.float32),
                None,
            )
    stored = random_blocks(rng, precision, hidden * inner // elements, size).reshape(hidden, -1)
    builder.tensors["blk.1.ffn_down.weight"] = (stored, kind)
    checkpoint = open_checkpoint(str(builder.write(tmp_path / "model.gguf")))
    name = "model.layers.1.mlp.down_proj.weight"
    info = checkpoint.tensors.infos[name]
    assert (info.shape, info.precision, info.num_bytes) == ((hidden, inner), precision.lower(), stored.size)
    wanted = gguf.quants.dequantize(stored, kind)
    assert np.abs(wanted).max() > 0
    np.testing.assert_array_equal(checkpoint.read(name), wanted)


def random_blocks(rng: np.random.Generator, precision: str, count: int, size: int) -> np.ndarray:
    """Random codes under scales that are finite fp16 numbers."""
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    scale_offsets = {"Q4_1": (0, 2), "Q4_K": (0, 2), "Q6_K": (208,)}.get(precision, (0,))
    for offset in scale_offsets:
        scales = rng.uniform(0.001, 0.1, count).astype(np.float16)
        blocks[:, offset : offset + 2] = scales.view(np.uint8).reshape(count, 2)
    return blocks


@pytest.mark.parametrize("precision", ["Q8_0", "Q4_0", "Q5_0", "Q4_1"])
def test_rows_of_quantized_queries_are_put_back(
    precision: str, gguf_of: Callable[[str], Any], directory_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """Blocks lie along rows, so interleaved rows of blocks come back as the rows they were."""
    kind = gguf.GGMLQuantizationType[precision]
    builder = gguf_of("llama")
    for name in ("blk.0.attn_q.weight", "blk.0.attn_k.weight"):
        builder.tensors[name] = (gguf.quants.quantize(builder.tensors[name][0], kind), kind)
    checkpoint = open_checkpoint(str(builder.write(tmp_path / "model.gguf")))
    reference = open_checkpoint(str(directory_of("llama")))
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"):
        wanted = gguf.quants.dequantize(gguf.quants.quantize(reference.read(name), kind), kind)
        np.testing.assert_array_equal(checkpoint.read(name), wanted)


@pytest.mark.parametrize(("precision", "dtype"), [("F16", np.float16), ("BF16", ml_dtypes.bfloat16)])
def test_half_precisions_are_views(
    precision: str, dtype: Any, gguf_of: Callable[[str], Any], tmp_path: Path
) -> None:
    builder = gguf_of("llama")
    array = builder.tensors[UP][0]
    kind = gguf.GGMLQuantizationType[precision]
    builder.tensors[UP] = (gguf.quants.quantize(array, kind).view(np.uint8), kind)
    values = open_checkpoint(str(builder.write(tmp_path / "model.gguf"))).read(
        "model.layers.1.mlp.up_proj.weight"
    )
    assert values.dtype == dtype
    assert not values.flags.owndata
    np.testing.assert_array_equal(values, array.astype(dtype))


def test_rope_factors_become_llama3_scaling(gguf_of: Callable[[str], Any], tmp_path: Path) -> None:
    pairs = np.arange(0, 16, 2) / 16
    wavelengths = 2 * np.pi * 500_000.0**pairs
    smooth = np.clip((8192 / wavelengths - 1) / 3, 0, 1)
    factors = (1 / ((1 - smooth) / 32 + smooth)).astype(np.float32)
    builder = gguf_of("llama")
    builder.metadata["llama.rope.freq_base"] = 500_000.0
    builder.tensors["rope_freqs.weight"] = (factors, None)
    checkpoint = open_checkpoint(str(builder.write(tmp_path / "model.gguf")))
    assert checkpoint.config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    rotary = checkpoint.spec.layers[0].rotary
    np.testing.assert_allclose(rotary.inverse_frequencies, 500_000.0**-pairs / factors, rtol=1e-6)


def test_other_rope_factors_are_kept_as_they_are(gguf_of: Callable[[str], Any], tmp_path: Path) -> None:
    factors = np.linspace(1, 3, 8, dtype=np.float32)
    builder = gguf_of("llama")
    builder.tensors["rope_freqs.weight"] = (factors, None)
    rotary = open_checkpoint(str(builder.write(tmp_path / "model.gguf"))).spec.layers[0].rotary
    plain = 10_000.0 ** -(np.arange(0, 16, 2) / 16)
    np.testing.assert_allclose(rotary.inverse_frequencies, plain / factors, rtol=1e-6)
    assert rotary.magnitude == 1
    builder.tensors["rope_freqs.weight"] = (factors[:3].copy(), None)
    with pytest.raises(CheckpointError, match=r"'rope_freqs.weight' is fp32 \[3\]; it should be fp32 \[8\]"):
        open_checkpoint(str(builder.write(tmp_path / "short.gguf")))


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_rope_scaling_in_metadata(kind: str, gguf_of: Callable[[str], Any], tmp_path: Path) -> None:
    builder = gguf_of("llama")
    builder.metadata |= {
        "llama.rope.scaling.type": kind,
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 128,
    }
    scaling = open_checkpoint(str(builder.write(tmp_path / "model.gguf"))).config["rope_scaling"]
    assert (scaling["rope_type"], scaling["factor"]) == (kind, 4.0)


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"llama.block_count": None}, "metadata 'llama.block_count' is missing"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon' is missing"),
        (
            {"llama.attention.head_count_kv": [2, 1]},
            "'llama.attention.head_count_kv' must be one positive number",
        ),
        ({"llama.rope.dimension_count": 8}, "'llama.rope.dimension_count' is 8"),
        ({"llama.expert_count": 8}, "metadata 'llama.expert_used_count' is missing"),
        ({"llama.rope.scaling.type": "longrope"}, "'llama.rope.scaling.type' is 'longrope'"),
        ({"split.count": 3}, "one of 3 parts"),
        ({"tokenizer.ggml.pre": "chatglm-bpe"}, "'tokenizer.ggml.pre' is 'chatglm-bpe'; supported: gpt-2"),
        ({"tokenizer.ggml.pre": None}, "metadata 'tokenizer.ggml.pre' is missing"),
        ({"tokenizer.ggml.model": "bert"}, "'tokenizer.ggml.model' is 'bert'; supported: gpt2, llama"),
        ({"tokenizer.ggml.merges": ["x yy"]}, "'tokenizer.ggml.merges' does not fit the tokens"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "'tokenizer.ggml.token_type' has 2 entries for 320"),
        ({"tokenizer.ggml.eos_token_id": 999}, "eos_token_id' is 999, beyond the vocabulary"),
        ({"tokenizer.chat_template": "{{ x"}, "the chat template has a syntax error"),
    ],
)
def test_wrong_metadata_is_named(
    metadata: dict[str, Any], named: str, gguf_of: Callable[[str], Any], tmp_path: Path
) -> None:
    builder = gguf_of("llama")
    builder.metadata |= metadata
    builder.metadata = {key: value for key, value in builder.metadata.items() if value is not None}
    with pytest.raises(CheckpointError, match=f"model.gguf: .*{named}"):
        open_checkpoint(str(builder.write(tmp_path / "model.gguf")))


def test_unknown_architecture(gguf_of: Callable[[str], Any], tmp_path: Path) -> None:
    builder = gguf_of("llama")
    builder.architecture = "qwen35"
    with pytest.raises(
        CheckpointError, match=r"'general.architecture' is 'qwen35'.*nearest supported is 'qwen3'"
    ):
        open_checkpoint(str(builder.write(tmp_path / "model.gguf")))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop(UP), f"tensor '{UP}' is missing"),
        (lambda t: t.pop("token_embd.weight"), "tensor 'token_embd.weight' is missing"),
        (lambda t: t.update({"blk.0.ssm_a.weight": t[UP]}), "tensor 'blk.0.ssm_a.weight' is unknown"),
        (
            lambda t: t.update({UP: t["blk.0.attn_q.weight"]}),
            rf"tensor '{UP}' has shape \[64, 64\]; the configuration makes it \[96, 64\]",
        ),
        (
            lambda t: t.update({UP: (np.zeros((96, 48), np.uint8), gguf.GGMLQuantizationType.Q5_1)}),
            f"tensor '{UP}' is Q5_1; supported: FP32",
        ),
    ],
)
def test_wrong_tensors_are_named(
    change: Callable[[dict[str, Any]], object], named: str, gguf_of: Callable[[str], Any], tmp_path: Path
) -> None:
    builder = gguf_of("llama")
    change(builder.tensors)
    with pytest.raises(CheckpointError, match=f"model.gguf: {named}"):
        open_checkpoint(str(builder.write(tmp_path / "model.gguf")))


def test_files_cut_short(gguf_of: Callable[[str], Any], tmp_path: Path) -> None:
    path = gguf_of("llama").write(tmp_path / "model.gguf")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 9 // 10])
    with pytest.raises(CheckpointError, match=r"model.gguf: cut short: tensor '.*' ends at byte"):
        open_checkpoint(str(path))
    for length in [24, 30, 100, 1000, 5000]:
        with pytest.raises(CheckpointError, match=r"model.gguf: the header is cut short or damaged"):
            open_checkpoint(str(write(path, data[:length])))
    with pytest.raises(CheckpointError, match="not a GGUF file"):
        open_checkpoint(str(write(path, b"GG")))
    with pytest.raises(CheckpointError, match="GGUF version 1 is not supported"):
        open_checkpoint(str(write(path, data[:4] + b"\x01\0\0\0" + data[8:])))
    with pytest.raises(CheckpointError, match="GGUF big-endian is not supported"):
        open_checkpoint(str(write(path, data[:4] + b"\0\0\0\x03" + data[8:])))


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_damaged_headers_never_fail_otherwise(gguf_of: Callable[[str], Any], tmp_path: Path) -> None:
    path = gguf_of("llama").write(tmp_path / "model.gguf")
    data = path.read_bytes()
    start = min(tensor.offset for tensor in GgufFile(path).tensors.values())
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(80):
        damaged = bytearray(data)
        damaged[int(rng.integers(4, start))] = int(rng.integers(256))
        try:
            open_checkpoint(str(write(path, bytes(damaged))))
        except CheckpointError:
            refused += 1
    assert refused > 5


def test_parser_agrees_with_the_gguf_package(gguf_of: Callable[[str], Any], tmp_path: Path) -> None:
    path = gguf_of("llama").write(tmp_path / "model.gguf")
    ours, theirs = GgufFile(path), gguf.GGUFReader(path)
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF."):
            value = ours.metadata[key]
            assert (value.tolist() if isinstance(value, np.ndarray) else value) == field.contents(), key
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        np.testing.assert_array_equal(ours.raw(ours.tensors[tensor.name]).view(np.float32), tensor.data)


def test_bundled_model() -> None:
    checkpoint = open_checkpoint("smollm2-135m")
    assert checkpoint.num_parameters == 134_515_008
    assert checkpoint.tensors.infos["model.embed_tokens.weight"].precision == "q8_0"
    spec = checkpoint.spec
    assert (spec.num_layers, spec.hidden_size, spec.num_heads, spec.num_kv_heads) == (30, 576, 9, 3)
    assert spec.tied_embeddings
    assert spec.eos_token_ids == (2,)
    assert open_checkpoint(str(bundled_gguf().parent)).num_parameters == checkpoint.num_parameters
