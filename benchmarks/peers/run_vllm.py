"""vLLM's CPU backend; `settings` are arguments of its LLM."""

from __future__ import annotations

import os
from collections.abc import Sequence

from runner_protocol import Job, run


class Vllm:
    name = "vLLM CPU"

    def __init__(self, job: Job) -> None:
        # Its threads are bound to the cores named here; left to itself it may keep one of them free.
        cores = sorted(os.sched_getaffinity(0))[: job.threads]
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB, the least it takes
        os.environ["VLLM_LOGGING_LEVEL"] = "WARNING"
        os.environ["HF_HUB_OFFLINE"] = "1"
        import vllm

        self.version = vllm.__version__
        self._params = vllm.SamplingParams
        defaults = {
            "dtype": "bfloat16",
            "max_model_len": job.max_model_len,
            "max_num_seqs": job.max_streams,
            "enable_prefix_caching": False,
        }
        self._llm = vllm.LLM(model=job.model, **defaults | job.settings)

    def prepare(self, streams: int, tokens: int) -> None:
        """The pool was sized on loading."""

    def generate(self, prompts: Sequence[Sequence[int]], output_len: int) -> list[int]:
        params = self._params(temperature=0, max_tokens=output_len, ignore_eos=True, detokenize=False)
        outputs = self._llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        return [len(output.outputs[0].token_ids) for output in outputs]


# Its engine is a child process that imports this file again.
if __name__ == "__main__":
    run(Vllm)
