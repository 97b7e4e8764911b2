"""Checkpoints that compressed-tensors wrote load here, and ours load in transformers through it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tightpack.checkpoints.checkpoint import Checkpoint
from tightpack.checkpoints.open import open_checkpoint
from tightpack.checkpoints.quantized_writer import write_quantized
from tightpack.schemes.compressed_tensors import Fp8Layout, IntLayout
from tightpack.schemes.compressed_tensors_config import read_recipe
from tightpack.schemes.quantized import (
    ActivationFormat,
    Fp8Weight,
    IntWeight,
    KVCacheFormat,
    QuantizedLinear,
)
from tightpack.torch_backend.attention import GatheredAttention
from tightpack.torch_backend.decoder import Decoder
from tightpack.torch_backend.input_rounding import round_input
from tightpack.torch_backend.rounded_kv_cache import make_kv_cache
from tightpack.torch_backend.step_inputs import InputBuilder, Piece
from tightpack.torch_backend.weights import load_weights

pytest.importorskip("compressed_tensors")

from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationConfig,
    QuantizationStatus,
    apply_quantization_config,
)
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.quant_args import QuantizationArgs
from compressed_tensors.quantization.utils import calculate_qparams, compute_dynamic_scales_and_zp

INT8_TOKEN = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
FP8_TOKEN = {**INT8_TOKEN, "type": "float"}
FP8_STATIC = {**FP8_TOKEN, "strategy": "tensor", "dynamic": False}
TINY = {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def weights(bits: int, kind: str = "int", symmetric: bool = True, **fields: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": kind, "symmetric": symmetric, "dynamic": False, **fields}


def group(size: int) -> dict[str, Any]:
    return {"strategy": "group", "group_size": size}


SCHEMES: dict[str, dict[str, Any]] = {
    f"pack-{bits}-{'sym' if symmetric else 'asym'}-{where.get('group_size', where['strategy'])}": {
        "weights": weights(bits, symmetric=symmetric, **where)
    }
    for bits, symmetric, where in itertools.product(
        (4, 8), (True, False), (group(32), group(64), group(128), {"strategy": "channel"})
    )
} | {
    "int-8-channel": {"weights": weights(8, strategy="channel"), "input_activations": INT8_TOKEN},
    "int-8-asym": {
        "weights": weights(8, symmetric=False, strategy="channel"),
        "input_activations": INT8_TOKEN,
    },
    "int-8-tensor": {"weights": weights(8, strategy="tensor"), "input_activations": INT8_TOKEN},
    "int-4-group": {"weights": weights(4, **group(32)), "input_activations": INT8_TOKEN},
    "fp8-tensor": {"weights": weights(8, "float", strategy="tensor"), "input_activations": FP8_STATIC},
    "fp8-channel": {"weights": weights(8, "float", strategy="channel"), "input_activations": FP8_TOKEN},
    "fp8-block": {
        "weights": weights(8, "float", strategy="block", block_structure=[128, 128]),
        "input_activations": {**FP8_TOKEN, "strategy": "group", "group_size": 128},
    },
    "naive-fp8": {"weights": weights(8, "float", strategy="tensor")},
    "naive-4-group": {"weights": weights(4, **group(32)), "format": "naive-quantized"},
}


def observe(module: Any, scheme: Any) -> None:
    """Min-max scales, as the package's users calibrate them."""
    weight, arguments = module.weight.detach(), scheme.weights
    rows, columns = weight.shape
    if arguments.strategy == "tensor":
        blocks = weight.reshape(1, 1, -1)
    elif arguments.strategy == "block":
        height, width = arguments.block_structure
        weight = torch.nn.functional.pad(weight, (0, -columns % width, 0, -rows % height))
        rows, columns = weight.shape
        blocks = weight.reshape(rows // height, height, columns // width, width).transpose(1, 2)
        blocks = blocks.reshape(rows // height, columns // width, -1)
    else:
        blocks = weight.reshape(rows, -1, arguments.group_size or columns)
    scale, zero_point = calculate_qparams(blocks.amin(-1), blocks.amax(-1), arguments)
    module.weight_scale.data.copy_(scale.reshape(module.weight_scale.shape))
    if hasattr(module, "weight_zero_point"):
        module.weight_zero_point.data.copy_(zero_point.reshape(module.weight_zero_point.shape))
    if getattr(module, "input_scale", None) is not None:
        module.input_scale.data.fill_(0.03125)


def tiny(*, tied: bool = False) -> Any:
    torch.manual_seed(3)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY, tie_word_embeddings=tied)).eval()


