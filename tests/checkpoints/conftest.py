"""Tiny checkpoints of every family: as transformers saves them, and as llama.cpp's converter would write
them."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TINY: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
CONFIGS: dict[str, Callable[[], transformers.PreTrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**TINY),
    "llama-tied": lambda: transformers.LlamaConfig(**TINY, tie_word_embeddings=True),
    "llama-biases": lambda: transformers.LlamaConfig(**TINY, attention_bias=True),
    "mistral": lambda: transformers.MistralConfig(**TINY, sliding_window=32),
    "qwen2": lambda: transformers.Qwen2Config(**TINY),
    "qwen3": lambda: transformers.Qwen3Config(**TINY, head_dim=32),
    "mixtral": lambda: transformers.MixtralConfig(**TINY, num_local_experts=3),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **TINY,
        head_dim=32,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        norm_topk_prob=True,
        mlp_only_layers=[0],
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **{**TINY, "num_hidden_layers": 7}, head_dim=32, sliding_window=32, query_pre_attn_scalar=32
    ),
}


def tiny_tokenizer() -> tokenizers.Tokenizer:
    """Byte-level BPE of 320 tokens."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(["the cat sat on the mat and then the rat ran to the hat " * 20], trainer)
    assert backend.get_vocab_size() <= 320
    return backend


def tiny_model(family: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(1)
    return transformers.AutoModelForCausalLM.from_config(CONFIGS[family](), dtype=dtype).eval()


def save(directory: Path, model: Any, **options: Any) -> Path:
    """What a publisher puts on the hub."""
    model.save_pretrained(directory, **options)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer(), bos_token="<s>", eos_token="</s>", chat_template=CHAT_TEMPLATE
    )
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def _saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("families")

    def saved(family: str) -> Path:
        directory = root / family
        return directory if directory.exists() else save(directory, tiny_model(family))

    return saved


@pytest.fixture
def directory_of(_saved: Callable[[str], Path]) -> Callable[[str], Path]:
    """A family's fp32 checkpoint, shared: to be read only."""
    return _saved


@pytest.fixture
def llama_copy(_saved: Callable[[str], Path], tmp_path: Path) -> Path:
    """A Llama checkpoint to damage."""
    return Path(shutil.copytree(_saved("llama"), tmp_path / "llama"))


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
}
GEMMA_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of the rows of queries and keys: the two of a rotated pair are neighbours."""
    size = weight.shape[0] // heads
    order = [
        head * size + half * size // 2 + pair
        for head in range(heads)
        for pair in range(size // 2)
        for half in (0, 1)
    ]
    return weight[order]


def one_role_a_tensor(state: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Gates and ups of experts apart, as llama.cpp keeps them."""
    for name, value in state.items():
        if name.endswith("experts.gate_up_proj"):
            for role, half in zip(("gate_proj", "up_proj"), value.chunk(2, dim=1), strict=True):
                yield f"{name.removesuffix('gate_up_proj')}{role}.weight", half
        elif name.endswith("experts.down_proj"):
            yield f"{name}.weight", value
        else:
            yield name, value


class GgufBuilder:
    """A GGUF file of a tiny transformers model; `metadata` and `tensors` may be changed before `write`."""

    def __init__(self, family: str, model: Any) -> None:
        config = model.config
        renamed = {"mistral": "llama", "mixtral": "llama", "qwen3_moe": "qwen3moe"}
        self.architecture = renamed.get(family.split("-")[0], family.split("-")[0])
        arch = self.architecture
        backend = tiny_tokenizer()
        merges = json.loads(backend.to_str())["model"]["merges"]
        vocabulary = [backend.id_to_token(i) for i in range(backend.get_vocab_size())]
        vocabulary += [f"<unused{i}>" for i in range(320 - len(vocabulary))]
        rope = config.rope_parameters
        self.metadata: dict[str, Any] = {
            f"{arch}.block_count": config.num_hidden_layers,
            f"{arch}.context_length": config.max_position_embeddings,
            f"{arch}.embedding_length": config.hidden_size,
            f"{arch}.feed_forward_length": config.intermediate_size,
            f"{arch}.attention.head_count": config.num_attention_heads,
            f"{arch}.attention.head_count_kv": config.num_key_value_heads,
            f"{arch}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
            f"{arch}.rope.freq_base": rope.get("full_attention", rope)["rope_theta"],
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": vocabulary,
            "tokenizer.ggml.token_type": [3, 3] + [1] * (len(vocabulary) - 2),
            "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
            "tokenizer.ggml.bos_token_id": 0,
            "tokenizer.ggml.eos_token_id": 1,
            "tokenizer.chat_template": CHAT_TEMPLATE,
        }
        if getattr(config, "head_dim", None):
            self.metadata[f"{arch}.attention.key_length"] = config.head_dim
            self.metadata[f"{arch}.attention.value_length"] = config.head_dim
        if family in ("mistral", "gemma3"):
            self.metadata[f"{arch}.attention.sliding_window"] = config.sliding_window
        if family in ("mixtral", "qwen3_moe"):
            self.metadata[f"{arch}.expert_count"] = config.num_local_experts
            self.metadata[f"{arch}.expert_used_count"] = config.num_experts_per_tok
        if family == "qwen3_moe":
            self.metadata[f"{arch}.expert_feed_forward_length"] = config.moe_intermediate_size
        self.tensors: dict[str, tuple[np.ndarray, gguf.GGMLQuantizationType | None]] = {}
        names = GGUF_NAMES | (GEMMA_NORMS if arch == "gemma3" else {"post_attention_layernorm": "ffn_norm"})
        for name, value in one_role_a_tensor(model.state_dict()):
            if name == "lm_head.weight" and config.tie_word_embeddings:
                continue
            array = value.detach().float().numpy()
            if arch == "llama" and "q_proj" in name:
                array = interleave(array, config.num_attention_heads)
            if arch == "llama" and "k_proj" in name:
                array = interleave(array, config.num_key_value_heads)
            if arch == "gemma3" and name.endswith("norm.weight"):
                array = array + 1
            stem, kind = name.rsplit(".", 1)
            if stem.startswith("model.layers."):
                layer, rest = stem.removeprefix("model.layers.").split(".", 1)
                stored = f"blk.{layer}.{names[rest]}.{kind}"
            else:
                stored = f"{names[stem]}.{kind}"
            self.tensors[stored] = (np.ascontiguousarray(array), None)

    def write(self, path: Path) -> Path:
        writer = gguf.GGUFWriter(path, self.architecture)
        for key, value in self.metadata.items():
            if isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, int):
                writer.add_uint32(key, value)
            elif isinstance(value, float):
                writer.add_float32(key, value)
            elif isinstance(value, str):
                writer.add_string(key, value)
            else:
                writer.add_array(key, value)
        for name, (array, precision) in self.tensors.items():
            if precision is None:
                writer.add_tensor(name, array)
            else:
                writer.add_tensor(name, array, raw_dtype=precision)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


@pytest.fixture
def gguf_of() -> Callable[[str], GgufBuilder]:
    return lambda family: GgufBuilder(family, tiny_model(family))


@pytest.fixture(scope="session")
def rounding() -> ModuleType:
    """rounding.py beside this file (tests are no package, and pytest does not import siblings)."""
    spec = importlib.util.spec_from_file_location("rounding", Path(__file__).with_name("rounding.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
