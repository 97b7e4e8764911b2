"""The next token of each row: greedy or drawn, after the request's edits, with log-probabilities if wanted.

What a row gives depends on its logits and its request alone, never on the rows beside it. Choosing does not
wait for the device, so that a step that takes the tokens can be launched before anybody has read them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tightpack.requests.random_stream import uniform
from tightpack.requests.request import Request
from tightpack.serving_loop.executor import SampledToken
from tightpack.torch_backend.draw import Drawing, DrawParams
from tightpack.torch_backend.logit_edits import edit_logits_, edits_logits
from tightpack.torch_backend.logprobs import LogprobRows
from tightpack.torch_backend.transfer import Readback, send


class ChosenTokens:
    """One token a row of float32 logits [rows, vocab_size], which may be overwritten.

    A batch of plain greedy requests costs one pass for the maximum and nothing else.

    at_once: how many of the likeliest tokens a draw looks at before anybody waits for it.
    ids: int64 [rows] on the logits' device. A draw that needs more than `at_once` gives another than what
        stands there, and a row that is not finite none.
    """

    def __init__(self, logits: Tensor, requests: Sequence[Request], at_once: int = 0) -> None:
        best = logits.max(-1)
        self.ids, sound = best.indices, best.values.isfinite()
        changed = [row for row, r in enumerate(requests) if not r.params.greedy or edits_logits(r)]
        self._reported = [row for row, r in enumerate(requests) if r.params.logprobs is not None]
        self._counts = [requests[row].params.logprobs or 0 for row in self._reported]
        self._drawn: list[int] = []
        self._drawing: Drawing | None = None
        settled = torch.ones_like(sound)
        if changed:
            # A copy unless nobody needs the originals: at 32 rows copying takes as long as drawing.
            spare = len(changed) == len(requests) and not self._reported
            self._drawing = self._choose(
                logits if spare else logits[_rows(changed, logits)], changed, requests, at_once
            )
            if self._drawing is not None:
                settled[_rows(self._drawn, logits)] = self._drawing.settled
        self._logprobs: LogprobRows | None = None
        if self._reported:
            rows = _rows(self._reported, logits)
            self._logprobs = LogprobRows(logits[rows], self.ids[rows], max(self._counts))
        self._readback = Readback(torch.stack([self.ids, sound.long(), settled.long()]))

    def read(self) -> tuple[list[SampledToken | None], bool]:
        """Wait for the tokens: one a row, None where the logits hold NaN or plus infinity; and whether any
        is another than `ids` said."""
        [numbers] = self._readback.wait()
        tokens, sound, settled = numbers.tolist()
        late = [row for row, known in enumerate(settled) if sound[row] and not known]
        misled = False
        if late and self._drawing is not None:
            found = self._drawing.look_further([self._drawn.index(row) for row in late])
            for row, token in zip(late, found, strict=True):
                misled |= tokens[row] != token
                tokens[row] = token
        logprobs = {}
        if self._logprobs is not None:
            chosen = [tokens[row] for row in self._reported]
            entries = self._logprobs.read(chosen, self._counts)
            logprobs = dict(zip(self._reported, entries, strict=True))
        sampled = [
            SampledToken(token, logprobs.get(row)) if sound[row] else None for row, token in enumerate(tokens)
        ]
        return sampled, misled

    def _choose(
        self, logits: Tensor, rows: Sequence[int], requests: Sequence[Request], at_once: int
    ) -> Drawing | None:
        """Choose the tokens of `rows`, not plain greedy, from their logits, which are overwritten."""
        changed = [requests[row] for row in rows]
        if any(edits_logits(request) for request in changed):
            edit_logits_(logits, changed)
        places = [place for place, request in enumerate(changed) if not request.params.greedy]
        self._drawn = [rows[place] for place in places]
        if len(places) < len(rows):
            self.ids[_rows(rows, logits)] = logits.max(-1).indices
        if not places:
            return None
        params = _draw_params([changed[place] for place in places], logits)
        mine = logits if len(places) == len(rows) else logits[_rows(places, logits)]
        drawing = Drawing(mine, params, at_once)
        self.ids[_rows(self._drawn, logits)] = drawing.tokens
        return drawing


def sample(logits: Tensor, requests: Sequence[Request]) -> list[SampledToken | None]:
    """One token a row of float32 logits [rows, vocab_size], as `ChosenTokens` chooses it."""
    return ChosenTokens(logits, requests).read()[0]


def _rows(rows: Sequence[int], logits: Tensor) -> Tensor:
    """Row numbers as an index that nobody waits for."""
    return send(torch.tensor(rows), logits.device)


def _draw_params(requests: Sequence[Request], logits: Tensor) -> DrawParams:
    vocab_size = logits.shape[-1]
    columns = torch.tensor(
        [
            (
                params.temperature,
                min(params.top_k, vocab_size) if params.top_k > 0 else vocab_size,
                params.top_p,
                params.min_p,
                uniform(request.seed, request.num_output_tokens),
            )
            for request in requests
            for params in [request.params]
        ],
        dtype=torch.float64,
    )
    temperature, top_k, top_p, min_p, numbers = send(columns.T.contiguous(), logits.device)
    return DrawParams(
        temperature=temperature,
        top_k=top_k.long(),
        top_p=top_p,
        min_p=min_p,
        uniform=numbers,
        filters_least=any(request.params.min_p > 0 for request in requests),
    )
