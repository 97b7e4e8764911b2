"""The executor as the serving loop sees it: what a step returns, who fails, what a batch may not change."""

from __future__ import annotations

import random
import re

import pytest
import torch

from tightpack.scheduling.plan import StepPlan


def generate(executor, blocks, requests, steps, chunk=None):
    """Greedy or seeded continuation of the requests, all in every step; prompts in pieces of `chunk`."""
    outputs = {request: [] for request in requests}
    while any(len(tokens) < steps for tokens in outputs.values()):
        chunks = []
        for request in requests:
            if len(outputs[request]) < steps:
                pending = request.num_pending_tokens
                chunks.append(blocks.chunk(request, min(pending, chunk or pending)))
        result = executor.execute(StepPlan(tuple(chunks)))
        assert not result.failed
        assert result.elapsed_s > 0
        assert set(result.sampled) == {c.request.request_id for c in chunks if c.samples}
        for c in chunks:
            if c.samples:
                token = result.sampled[c.request.request_id].token_id
                outputs[c.request].append(token)
                c.request.token_ids.append(token)
    return [outputs[request] for request in requests]


def workload(family, make_request, **params):
    lengths = random.Random(2).choices(range(1, 60), k=10)
    return [
        make_request(family.tokens(n, seed), f"r{seed}", **params, seed=seed)
        for seed, n in enumerate(lengths)
    ]


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0, "top_p": 0.95}], ids=["greedy", "sampled"])
def test_tokens_do_not_depend_on_the_batch(llama, make_request, sequencer, params):
    executor = llama.executor()
    together = generate(executor, sequencer(executor), workload(llama, make_request, **params), 12)
    chunked = generate(executor, sequencer(executor, 1), workload(llama, make_request, **params), 12, chunk=5)
    alone = [
        generate(executor, sequencer(executor, 2), [request], 12)[0]
        for request in workload(llama, make_request, **params)
    ]
    assert together == alone
    assert chunked == alone
    assert len({tuple(tokens) for tokens in alone}) > 5


def test_greedy_tokens_are_the_references(llama, make_request, sequencer):
    executor = llama.executor()
    request = make_request(llama.tokens(20))
    [tokens] = generate(executor, sequencer(executor), [request], 10)
    logits = llama.reference_logits(request.token_ids)
    assert tokens == logits[19:-1].argmax(-1).tolist()


def test_requests_can_share_blocks(llama, make_request, sequencer):
    executor = llama.executor()
    blocks = sequencer(executor)
    first = make_request([*llama.tokens(12), 1, 2, 3], "first")
    second = make_request([*llama.tokens(12), 4, 5], "second")
    executor.logits([blocks.chunk(first)])
    blocks.tables[second] = blocks.tables[first][:3]
    second.num_computed_tokens = 12
    logits = executor.logits([blocks.chunk(second)])
    torch.testing.assert_close(logits, llama.reference_logits(second.token_ids)[12:], rtol=0, atol=1e-3)


def test_prompt_logprobs_come_with_the_positions_that_predict_them(llama, make_request, sequencer):
    executor = llama.executor()
    blocks = sequencer(executor)
    request = make_request(llama.tokens(30), prompt_logprobs=2)
    bystander = make_request(llama.tokens(9), "bystander")
    entries = []
    for count in (11, 1, 18):
        chunks = (blocks.chunk(request, count), blocks.chunk(bystander, 3))
        result = executor.execute(StepPlan(chunks))
        assert set(result.prompt_logprobs) == {"request"}
        entries.append(result.prompt_logprobs["request"])
    assert [len(part) for part in entries] == [11, 1, 17]
    expected = llama.reference_logits(request.prompt_token_ids).log_softmax(-1)
    for position, entry in enumerate(e for part in entries for e in part):
        assert entry.token_id == request.prompt_token_ids[position + 1]
        assert entry.logprob == pytest.approx(expected[position, entry.token_id].item(), abs=1e-3)
        assert entry.top[0][0] == expected[position].argmax().item()
        assert len(entry.top) == 2


def test_no_prompt_logprobs_while_decoding(llama, make_request, sequencer):
    executor = llama.executor()
    blocks = sequencer(executor)
    request = make_request(llama.tokens(5), prompt_logprobs=0)
    result = executor.execute(StepPlan((blocks.chunk(request),)))
    assert len(result.prompt_logprobs["request"]) == 4
    request.token_ids.append(result.sampled["request"].token_id)
    result = executor.execute(StepPlan((blocks.chunk(request),)))
    assert result.prompt_logprobs.get("request", ()) == ()


def test_prompt_logprobs_of_many_rows_are_computed_in_slices(llama, make_request, sequencer, monkeypatch):
    executor = llama.executor()
    request = make_request(llama.tokens(30), prompt_logprobs=1)
    whole = executor.execute(StepPlan((sequencer(executor).chunk(request),))).prompt_logprobs["request"]
    monkeypatch.setattr("tightpack.torch_backend.executor._LOGITS_AT_A_TIME", 7 * 128)
    request.num_computed_tokens = 0
    sliced = executor.execute(StepPlan((sequencer(executor).chunk(request),))).prompt_logprobs["request"]
    assert [e.token_id for e in sliced] == [e.token_id for e in whole]
    assert [e.logprob for e in sliced] == pytest.approx([e.logprob for e in whole], abs=1e-4)


