"""OpenVINO GenAI with its continuous batching scheduler; `settings` are properties of the CPU device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import openvino
import openvino_genai
from runner_protocol import Job, run

BLOCK_SIZE = 32  # of its CPU backend
CHUNK_TOKENS = 512


class OpenVino:
    name = "OpenVINO GenAI"
    version = openvino_genai.__version__.split("-")[0]

    def __init__(self, job: Job) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.num_kv_blocks = -(-job.kv_tokens // BLOCK_SIZE)
        scheduler.max_num_batched_tokens = CHUNK_TOKENS
        scheduler.max_num_seqs = job.max_streams
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = False
        properties = {"INFERENCE_NUM_THREADS": job.threads, **job.settings}
        self._pipeline = openvino_genai.LLMPipeline(
            job.model, "CPU", scheduler_config=scheduler, **properties
        )

    def prepare(self, streams: int, tokens: int) -> None:
        """The pool was sized on loading."""

    def generate(self, prompts: Sequence[Sequence[int]], output_len: int) -> list[int]:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = output_len
        config.ignore_eos = True
        config.do_sample = False
        config.apply_chat_template = False
        ids = np.asarray(prompts, dtype=np.int64)
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        return [len(tokens) for tokens in self._pipeline.generate(inputs, config).tokens]


if __name__ == "__main__":
    run(OpenVino)
