"""The seam below HTTP: what the server needs of an engine, and nothing more."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from tightpack.requests.sampling_params import SamplingParams
from tightpack.requests.service_class import ServiceClass

if TYPE_CHECKING:
    from tightpack.serving_loop.load import EngineLoad
    from tightpack.serving_loop.loop import LoopStats
    from tightpack.serving_loop.text_stream import CompletionDelta


class ServingTokenizer(Protocol):
    """Text to token ids and back."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def has_chat_template(self) -> bool: ...

    @property
    def special_token_ids(self) -> frozenset[int]:
        """Tokens that `decode` leaves out unless told otherwise."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that this token stands for; not always whole characters."""

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> str:
        """The prompt text of a conversation; raises ValueError for one that the template refuses."""


class ServingEngine(Protocol):
    """An engine that takes requests from one event loop; `tightpack.async_llm.AsyncLLM` is one."""

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and output together, at the most."""

    @property
    def max_queue(self) -> int:
        """Completions that may wait at the most; a request of more can never be taken."""

    @property
    def tokenizer(self) -> ServingTokenizer: ...

    @property
    def service_classes(self) -> Sequence[ServiceClass]:
        """interactive, standard and batch, with their targets."""

    @property
    def is_running(self) -> bool:
        """Whether it can answer; False once it has stopped or failed for good."""

    def stream(
        self,
        prompt: Mapping[str, Any],
        sampling_params: SamplingParams,
        *,
        request_id: str | None = None,
        service_class: ServiceClass | None = ...,
    ) -> AsyncGenerator[CompletionDelta, None]:
        """Deltas of all `sampling_params.n` completions, interleaved.

        Before the first delta it may raise ValueError, QueueFullError or UnattainableError. Closing it aborts
        the request, whose blocks are free within a step.
        """

    def stats(self) -> LoopStats: ...

    async def load(self) -> EngineLoad:
        """What a request would meet if it came now."""

    async def drain(self, timeout: float) -> Any:
        """Take no new request and wait, `timeout` seconds at the most, for those that run."""

    def close(self) -> None: ...
