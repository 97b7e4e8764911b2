"""GGUF metadata to a Hugging Face configuration, in the style that transformers 4 and 5 both read."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tightpack.architectures.model_spec import ModelSpec
from tightpack.checkpoints.checkpoint import CheckpointError
from tightpack.checkpoints.gguf_file import GgufFile
from tightpack.checkpoints.gguf_tensors import GgufTensors

# GGUF architecture -> (model_type, class in transformers); "llama" also carries Mistral and Mixtral.
ARCHITECTURES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "llama": ("llama", "LlamaForCausalLM"),
        "qwen2": ("qwen2", "Qwen2ForCausalLM"),
        "qwen3": ("qwen3", "Qwen3ForCausalLM"),
        "qwen3moe": ("qwen3_moe", "Qwen3MoeForCausalLM"),
        "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
    }
)
ROPE_FACTORS = "rope_freqs.weight"
GEMMA3_27B_LAYERS = 62


def huggingface_config(file: GgufFile) -> dict[str, Any]:
    """config.json for the model in the file. Raises CheckpointError naming the metadata key at fault."""
    metadata = _Metadata(file)
    model_type, class_name = metadata.architecture()
    if metadata.get("attention.sliding_window") and model_type == "llama":
        model_type, class_name = "mistral", "MistralForCausalLM"
    mixture = bool(metadata.get("expert_count"))
    if mixture and model_type in ("llama", "mistral"):
        model_type, class_name = "mixtral", "MixtralForCausalLM"
    elif mixture and model_type != "qwen3_moe":
        raise CheckpointError(
            f"{file.path}: {model_type} with experts ({metadata.key('expert_count')}) is not known here; "
            "mixtures of architecture llama (Mixtral) and qwen3moe are"
        )
    if int(file.metadata.get("split.count", 1)) > 1:
        raise CheckpointError(
            f"{file.path}: one of {file.metadata['split.count']} parts (metadata 'split.count'); join them "
            "first with llama.cpp's llama-gguf-split --merge"
        )
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError(f"{file.path}: tensor 'token_embd.weight' is missing")
    hidden, heads = metadata.integer("embedding_length"), metadata.integer("attention.head_count")
    head_dim = metadata.integer("attention.key_length", hidden // heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if metadata.integer(name, head_dim) != head_dim:
            raise CheckpointError(
                f"{file.path}: metadata {metadata.key(name)!r} is {metadata.get(name)}, but heads of "
                f"{head_dim} are rotated and read whole"
            )
    length = metadata.integer("context_length")
    config: dict[str, Any] = {
        "architectures": [class_name],
        "model_type": model_type,
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": metadata.integer("feed_forward_length"),
        "num_hidden_layers": metadata.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": metadata.number("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": length,
        "rope_theta": metadata.number("rope.freq_base", 10_000.0),
        "rope_scaling": _rope_scaling(metadata, head_dim, length),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "torch_dtype": "bfloat16",
    }
    for role in ("bos", "eos"):
        token_id = file.metadata.get(f"tokenizer.ggml.{role}_token_id")
        config[f"{role}_token_id"] = None if token_id is None else int(token_id)
    if model_type == "gemma3_text":
        config |= _gemma3(metadata, hidden, heads, head_dim)
    else:
        config |= {"hidden_act": "silu", "attention_bias": "blk.0.attn_q.bias" in file.tensors}
    if metadata.get("attention.sliding_window") and model_type in ("mistral", "mixtral"):
        config["sliding_window"] = metadata.integer("attention.sliding_window")
    if mixture:
        config |= _experts(metadata, model_type)
    if model_type in ("qwen2", "mistral", "mixtral"):
        del config["attention_bias"]
    if model_type == "qwen2":
        # Fixed by the architecture; transformers would derive it, and refuse another, from these two.
        del config["head_dim"]
    return config


class _Metadata:
    """The keys under the architecture's name."""

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self._name = str(file.metadata.get("general.architecture", ""))

    def architecture(self) -> tuple[str, str]:
        if self._name not in ARCHITECTURES:
            near = difflib.get_close_matches(self._name, ARCHITECTURES, n=1)
            hint = (
                f"the nearest supported is {near[0]!r}" if near else f"supported: {', '.join(ARCHITECTURES)}"
            )
            raise CheckpointError(
                f"{self.file.path}: metadata 'general.architecture' is {self._name!r}, not known here; {hint}"
            )
        return ARCHITECTURES[self._name]

    def key(self, name: str) -> str:
        return f"{self._name}.{name}"

    def get(self, name: str) -> Any:
        return self.file.metadata.get(self.key(name))

    def integer(self, name: str, default: int | None = None) -> int:
        """A number, or one number for all layers."""
        value = self.get(name)
        if value is None:
            if default is None:
                raise CheckpointError(f"{self.file.path}: metadata {self.key(name)!r} is missing")
            return default
        values = {int(v) for v in np.atleast_1d(value)} if not isinstance(value, str) else set()
        if len(values) != 1 or min(values) < 1:
            raise CheckpointError(
                f"{self.file.path}: metadata {self.key(name)!r} must be one positive number for all layers, "
                f"not {value!r}"
            )
        return values.pop()

    def number(self, name: str, default: float | None = None) -> float:
        """A stored float32 as the short decimal that was meant: 1e-05, not 9.99999974e-06."""
        value = self.get(name)
        if value is None:
            if default is None:
                raise CheckpointError(f"{self.file.path}: metadata {self.key(name)!r} is missing")
            return default
        return float(str(np.float32(value)))


