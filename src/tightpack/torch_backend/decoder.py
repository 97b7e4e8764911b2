"""The decoder: a forward pass over a step's tokens, driven by a `ModelSpec`. No family has its own code."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tightpack.architectures.model_spec import ModelSpec
from tightpack.torch_backend.attention import Attention
from tightpack.torch_backend.kv_cache import KVCache
from tightpack.torch_backend.linear import LinearLayer
from tightpack.torch_backend.norm import rms_norm
from tightpack.torch_backend.rank_group import ALONE, RankGroup
from tightpack.torch_backend.rotary import rotation_table
from tightpack.torch_backend.split import Split, span
from tightpack.torch_backend.step_inputs import StepInputs
from tightpack.torch_backend.triton_kernels import KernelContext, backend_module
from tightpack.torch_backend.weights import DecoderWeights


class Decoder:
    """Stateless but for its tables; keys and values live in the cache it is given.

    group: of several ranks, each has the part of the weights that `split` gives it, and all call the methods
        alike; hidden states and logits are then the whole model's on each.
    context: of the kernels that fuse what lies between linears; None for PyTorch's operators.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: DecoderWeights,
        max_model_len: int,
        group: RankGroup = ALONE,
        context: KernelContext | None = None,
    ) -> None:
        self._split = Split(spec, group.rank, group.size)
        self.spec = self._split.local_spec
        self._group = group
        self._context = context
        self._weights = weights
        device = weights.embedding.device
        self._rotations = {
            rotary: rotation_table(rotary, max_model_len, device)
            for rotary in dict.fromkeys(layer.rotary for layer in spec.layers)
        }
        # Rounded to the weights' dtype, as the embedding that it scales.
        self._embedding_scale = float(torch.tensor(spec.embedding_scale, dtype=weights.embedding.dtype))

    @property
    def capturable(self) -> bool:
        """Whether no layer waits for the GPU, so that a pass may be recorded in a CUDA graph."""
        layers = self._weights.layers
        linears = [linear for layer in layers for linear in (layer.qkv, layer.output)]
        return all(layer.mlp.capturable for layer in layers) and all(
            getattr(linear, "capturable", True) for linear in (*linears, self._weights.head)
        )

    def forward(self, inputs: StepInputs, cache: KVCache, attention: Attention) -> Tensor:
        """Hidden states before the final norm, [tokens, hidden_size]; writes the tokens' keys and values."""
        rotations = attention.rotations(self._rotations, inputs)
        x, added = self.embed(inputs.token_ids), None
        for index in range(self.spec.num_layers):
            qkv = self._before_attention(x, added, index)
            rotation = rotations[self.spec.layers[index].rotary]
            mixed = attention(cache, index, qkv, self._weights.layers[index].qk_norm, rotation, inputs)
            added = self._after_attention(x, mixed, index)
        return x if added is None else x.add_(added)

    def embed(self, token_ids: Tensor) -> Tensor:
        """The stream that the first layer begins with, [tokens, hidden_size]."""
        x = self._embed(token_ids)
        return x if self._embedding_scale == 1 else x.mul_(self._embedding_scale)

    def stretch(
        self,
        index: int,
        x: Tensor,
        mixed: Tensor,
        inputs: StepInputs,
        cache: KVCache,
        attention: Attention,
    ) -> Tensor | None:
        """`forward` from behind the attention of layer index - 1 up to that of layer `index`; what it does
        with a row depends on that row alone, so rows may pad.

        x: the stream, changed in place; mixed: what the layer before mixed, not read where index is 0.
        Returns the queries, keys and values of layer `index`, written to the cache; None behind the last
        layer, where x is `forward`'s result.
        """
        added = self._after_attention(x, mixed, index - 1) if index else None
        if index == self.spec.num_layers:
            if added is not None:
                x.add_(added)
            return None
        qkv = self._before_attention(x, added, index)
        rotary = self.spec.layers[index].rotary
        rotation = attention.rotations({rotary: self._rotations[rotary]}, inputs)[rotary]
        attention.write(cache, index, qkv, self._weights.layers[index].qk_norm, rotation, inputs)
        return qkv

    def _before_attention(self, x: Tensor, added: Tensor | None, index: int) -> Tensor:
        weights = self._weights.layers[index]
        return self._after_norm(x, added, weights.attention_norm, weights.qkv)

    def _after_attention(self, x: Tensor, mixed: Tensor, index: int) -> Tensor:
        """What layer `index` adds to x at its end; x has its attention's part already."""
        weights, eps = self._weights.layers[index], self.spec.norm_eps
        added = weights.output(mixed)
        if weights.attention_post_norm is not None:
            added = rms_norm(added, weights.attention_post_norm, eps)
        added = self._after_norm(x, added, weights.mlp_norm, weights.mlp)
        if weights.mlp_post_norm is not None:
            added = rms_norm(added, weights.mlp_post_norm, eps)
        return added

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and head on some rows of `forward`'s result: float32 [rows, vocab_size]."""
        normed = rms_norm(hidden, self._weights.final_norm, self.spec.norm_eps)
        logits = self._whole_vocabulary(self._weights.head(normed)).float()
        cap = self.spec.logit_softcap
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)

    def _after_norm(self, x: Tensor, added: Tensor | None, norm: Tensor, linear: LinearLayer) -> Tensor:
        """x += added in place, then linear(rms_norm(x)); with kernels one pass up to the linear."""
        if self._context is None:
            if added is not None:
                x.add_(added)
            return linear(rms_norm(x, norm, self.spec.norm_eps))
        fused = backend_module("fused_rows").normed_linear
        y: Tensor = fused(x, added, norm, self.spec.norm_eps, linear, self._context)
        return y

    def _embed(self, token_ids: Tensor) -> Tensor:
        if self._group.size == 1:
            return functional.embedding(token_ids, self._weights.embedding)
        first, end = self._split.vocabulary
        rows = functional.embedding((token_ids - first).clamp(0, end - first - 1), self._weights.embedding)
        elsewhere = (token_ids < first) | (token_ids >= end)
        return self._group.all_reduce_(rows.masked_fill_(elsewhere.unsqueeze(-1), 0))

    def _whole_vocabulary(self, logits: Tensor) -> Tensor:
        """[rows, this rank's tokens] to [rows, vocab_size]."""
        size, rows = self._group.size, len(logits)
        if size == 1:
            return logits
        widest = self._split.widest_vocabulary
        padded = functional.pad(logits, (0, widest - logits.shape[1]))
        parts = self._group.gather_rows(padded).view(size, rows, widest)
        spans = [span(self.spec.vocab_size, rank, size) for rank in range(size)]
        return torch.cat([part[:, : end - first] for part, (first, end) in zip(parts, spans, strict=True)], 1)
