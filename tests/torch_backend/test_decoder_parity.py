"""Every family's logits against transformers' in float32, however the tokens are cut and mixed into steps."""

from __future__ import annotations

import torch


def assert_close(ours, reference, tolerance=1e-4):
    assert ours.shape == reference.shape
    error = ((ours - reference).abs().max() / reference.abs().max()).item()
    assert error < tolerance, f"relative error {error:.2e}"


def test_a_whole_prompt(family, make_request, sequencer):
    tokens = family.tokens(50)
    executor = family.executor()
    logits = executor.logits([sequencer(executor).chunk(make_request(tokens))])
    assert_close(logits, family.reference_logits(tokens))


def test_a_prompt_then_single_tokens(family, make_request, sequencer):
    tokens = family.tokens(45)
    executor = family.executor()
    blocks = sequencer(executor)
    request = make_request(tokens)
    parts = [executor.logits([blocks.chunk(request, count)]) for count in [20] + [1] * 25]
    assert_close(torch.cat(parts), family.reference_logits(tokens))


def test_single_tokens_from_the_first(family, make_request, sequencer):
    tokens = family.tokens(24)
    executor = family.executor()
    blocks = sequencer(executor)
    request = make_request(tokens)
    parts = [executor.logits([blocks.chunk(request, 1)]) for _ in tokens]
    assert_close(torch.cat(parts), family.reference_logits(tokens))


def test_uneven_chunks(family, make_request, sequencer):
    tokens = family.tokens(77)
    executor = family.executor()
    blocks = sequencer(executor)
    request = make_request(tokens)
    parts = [executor.logits([blocks.chunk(request, count)]) for count in (3, 17, 1, 8, 1, 1, 2, 25, 19)]
    assert_close(torch.cat(parts), family.reference_logits(tokens))


def test_requests_mixed_in_every_step(family, make_request, sequencer):
    """Prompts, chunks and decodes of contexts far apart, in an order that is not the executor's own."""
    executor = family.executor()
    blocks = sequencer(executor, seed=3)
    cuts = {
        "decoding": [90, 1, 1, 1],
        "whole": [33],
        "short": [2, 1, 1, 1],
        "chunked": [7, 30, 1, 12],
        "late": [0, 0, 5, 1],
    }
    requests = {
        name: make_request(family.tokens(sum(cut), seed), name)
        for seed, (name, cut) in enumerate(cuts.items())
    }
    parts = {name: [] for name in cuts}
    for step in range(4):
        counts = {name: cut[step] for name, cut in cuts.items() if step < len(cut) and cut[step]}
        logits = executor.logits([blocks.chunk(requests[name], count) for name, count in counts.items()])
        for name, rows in zip(counts, logits.split(list(counts.values())), strict=True):
            parts[name].append(rows)
    for name, request in requests.items():
        assert_close(torch.cat(parts[name]), family.reference_logits(request.prompt_token_ids))
