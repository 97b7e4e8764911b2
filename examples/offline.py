"""Complete a few prompts and print each request's own latency."""

from __future__ import annotations

from tightpack import LLM, SamplingParams
from tightpack.latency.request_latency import RequestLatency


def main() -> None:
    llm = LLM(model="smollm2-135m", max_num_seqs=8)
    prompts = ["The capital of France is", "Water boils at", "The first person on the Moon was"]
    for output in llm.generate(prompts, SamplingParams(temperature=0, max_tokens=24)):
        completion = output.outputs[0]
        assert completion.metrics is not None
        latency = RequestLatency.from_timings(completion.metrics)
        print(f"{output.prompt}{completion.text}")
        print(f"  first token after {latency.ttft_s:.3f} s, {len(completion.token_ids)} tokens\n")


if __name__ == "__main__":
    main()
