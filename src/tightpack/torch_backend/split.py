"""How a model is divided among tensor-parallel ranks (Shoeybi et al. 2019, Megatron-LM).

Heads and the inner dimension of the MLP, of each expert too, are divided: the linears before them by their
outputs, those after them by their inputs, so that one sum over the ranks ends attention and one the MLP. The
vocabulary is divided for embedding and head. Norms and routers are everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tightpack.architectures.model_spec import ModelSpec
from tightpack.schemes.part import Part, Span


@dataclass(frozen=True, slots=True)
class Split:
    """What rank `rank` of `size` has of the model.

    With fewer KV heads than ranks, neighbouring ranks have the same one. Raises ValueError, naming the sizes
    that would do, where heads do not divide.
    """

    spec: ModelSpec
    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if not _divides(self.spec, self.size):
            fitting = [size for size in range(1, self.spec.num_heads + 1) if _divides(self.spec, size)]
            raise ValueError(
                f"tensor_parallel_size={self.size} does not divide {self.spec.num_heads} heads and "
                f"{self.spec.num_kv_heads} KV heads; it can be {', '.join(map(str, fitting))}"
            )

    @property
    def local_spec(self) -> ModelSpec:
        """The spec of a decoder with this rank's heads; other fields are the model's."""
        kv_heads = max(1, self.spec.num_kv_heads // self.size)
        return replace(self.spec, num_heads=self.spec.num_heads // self.size, num_kv_heads=kv_heads)

    @property
    def query_rows(self) -> Part:
        return Part(rows=self._heads(self.spec.num_heads // self.size, self.rank))

    @property
    def key_value_rows(self) -> Part:
        kv_heads = self.spec.num_kv_heads
        if kv_heads >= self.size:
            return Part(rows=self._heads(kv_heads // self.size, self.rank))
        return Part(rows=self._heads(1, self.rank * kv_heads // self.size))

    @property
    def attention_columns(self) -> Part:
        """Of the output projection."""
        return Part(columns=self.query_rows.rows)

    @property
    def vocabulary(self) -> Span:
        return span(self.spec.vocab_size, self.rank, self.size)

    @property
    def widest_vocabulary(self) -> int:
        """Rows of the rank that has most: what the others' logits are padded to."""
        return -(-self.spec.vocab_size // self.size)

    def inner(self, width: int, grain: int) -> Span:
        """This rank's part of an MLP's inner dimension, whole grains of it."""
        if width // grain < self.size:
            raise ValueError(
                f"tensor_parallel_size={self.size} does not divide an inner dimension of {width} in groups "
                f"of {grain}: it makes {width // grain} parts at the most"
            )
        first, end = span(-(-width // grain), self.rank, self.size)
        return first * grain, min(end * grain, width)

    def _heads(self, count: int, index: int) -> Span:
        return index * count * self.spec.head_dim, (index + 1) * count * self.spec.head_dim


def span(count: int, rank: int, size: int) -> Span:
    """[first, end) of `count` things in `size` shares that differ by one at the most, larger ones first."""
    share, more = divmod(count, size)
    first = rank * share + min(rank, more)
    return first, first + share + (rank < more)


def _divides(spec: ModelSpec, size: int) -> bool:
    kv_heads = spec.num_kv_heads
    return spec.num_heads % size == 0 and (kv_heads % size == 0 or size % kv_heads == 0)
