"""GPTQ by llm-compressor, timed: run by `quantize_time.py` with the interpreter of its environment.

    python quantize_llmcompressor.py MODEL TEXT SAMPLES LENGTH GROUP_SIZE

Prints one line of JSON: the seconds of `oneshot` alone, without loading or saving, and the process's peak
memory.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path


def main(model_path: str, text: str, samples: int, length: int, group_size: int) -> None:
    import torch
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.bfloat16)
    ids = tokenizer(Path(text).read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    rows = [ids[first * length : (first + 1) * length] for first in range(samples)]
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * length] * samples})
    weights = QuantizationArgs(
        num_bits=4, type="int", symmetric=False, strategy="group", group_size=group_size
    )
    groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    recipe = GPTQModifier(config_groups=groups, ignore=["lm_head"])
    started = time.perf_counter()
    oneshot(model=model, recipe=recipe, dataset=data, num_calibration_samples=samples, max_seq_length=length)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        json.dumps({"seconds": seconds, "peak_memory_bytes": peak, "version": version("llmcompressor")}),
        flush=True,
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]))
