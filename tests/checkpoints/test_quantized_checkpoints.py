"""Quantized checkpoints of each layout, written and read; and each way they can be wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tightpack.checkpoints.checkpoint import CheckpointError
from tightpack.checkpoints.conversion import convert_checkpoint
from tightpack.checkpoints.open import open_checkpoint
from tightpack.checkpoints.quantized_tensors import linear_names
from tightpack.checkpoints.quantized_writer import write_quantized
from tightpack.schemes.quantized import (
    ActivationFormat,
    DenseWeight,
    IntWeight,
    KVCacheFormat,
    QuantizedLinear,
)

Q = "model.layers.0.self_attn.q_proj"
DOWN = "model.layers.1.mlp.down_proj"
KINDS: dict[str, tuple[str, Callable[[ModuleType, np.ndarray], QuantizedLinear]]] = {
    "ct-int4": ("compressed-tensors", lambda r, w: QuantizedLinear(r.rounded(w, 4, 32, symmetric=False))),
    "ct-w8a8": (
        "compressed-tensors",
        lambda r, w: QuantizedLinear(r.rounded(w, 8, w.shape[1], symmetric=True), r.INT8_TOKEN),
    ),
    "ct-fp8": (
        "compressed-tensors",
        lambda r, w: QuantizedLinear(
            r.rounded_fp8(w, w.shape), ActivationFormat(precision="fp8", per="tensor", scale=0.5)
        ),
    ),
    "awq": ("awq", lambda r, w: QuantizedLinear(r.rounded(w, 4, 32, symmetric=False))),
    "gptq": ("gptq", lambda r, w: QuantizedLinear(r.rounded(w, 4, 32, symmetric=True))),
    "gptq-8": ("gptq", lambda r, w: QuantizedLinear(r.rounded(w, 8, 32, symmetric=False))),
    "bitsandbytes": (
        "bitsandbytes",
        lambda r, w: QuantizedLinear(
            r.rounded(w, 8, w.shape[1], symmetric=True, scale_dtype=np.float32),
            ActivationFormat(precision="int8", outlier_threshold=6.0),
        ),
    ),
}
Make = Callable[[str], Path]


@pytest.fixture(scope="session")
def written_once(
    _saved: Callable[[str], Path], rounding: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Make:
    root = tmp_path_factory.mktemp("quantized")

    def written(kind: str) -> Path:
        directory = root / kind
        if not directory.exists():
            layout, make = KINDS[kind]
            source = open_checkpoint(str(_saved("llama")))
            linears = rounding.quantized(source, lambda name, weight: make(rounding, weight))
            cache = KVCacheFormat(precision="int8", key_scales=(0.5, 0.25), value_scales=(1.0, 2.0))
            write_quantized(
                source,
                linears,
                {},
                directory,
                layout=layout,
                dtype="float32",
                kv_cache_format=cache if kind == "ct-w8a8" else None,
            )
        return directory

    return written


@pytest.fixture
def copy_of(written_once: Make, tmp_path: Path) -> Make:
    return lambda kind: Path(shutil.copytree(written_once(kind), tmp_path / kind))


def edit(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = directory / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def configure(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= changes
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read(
    kind: str, written_once: Make, directory_of: Callable[[str], Path], rounding: ModuleType
) -> None:
    checkpoint = open_checkpoint(str(written_once(kind)))
    source = open_checkpoint(str(directory_of("llama")))
    layout, make = KINDS[kind]
    assert checkpoint.quantization is not None
    assert checkpoint.quantization.method == layout
    assert list(checkpoint.quantization.linears) == [n for n in linear_names(source.spec) if n != "lm_head"]
    assert checkpoint.spec == source.spec
    assert checkpoint.num_parameters == source.num_parameters
    for name in linear_names(source.spec):
        weight = source.read(f"{name}.weight")
        read = checkpoint.read_linear(name)
        if name == "lm_head":
            assert isinstance(read.weight, DenseWeight)
            np.testing.assert_array_equal(read.weight.values, weight)
            continue
        wanted = make(rounding, weight)
        assert read.activation == wanted.activation
        np.testing.assert_allclose(
            read.weight.dequantize(),
            wanted.weight.dequantize(),
            rtol=1e-6 if kind == "bitsandbytes" else 0,
        )
        np.testing.assert_array_equal(checkpoint.read(f"{name}.weight"), read.weight.dequantize())
        info = checkpoint.tensors.infos[f"{name}.weight"]
        assert info.shape == weight.shape
        assert info.precision in ("int4", "int8", "fp8")
        if kind != "bitsandbytes":
            # But for compressed-tensors' shapes, and GPTQ's indices and zero-points of symmetric weights.
            assert abs(info.num_bytes - read.weight.num_bytes) <= 0.3 * info.num_bytes
    if kind == "ct-w8a8":
        assert checkpoint.kv_cache_format == KVCacheFormat(
            precision="int8", key_scales=(0.5, 0.25), value_scales=(1.0, 2.0)
        )


def test_dense_checkpoints(directory_of: Callable[[str], Path]) -> None:
    for family in ("llama", "llama-tied"):
        checkpoint = open_checkpoint(str(directory_of(family)))
        assert checkpoint.quantization is None
        assert checkpoint.kv_cache_format is None
        head = "lm_head.weight" if family == "llama" else "model.embed_tokens.weight"
        for name, stored in ((Q, f"{Q}.weight"), ("lm_head", head)):
            linear = checkpoint.read_linear(name)
            assert linear.activation is None
            assert isinstance(linear.weight, DenseWeight)
            np.testing.assert_array_equal(linear.weight.values, checkpoint.read(stored))


def test_gguf_blocks_are_kept(gguf_of: Callable[[str], Any], tmp_path: Path) -> None:
    import gguf as package

    builder = gguf_of("llama")
    types = {
        "attn_q": package.GGMLQuantizationType.Q4_0,
        "attn_k": package.GGMLQuantizationType.Q4_1,
        "ffn_down": package.GGMLQuantizationType.Q8_0,
        "ffn_up": package.GGMLQuantizationType.Q5_0,
    }
    for name, (values, _) in list(builder.tensors.items()):
        kind = types.get(name.split(".")[-2])
        if kind is not None:
            builder.tensors[name] = (package.quants.quantize(values, kind), kind)
    checkpoint = open_checkpoint(str(builder.write(tmp_path / "model.gguf")))
    assert checkpoint.quantization is not None
    assert checkpoint.quantization.method == "gguf"
    labels = checkpoint.quantization.linears
    assert labels[Q] == "q4_0 (int4, group 32)"
    assert labels["model.layers.0.mlp.up_proj"] == "q5_0"
    assert "model.layers.0.mlp.gate_proj" not in labels
    bits = {"q_proj": 4, "k_proj": 4, "down_proj": 8}
    for name in linear_names(checkpoint.spec):
        weight = checkpoint.read_linear(name).weight
        np.testing.assert_allclose(
            weight.dequantize(), checkpoint.read(f"{name}.weight"), rtol=1e-6, atol=1e-9
        )
        kind = bits.get(name.rsplit(".", 1)[-1])
        assert isinstance(weight, DenseWeight if kind is None else IntWeight)
        assert kind is None or (isinstance(weight, IntWeight) and weight.bits == kind)


def drop(name: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.pop(name)


def put(name: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, Any]], object]:
    return lambda tensors: tensors.update({name: make(tensors[name])})


@pytest.mark.parametrize(
    ("kind", "change", "named"),
    [
        ("ct-int4", drop(f"{Q}.weight_scale"), f"tensor '{Q}.weight_scale' is missing"),
        ("ct-int4", drop(f"{Q}.weight_zero_point"), f"tensor '{Q}.weight_zero_point' is missing"),
        ("ct-int4", drop(f"{Q}.weight_shape"), f"tensor '{Q}.weight_shape' is missing"),
        ("ct-fp8", drop(f"{Q}.input_scale"), f"tensor '{Q}.input_scale' is missing"),
        (
            "ct-w8a8",
            drop("model.layers.1.self_attn.v_scale"),
            r"'model.layers.1.self_attn.v_scale' is missing",
        ),
        ("awq", drop(f"{Q}.qzeros"), f"tensor '{Q}.qzeros' is missing"),
        ("gptq", drop(f"{Q}.scales"), f"tensor '{Q}.scales' is missing"),
        ("gptq", drop("model.norm.weight"), "tensor 'model.norm.weight' is missing"),
        ("bitsandbytes", drop(f"{Q}.SCB"), f"tensor '{Q}.SCB' is missing"),
        (
            "ct-int4",
            lambda t: t.update({f"{Q}.weight_g_idx": torch.zeros(64, dtype=torch.int32)}),
            f"tensor '{Q}.weight_g_idx' is unknown",
        ),
        (
            "awq",
            lambda t: t.update({f"{Q}.bias": torch.ones(64)}),
            f"tensor '{Q}.bias' is unknown",
        ),
        (
            "ct-int4",
            put(f"{Q}.weight_scale", lambda v: v[:, :1]),
            r"weight_scale' has shape \[64, 1\].*\[64, 2\]",
        ),
        ("awq", put(f"{Q}.qweight", lambda v: v.T), r"qweight' has shape \[8, 64\].*makes it \[64, 8\]"),
        (
            "gptq",
            put(f"{Q}.g_idx", lambda v: v.long()),
            "g_idx' is stored as int64; its scheme makes it int32",
        ),
        ("ct-w8a8", put(f"{Q}.weight", lambda v: v.float()), "q_proj.weight' is stored as fp32;.* int8"),
        (
            "ct-fp8",
            put("model.norm.weight", lambda v: v.to(torch.float8_e4m3fn)),
            "norm.weight' is stored as fp8",
        ),
        (
            "ct-int4",
            lambda t: (
                [t.pop(n) for n in list(t) if n.startswith(Q)]
                and t.update({f"{Q}.weight": torch.ones(64, 64)})
            ),
            f"'quantization_config' has {Q} quantized, and its weight is fp32",
        ),
        (
            "ct-w8a8",
            put("model.layers.0.self_attn.k_scale", lambda v: v * 0),
            "k_scale' holds 0.0, and must hold a positive",
        ),
    ],
)
def test_wrong_tensors_are_named(kind: str, change: Any, named: str, copy_of: Make) -> None:
    directory = copy_of(kind)
    edit(directory, change)
    with pytest.raises(CheckpointError, match=named):
        open_checkpoint(str(directory))


@pytest.mark.parametrize(
    ("kind", "change", "named"),
    [
        (
            "ct-int4",
            put(f"{Q}.weight_scale", lambda v: v * float("nan")),
            "weight_scale: 128 of 128 values are NaN",
        ),
        ("awq", put(f"{Q}.scales", lambda v: v / 0), "scales: 128 of 128 values are NaN or infinite"),
        ("bitsandbytes", put(f"{Q}.SCB", lambda v: v * float("inf")), "SCB: 64 of 64 values are NaN"),
        (
            "ct-fp8",
            put(f"{Q}.weight", lambda v: torch.full_like(v.float(), float("nan")).to(v.dtype)),
            "weight: 4096 of 4096 values are NaN",
        ),
        ("ct-int4", put(f"{Q}.weight_shape", lambda v: v + 1), r"weight_shape: says \[65, 65\]"),
        ("gptq", put(f"{Q}.g_idx", lambda v: v + 1), r"g_idx: groups 1 .. 2, and there are 2 groups"),
        ("gptq", put(f"{Q}.qzeros", lambda v: v * 0), "qzeros: zero-points of 1 .. 1, and a symmetric"),
        (
            "bitsandbytes",
            put(f"{Q}.weight_format", lambda v: v + 1),
            "weight_format: holds other values than 0",
        ),
    ],
)
def test_wrong_values_are_named_when_read(kind: str, change: Any, named: str, copy_of: Make) -> None:
    directory = copy_of(kind)
    edit(directory, change)
    checkpoint = open_checkpoint(str(directory))
    with pytest.raises(CheckpointError, match=f"tensor {Q}.{named}"):
        checkpoint.read_linear(Q)
    checkpoint.read_linear(DOWN)


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        ("awq", {"group_size": 16}, r"qzeros' has shape \[2, 8\]; the configuration makes it \[4, 8\]"),
        ("awq", {"group_size": 48}, r"linear '.*q_proj': group size 48 does not divide its 64 inputs"),
        ("gptq", {"group_size": -1}, r"qzeros' has shape \[2, 8\]; the configuration makes it \[1, 8\]"),
        ("gptq", {"bits": 8}, r"qweight' has shape \[8, 64\]; the configuration makes it \[16, 64\]"),
        (
            "gptq",
            {"dynamic": {r"-:.*k_proj$": {}}},
            r"q_proj is \(int4, group 32\) and .*k_proj is not quantized; linears that read the same input",
        ),
        (
            "gptq",
            {"dynamic": {r"-:.*down_proj$": {}}},
            "down_proj.weight' are missing; 'quantization_config' leaves .* alone, and there is '.*qweight'",
        ),
        ("awq", {"quant_method": "gtpq"}, "nearest supported is 'gptq'"),
        ("awq", {"quant_method": "gptq"}, r"qweight' has shape \[64, 8\]; the .* makes it \[8, 64\]"),
        ("ct-int4", {"format": "int-quantized"}, ".weight' .*missing|is stored as"),
    ],
)
def test_configurations_against_tensors(kind: str, changes: Any, named: str, copy_of: Make) -> None:
    directory = copy_of(kind)
    if "format" in changes:
        config = json.loads((directory / "config.json").read_text())["quantization_config"]
        changes = {
            **changes,
            "config_groups": {n: {**g, "format": None} for n, g in config["config_groups"].items()},
        }
    configure(directory, **changes)
    with pytest.raises(CheckpointError, match=named):
        open_checkpoint(str(directory))


def test_a_configuration_beside_config_json(copy_of: Make) -> None:
    """As AutoGPTQ and AutoAWQ wrote it before transformers had the field; and their biases of zeros."""
    for kind, file in (("gptq", "quantize_config.json"), ("awq", "quant_config.json")):
        directory = copy_of(kind)
        config = json.loads((directory / "config.json").read_text())
        stated = config.pop("quantization_config")
        del stated["quant_method"]
        (directory / "config.json").write_text(json.dumps(config))
        (directory / file).write_text(json.dumps(stated))
        edit(directory, lambda tensors: tensors.update({f"{Q}.bias": torch.zeros(64)}))
        checkpoint = open_checkpoint(str(directory))
        assert checkpoint.quantization is not None
        assert checkpoint.quantization.method == kind


def test_cache_scales_under_their_old_names(copy_of: Make) -> None:
    directory = copy_of("ct-w8a8")

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            if name.endswith(("k_scale", "v_scale")):
                old = name.replace("k_scale", "k_proj.output_scale").replace("v_scale", "v_proj.output_scale")
                tensors[old] = tensors.pop(name).reshape(())

    edit(directory, rename)
    cache = open_checkpoint(str(directory)).kv_cache_format
    assert cache is not None
    assert (cache.key_scales, cache.value_scales) == ((0.5, 0.25), (1.0, 2.0))


def test_multimodal_names_in_the_ignore_list(
    directory_of: Callable[[str], Path], rounding: ModuleType, tmp_path: Path
) -> None:
    source = open_checkpoint(str(directory_of("gemma3")))

    def make(name: str, weight: np.ndarray) -> QuantizedLinear | None:
        return None if "o_proj" in name else QuantizedLinear(rounding.rounded(weight, 4, 32, symmetric=True))

    directory = tmp_path / "out"
    write_quantized(source, rounding.quantized(source, make), {}, directory)
    config = json.loads((directory / "config.json").read_text())
    stated = config.pop("quantization_config")
    stated["ignore"] = [name.replace("model.", "model.language_model.", 1) for name in stated["ignore"]]
    outer = {"model_type": "gemma3", "text_config": config, "quantization_config": stated}
    (directory / "config.json").write_text(json.dumps(outer))

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.replace("model.", "model.language_model.", 1)] = tensors.pop(name)

    edit(directory, rename)
    checkpoint = open_checkpoint(str(directory))
    assert checkpoint.quantization is not None
    assert not any("o_proj" in name for name in checkpoint.quantization.linears)
    assert len(checkpoint.quantization.linears) == 7 * 6


def test_conversion_dequantizes(written_once: Make, tmp_path: Path) -> None:
    quantized = open_checkpoint(str(written_once("awq")))
    convert_checkpoint(quantized, tmp_path / "out")
    converted = open_checkpoint(str(tmp_path / "out"))
    assert converted.quantization is None
    wanted = quantized.read(f"{Q}.weight").astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(converted.read(f"{Q}.weight"), wanted)


def test_overrides_shards_and_files(
    directory_of: Callable[[str], Path], rounding: ModuleType, tmp_path: Path
) -> None:
    source = open_checkpoint(str(directory_of("llama-biases")))
    norm = np.linspace(0.5, 1.5, 64, dtype=np.float32)
    bias = np.full(64, 0.25, np.float32)
    told: list[int] = []
    write_quantized(
        source,
        rounding.quantized(source, lambda n, w: QuantizedLinear(rounding.rounded(w, 4, 32, symmetric=True))),
        {"model.norm.weight": norm, f"{Q}.bias": bias},
        tmp_path / "out",
        shard_bytes=40_000,
        extra_files=lambda: {"README.md": "words"},
        written=told.append,
    )
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 1
    assert (tmp_path / "out" / "README.md").read_text() == "words"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(told)
    assert sorted(set(index["weight_map"].values())) == files
    for file in files:  # the package reads what we write
        load_file(tmp_path / "out" / file)
    checkpoint = open_checkpoint(str(tmp_path / "out"))
    np.testing.assert_array_equal(checkpoint.read("model.norm.weight"), norm.astype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(checkpoint.read(f"{Q}.bias"), bias.astype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(
        checkpoint.read("lm_head.weight"), source.read("lm_head.weight").astype(ml_dtypes.bfloat16)
    )


def test_the_same_bytes_again(
    directory_of: Callable[[str], Path], rounding: ModuleType, tmp_path: Path
) -> None:
    source = open_checkpoint(str(directory_of("llama")))
    for name in ("a", "b"):
        linears = rounding.quantized(
            source, lambda n, w: QuantizedLinear(rounding.rounded(w, 4, 32, symmetric=False))
        )
        write_quantized(source, linears, {}, tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


@pytest.mark.parametrize(
    ("make", "options", "named"),
    [
        (lambda r, n, w: None, {}, "no linear was quantized"),
        (
            lambda r, n, w: QuantizedLinear(r.rounded(w[:32], 4, 32, symmetric=True)),
            {},
            r"has shape \[32, 64\]",
        ),
        (
            lambda r, n, w: QuantizedLinear(r.rounded(w * np.nan, 4, 32, symmetric=True)),
            {},
            f"linear '{Q}': 128 of 128 scales are NaN",
        ),
        (
            lambda r, n, w: QuantizedLinear(
                IntWeight(
                    codes=np.zeros(w.shape, np.int8),
                    scales=np.ones((w.shape[0], 3), np.float32),
                    zeros=None,
                    bits=4,
                    group_size=32,
                )
            ),
            {},
            r"scales have shape \[64, 3\]; groups of 32 make it \[64, 2\]",
        ),
        (
            lambda r, n, w: QuantizedLinear(
                IntWeight(
                    codes=np.full(w.shape, 9, np.int8),
                    scales=np.ones((w.shape[0], 2), np.float32),
                    zeros=None,
                    bits=4,
                    group_size=32,
                )
            ),
            {},
            "codes of 9 .. 9, beyond -8 .. 7",
        ),
        (
            lambda r, n, w: QuantizedLinear(r.rounded(w, 4, 32 if "k_proj" in n else 16, symmetric=True)),
            {},
            "groups of 16.*k_proj is int4 in symmetric groups of 32.*linears of one input must share",
        ),
        (
            lambda r, n, w: QuantizedLinear(r.rounded(w, 4, 32 if "down" in n else 16, symmetric=True)),
            {"layout": "awq"},
            "groups of 16 and 32; this layout has one size; layout 'awq'",
        ),
        (lambda r, n, w: QuantizedLinear(DenseWeight(w * np.nan)), {}, f"'{Q}.weight' holds NaN"),
        (lambda r, n, w: None, {"layout": "marlin"}, "layout 'marlin' is not written; supported"),
        (
            lambda r, n, w: None,
            {"kv_cache_format": KVCacheFormat(precision="fp8", key_scales=(1.0,), value_scales=(1.0,))},
            "1 key scales for 2 layers",
        ),
        (
            lambda r, n, w: None,
            {
                "layout": "awq",
                "kv_cache_format": KVCacheFormat(
                    precision="fp8", key_scales=(1.0, 1.0), value_scales=(1.0, 1.0)
                ),
            },
            "layout 'awq' holds no scales of the KV cache",
        ),
        (lambda r, n, w: None, {"overrides": {"model.norm.weight": np.ones(3)}}, r"shape \[3\], not \[64\]"),
        (lambda r, n, w: None, {"overrides": {"x": np.ones(3)}}, "'x' has no place"),
        (lambda r, n, w: None, {"overrides": {f"{Q}.weight": np.ones((64, 64))}}, "is a linear's weight"),
        (
            lambda r, n, w: None,
            {"overrides": {"model.norm.weight": np.full(64, 1e6)}, "dtype": "float16"},
            "'model.norm.weight' holds NaN, or values beyond float16",
        ),
    ],
)
def test_what_is_refused_leaves_nothing(
    make: Any,
    options: dict[str, Any],
    named: str,
    directory_of: Callable[[str], Path],
    rounding: ModuleType,
    tmp_path: Path,
) -> None:
    source = open_checkpoint(str(directory_of("llama")))
    linears = rounding.quantized(source, lambda name, weight: make(rounding, name, weight))
    with pytest.raises(CheckpointError, match=named):
        write_quantized(source, linears, options.pop("overrides", {}), tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_in_the_stream_leaves_nothing(directory_of: Callable[[str], Path], tmp_path: Path) -> None:
    source = open_checkpoint(str(directory_of("llama")))

    def failing() -> Any:
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        write_quantized(source, failing(), {}, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    linear = QuantizedLinear(
        IntWeight(
            codes=np.zeros((64, 64), np.int8),
            scales=np.ones((64, 1), np.float32),
            zeros=None,
            bits=8,
            group_size=64,
        )
    )
    with pytest.raises(CheckpointError, match="came twice"):
        write_quantized(source, iter([(Q, linear), (Q, linear)]), {}, tmp_path / "out")
    with pytest.raises(CheckpointError, match="'x' is none of the model's"):
        write_quantized(source, iter([("x", linear)]), {}, tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("")
    with pytest.raises(CheckpointError, match="not an empty directory"):
        write_quantized(source, iter([]), {}, tmp_path / "out")


def test_hugging_face_fp8_blocks(
    directory_of: Callable[[str], Path], rounding: ModuleType, tmp_path: Path
) -> None:
    """As transformers' FP8Linear keeps them; on a CPU it dequantizes as it loads."""
    pytest.importorskip("accelerate")
    directory = Path(shutil.copytree(directory_of("llama"), tmp_path / "fp8"))
    source = open_checkpoint(str(directory_of("llama")))
    weights = {
        name: rounding.rounded_fp8(source.read(f"{name}.weight"), (32, 32))
        for name in linear_names(source.spec)
        if name != "lm_head"
    }

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name, weight in weights.items():
            tensors[f"{name}.weight"] = torch.from_numpy(weight.codes.view(np.uint8)).view(
                torch.float8_e4m3fn
            )
            tensors[f"{name}.weight_scale_inv"] = torch.from_numpy(weight.scales)

    edit(directory, change)
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [32, 32],
    }
    (directory / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(str(directory))
    assert checkpoint.quantization is not None
    assert checkpoint.quantization.method == "fp8"
    state = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).state_dict()
    for name, weight in weights.items():
        read = checkpoint.read_linear(name)
        np.testing.assert_array_equal(read.weight.dequantize(), weight.dequantize())
        np.testing.assert_allclose(read.weight.dequantize(), state[f"{name}.weight"].numpy(), rtol=1e-2)
        assert read.activation == ActivationFormat(precision="fp8", per="group", group_size=32)
    edit(directory, drop(f"{Q}.weight_scale_inv"))
    with pytest.raises(CheckpointError, match=f"'{Q}.weight_scale_inv' is missing"):
        open_checkpoint(str(directory))