BAD = {
    "token": (lambda tokens: [*tokens[:3], 128, *tokens[3:]], {}, "token id 128 .* vocabulary of 128"),
    "bias": (lambda tokens: tokens, {"logit_bias": {500: 1.0}}, "logit_bias names token id 500"),
    "length": (lambda tokens: tokens * 30, {}, "outside the context of 256 tokens"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_fails_alone(case, llama, make_request, sequencer):
    change, params, message = BAD[case]
    executor = llama.executor()
    good = make_request(llama.tokens(20), "good")
    bad = make_request(change(llama.tokens(10, 1)), "bad", **params)
    blocks = sequencer(executor)
    result = executor.execute(StepPlan((blocks.chunk(bad), blocks.chunk(good))))
    assert set(result.failed) == {"bad"}
    assert re.search(message, result.failed["bad"])
    assert result.sampled["good"].token_id == llama.reference_logits(good.token_ids)[-1].argmax()


def poisoned_executor(family, token):
    """An executor whose model overflows at one token, as fp16 models do."""
    executor = family.executor(num_blocks=16)
    with torch.inference_mode():
        executor._runner._decoder._weights.embedding[token] = torch.inf
    return executor


def test_numbers_that_are_not_finite_fail_alone_and_leave_nothing_behind(llama, make_request, sequencer):
    poison, tokens = 9, [t for t in llama.tokens(80) if t != 9]
    executor = poisoned_executor(llama, poison)
    blocks = sequencer(executor)
    good, bad = (
        make_request(tokens[:18], "good"),
        make_request([*tokens[20:30], poison, *tokens[30:35]], "bad"),
    )
    result = executor.execute(StepPlan((blocks.chunk(good), blocks.chunk(bad))))
    assert set(result.failed) == {"bad"}
    assert "not finite" in result.failed["bad"]
    assert "float32" in result.failed["bad"]
    assert result.sampled["good"].token_id == llama.reference_logits(good.token_ids)[-1].argmax()
    # The failed request's blocks go to others, whose masked positions they are first.
    blocks.release(bad)
    for name in ("next", "after"):
        request = make_request(tokens[40:57], name)
        parts = [executor.logits([blocks.chunk(request, count)]) for count in (5, 1, 1, 6, 1, 3)]
        assert torch.cat(parts).isfinite().all()


def test_overflow_is_seen_in_the_chunk_where_it_happens(llama, make_request, sequencer):
    """Before the blocks are shared as a cached prefix, that is, not when a token is sampled at last."""
    executor = poisoned_executor(llama, 9)
    request = make_request([1, 2, 9, 3, 4, 5, 6, 7], "bad")
    result = executor.execute(StepPlan((sequencer(executor).chunk(request, 4),)))
    assert set(result.failed) == {"bad"}


def test_a_decode_that_overflows_fails_alone_in_its_group(llama, make_request, sequencer):
    executor = poisoned_executor(llama, 9)
    blocks = sequencer(executor)
    requests = [make_request([1, 2, 3], "a"), make_request([4, 5, 9], "bad"), make_request([6, 7, 8], "c")]
    executor.execute(StepPlan(tuple(blocks.chunk(r, 2) for r in requests)))
    result = executor.execute(StepPlan(tuple(blocks.chunk(r, 1) for r in requests)))
    assert set(result.failed) == {"bad"}
    for request in (requests[0], requests[2]):
        expected = llama.reference_logits(request.token_ids)[-1].argmax()
        assert result.sampled[request.request_id].token_id == expected


def test_what_does_not_fit_in_memory_fails_and_the_rest_is_retried(
    llama, make_request, sequencer, monkeypatch
):
    executor = llama.executor()
    forward = executor._runner._decoder.forward
    sizes = []

    def limited(inputs, *others):
        sizes.append(inputs.num_tokens)
        if inputs.num_tokens > 20:
            raise torch.cuda.OutOfMemoryError("tried to allocate 1 GiB")
        return forward(inputs, *others)

    monkeypatch.setattr(executor._runner._decoder, "forward", limited)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    blocks = sequencer(executor)
    requests = [make_request(llama.tokens(n, n), f"r{n}") for n in (6, 15, 40, 9)]
    result = executor.execute(StepPlan(tuple(blocks.chunk(r) for r in requests)))
    assert set(result.failed) == {"r40"}
    assert "out of GPU memory" in result.failed["r40"]
    for request in (requests[0], requests[1], requests[3]):
        expected = llama.reference_logits(request.token_ids)[-1].argmax()
        assert result.sampled[request.request_id].token_id == expected
    assert sizes == [70, 21, 6, 15, 49, 40, 9]


def test_a_closed_executor_says_so(llama, make_request, sequencer):
    executor = llama.executor()
    chunk = sequencer(executor).chunk(make_request([1, 2]))
    executor.close()
    with pytest.raises(RuntimeError, match="closed"):
        executor.execute(StepPlan((chunk,)))


def test_it_describes_itself(llama):
    executor = llama.executor(dtype=torch.bfloat16, block_size=8, num_blocks=None, max_num_seqs=3)
    description = executor.description
    assert description["backend"] == "torch"
    assert description["device"] == "cpu"
    assert description["dtype"] == description["kv_cache_dtype"] == "bfloat16"
    assert executor.block_size == 8
    assert executor.num_blocks == 3 * 256 // 8
