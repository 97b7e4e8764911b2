"""What a caller asks for, as requests that an engine's policy can plan."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

from tightpack.engine import Engine
from tightpack.requests.prompts import Prompt, text_or_token_ids
from tightpack.requests.request import Request
from tightpack.requests.sampling_params import SamplingParams
from tightpack.requests.service_class import ServiceClass


class RequestMaker:
    """Prompts and parameters in, validated requests out."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tokenizer = engine.checkpoint.tokenizer
        self._vocab_size = engine.checkpoint.spec.vocab_size
        self._eos = frozenset(self._tokenizer.eos_token_ids) | frozenset(engine.checkpoint.spec.eos_token_ids)
        self._seeds = random.Random(engine.args.seed)

    def make(
        self,
        prompt: Prompt,
        params: SamplingParams,
        request_id: str,
        service_class: ServiceClass,
        arrival_time: float,
    ) -> tuple[str | None, list[Request]]:
        """The prompt's text, and a request for each of the n completions. Raises TypeError or ValueError."""
        given = text_or_token_ids(prompt)
        text = given if isinstance(given, str) else None
        token_ids = tuple(self._tokenizer.encode(given) if isinstance(given, str) else given)
        self._check(token_ids, params)
        seed = params.seed if params.seed is not None else self._seeds.getrandbits(63)
        room = self._engine.max_model_len - len(token_ids)
        requests = [
            Request(
                request_id=request_id if params.n == 1 else f"{request_id}-{index}",
                prompt_token_ids=token_ids,
                params=params,
                seed=seed + index,
                max_output_tokens=room if params.max_tokens is None else min(params.max_tokens, room),
                eos_token_ids=frozenset() if params.ignore_eos else self._eos,
                service_class=service_class,
                arrival_time=arrival_time,
            )
            for index in range(params.n)
        ]
        return text, requests

    def _check(self, token_ids: Sequence[int], params: SamplingParams) -> None:
        longest = self._engine.max_model_len
        if not token_ids:
            raise ValueError("the prompt is empty; it needs at least one token")
        if len(token_ids) >= longest:
            raise ValueError(
                f"the prompt has {len(token_ids)} tokens, and max_model_len={longest} must hold it and "
                "at least one output token; shorten the prompt"
            )
        for name, ids in (
            ("prompt_token_ids", token_ids),
            ("logit_bias", params.logit_bias),
            ("stop_token_ids", params.stop_token_ids or ()),
        ):
            beyond = next((i for i in ids if not 0 <= i < self._vocab_size), None)
            if beyond is not None:
                raise ValueError(
                    f"{name} holds token id {beyond}, and the vocabulary is 0 to {self._vocab_size - 1}"
                )

    def decoder(self, params: SamplingParams) -> Callable[[Sequence[int]], str]:
        return partial(self._tokenizer.decode, skip_special_tokens=params.skip_special_tokens)
