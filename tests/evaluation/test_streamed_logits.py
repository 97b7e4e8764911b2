"""Layer by layer and in the serving executor: the same logits, for every family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tightpack.checkpoints.open import open_checkpoint
from tightpack.evaluation.sequence_logits import SequenceLogits
from tightpack.evaluation.streamed_logits import streamed_logits

SEQUENCES = np.random.default_rng(0).integers(0, 96, (3, 24))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma3", "mixtral", "qwen3_moe"])
def test_equals_the_executor(family: str, tiny_model: Callable[[str], Path]) -> None:
    checkpoint = open_checkpoint(str(tiny_model(family)))
    with SequenceLogits(checkpoint, sequence_length=24) as executor:
        expected = torch.stack(list(executor.each(SEQUENCES)))
    found = torch.stack(list(streamed_logits(checkpoint, SEQUENCES)))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_equals_transformers(tiny_model: Callable[[str], Path]) -> None:
    import transformers

    directory = tiny_model("gemma3")
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = model(torch.from_numpy(SEQUENCES)).logits
    found = torch.stack(list(streamed_logits(open_checkpoint(str(directory)), SEQUENCES)))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_too_long_a_sequence_is_refused(tiny_model: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match="sequence_length=500 is beyond the 128 positions"):
        SequenceLogits(open_checkpoint(str(tiny_model("llama"))), sequence_length=500)
