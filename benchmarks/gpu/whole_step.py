"""Whole steps of the PyTorch executor on random weights: what an engine gets, host time included."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from gpu.random_model import Scheme, random_checkpoint

from tightpack.architectures.model_spec import ModelSpec
from tightpack.requests.request import Request
from tightpack.requests.sampling_params import SamplingParams
from tightpack.scheduling.plan import Chunk, StepPlan
from tightpack.schemes.quantized import KVCacheFormat
from tightpack.torch_backend.executor import TorchExecutor

_BLOCK = 16
_WARM_UPS = 5


@dataclass(frozen=True, slots=True)
class StepResult:
    """One row of the step table.

    seconds: of the median step. weight_bytes: read by a decode step. gap_share: of a decode step's time in
    which the GPU ran nothing; None where it was not measured.
    """

    scheme: str
    kv_cache: str
    what: str
    rows: int
    seconds: float
    tokens_per_second: float
    weight_bytes: int
    gap_share: float | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Stepper:
    """An executor with requests in the middle of their answers. context: tokens of each before the first."""

    def __init__(
        self,
        spec: ModelSpec,
        scheme: Scheme,
        kv_cache: str,
        device: torch.device,
        *,
        streams: int,
        context: int,
        prompt: int,
        steps: int,
    ) -> None:
        self.scheme, self.kv_cache, self._context, self._prompt = scheme, kv_cache, context, prompt
        blocks = -(-(context + 4 * steps + 64) // _BLOCK)
        self.executor = TorchExecutor(
            random_checkpoint(spec, scheme),
            dtype=torch.bfloat16,
            kv_cache=None if kv_cache == "bf16" else KVCacheFormat(precision="fp8"),
            device=device,
            block_size=_BLOCK,
            num_blocks=streams * blocks + -(-prompt // _BLOCK) + 1,
            max_num_seqs=streams,
            max_num_batched_tokens=max(prompt, streams),
            max_model_len=max(prompt, blocks * _BLOCK),
        )
        self._device, self._vocabulary, self._steps = device, spec.vocab_size, steps
        self._requests = [self._request(f"stream {i}", context) for i in range(streams)]
        self._tables = [tuple(range(i * blocks, (i + 1) * blocks)) for i in range(streams)]
        first = streams * blocks
        self._prompt_table = tuple(range(first, first + -(-prompt // _BLOCK)))
        for request, table in zip(self._requests, self._tables, strict=True):
            self._run([Chunk(request, 0, context, table)])

    def decode(self, streams: int) -> float:
        """Seconds of a step of the first `streams` requests."""
        return self._median(lambda: self._decode(streams))

    def prefill(self) -> float:
        """Seconds of a whole prompt in one step."""
        request = self._request("prompt", self._prompt)
        return self._median(lambda: self._run([Chunk(request, 0, self._prompt, self._prompt_table)]))

    def gap_share(self, streams: int) -> float | None:
        """Of some decode steps, the time between kernels; None off CUDA."""
        if self._device.type != "cuda":
            return None
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            for _ in range(self._steps):
                self._decode(streams)
            torch.cuda.synchronize()
        spans = sorted(
            (event.time_range.start, event.time_range.end)
            for event in profile.events()
            if event.device_type == torch.profiler.DeviceType.CUDA
        )
        if not spans:
            return None
        busy, end = 0.0, spans[0][0]
        for start, stop in spans:
            busy += max(0.0, stop - max(start, end))
            end = max(end, stop)
        return 1 - busy / (end - spans[0][0])

    def close(self) -> None:
        self.executor.close()

    def _request(self, name: str, tokens: int) -> Request:
        prompt = tuple((7 * i + len(name)) % self._vocabulary for i in range(tokens))
        params = SamplingParams(temperature=0.0, max_tokens=10**4)
        return Request(
            request_id=name, prompt_token_ids=prompt, params=params, seed=0, max_output_tokens=10**4
        )

    def _decode(self, streams: int) -> None:
        requests = self._requests[:streams]
        chunks = [
            Chunk(request, len(request.token_ids) - 1, 1, table)
            for request, table in zip(requests, self._tables, strict=False)
        ]
        self._run(chunks)
        for request in requests:
            # The same place again and again: contexts stay as long as they were.
            request.token_ids[-1] = (request.token_ids[-1] + 1) % self._vocabulary

    def _run(self, chunks: list[Chunk]) -> None:
        result = self.executor.execute(StepPlan(tuple(chunks)))
        if result.failed:
            raise RuntimeError(f"the step failed: {next(iter(result.failed.values()))}")

    def _median(self, run: Any) -> float:
        seconds = []
        for index in range(_WARM_UPS + self._steps):
            start = time.perf_counter()
            # A step ends with its tokens on the host, so nothing is left running.
            run()
            if index >= _WARM_UPS:
                seconds.append(time.perf_counter() - start)
        return median(seconds)


def measure(
    spec: ModelSpec,
    scheme: Scheme,
    kv_cache: str,
    device: torch.device,
    *,
    streams: tuple[int, ...],
    context: int,
    prompt: int,
    steps: int,
) -> list[StepResult]:
    """Decode at each number of streams, and one long prompt."""
    stepper = Stepper(
        spec, scheme, kv_cache, device, streams=max(streams), context=context, prompt=prompt, steps=steps
    )
    weight_bytes = _weight_bytes(spec, scheme)
    results = []
    try:
        for count in streams:
            seconds = stepper.decode(count)
            gap = stepper.gap_share(count)
            results.append(
                StepResult(scheme, kv_cache, "decode", count, seconds, count / seconds, weight_bytes, gap)
            )
        seconds = stepper.prefill()
        results.append(
            StepResult(scheme, kv_cache, "prefill", prompt, seconds, prompt / seconds, weight_bytes, None)
        )
    finally:
        stepper.close()
    return results


def _weight_bytes(spec: ModelSpec, scheme: Scheme) -> int:
    """Of all linears, the head included; a decode reads a row a token of the embedding."""
    source = random_checkpoint(spec, scheme)
    total = 0
    for name, shape in spec.tensor_shapes().items():
        if len(shape) == 2 and name != "model.embed_tokens.weight":
            total += source.read_linear(name.removesuffix(".weight")).weight.num_bytes
    return total