def written(directory: Path, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Have the package compress a tiny model into `directory`; the weights it decompresses again."""
    model = tiny()
    apply_quantization_config(model, QuantizationConfig.model_validate(config))
    for module in model.modules():
        if getattr(getattr(module, "quantization_scheme", None), "weights", None) is not None:
            observe(module, module.quantization_scheme)
        for name in ("k_scale", "v_scale"):
            if hasattr(module, name):
                getattr(module, name).data.fill_(0.25 if name[0] == "k" else 0.5)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    compressor.quantization_config.quantization_status = QuantizationStatus.COMPRESSED
    model.save_pretrained(directory)
    compressor.update_config(directory)
    compressor.decompress_model(model)
    return {name: value.detach() for name, value in model.state_dict().items()}


@pytest.fixture
def tokenizer_files(directory_of: Callable[[str], Path]) -> Callable[[Path], None]:
    def copy(directory: Path) -> None:
        for file in directory_of("llama").glob("*token*"):
            (directory / file.name).write_bytes(file.read_bytes())

    return copy


@pytest.mark.parametrize("name", SCHEMES)
def test_the_package_s_checkpoints(
    name: str, tmp_path: Path, tokenizer_files: Callable[[Path], None]
) -> None:
    scheme = {"targets": ["Linear"], **SCHEMES[name]}
    reference = written(tmp_path, {"config_groups": {"group_0": scheme}, "ignore": ["lm_head"]})
    tokenizer_files(tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    assert checkpoint.quantization is not None
    assert checkpoint.quantization.method == "compressed-tensors"
    assert len(checkpoint.quantization.linears) == 14
    for linear in checkpoint.quantization.linears:
        quantized = checkpoint.read_linear(linear)
        np.testing.assert_array_equal(quantized.weight.dequantize(), reference[f"{linear}.weight"].float())
        assert isinstance(quantized.weight, Fp8Weight if "fp8" in name else IntWeight)
        given = scheme.get("input_activations")
        if given is None:
            assert quantized.activation is None
        else:
            assert quantized.activation == ActivationFormat(
                precision="int8" if given["type"] == "int" else "fp8",
                per=given["strategy"],
                scale=None if given["dynamic"] else 0.03125,
                group_size=given.get("group_size"),
                steps=255 if given["type"] == "int" else 254,
            )
    np.testing.assert_array_equal(checkpoint.read("lm_head.weight"), reference["lm_head.weight"])


@pytest.mark.parametrize("kind", ["int", "float"])
@pytest.mark.parametrize(
    "where",
    [
        {"strategy": "token", "dynamic": True},
        {"strategy": "group", "group_size": 32, "dynamic": True},
        {"strategy": "tensor", "dynamic": False},
    ],
    ids=["token", "group", "static"],
)
def test_inputs_are_rounded_as_the_package_rounds_them(kind: str, where: dict[str, Any]) -> None:
    """To the bit: scale, codes and what they stand for."""
    fields = {"num_bits": 8, "type": kind, "symmetric": True, **where}
    x = torch.randn(1, 50, 128, generator=torch.Generator().manual_seed(4)) * 3
    x[0, 7] = 0
    arguments = QuantizationArgs(**fields)
    if where["dynamic"]:
        scale, zero = compute_dynamic_scales_and_zp(x, arguments, torch.nn.Identity())
    else:
        scale, zero = torch.tensor([0.0625]), torch.zeros(1)
    theirs = fake_quantize(x, scale, zero.to(x.dtype), arguments)

    group = {"targets": ["Linear"], "weights": weights(8, kind, strategy="channel")}
    layout = read_recipe(
        {
            "format": "int-quantized" if kind == "int" else "float-quantized",
            "config_groups": {"group_0": {**group, "input_activations": fields}},
        }
    ).layout_of(["model.layers.0.mlp.up_proj"])
    assert isinstance(layout, IntLayout | Fp8Layout)
    assert layout.activations is not None
    form = layout.activations.read({"input_scale": np.array([0.0625], np.float32)})
    assert torch.equal(round_input(x[0], form).dequantize(), theirs[0])


class LayerAlone:
    """One decoder layer, as serving computes it in float32, on hidden states of one sequence."""

    def __init__(self, checkpoint: Checkpoint, index: int, hidden: torch.Tensor) -> None:
        cpu, whole = torch.device("cpu"), checkpoint.spec
        cache = checkpoint.kv_cache_format or KVCacheFormat(precision="fp32")
        spec = replace(whole, layers=whole.layers[index : index + 1])
        weights = load_weights(checkpoint, torch.float32, cpu)
        # An embedding whose rows are the hidden states: token t enters the layer as row t.
        alone = replace(weights, embedding=hidden, layers=weights.layers[index : index + 1])
        self._tokens = len(hidden)
        self._decoder = Decoder(spec, alone, self._tokens)
        self._attention = GatheredAttention(spec)
        self._inputs = InputBuilder(
            16, spec.num_kv_heads, frozenset([spec.layers[0].window]), torch.float32, cpu
        )
        self._blocks = tuple(range(-(-self._tokens // 16)))
        kept = replace(
            cache,
            key_scales=cache.key_scales[index : index + 1],
            value_scales=cache.value_scales[index : index + 1],
        )
        self._cache = make_kv_cache(spec, len(self._blocks), 16, kept, torch.float32, cpu)

    def output(self) -> torch.Tensor:
        piece = Piece(tuple(range(self._tokens)), 0, self._blocks)
        return self._decoder.forward(self._inputs.build([piece]), self._cache, self._attention)


@pytest.mark.parametrize("cache", [False, True], ids=["", "fp8-cache"])
@pytest.mark.parametrize("name", ["fp8-channel", "fp8-tensor", "int-8-channel", "int-4-group"])
def test_each_layer_given_what_transformers_gave_it(
    name: str, cache: bool, tmp_path: Path, tokenizer_files: Callable[[Path], None]
) -> None:
    """To the last bits of float32, but for rows that hold an 8-bit code on the edge between two.

    From end to end that cannot be asked: one code that falls to the other side moves the next layer's
    inputs by a thousandth, and with them many codes.
    """
    scheme = {"targets": ["Linear"], **SCHEMES[name]}
    cached = {"kv_cache_scheme": weights(8, "float", strategy="tensor")} if cache else {}
    written(tmp_path, {"config_groups": {"group_0": scheme}, "ignore": ["lm_head"], **cached})
    tokenizer_files(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    states: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def keep(index: int) -> Callable[[Any, Any, Any], None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            states[index] = args[0][0].clone(), output[0].reshape(args[0].shape[1:]).clone()

        return hook

    for index, layer in enumerate(model.model.layers):
        layer.register_forward_hook(keep(index))
    checkpoint = open_checkpoint(str(tmp_path))
    with torch.inference_mode():
        model(torch.randint(2, 320, (1, 60), generator=torch.Generator().manual_seed(5)))
        for index, (given, theirs) in states.items():
            ours = LayerAlone(checkpoint, index, given).output()
            error = (ours - theirs).norm(dim=-1) / (theirs - given).norm(dim=-1)
            assert (error < 2e-6).float().mean() > 0.9, f"layer {index}: {error.median():.1e}"


def test_mixed_groups_and_a_cache(tmp_path: Path, tokenizer_files: Callable[[Path], None]) -> None:
    config = {
        "config_groups": {
            "group_0": {"targets": [r"re:.*self_attn\.(q|k|v)_proj$"], "weights": weights(8, **group(64))},
            "group_1": {"targets": ["model.layers.1.mlp.down_proj"], **SCHEMES["fp8-channel"]},
            "group_2": {"targets": ["Linear"], **SCHEMES["pack-4-asym-32"]},
        },
        "ignore": ["lm_head", "re:.*o_proj"],
        "kv_cache_scheme": weights(8, "float", strategy="tensor"),
    }
    reference = written(tmp_path, config)
    tokenizer_files(tmp_path)
    assert (
        json.loads((tmp_path / "config.json").read_text())["quantization_config"]["format"]
        == "mixed-precision"
    )
    checkpoint = open_checkpoint(str(tmp_path))
    assert checkpoint.quantization is not None
    labels = checkpoint.quantization.linears
    assert labels["model.layers.0.self_attn.k_proj"] == "int8, group 64"
    assert labels["model.layers.0.mlp.down_proj"] == "int4, group 32, asymmetric"
    assert labels["model.layers.1.mlp.down_proj"] == "fp8, channel, fp8 activations"
    assert "model.layers.0.self_attn.o_proj" not in labels
    for linear in labels:
        values = checkpoint.read_linear(linear).weight.dequantize()
        np.testing.assert_array_equal(values, reference[f"{linear}.weight"].float())
        np.testing.assert_array_equal(checkpoint.read(f"{linear}.weight"), values)
    cache = checkpoint.kv_cache_format
    assert cache is not None
    assert (cache.precision, cache.key_scales, cache.value_scales) == ("fp8", (0.25, 0.25), (0.5, 0.5))


def mixed(r: ModuleType, name: str, weight: np.ndarray) -> QuantizedLinear:
    if "down_proj" in name:
        return QuantizedLinear(r.rounded_fp8(weight, (1, weight.shape[1])), r.FP8_TOKEN)
    bits: Any = 8 if "layers.0" in name else 4
    return QuantizedLinear(r.rounded(weight, bits, 32, symmetric=True))


WRITTEN: dict[str, Callable[[ModuleType, str, np.ndarray], QuantizedLinear | None]] = {
    "int4-group": lambda r, n, w: QuantizedLinear(r.rounded(w, 4, 64, symmetric=True)),
    "int4-group-asymmetric": lambda r, n, w: QuantizedLinear(r.rounded(w, 4, 64, symmetric=False)),
    "int4-channel-asymmetric": lambda r, n, w: QuantizedLinear(r.rounded(w, 4, w.shape[1], symmetric=False)),
    "int8-channel": lambda r, n, w: QuantizedLinear(r.rounded(w, 8, w.shape[1], symmetric=True)),
    "int8-group-asymmetric": lambda r, n, w: QuantizedLinear(r.rounded(w, 8, 32, symmetric=False)),
    "w8a8": lambda r, n, w: QuantizedLinear(r.rounded(w, 8, w.shape[1], symmetric=True), r.INT8_TOKEN),
    "fp8-channel": lambda r, n, w: QuantizedLinear(r.rounded_fp8(w, (1, w.shape[1])), r.FP8_TOKEN),
    "fp8-tensor-static": lambda r, n, w: QuantizedLinear(
        r.rounded_fp8(w, w.shape), ActivationFormat(precision="fp8", scale=0.03125, per="tensor")
    ),
    "fp8-weight-only": lambda r, n, w: QuantizedLinear(r.rounded_fp8(w, (1, w.shape[1]))),
    "fp8-block": lambda r, n, w: QuantizedLinear(
        r.rounded_fp8(w, (64, 64)), ActivationFormat(precision="fp8", per="group", group_size=64)
    ),
    "mixed": mixed,
    "some-dense": lambda r, n, w: (
        None if "layers.1.mlp" in n or "o_proj" in n else QuantizedLinear(r.rounded(w, 4, 32, symmetric=True))
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", WRITTEN)
def test_ours_in_transformers(
    kind: str, dtype: Any, rounding: ModuleType, tmp_path: Path, tokenizer_files: Callable[[Path], None]
) -> None:
    """Its weights are the oracle's; its logits those of a model that has the oracle's weights."""
    tied = kind == "int8-channel"
    tiny(tied=tied).save_pretrained(tmp_path / "source")
    tokenizer_files(tmp_path / "source")
    source = open_checkpoint(str(tmp_path / "source"))
    linears = dict(rounding.quantized(source, lambda n, w: WRITTEN[kind](rounding, n, w)))
    cache = KVCacheFormat(precision="fp8", key_scales=(0.25, 0.5), value_scales=(0.5, 0.125))
    write_quantized(
        source,
        iter(linears.items()),
        {},
        tmp_path / "out",
        dtype=dtype,
        kv_cache_format=cache if kind == "int4-group" else None,
    )
    torch_dtype = getattr(torch, dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokens = torch.arange(24).reshape(1, 24)
    with torch.no_grad():
        logits = model(tokens, use_cache=False).logits
    assert logits.dtype == torch_dtype
    state = model.state_dict()
    for name, linear in linears.items():
        # The package multiplies in the dtype of the scales, which is the model's.
        wanted = torch.from_numpy(linear.weight.dequantize())
        got = state[f"{name}.weight"].float()
        if dtype == "float32":
            assert torch.equal(got, wanted), name
        else:
            torch.testing.assert_close(got, wanted, rtol=2**-6, atol=1e-6)
    if dtype == "float32" and kind != "int4-group" and all(q.activation is None for q in linears.values()):
        reference = tiny(tied=tied)
        weights = {f"{n}.weight": torch.from_numpy(q.weight.dequantize()) for n, q in linears.items()}
        reference.load_state_dict({**reference.state_dict(), **weights})
        with torch.no_grad():
            torch.testing.assert_close(logits, reference(tokens).logits, rtol=1e-5, atol=1e-6)
    again = open_checkpoint(str(tmp_path / "out"))
    assert again.quantization is not None
    assert set(again.quantization.linears) == set(linears)
    assert again.kv_cache_format == (cache if kind == "int4-group" else None)
    for name, linear in linears.items():
        read = again.read_linear(name)
        assert read.activation == linear.activation
        np.testing.assert_array_equal(read.weight.dequantize(), linear.weight.dequantize())
