"""One HTTP request's way through the engine: its prompts in, the deltas of all its choices out."""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from tightpack.requests.sampling_params import SamplingParams
from tightpack.scheduling.policy import QueueFullError, UnattainableError
from tightpack.server.api_error import ApiError, unavailable
from tightpack.server.fan_in import fan_in
from tightpack.server.metrics import CompletionTimer
from tightpack.server.prompts import Prompt, check_queue, check_room
from tightpack.server.request_models import GenerationRequest
from tightpack.server.sampling import explain_value_error, service_tier
from tightpack.server.service import Service, package_version

if TYPE_CHECKING:
    from tightpack.serving_loop.text_stream import CompletionDelta

logger = logging.getLogger(__name__)


class Generation:
    """Choices are numbered prompt by prompt: n completions of the first, n of the second, ...

    kind: the prefix of the id, "cmpl" or "chatcmpl".
    arrival: `time.monotonic()` when the request came in.
    Raises ApiError for more output than the context has room for, or more choices than the queue holds.
    """

    def __init__(
        self,
        service: Service,
        kind: str,
        body: GenerationRequest,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        arrival: float,
    ) -> None:
        check_queue(service.engine, len(prompts), params.n)
        check_room(service.engine, prompts, body)
        self.id = f"{kind}-{uuid.uuid4().hex}"
        self.prompts = prompts
        self.params = params
        self.num_choices = len(prompts) * params.n
        self._service = service
        self._created = int(time.time())
        self._tier, self._class = service_tier(body, service.engine.service_classes)
        self._timers = [
            CompletionTimer(service.metrics, self._class, arrival) for _ in range(self.num_choices)
        ]
        self._output_tokens = [0] * self.num_choices
        self._cached_tokens = [0] * len(prompts)
        self._silent = set(range(len(prompts)))

    def head(self, kind: str) -> dict[str, Any]:
        """The fields that every answer and every chunk begins with."""
        return {
            "id": self.id,
            "object": kind,
            "created": self._created,
            "model": self._service.model_name,
            "service_tier": self._tier,
            "system_fingerprint": f"tightpack-{package_version()}",
        }

    def prompt_of(self, choice: int) -> Prompt:
        return self.prompts[choice // self.params.n]

    def usage(self, *, without_output: bool = False) -> dict[str, Any]:
        """Tokens so far; a prompt counts once, however many completions it has."""
        prompt = sum(len(one.token_ids) for one in self.prompts)
        output = 0 if without_output else sum(self._output_tokens)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "total_tokens": prompt + output,
            "prompt_tokens_details": {"cached_tokens": sum(self._cached_tokens)},
        }

    async def deltas(self) -> AsyncGenerator[tuple[int, CompletionDelta], None]:
        """(choice, delta) as they come. Raises ApiError; closing it frees what the request holds."""
        engine = self._service.engine
        streams = [
            engine.stream(
                {"prompt_token_ids": list(prompt.token_ids)},
                self.params,
                request_id=f"{self.id}-{position}",
                service_class=self._class,
            )
            for position, prompt in enumerate(self.prompts)
        ]
        reason: str | None = "abort"
        started = False
        try:
            async with aclosing(fan_in(streams)) as arrivals:
                async for prompt, delta in arrivals:
                    started = True
                    choice = prompt * self.params.n + delta.index
                    self._observe(prompt, choice, delta)
                    if delta.finish_reason == "error":
                        raise ApiError(500, f"the request failed: {delta.error}", code="request_failed")
                    if delta.finish_reason == "abort":
                        raise ApiError(503, "the server dropped the request", code="request_aborted")
                    yield choice, delta
        except UnattainableError as error:
            reason = None
            self._service.metrics.of_class(self._class).rejected.inc()
            wait = {"Retry-After": str(math.ceil(error.retry_after_s))}
            raise ApiError(429, str(error), code="slo_unattainable", headers=wait) from None
        except QueueFullError as error:
            reason = None
            raise ApiError(429, str(error), code="queue_full", headers={"Retry-After": "1"}) from None
        except (ValueError, TypeError) as error:
            reason = "error" if started else None
            if started or not isinstance(error, ValueError):
                raise
            raise explain_value_error(error) from None
        except RuntimeError:
            reason = "error"
            if engine.is_running:
                raise
            raise unavailable() from None
        finally:
            # Refused requests never were: they count nowhere.
            if reason is not None:
                for timer in self._timers:
                    timer.end(reason)

    def _observe(self, prompt: int, choice: int, delta: CompletionDelta) -> None:
        if prompt in self._silent:
            self._silent.discard(prompt)
            self._service.metrics.prompt_tokens.observe(len(self.prompts[prompt].token_ids))
        self._timers[choice].observe(delta)
        self._output_tokens[choice] = delta.num_output_tokens
        self._cached_tokens[prompt] = max(self._cached_tokens[prompt], delta.num_cached_prompt_tokens)
