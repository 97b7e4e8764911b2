"""A checkpoint with a wrong static scale, served: the layer is found between steps and leaves its scale."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from tightpack.on_load import quantize_on_load
from tightpack.scheduling.limits import SchedulerLimits
from tightpack.scheduling.plan import StepPlan
from tightpack.scheduling.registry import make_policy
from tightpack.serving_loop.clock import MonotonicClock
from tightpack.serving_loop.loop import ServingLoop
from tightpack.torch_backend import model_runner
from tightpack.torch_backend.model_runner import ModelRunner, RunnerOptions
from tightpack.torch_backend.rank_group import RankGroup, open_store
from tightpack.torch_backend.rounded_kv_cache import unrounded
from tightpack.torch_backend.step_inputs import Piece

WRONG = "model.layers.1.mlp.down_proj"
QKV = "model.layers.0.self_attn."
FITTING = {QKV + name: 0.2 for name in ("q_proj", "k_proj", "v_proj")}


class StaticInputs:
    """A TensorSource of quantized linears, with static input scales in the place of some; None for none."""

    def __init__(self, source, scales):
        self.source, self.scales = source, scales

    @property
    def infos(self):
        return self.source.infos

    def read(self, name):
        return self.source.read(name)

    def read_linear(self, name):
        linear = self.source.read_linear(name)
        if name not in self.scales:
            return linear
        scale = self.scales[name]
        return replace(linear, activation=scale and replace(linear.activation, scale=scale))


def with_scales(family, scales):
    rounded = quantize_on_load(family.checkpoint, "w8a8", llm_int8_threshold=6.0)
    return replace(rounded, tensors=StaticInputs(rounded.tensors, scales))


@pytest.fixture(autouse=True)
def polls_every_fourth_step(monkeypatch):
    monkeypatch.setattr(model_runner, "_STEPS_A_POLL", 4)


def test_a_loop_counts_them(llama, make_request, make_executor):
    """For `/metrics`."""
    executor = make_executor(with_scales(llama, {WRONG: 1e-4}))
    limits = SchedulerLimits(
        max_num_seqs=4,
        max_num_batched_tokens=64,
        max_model_len=256,
        block_size=executor.block_size,
        num_blocks=executor.num_blocks,
    )
    loop = ServingLoop(make_policy("chunked-prefill", limits), executor, MonotonicClock())
    for index in range(4):
        loop.add(make_request(llama.tokens(100, index), f"r{index}", max_tokens=1))
    assert loop.stats.unrounded_layers == 0
    while loop.has_unfinished:
        loop.step()
    assert loop.stats.unrounded_layers == 1


def serve(executor, blocks, requests):
    """Prompts, each a step; what the steps said of layers that have left their scale."""
    return [executor.execute(StepPlan((blocks.chunk(r),))).unrounded_layers for r in requests]


def test_a_wrong_scale_is_found_named_and_left(llama, make_request, make_executor, sequencer, caplog):
    executor = make_executor(with_scales(llama, FITTING | {WRONG: 1e-4}))
    right = make_executor(with_scales(llama, FITTING | {WRONG: None}))
    requests = [make_request(llama.tokens(80, i), f"r{i}") for i in range(6)]
    last = make_request(llama.tokens(30, 9), "last")
    clipped = executor.logits([sequencer(executor).chunk(make_request(llama.tokens(30, 9)))])
    with caplog.at_level(logging.WARNING):
        counts = serve(executor, sequencer(executor), requests)
    # The fifth step finds it, and is computed without it.
    assert counts == [0, 0, 0, 1, 1, 1]
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{WRONG}: ")
    assert "runs unrounded" in line
    assert executor._runner.unrounded == (WRONG,)
    logits = executor.logits([sequencer(executor).chunk(last)])
    last.num_computed_tokens = 0
    wanted = right.logits([sequencer(right).chunk(last)])
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)
    assert (clipped - wanted).abs().max() > 0.1


def test_layers_are_named_and_what_fits_stays(llama, make_request, make_executor, sequencer, caplog):
    executor = make_executor(with_scales(llama, FITTING | {WRONG: 10.0}))
    assert set(executor._runner._guard._rounded) == {f"{QKV}q_proj, k_proj, v_proj", WRONG}
    requests = [make_request(llama.tokens(80, i), f"r{i}") for i in range(10)]
    assert serve(executor, sequencer(executor), requests) == [0] * 10
    assert not caplog.records


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"], indirect=True)
def test_experts_are_watched_one_by_one(family, make_executor):
    spec = family.checkpoint.spec
    index, experts = next((i, layer.experts) for i, layer in enumerate(spec.layers) if layer.experts)
    names = [f"model.layers.{index}.{experts.down.format(n)}" for n in (0, 2)]
    executor = make_executor(with_scales(family, dict.fromkeys(names, 0.1)))
    assert set(executor._runner._guard._rounded) == set(names)


def test_many_rows_do_not_wait_for_many_steps(llama, make_request, make_executor, sequencer, monkeypatch):
    """Counters are int32."""
    monkeypatch.setattr(model_runner, "_STEPS_A_POLL", 1000)
    monkeypatch.setattr(model_runner, "_ROWS_A_POLL", 300)
    executor = make_executor(with_scales(llama, {WRONG: 1e-4}))
    requests = [make_request(llama.tokens(100, i), f"r{i}") for i in range(5)]
    assert serve(executor, sequencer(executor), requests) == [0, 0, 0, 1, 1]


@pytest.fixture
def graphs(fake_cuda_graphs, monkeypatch):
    """The runner records them, though the device is none of theirs."""
    monkeypatch.setattr(ModelRunner, "_record", lambda self: self._decode and self._decode.record((0, 1)))
    return fake_cuda_graphs


def test_graphs_are_recorded_again(llama, make_request, make_executor, sequencer, graphs, monkeypatch):
    """Rows of replays count, those of recording do not; old graphs, of the layer that was, are gone."""
    monkeypatch.setattr(model_runner, "_STEPS_A_POLL", 130)
    executor = make_executor(with_scales(llama, {WRONG: 10.0}), static_decode=True, max_num_seqs=2)
    blocks, requests = sequencer(executor), [make_request([i], f"r{i}") for i in range(2)]
    assert len(graphs) == 2  # of 1 and 2 rows
    layer = executor._runner._guard._rounded[WRONG]
    assert layer.rows == 0
    with torch.inference_mode():
        layer.saturated += 30  # of 260 rows of 96 inputs; 0.1 % is 25
    counts = []
    for _ in range(132):
        result = executor.execute(StepPlan(tuple(blocks.chunk(request) for request in requests)))
        counts.append(result.unrounded_layers)
        for request in requests:
            request.token_ids.append(1)
    assert counts == [0] * 130 + [1, 1]
    assert [graph.replays for graph in graphs] == [130, 0, 2, 0]
    assert layer.switched


def test_two_ranks_leave_a_scale_together(llama):
    """By their counts together, though rank 0 alone would see nothing wrong."""
    checkpoint = with_scales(llama, FITTING | {WRONG: 10.0})
    store = open_store(0, 2)
    options = RunnerOptions(
        dtype=torch.float32,
        kv_format=unrounded(torch.float32),
        device=torch.device("cpu"),
        block_size=4,
        num_blocks=64,
        max_num_seqs=4,
        max_num_batched_tokens=128,
        max_model_len=128,
    )
    pieces = [Piece(tuple(llama.tokens(100)), 0, tuple(range(25)))]

    def be(rank):
        torch.set_num_threads(1)
        group = RankGroup(rank, 2)
        with torch.inference_mode():
            runner = ModelRunner(checkpoint, options, group)
            group.join(store if rank == 0 else open_store(store.port, 2), runner.device)
            runner.allocate()
            if rank == 1:
                # Of 400 rows of 96 inputs, of which each rank has half: 0.1 % is 38.
                runner._guard._rounded[WRONG].saturated += 45
            for _ in range(5):
                computed = runner.forward(pieces)
            return runner.unrounded, runner.logits(range(100)).clone(), computed

    with ThreadPoolExecutor(2) as pool:
        (first, logits, _), (second, same, _) = pool.map(be, range(2))
    assert first == second == (WRONG,)
    assert torch.equal(logits, same)
