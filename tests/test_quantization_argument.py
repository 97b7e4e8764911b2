"""quantization= and kv_cache_dtype=: what they give, what they cost in nats, and what contradicts them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tightpack import LLM, SamplingParams
from tightpack.checkpoints.checkpoint import Checkpoint, QuantizationInfo
from tightpack.checkpoints.open import open_checkpoint
from tightpack.cli.main import app
from tightpack.engine_args import EngineArgs
from tightpack.on_load import with_quantization
from tightpack.requests.request import Request
from tightpack.scheduling.plan import Chunk
from tightpack.schemes.quantized import (
    ActivationFormat,
    DenseWeight,
    Fp8Weight,
    IntWeight,
    KVCacheFormat,
    QuantizedLinear,
)

LINEAR = "model.layers.3.mlp.down_proj"
TEXT = """\
The ferry to the island leaves twice a day, at seven in the morning and at four in the afternoon, and the \
crossing takes a little under an hour when the sea is calm. Most of the passengers are schoolchildren, \
fishermen, and the two nurses who run the small clinic above the harbour. In summer there are tourists as \
well, with bicycles and tents, and then the captain has to leave some of them on the quay and come back \
for a third time. He does not mind. His grandfather had the same boat, or at least the same name painted \
on another one, and rowed it across with letters, flour and now and then a cow. What has changed, he \
says, is the weather: the storms come earlier in the year, the ice no longer closes the bay, and the \
birds that used to leave in September stay until the first week of November. He writes all of it in a \
notebook with a green cover, the dates on the left and the wind on the right, and at the end of every \
year he sends a copy to the university, where a young woman types the numbers into a table and thanks him \
with a postcard.
"""


@pytest.fixture(scope="module", autouse=True)
def single_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def original() -> Checkpoint:
    """The bundled model as one that nobody has quantized."""
    return replace(open_checkpoint("smollm2-135m"), quantization=None)


@contextmanager
def engine(original: Checkpoint, executor: str, **arguments: Any) -> Iterator[LLM]:
    dtype = "float32" if executor == "torch" else "auto"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tightpack.engine.open_checkpoint", lambda model: original)
        llm = LLM(
            dtype=dtype, executor=executor, max_model_len=512, max_num_seqs=2, num_blocks=40, **arguments
        )
    yield llm
    llm.engine.executor.close()


def log_probabilities(llm: LLM) -> torch.Tensor:
    tokens = tuple(llm.get_tokenizer().encode(TEXT))
    executor: Any = llm.engine.executor
    request = Request(
        request_id="r",
        prompt_token_ids=tokens,
        params=SamplingParams(),
        seed=0,
        max_output_tokens=1,
    )
    blocks = tuple(range(-(-len(tokens) // executor.block_size)))
    logits = executor.logits([Chunk(request, 0, len(tokens), blocks)])
    return torch.log_softmax(torch.as_tensor(logits), -1)


@pytest.fixture(scope="module")
def reference(original: Checkpoint) -> torch.Tensor:
    with engine(original, "torch") as llm:
        return log_probabilities(llm)


# Nats; about a third more than measured on longer text.
PRICES = [
    ({"quantization": "int8"}, "int8", 0.01),
    ({"quantization": "w8a8"}, "w8a8", 0.05),
    ({"quantization": "llm.int8"}, "llm.int8", 0.03),
    ({"quantization": "fp8"}, "fp8", 0.06),
    ({"quantization": "int4"}, "int4", 0.6),
    ({"kv_cache_dtype": "fp8"}, "none", 0.02),
    ({"kv_cache_dtype": "int8"}, "none", 0.004),
]


@pytest.mark.parametrize("executor", ["native", "torch"])
@pytest.mark.parametrize(("arguments", "described", "most"), PRICES, ids=[str(p[0]) for p in PRICES])
def test_the_price(
    original: Checkpoint,
    reference: torch.Tensor,
    arguments: dict[str, str],
    described: str,
    most: float,
    executor: str,
) -> None:
    with engine(original, executor, **arguments) as llm:
        ours = log_probabilities(llm)
        divergence = (reference.exp() * (reference - ours)).sum(-1).mean().item()
        # Natively inputs of integer weights are in 8 bits too, the head's among them.
        assert 1e-5 < divergence < most + (0.005 if executor == "native" else 0)
        [output] = llm.generate(
            ["The capital of France is"], SamplingParams(temperature=0, max_tokens=8), use_tqdm=False
        )
        assert "Paris" in output.outputs[0].text
        description = llm.engine.executor.description
        assert description["quantization"] == described
        assert description["kv_cache_dtype"].startswith(
            arguments.get("kv_cache_dtype", "float32" if executor == "torch" else "bfloat16")
        )


def test_each_method_gives_its_scheme(original: Checkpoint) -> None:
    def linear(method: str, **more: Any) -> QuantizedLinear:
        return with_quantization(original, EngineArgs(quantization=method, **more)).read_linear(LINEAR)

    for method, activation in {
        "int8": None,
        "w8a8": ActivationFormat(precision="int8"),
        "llm.int8": ActivationFormat(precision="int8", outlier_threshold=6.0),
    }.items():
        weight = linear(method).weight
        assert isinstance(weight, IntWeight)
        assert (weight.bits, weight.group_size, weight.symmetric) == (8, 1536, True)
        assert linear(method).activation == activation
    lower = linear("llm.int8", llm_int8_threshold=4.5).activation
    assert lower is not None
    assert lower.outlier_threshold == 4.5
    four = linear("int4")
    assert isinstance(four.weight, IntWeight)
    # 128 does not divide 576.
    assert (four.weight.bits, four.weight.group_size, four.weight.symmetric) == (4, 64, False)
    assert four.activation is None
    eight = linear("fp8")
    assert isinstance(eight.weight, Fp8Weight)
    assert eight.weight.block == (1, 1536)
    assert eight.activation == ActivationFormat(precision="fp8")


def test_the_head_the_embedding_and_the_norms_stay(original: Checkpoint) -> None:
    loaded = with_quantization(original, EngineArgs(quantization="int4"))
    for name in ("model.embed_tokens.weight", "model.norm.weight", "model.layers.0.input_layernorm.weight"):
        assert np.array_equal(loaded.read(name), original.read(name))
    assert type(loaded.read_linear("lm_head").weight) is type(original.read_linear("lm_head").weight)
    assert loaded.quantization is not None
    assert len(loaded.quantization.linears) == 30 * 7
    assert not np.array_equal(loaded.read(f"{LINEAR}.weight"), original.read(f"{LINEAR}.weight"))


class OneKind:
    """Tensors of another source, every linear alike."""

    def __init__(self, original: Checkpoint, linear: QuantizedLinear) -> None:
        self._original = original
        self._linear = linear

    @property
    def infos(self) -> Any:
        return self._original.tensors.infos

    def read(self, name: str) -> Any:
        return self._original.read(name)

    def read_linear(self, name: str) -> QuantizedLinear:
        return self._linear


FP8 = QuantizedLinear(
    Fp8Weight(
        codes=np.zeros((2, 4), ml_dtypes.float8_e4m3fn), scales=np.ones((1, 1), np.float32), block=(2, 4)
    ),
    ActivationFormat(precision="fp8"),
)
KINDS = {
    "int4": QuantizedLinear(
        IntWeight(
            codes=np.zeros((2, 4), np.int8),
            scales=np.ones((2, 1), np.float32),
            zeros=None,
            bits=4,
            group_size=4,
        )
    ),
    "fp8": FP8,
    "dense": QuantizedLinear(DenseWeight(np.zeros((2, 4), np.float32))),
}


def stored(original: Checkpoint, method: str, kind: str) -> Checkpoint:
    info = QuantizationInfo(method, {LINEAR: f"{kind}, some label"})
    return replace(original, tensors=OneKind(original, KINDS[kind]), quantization=info)


@pytest.mark.parametrize(
    ("method", "kind", "argument"),
    [
        ("awq", "int4", "awq"),
        ("awq", "int4", "awq_marlin"),
        ("gptq", "int4", "int4"),
        ("compressed-tensors", "int4", "compressed-tensors"),
        ("compressed-tensors", "int4", "awq"),
        ("compressed-tensors", "int4", "gptq"),
        ("compressed-tensors", "fp8", "fp8"),
        ("fp8", "fp8", "fp8"),
        ("gguf", "int4", "gguf"),
        ("gguf", "int4", "int4"),
        ("awq", "int4", None),
    ],
)
def test_an_argument_that_agrees_changes_nothing(
    original: Checkpoint, method: str, kind: str, argument: str | None
) -> None:
    checkpoint = stored(original, method, kind)
    assert with_quantization(checkpoint, EngineArgs(quantization=argument)) is checkpoint


@pytest.mark.parametrize(
    ("method", "kind", "argument"),
    [
        ("awq", "int4", "gptq"),
        ("gptq", "int4", "fp8"),
        ("compressed-tensors", "fp8", "awq"),
        ("compressed-tensors", "int4", "int8"),
        ("fp8", "fp8", "bitsandbytes"),
        ("gguf", "int4", "awq"),
    ],
)
def test_a_contradiction_names_both(original: Checkpoint, method: str, kind: str, argument: str) -> None:
    with pytest.raises(
        ValueError, match=rf"'{argument}' contradicts .*smollm2-135m.* {method} \({kind}, some"
    ):
        with_quantization(stored(original, method, kind), EngineArgs(quantization=argument))


def test_a_gguf_may_be_quantized_again_but_not_in_silence(
    original: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    again = with_quantization(stored(original, "gguf", "int4"), EngineArgs(quantization="fp8"))
    assert isinstance(again.read_linear(LINEAR).weight, Fp8Weight)
    assert "quantized already (gguf)" in caplog.text


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_what_needs_calibration_says_how(original: Checkpoint, method: str) -> None:
    with pytest.raises(ValueError, match=f"tightpack quantize MODEL --method {method} -o DIR"):
        with_quantization(original, EngineArgs(quantization=method))


def test_the_other_formats_of_files_are_not_made_on_loading(original: Checkpoint) -> None:
    with pytest.raises(
        ValueError, match=r"is not quantized; 'int8', 'w8a8', 'llm.int8', 'int4', 'fp8' quantize"
    ):
        with_quantization(original, EngineArgs(quantization="compressed-tensors"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"quantization": "llm_int8"}, r"did you mean 'llm.int8'\?"),
        ({"quantization": "marlin"}, "it must be one of awq, gptq"),
        ({"kv_cache_dtype": "fp9"}, r"did you mean 'fp8'\?"),
        ({"quantization": "llm.int8", "llm_int8_threshold": 0}, "must be above 0"),
        ({"llm_int8_threshold": 5.0}, "with quantization='llm.int8' only"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EngineArgs(**arguments)


def test_weights_that_are_not_numbers_are_named(original: Checkpoint) -> None:
    weight = DenseWeight(np.full((2, 4), np.nan, np.float32))

    class Broken(OneKind):
        def read(self, name: str) -> Any:
            return weight.values

    broken = replace(original, tensors=Broken(original, QuantizedLinear(weight)))
    loaded = with_quantization(broken, EngineArgs(quantization="int8"))
    with pytest.raises(ValueError, match=rf"smollm2-135m: {LINEAR}.weight: "):
        loaded.read_linear(LINEAR)


@pytest.mark.parametrize("executor", ["native", "torch"])
def test_the_checkpoints_cache_format_is_used(original: Checkpoint, executor: str) -> None:
    calibrated = KVCacheFormat(precision="fp8", key_scales=(0.05,) * 30, value_scales=(0.02,) * 30)
    checkpoint = replace(original, kv_cache_format=calibrated)
    with engine(checkpoint, executor) as llm:
        assert llm.engine.executor.description["kv_cache_dtype"] == "fp8 with calibrated scales"


@pytest.mark.parametrize("command", [("generate", "Hi"), ("bench",), ("serve",)])
def test_the_commands_take_it(command: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*command, "--quantization", "fp9", "--kv-cache-dtype", "fp8"])
    assert isinstance(result.exception, ValueError)
    assert "quantization='fp9' is not known; did you mean 'fp8'?" in str(result.exception)
