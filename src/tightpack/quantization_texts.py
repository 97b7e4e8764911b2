"""What a quantized checkpoint is calibrated and measured on: a text of the user's, or the model's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tightpack.calibration.config import QuantizationConfig, QuantizationRecipe
from tightpack.calibration.data_sets import open_text
from tightpack.calibration.text import text_prefix
from tightpack.checkpoints.checkpoint import Checkpoint
from tightpack.llm import LLM
from tightpack.requests.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Texts:
    """calibration: int64 [samples, length], None where the method takes none; held_out: int64 [samples,
    length]. Sources are for the report."""

    calibration: NDArray[np.int64] | None
    held_out: NDArray[np.int64]
    calibration_source: str
    held_out_source: str


def choose_texts(
    model: str,
    checkpoint: Checkpoint,
    recipe: QuantizationRecipe,
    calibration: str | Path | None,
    evaluation: str | Path | None,
    say: Callable[[str], None],
) -> Texts:
    """See `quantize` for calibration and evaluation. model: as the checkpoint was opened, for the engine that
    writes; say: told before that begins. Raises ValueError for a text too short."""
    config, tokenizer = recipe.config, checkpoint.tokenizer
    length = config.sequence_length
    samples = config.samples if recipe.needs_text else 0
    judged = config.evaluation_samples
    if calibration is None and (samples or evaluation is None):
        wanted = samples + (judged if evaluation is None else 0)
        say(f"the model writes {wanted} x {length} tokens to calibrate and measure on")
        written = _own_text(model, checkpoint, config, wanted)
        source = f"written by the model itself, seed {config.seed}"
        parts = written[:samples], written[samples:]
        if evaluation is None:
            return Texts(parts[0] if samples else None, parts[1], source, source)
        held_out, name = _held_out(evaluation, checkpoint, length, judged)
        return Texts(parts[0], held_out, source, name)
    calibrating = None
    source = "none: the method rounds weights alone"
    if calibration is not None and (samples or evaluation is None):
        wanted = samples + (judged if evaluation is None else 0)
        text = open_text(calibration, tokenizer, wanted * length)
        left = text.num_sequences(length) - samples
        if evaluation is None and left < 1:
            text.sequences(length, count=samples + 1)  # says how many tokens there are
        if samples:
            calibrating = text.sequences(length, count=samples)
            source = f"the first {samples} x {length} tokens of {_called(calibration)}"
        if evaluation is None:
            judged = min(judged, left)
            held_out = text.sequences(length, skip=-judged)
            name = f"the last {judged} x {length} tokens of {_called(calibration)}"
            return Texts(calibrating, held_out, source, name)
    assert evaluation is not None
    held_out, name = _held_out(evaluation, checkpoint, length, judged)
    return Texts(calibrating, held_out, source, name)


def _called(source: str | Path) -> str:
    """A file by its name, a data set as it was given."""
    return Path(source).name if Path(source).expanduser().is_file() else str(source)


def _held_out(
    source: str | Path, checkpoint: Checkpoint, length: int, count: int
) -> tuple[NDArray[np.int64], str]:
    text = open_text(source, checkpoint.tokenizer, count * length)
    count = max(1, min(count, text.num_sequences(length)))
    return text.sequences(length, count=count), f"the first {count} x {length} tokens of {_called(source)}"


def _own_text(
    model: str, checkpoint: Checkpoint, config: QuantizationConfig, count: int
) -> NDArray[np.int64]:
    """int64 [count, length], sampled at temperature 1 (as Liu et al. 2023, LLM-QAT, arXiv:2305.17888) from
    the beginning-of-text token, or from a token drawn at random where the model has none. The same seed and
    machine give the same tokens."""
    length, spec = config.sequence_length, checkpoint.spec
    prefix = list(text_prefix(checkpoint.tokenizer))
    if not prefix and spec.bos_token_id is not None:
        prefix = [spec.bos_token_id]
    draws = np.random.default_rng(config.seed).integers(0, checkpoint.tokenizer.vocab_size, count)
    llm = LLM(
        model=model,
        device=config.device,
        max_model_len=length + 1 if length < spec.max_position_embeddings else length,
        max_num_seqs=min(32, count),
        enable_prefix_caching=False,
        policy="continuous",
    )
    try:
        prompts = [{"prompt_token_ids": prefix or [int(draws[index])]} for index in range(count)]
        wanted = length - len(prompts[0]["prompt_token_ids"])
        params = [
            SamplingParams(temperature=1.0, max_tokens=wanted, ignore_eos=True, seed=config.seed + index)
            for index in range(count)
        ]
        outputs = llm.generate(prompts, params, use_tqdm=False)
        rows = [[*(o.prompt_token_ids or ()), *o.outputs[0].token_ids] for o in outputs]
    finally:
        llm.engine.executor.close()
    return np.asarray(rows, dtype=np.int64)