def _experts(metadata: _Metadata, model_type: str) -> dict[str, Any]:
    count, used = metadata.integer("expert_count"), metadata.integer("expert_used_count")
    if model_type == "mixtral":
        return {"num_local_experts": count, "num_experts_per_tok": used}
    layers = range(metadata.integer("block_count"))
    return {
        "num_experts": count,
        "num_experts_per_tok": used,
        "moe_intermediate_size": metadata.integer("expert_feed_forward_length"),
        # GGUF does not say; llama.cpp divides by the sum.
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [i for i in layers if f"blk.{i}.ffn_gate_inp.weight" not in metadata.file.tensors],
    }


def _gemma3(metadata: _Metadata, hidden: int, heads: int, head_dim: int) -> dict[str, Any]:
    pattern = metadata.get("attention.sliding_window_pattern")
    config: dict[str, Any] = {
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "sliding_window": metadata.integer("attention.sliding_window"),
        "rope_local_base_freq": metadata.number("rope.freq_base_swa", 10_000.0),
        # GGUF does not say: only the 27B model scales by hidden_size / heads, and llama.cpp knows it by its
        # layers.
        "query_pre_attn_scalar": hidden // heads
        if metadata.integer("block_count") == GEMMA3_27B_LAYERS
        else head_dim,
    }
    for name in ("final_logit_softcapping", "attn_logit_softcapping"):
        if metadata.get(name):
            config[name] = metadata.number(name)
    if isinstance(pattern, np.ndarray):
        config["layer_types"] = ["sliding_attention" if slides else "full_attention" for slides in pattern]
    else:
        config["sliding_window_pattern"] = int(pattern or 6)
    return config


def _rope_scaling(metadata: _Metadata, head_dim: int, length: int) -> dict[str, Any] | None:
    if ROPE_FACTORS in metadata.file.tensors:
        tensor = metadata.file.tensors[ROPE_FACTORS]
        if tensor.shape != (head_dim // 2,) or tensor.precision.name != "fp32":
            raise CheckpointError(
                f"{metadata.file.path}: tensor {ROPE_FACTORS!r} is {tensor.precision.name} "
                f"{list(tensor.shape)}; it should be fp32 [{head_dim // 2}]"
            )
        factors = metadata.file.raw(tensor).view(np.float32)
        return _factors_as_config(factors, metadata.number("rope.freq_base", 10_000.0), head_dim)
    kind = metadata.get("rope.scaling.type") or "none"
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise CheckpointError(
            f"{metadata.file.path}: metadata {metadata.key('rope.scaling.type')!r} is {kind!r}; supported: "
            "none, linear, yarn"
        )
    scaling: dict[str, Any] = {"rope_type": kind, "factor": metadata.number("rope.scaling.factor")}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = metadata.integer(
            "rope.scaling.original_context_length", length
        )
    return scaling


def _factors_as_config(factors: NDArray[np.float32], theta: float, head_dim: int) -> dict[str, Any]:
    """Llama 3.x's smoothing where the stored factors are those of its published parameters, else the bare
    factors.

    Stored are the divisors of the plain frequencies; Llama 3.1 has factor 8 and 3.2 has 32, else the same
    numbers.
    """
    trained, low, high = 8192, 1.0, 4.0
    factor = float(factors.max())
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((trained / wavelengths - low) / (high - low), 0, 1)
    if np.allclose(factors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-4):
        return {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": trained,
        }
    listed = [float(f) for f in factors]
    return {
        "rope_type": "longrope",
        "short_factor": listed,
        "long_factor": listed,
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": trained,
    }


def tensors_of(file: GgufFile, config: Mapping[str, Any], spec: ModelSpec) -> GgufTensors:
    """The file's tensors under Hugging Face's names, undoing what llama.cpp's converter did to their
    values."""
    permuted = file.metadata.get("general.architecture") == "llama"
    return GgufTensors(
        file,
        heads=int(config["num_attention_heads"]) if permuted else None,
        kv_heads=int(config["num_key_value_heads"]) if permuted else None,
        experts=next((layer.experts for layer in spec.layers if layer.experts is not None), None),
        norm_offset=1.0 if config["model_type"] == "gemma3_text" else 0.0,
        sandwich_norms=config["model_type"] == "gemma3_text",
        used_elsewhere=(ROPE_FACTORS,),
    )
