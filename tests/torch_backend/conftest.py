"""Tiny random checkpoints of every family, made by transformers, beside the models themselves."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers

from tightpack.architectures.model_spec import LayerSpec, ModelSpec, RotarySpec
from tightpack.checkpoints.checkpoint import Checkpoint, TensorInfo
from tightpack.checkpoints.open import open_checkpoint
from tightpack.torch_backend.executor import TorchExecutor

COMMON: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
FAMILIES: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "llama2": lambda: transformers.LlamaConfig(**{**COMMON, "num_key_value_heads": 4}),
    "llama3": lambda: transformers.LlamaConfig(**COMMON, rope_parameters=dict(LLAMA3_ROPE)),
    "smollm2": lambda: transformers.LlamaConfig(
        **{**COMMON, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 72},
    ),
    "tied": lambda: transformers.LlamaConfig(**{**COMMON, "tie_word_embeddings": True}),
    "mistral": lambda: transformers.MistralConfig(**COMMON, sliding_window=11, head_dim=32),
    "qwen2": lambda: transformers.Qwen2Config(**COMMON),
    "qwen3": lambda: transformers.Qwen3Config(**COMMON, head_dim=32),
    "mixtral": lambda: transformers.MixtralConfig(**COMMON, num_local_experts=5, sliding_window=11),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **{**COMMON, "num_hidden_layers": 5},
        head_dim=32,
        num_experts=6,
        num_experts_per_tok=3,
        moe_intermediate_size=40,
        norm_topk_prob=True,
        decoder_sparse_step=2,
        mlp_only_layers=[3],
    ),
    "qwen3_moe_unnormalized": lambda: transformers.Qwen3MoeConfig(
        **COMMON, head_dim=32, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=40
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **{**COMMON, "num_hidden_layers": 4, "tie_word_embeddings": True},
        head_dim=32,
        query_pre_attn_scalar=24,
        sliding_window=9,
        layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={kind: dict(rope) for kind, rope in GEMMA3_ROPE.items()},
    ),
}


@dataclass(frozen=True)
class Family:
    """A transformers model and the same weights as a checkpoint."""

    name: str
    model: Any
    checkpoint: Checkpoint

    def reference_logits(self, tokens: Sequence[int]) -> torch.Tensor:
        with torch.inference_mode():
            return self.model(torch.tensor([list(tokens)])).logits[0].float()

    def executor(self, **options: Any) -> TorchExecutor:
        return build_executor(self.checkpoint, **options)

    def tokens(self, count: int, seed: int = 0) -> list[int]:
        return random.Random(seed).choices(range(self.checkpoint.spec.vocab_size), k=count)


def build_executor(checkpoint: Checkpoint, **options: Any) -> TorchExecutor:
    defaults: dict[str, Any] = {
        "dtype": torch.float32,
        "device": "cpu",
        "block_size": 4,
        "num_blocks": 256,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 512,
        "max_model_len": 256,
    }
    return TorchExecutor(checkpoint, **(defaults | options))


def save_tokenizer(directory: Path, vocab_size: int) -> None:
    words = {f"w{token}": token for token in range(vocab_size)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(directory / "tokenizer.json"))


def random_model(config: transformers.PretrainedConfig) -> Any:
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for tensor in model.parameters():
            # Norm weights and biases away from the ones and zeros they start as, and scores far from uniform.
            tensor.add_(torch.randn_like(tensor) * (0.1 if tensor.dim() == 1 else 0.08))
    return model


def build_family(name: str, directory: Path) -> Family:
    config = FAMILIES[name]()
    model = random_model(config)
    model.save_pretrained(directory)
    save_tokenizer(directory, config.vocab_size)
    return Family(name, model, open_checkpoint(str(directory)))


class StateDict:
    """Tensors of a model in memory, as a `TensorSource`."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors

    @property
    def infos(self) -> dict[str, TensorInfo]:
        return {name: TensorInfo(tuple(t.shape), "fp32", t.nbytes) for name, t in self.tensors.items()}

    def read(self, name: str) -> Any:
        return self.tensors[name].numpy()


def build_gemma2() -> Family:
    """A family that the registry does not know, from a spec written here: the only one that caps scores."""
    config = transformers.Gemma2Config(
        **{**COMMON, "tie_word_embeddings": True},
        head_dim=16,
        query_pre_attn_scalar=20,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        attn_logit_softcapping=0.7,
        final_logit_softcapping=1.5,
    )
    model = random_model(config)
    rotary = RotarySpec(tuple(10000 ** (-i / 8) for i in range(8)))
    spec = ModelSpec(
        family="gemma2",
        **{name: COMMON[name] for name in ("vocab_size", "hidden_size", "intermediate_size")},
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        layers=(LayerSpec(rotary, 8), LayerSpec(rotary), LayerSpec(rotary, 8)),
        norm_eps=1e-6,
        attention_scale=20**-0.5,
        max_position_embeddings=256,
        activation="gelu_tanh",
        norm_weight_offset=1,
        embedding_scale=8,
        sandwich_norms=True,
        attention_softcap=0.7,
        logit_softcap=1.5,
        tied_embeddings=True,
    )
    tensors = {name: t for name, t in model.state_dict().items() if name != "lm_head.weight"}
    assert {name: tuple(t.shape) for name, t in tensors.items()} == spec.tensor_shapes()
    checkpoint = Checkpoint(
        name="gemma2",
        spec=spec,
        tensors=StateDict(tensors),
        tokenizer=None,  # type: ignore[arg-type]  # nothing here reads text
        config={},
    )
    return Family("gemma2", model, checkpoint)


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    """Matrices this small only wait for a second thread, and long on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", params=[*FAMILIES, "gemma2"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    if request.param == "gemma2":
        return build_gemma2()
    return build_family(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return build_family("llama3", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def make_executor() -> Callable[..., TorchExecutor]:
    return build_executor


class FakeGraph:
    """Counts its replays; what was computed while it was recorded stays as it is."""

    def __init__(self):
        self.replays = 0

    def replay(self):
        self.replays += 1


@pytest.fixture
def fake_cuda_graphs(monkeypatch):
    """Graphs on a CPU: recording computes, a replay only counts. What was made."""
    made = []

    def graph():
        made.append(FakeGraph())
        return made[-1]

    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "graph", lambda recorded, pool: contextlib.nullcontext())
    return made
