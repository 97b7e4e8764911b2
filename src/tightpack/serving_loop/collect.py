"""Deltas gathered into the outputs that `LLM.generate` returns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tightpack.requests.outputs import TokenLogprobs
from tightpack.requests.request import Request
from tightpack.requests.request_output import CompletionOutput, Logprob, RequestOutput
from tightpack.serving_loop.text_stream import CompletionDelta, Decode


class OutputCollector:
    """Grows one RequestOutput from the deltas of its completions; `requests` are those, in order."""

    def __init__(
        self, request_id: str, prompt: str | None, requests: Sequence[Request], decode: Decode
    ) -> None:
        self._decode = decode
        wants_logprobs = requests[0].params.logprobs is not None
        self.output = RequestOutput(
            request_id=request_id,
            prompt=prompt,
            prompt_token_ids=list(requests[0].prompt_token_ids),
            outputs=[
                CompletionOutput(
                    index=i,
                    logprobs=[] if wants_logprobs else None,
                    cumulative_logprob=0.0 if wants_logprobs else None,
                    metrics=request.timings,
                )
                for i, request in enumerate(requests)
            ],
        )

    def push(self, delta: CompletionDelta) -> RequestOutput:
        output, completion = self.output, self.output.outputs[delta.index]
        completion.text += delta.text
        completion.token_ids.extend(delta.token_ids)
        completion.finish_reason = delta.finish_reason
        completion.stop_reason = delta.stop_reason
        completion.error = delta.error
        if completion.logprobs is not None and completion.cumulative_logprob is not None:
            completion.logprobs.extend(self._as_dicts(delta.logprobs))
            completion.cumulative_logprob += sum(entry.logprob for entry in delta.logprobs)
        if delta.prompt_logprobs is not None and output.prompt_logprobs is None:
            output.prompt_logprobs = [None, *self._as_dicts(delta.prompt_logprobs)]
        output.num_cached_tokens = max(output.num_cached_tokens, delta.num_cached_prompt_tokens)
        output.finished = all(c.finish_reason is not None for c in output.outputs)
        return output

    def _as_dicts(self, entries: Iterable[TokenLogprobs]) -> list[dict[int, Logprob]]:
        dicts = []
        for entry in entries:
            ranked = {token: (logprob, i + 1) for i, (token, logprob) in enumerate(entry.top)}
            ranked[entry.token_id] = (entry.logprob, entry.rank)
            dicts.append(
                {
                    token: Logprob(value, rank, self._decode([token]))
                    for token, (value, rank) in ranked.items()
                }
            )
        return dicts
