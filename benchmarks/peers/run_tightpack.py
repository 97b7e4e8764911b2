"""tightpack through its offline interface; `settings` are engine arguments."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import version

from runner_protocol import Job, run

from tightpack import LLM, SamplingParams

# As the `tightpack` command has it, so that offline and HTTP compare.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

BLOCK_SIZE = 16


class Tightpack:
    name = "tightpack"

    def __init__(self, job: Job) -> None:
        defaults = {
            "num_threads": job.threads,
            "max_model_len": job.max_model_len,
            "max_num_seqs": job.max_streams,
            "block_size": BLOCK_SIZE,
            "num_blocks": -(-job.kv_tokens // BLOCK_SIZE),
            "enable_prefix_caching": False,
        }
        self._llm = LLM(job.model, **defaults | job.settings)
        self.version = f"{version('tightpack')} ({self._llm.engine.executor.description['backend']})"

    def prepare(self, streams: int, tokens: int) -> None:
        """The pool was sized on loading."""

    def generate(self, prompts: Sequence[Sequence[int]], output_len: int) -> list[int]:
        params = SamplingParams(temperature=0, max_tokens=output_len, ignore_eos=True)
        outputs = self._llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        return [len(output.outputs[0].token_ids) for output in outputs]


if __name__ == "__main__":
    run(Tightpack)
