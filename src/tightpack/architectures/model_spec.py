"""What distinguishes one decoder-only transformer from another, as data that every decoder reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class RotarySpec:
    """Rotary position embedding (Su et al. 2021), in the half-split layout of Hugging Face checkpoints.

    inverse_frequencies: radians a position, one for each of the head_dim / 2 pairs, any scaling applied.
    magnitude: factor on cosine and sine (YaRN's attention factor).
    """

    inverse_frequencies: tuple[float, ...]
    magnitude: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsSpec:
    """A mixture of experts in the place of a layer's MLP (Shazeer et al. 2017; Mixtral, Jiang et al. 2024).

    A router scores all experts; of the softmax of its scores the `experts_per_token` largest weigh the
    outputs of theirs, divided by their sum with `normalized`. Each expert is a gated MLP of
    `intermediate_size`.
    router, gate, up, down: names of the linears inside a layer, with {} for the expert's number.
    """

    count: int
    experts_per_token: int
    intermediate_size: int
    normalized: bool = True
    router: str = "mlp.gate"
    gate: str = "mlp.experts.{}.gate_proj"
    up: str = "mlp.experts.{}.up_proj"
    down: str = "mlp.experts.{}.down_proj"


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """window: positions that a query attends to, itself included; None for all before it.
    experts: None for a plain gated MLP.
    """

    rotary: RotarySpec
    window: int | None = None
    experts: ExpertsSpec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A pre-norm decoder with grouped-query attention, RMSNorm and a gated MLP, or experts that are such.

    intermediate_size: of the layers without experts.
    norm_weight_offset: 1 where the stored norm weight w means 1 + w (Gemma), else 0.
    qk_norm: RMSNorm over head_dim on queries and keys, before rotation.
    sandwich_norms: norms after attention and MLP as well as before (Gemma 2 and 3).
    embedding_scale: factor on the embedding (Gemma: sqrt(hidden_size), rounded to the weights' dtype).
    attention_scale: factor on query . key.
    logit_softcap, attention_softcap: c * tanh(x / c), None for none.
    tied_embeddings: the head is the embedding matrix.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layers: tuple[LayerSpec, ...]
    norm_eps: float
    attention_scale: float
    max_position_embeddings: int
    activation: Activation = "silu"
    norm_weight_offset: float = 0.0
    embedding_scale: float = 1.0
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sandwich_norms: bool = False
    logit_softcap: float | None = None
    attention_softcap: float | None = None
    tied_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def kv_bytes_per_token(self, bytes_per_element: float = 2) -> int:
        """Bytes that one position takes in the KV cache of all layers."""
        return int(2 * self.num_layers * self.num_kv_heads * self.head_dim * bytes_per_element)

    @property
    def is_mixture(self) -> bool:
        """Whether any layer has experts."""
        return any(layer.experts is not None for layer in self.layers)

    @property
    def num_idle_parameters(self) -> int:
        """Of all layers, the parameters of the experts that a token does not take."""
        return sum(
            (experts.count - experts.experts_per_token) * 3 * experts.intermediate_size * self.hidden_size
            for experts in (layer.experts for layer in self.layers)
            if experts is not None
        )

    def router_names(self) -> list[str]:
        """The routers' full names without ".weight"; they choose, and stay in floating point."""
        return [
            f"model.layers.{index}.{layer.experts.router}"
            for index, layer in enumerate(self.layers)
            if layer.experts is not None
        ]

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of a checkpoint, Hugging Face's name to shape; linears are [outputs, inputs].

        Experts are tensors of their own, whether a file keeps them so or in one for all.
        """
        hidden, head = self.hidden_size, self.head_dim
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, hidden)}
        attention = {
            "self_attn.q_proj": (self.num_heads * head, hidden, self.qkv_bias),
            "self_attn.k_proj": (self.num_kv_heads * head, hidden, self.qkv_bias),
            "self_attn.v_proj": (self.num_kv_heads * head, hidden, self.qkv_bias),
            "self_attn.o_proj": (hidden, self.num_heads * head, self.output_bias),
        }
        norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
        if self.sandwich_norms:
            norms |= {"pre_feedforward_layernorm": hidden, "post_feedforward_layernorm": hidden}
        if self.qk_norm:
            norms |= {"self_attn.q_norm": head, "self_attn.k_norm": head}
        for index, layer in enumerate(self.layers):
            prefix = f"model.layers.{index}."
            for name, (outputs, inputs, bias) in (attention | self._mlp_linears(layer.experts)).items():
                shapes[f"{prefix}{name}.weight"] = (outputs, inputs)
                if bias:
                    shapes[f"{prefix}{name}.bias"] = (outputs,)
            for name, width in norms.items():
                shapes[f"{prefix}{name}.weight"] = (width,)
        shapes["model.norm.weight"] = (hidden,)
        if not self.tied_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, hidden)
        return shapes

    def _mlp_linears(self, experts: ExpertsSpec | None) -> dict[str, tuple[int, int, bool]]:
        """Name inside a layer to outputs, inputs, and whether there is a bias."""
        hidden, inner = self.hidden_size, self.intermediate_size
        if experts is None:
            return {
                "mlp.gate_proj": (inner, hidden, self.mlp_bias),
                "mlp.up_proj": (inner, hidden, self.mlp_bias),
                "mlp.down_proj": (hidden, inner, self.mlp_bias),
            }
        linears = {experts.router: (experts.count, hidden, False)}
        inner = experts.intermediate_size
        for expert in range(experts.count):
            linears[experts.gate.format(expert)] = (inner, hidden, False)
            linears[experts.up.format(expert)] = (inner, hidden, False)
            linears[experts.down.format(expert)] = (hidden, inner, False)
        return linears
